"""The registry of protocols: every module of this package that defines PROTOCOL, by the protocol's name."""

import dataclasses
import functools
import importlib
import math
import pkgutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.float32 import in_float32

# Metadata of fields that a config got after results with it were published.
LATER = {"later": True}


class Result(NamedTuple):
    """Scores on one data set.

    Attributes:
        scores: scores under their usual names, in percent, as results.json holds them; and what they are of, under
            names that begin with "num_", which are shown beside the score.
        dataset: what identifies the images, for the fingerprint.
        root: folder of the data set.
        seconds: duration of each phase.
        settings: what moves the score beside the protocol's config, such as sizes that the data decided.
        conventions: those of the protocol that its config changed.
    """

    scores: dict[str, Any]
    dataset: dict[str, Any]
    root: Path
    seconds: dict[str, float]
    settings: Mapping[str, Any] = {}
    conventions: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to score frozen features.

    Attributes:
        name: name in configs/eval and results.json, and of its group of settings there.
        title: heading in reports.
        description: paragraph for readers of a report.
        config: frozen dataclass of every setting that moves the score.
        open_dataset: returns the labeled data that the group `dataset` of a config names.
        evaluate: function of (features, dataset, config, output) that scores frozen features; it writes pictures to
            the folder `output`, unless that is None, and raises ValueError if patches do not tile the images, a file
            cannot be used, or there is nothing to score.
        main_score: key of the score that the protocol is known by; where it is a mean over seeds, `seed_KEY` has the
            score of each and `KEY_deviation` their standard deviation.
        score_labels: names of the scores to show, by key; the main score first.
        class_scores: key of the scores of classes or objects, if there are any.
        class_label: what these are.
        conventions: what the code does that no setting changes, spelled out in the fingerprint.
    """

    name: str
    title: str
    description: str
    config: Callable[..., Any]
    open_dataset: Callable[..., Any]
    evaluate: Callable[[FrozenFeatures, Any, Any, Path | None], Result]
    main_score: str
    score_labels: Mapping[str, str]
    conventions: Mapping[str, Any]
    class_scores: str = ""
    class_label: str = ""

    def prepare(self, config: Mapping[str, Any]) -> Callable[[FrozenFeatures, Path | None], Result]:
        """Checks the settings of a configs/eval file and opens its data; returns `evaluate` with these arguments bound.

        Raises:
            ValueError: for settings that cannot work, or data that cannot be used.
        """
        if not config["dataset"]["root"]:
            raise ValueError("dataset.root is empty: name a data set; the config file says what it holds")
        settings, dataset = self.config(**config[self.name]), self.open_dataset(**config["dataset"])

        @in_float32
        def score(features: FrozenFeatures, output: Path | None) -> Result:
            result = self.evaluate(features, dataset, settings, output)
            for name in self.score_labels:
                if not math.isfinite(result.scores.get(name) or 0):
                    raise ValueError(f"{name} is {result.scores[name]}: there is nothing to score, or no finite number")
            return result

        return score

    def fingerprint(self, config: Mapping[str, Any], result: Result) -> dict[str, Any]:
        """Returns everything that moves the score of a configs/eval file, apart from the backbone.

        Fields of the config with `LATER` as metadata are left out where they have their default, so that results
        compare with those of versions that had no such setting.
        """
        used = self.config(**config[self.name])
        settings = {
            field.name: value
            for field, value in zip(dataclasses.fields(used), dataclasses.asdict(used).values(), strict=True)
            if not (field.metadata == LATER and value == field.default)
        }
        conventions = dict(self.conventions) | dict(result.conventions)
        return {self.name: settings | dict(result.settings), "conventions": conventions, "dataset": result.dataset}


@functools.cache
def find_protocols() -> dict[str, Protocol]:
    """Returns all protocols by name, in alphabetical order."""
    names = (name for _, name, _ in pkgutil.iter_modules([str(Path(__file__).parent)]))
    modules = [importlib.import_module(f"croc_jax.evaluation.{name}") for name in names]
    found = {module.PROTOCOL.name: module.PROTOCOL for module in modules if hasattr(module, "PROTOCOL")}
    return dict(sorted(found.items()))


def get_protocol(name: str) -> Protocol:
    """Returns a protocol; ValueError for an unknown name."""
    if name not in find_protocols():
        raise ValueError(f"protocol={name!r}: choose one of {', '.join(find_protocols())}")
    return find_protocols()[name]


class Timer:
    """Measures the phases of an evaluation; `seconds` holds the duration of each finished one."""

    def __init__(self) -> None:
        """Starts the first phase."""
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def end(self, phase: str) -> None:
        """Ends the current phase and starts the next."""
        now = time.perf_counter()
        self.seconds[phase], self._start = now - self._start, now
