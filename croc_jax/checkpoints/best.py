"""Which checkpoint of a run is the best by a score, and which ones Orbax therefore keeps."""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from croc_jax.atomic_write import atomic_write
from croc_jax.checkpoints.manifest import CorruptError
from croc_jax.checkpoints.restore import read_manifest

BEST_NAME = "best.json"


class Best(NamedTuple):
    """The best checkpoint of a run.

    Attributes:
        score: name of the score that decides.
        value: its value.
        step: step of the checkpoint.
        checkpoint: its folder.
    """

    score: str
    value: float
    step: int
    checkpoint: str


@dataclasses.dataclass
class Save:
    """A save, as Orbax's policies see it."""

    step: int
    time: datetime.datetime
    metrics: dict[str, Any] | None = None


class Scores:
    """The scores of the checkpoints in a folder; the largest value of one of them is the best."""

    def __init__(self, folder: Path, name: str, steps: Iterable[int], corrupt: set[int]) -> None:
        """Reads the scores of the checkpoints that exist.

        Args:
            folder: folder of the checkpoints.
            name: the score that decides; empty for none.
            steps: steps of the checkpoints.
            corrupt: steps of those that are known to be corrupt, now or later.
        """
        self._folder, self._name, self._corrupt = folder, name, corrupt
        self._values, self._new = dict[int, float](), dict[int, Mapping[str, float]]()
        for step in steps if name else ():
            # What is wrong with one that is corrupt shows when it is restored.
            with contextlib.suppress(OSError, CorruptError):
                self.store(step, read_manifest(folder / str(step)).get("scores", {}))
        self._is_written, self._written = False, None

    def note(self, step: int, scores: Mapping[str, float]) -> None:
        """Takes the scores of a state, which may be saved next."""
        self._new = {step: dict(scores)}

    def of(self, step: int) -> Mapping[str, float]:
        """Returns the scores that were noted of a step."""
        return self._new.get(step, {})

    def store(self, step: int, scores: Mapping[str, float]) -> None:
        """Takes the scores of a checkpoint; without any, it is none, or has none."""
        self._values.pop(step, None)
        if self._name in scores:
            self._values[step] = scores[self._name]

    def best(self) -> Best | None:
        """Returns the best whole checkpoint, of equal ones the latest, or None if none has the score."""
        whole = set(self._values) - self._corrupt
        step = max(whole, key=lambda step: (self._values[step], step), default=None)
        if step is None:
            return None
        return Best(self._name, self._values[step], step, f"{self._folder.name}/{step}")

    def is_new_best(self, step: int) -> bool:
        """Returns whether the scores that were noted of a step are the best; all processes that noted them ask."""
        if self._name not in self.of(step):
            return False
        best = self.best()
        is_best = best is None or self.of(step)[self._name] > best.value
        # Another process may see an older folder for a while.
        return bool(multihost_utils.broadcast_one_to_all(np.int32(is_best)))

    def write(self) -> None:
        """Writes best.json beside the folder where it has changed; a disk that refuses a note ends no run."""
        best, file = self.best(), self._folder.parent / BEST_NAME
        if jax.process_index() == 0 and not (self._is_written and best == self._written):
            with contextlib.suppress(OSError):
                if best is None:
                    file.unlink(missing_ok=True)
                else:
                    atomic_write(file, (json.dumps(best._asdict(), indent=2) + "\n").encode())
                self._is_written, self._written = True, best

    def annotate(self, checkpoint: checkpoint_managers.PolicyCheckpointInfo) -> Save:
        """Returns a checkpoint with its score as Orbax's metrics."""
        value = self._values.get(checkpoint.step)
        return Save(checkpoint.step, checkpoint.time, None if value is None else {"score": value})


class KeepKnown(checkpoint_managers.PreservationPolicy):
    """Applies other policies to whole checkpoints, and leaves corrupt ones where they are."""

    def __init__(
        self, policies: Sequence[checkpoint_managers.PreservationPolicy], scores: Scores, corrupt: set[int]
    ) -> None:
        """Keeps what any of the policies keeps, and the best by the scores, if there are any."""
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics["score"], n=1, keep_checkpoints_without_metrics=False
        )
        self._policy = checkpoint_managers.AnyPreservationPolicy([*policies, best])
        self._scores, self._corrupt = scores, corrupt

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """Returns whether to keep each of some checkpoints."""
        whole = [self._scores.annotate(one) for one in checkpoints if one.step not in self._corrupt]
        kept = self._policy.should_preserve(whole, context=context)
        steps = {one.step for one, keep in zip(whole, kept, strict=True) if keep}
        return [one.step in steps | self._corrupt for one in checkpoints]
