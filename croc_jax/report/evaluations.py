"""Evaluations of several checkpoints, read from their results.json and put in comparable groups."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from croc_jax.evaluation.backbones import RANDOM
from croc_jax.evaluation.registry import Protocol, find_protocols
from croc_jax.evaluation.results import RESULTS, digest

RANDOM_LABEL = "random weights"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One results.json: the folder that holds it and pictures, its content, and a name of the weights."""

    folder: Path
    results: dict[str, Any]
    label: str

    @property
    def protocol(self) -> Protocol:
        """The protocol."""
        return find_protocols()[self.results["protocol"]]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What moves the score."""
        return self.results["fingerprint"]

    @property
    def score(self) -> float:
        """The score that the protocol is known by, in percent."""
        return self.results[self.protocol.main_score]

    @property
    def class_scores(self) -> dict[str, float | None]:
        """Scores of classes or objects by name; of several scores, their mean."""
        found = self.results.get(self.protocol.class_scores, {})
        return {name: float(np.mean(list(of.values()))) if isinstance(of, dict) else of for name, of in found.items()}

    @property
    def settings(self) -> dict[str, Any]:
        """What results must share to be comparable: all of the fingerprint but the weights and the seeds."""
        name, shared = self.protocol.name, dict(self.fingerprint)
        for compared in ("backbone", "which", "digest"):
            shared.pop(compared, None)
        return shared | {name: {k: v for k, v in shared.get(name, {}).items() if k not in ("seed", "seeds")}}


@dataclasses.dataclass(frozen=True)
class Entry:
    """All evaluations of the same weights by the same protocol, which differ in the seed."""

    label: str
    evaluations: tuple[Evaluation, ...]

    @property
    def seed_scores(self) -> list[float]:
        """The score of each seed; an evaluation may hold several."""
        scores = (one.results.get(f"seed_{one.protocol.main_score}", [one.score]) for one in self.evaluations)
        return [score for of_seeds in scores for score in of_seeds]

    @property
    def score(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.seed_scores))

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (of the sample); None for one."""
        scores = self.seed_scores
        return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


@dataclasses.dataclass(frozen=True)
class Group:
    """Comparable evaluations, with the same `Evaluation.settings`; random weights first, then by score."""

    protocol: Protocol
    settings: dict[str, Any]
    entries: tuple[Entry, ...]

    @property
    def dataset(self) -> dict[str, Any]:
        """What identifies the images."""
        return self.settings["dataset"]


def read_evaluations(folders: Sequence[Path]) -> list[Evaluation]:
    """Returns all results below some folders, in the order of their paths.

    Raises:
        ValueError: for a missing folder, or a results.json of another program.
    """
    contents: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}: name folders that evaluate.py wrote in, or workdirs")
        contents |= {file: _read(file) for file in sorted(folder.rglob(RESULTS)) if file not in contents}
    labels = _label_checkpoints(list(contents.values()))
    return [Evaluation(file.parent, of, label) for (file, of), label in zip(contents.items(), labels, strict=True)]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        complete = _is_complete(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        complete = False
    if not complete:
        raise ValueError(f"{file} was not written by evaluate.py, or by another version of it: remove or repeat it")
    return content


def _is_complete(content: Any) -> bool:
    """Returns whether all that a comparison shows is there; raises what a look at other contents raises."""
    protocol, fingerprint = find_protocols()[content["protocol"]], content["fingerprint"]
    groups = (
        fingerprint["dataset"],
        fingerprint[protocol.name],
        content["seconds"],
        content.get(protocol.class_scores, {}),
    )
    classes = [score for of in groups[-1].values() for score in (of.values() if isinstance(of, dict) else [of])]
    scores = [content[protocol.main_score], *content.get(f"seed_{protocol.main_score}", [])]
    return (
        all(isinstance(group, dict) for group in groups)
        and all(
            isinstance(name, str)
            for name in (content["checkpoint"], fingerprint["digest"], fingerprint["dataset"]["name"])
        )
        and all(isinstance(number, int | float) for number in (content["step"], *scores))
        and all(isinstance(score, int | float | None) for score in classes)
    )


def _label_checkpoints(contents: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a short name for the weights of each results.json; two checkpoints never share one."""
    paths = {content["checkpoint"]: Path(content["checkpoint"]) for content in contents}
    # A folder WORKDIR/checkpoints/STEP is named after its run.
    paths = {name: p.parent.parent if p.parent.name == "checkpoints" else p for name, p in paths.items()}
    depth, names = 1, {}
    while len(set(names.values())) < len(set(paths.values())):
        names = {path: "/".join(path.parts[-depth:]) for path in paths.values()}
        depth += 1
    labels = []
    for content in contents:
        student = ", student" if content["fingerprint"].get("which") == "student" else ""
        label = f"{names[paths[content['checkpoint']]]}, step {content['step']:,}{student}"
        labels.append(RANDOM_LABEL if content["checkpoint"] == RANDOM else label)
    return labels


def group_evaluations(evaluations: Sequence[Evaluation]) -> list[Group]:
    """Returns what can be compared side by side, by protocol and data set."""
    found: dict[str, list[Evaluation]] = {}
    for one in evaluations:
        found.setdefault(digest({"protocol": one.protocol.name, **one.settings}), []).append(one)
    groups = [_group(members) for members in found.values()]
    return sorted(groups, key=lambda group: (group.protocol.name, str(group.dataset)))


def _group(members: Sequence[Evaluation]) -> Group:
    by_weights: dict[tuple[str, str], dict[str, Evaluation]] = {}
    for one in members:
        # Architectures differ among random weights, too. A repetition of the same evaluation is no further seed.
        key = one.label, digest({"backbone": one.fingerprint.get("backbone")})
        by_weights.setdefault(key, {})[one.fingerprint["digest"]] = one
    entries = [Entry(label, tuple(of.values())) for (label, _), of in by_weights.items()]
    entries.sort(key=lambda entry: (entry.label != RANDOM_LABEL, entry.score))
    return Group(members[0].protocol, members[0].settings, tuple(entries))


def differing_settings(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns, for each group, its settings in which it differs from others of the same protocol and data set.

    The digest of the images is one of them; earlier versions did not state it.
    """
    different = []
    for group in groups:
        rivals = [_compared(other) for other in groups if _title_of(other) == _title_of(group)]
        own = _compared(group)
        different.append({name: v for name, v in own.items() if any(other.get(name) != v for other in rivals)})
    return different


def _title_of(group: Group) -> tuple[Any, ...]:
    return group.protocol.name, *(group.dataset.get(name) for name in ("kind", "name", "split", "val_split"))


def _compared(group: Group) -> dict[str, Any]:
    # Numbers of images follow from these.
    data = {name: v for name, v in group.dataset.items() if name in ("train_split", "hard", "num_classes")}
    return data | group.settings[group.protocol.name] | {"images": group.dataset.get("digest", "not identified")}
