"""Evaluations of several checkpoints, read from their results.json and put in comparable groups."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from croc_jax.evaluation.backbones import RANDOM
from croc_jax.evaluation.results import RESULTS, digest

# The score that a protocol is known by, and its name.
MAIN_SCORES = {
    "linear": ("miou", "mIoU"),
    "unsupervised": ("miou", "mIoU"),
    "retrieval": ("miou", "mIoU"),
    "video": ("jf_mean", "J&F"),
    "knn": ("top1", "top-1"),
    "classification": ("top1", "top-1"),
    "discovery": ("corloc", "CorLoc"),
}
# Of the fingerprint: what is compared, rather than how.
COMPARED = ("backbone", "which", "digest")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One results.json.

    Attributes:
        folder: that holds it, and pictures.
        results: its content.
        label: of the weights.
    """

    folder: Path
    results: dict[str, Any]
    label: str

    @property
    def protocol(self) -> str:
        """Name of the protocol."""
        return self.results["protocol"]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What moves the score."""
        return self.results["fingerprint"]

    @property
    def score(self) -> float:
        """The score that the protocol is known by, in percent."""
        return self.results[MAIN_SCORES[self.protocol][0]]

    @property
    def class_scores(self) -> dict[str, float | None]:
        """Scores of classes, or of objects, by name; empty where there are none."""
        if self.protocol == "video":
            return {name: (of["j_mean"] + of["f_mean"]) / 2 for name, of in self.results["objects"].items()}
        return self.results.get("class_iou") or self.results.get("class_accuracy") or {}

    @property
    def settings(self) -> dict[str, Any]:
        """What results must share to be comparable: all of the fingerprint but the weights and the seeds."""
        kept = {name: value for name, value in self.fingerprint.items() if name not in COMPARED}
        protocol = kept.get(self.protocol, {})
        seedless = {name: value for name, value in protocol.items() if name not in ("seed", "seeds")}
        return kept | {self.protocol: seedless}


@dataclasses.dataclass(frozen=True)
class Entry:
    """All evaluations of the same weights by the same protocol, which differ in the seed.

    Attributes:
        label: of the weights.
        evaluations: one or more.
    """

    label: str
    evaluations: tuple[Evaluation, ...]

    @property
    def seed_scores(self) -> list[float]:
        """The score of each seed; an evaluation may hold several."""
        return [score for one in self.evaluations for score in one.results.get("seed_miou", [one.score])]

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
    """Comparable evaluations: the same protocol, settings and images.

    Attributes:
        protocol: its name.
        dataset: what identifies the images.
        settings: see `Evaluation.settings`.
        entries: random weights first, then by score.
    """

    protocol: str
    dataset: dict[str, Any]
    settings: dict[str, Any]
    entries: tuple[Entry, ...]


def read_evaluations(folders: Sequence[Path]) -> list[Evaluation]:
    """Returns all results below some folders, in the order of their paths.

    Raises:
        ValueError: for a missing folder, or a results.json of another program.
    """
    files: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"no folder {folder}: name folders that evaluate.py wrote in, or workdirs")
        files += [file for file in sorted(folder.rglob(RESULTS)) if file not in files]
    contents = [_read(file) for file in files]
    labels = label_checkpoints(contents)
    return [
        Evaluation(file.parent, *rest) for file, rest in zip(files, zip(contents, labels, strict=True), strict=True)
    ]


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = content["protocol"] in MAIN_SCORES and MAIN_SCORES[content["protocol"]][0] in content
        complete = known and {"checkpoint", "step", "seconds"} <= set(content) and "dataset" in content["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise ValueError(f"{file} was not written by evaluate.py, or by another version of it: remove or repeat it")
    return content


def label_checkpoints(contents: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a short name for the weights of each results.json; two checkpoints never share one.

    Args:
        contents: of the files.
    """
    paths = {content["checkpoint"]: _run_path(content["checkpoint"]) for content in contents}
    depth, names = 1, {}
    while len(set(names.values())) < len(set(paths.values())):
        names = {path: "/".join(path.parts[-depth:]) for path in paths.values()}
        depth += 1
    labels = []
    for content in contents:
        if content["checkpoint"] == RANDOM:
            labels.append("random weights")
            continue
        student = ", student" if content["fingerprint"].get("which") == "student" else ""
        labels.append(f"{names[paths[content['checkpoint']]]}, step {content['step']:,}{student}")
    return labels


def _run_path(checkpoint: str) -> Path:
    path = Path(checkpoint)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def group_evaluations(evaluations: Sequence[Evaluation]) -> list[Group]:
    """Returns what can be compared side by side, in the order of `MAIN_SCORES`."""
    found: dict[str, list[Evaluation]] = {}
    for one in evaluations:
        found.setdefault(digest({"protocol": one.protocol, **one.settings}), []).append(one)
    groups = [_group(members) for members in found.values()]
    return sorted(groups, key=lambda group: (list(MAIN_SCORES).index(group.protocol), str(group.dataset)))


def _group(members: Sequence[Evaluation]) -> Group:
    by_weights: dict[tuple[str, str], list[Evaluation]] = {}
    for one in members:
        # Architectures differ among random weights, too.
        key = one.label, digest({"backbone": one.fingerprint.get("backbone")})
        by_weights.setdefault(key, []).append(one)
    entries = [Entry(label, _one_a_seed(of)) for (label, _), of in by_weights.items()]
    entries.sort(key=lambda entry: (entry.label != "random weights", entry.score))
    first = members[0]
    return Group(first.protocol, first.fingerprint["dataset"], first.settings, tuple(entries))


def _one_a_seed(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Drops repetitions of the same evaluation, so that they do not count as seeds."""
    return tuple({one.fingerprint["digest"]: one for one in evaluations}.values())


def differing_settings(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns, for each group, its settings that others of the same protocol and data set have otherwise.

    Args:
        groups: of any protocols.
    """
    flat = [_flatten(group.settings.get(group.protocol, {})) for group in groups]
    different = []
    for group, settings in zip(groups, flat, strict=True):
        rivals = [
            other
            for rival, other in zip(groups, flat, strict=True)
            if (rival.protocol, rival.dataset) == (group.protocol, group.dataset)
        ]
        different.append({n: v for n, v in settings.items() if any(other.get(n) != v for other in rivals)})
    return different


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
