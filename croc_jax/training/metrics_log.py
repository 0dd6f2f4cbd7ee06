"""The numbers of a run: metrics.jsonl, one line a logged step, and the same for TensorBoard."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tensorboardX import SummaryWriter

FILE_NAME = "metrics.jsonl"


class Log(Protocol):
    """Where the rows of a run go."""

    def write(self, row: Mapping[str, float]) -> None:
        """Takes a row that holds `step`."""
        ...

    def sync(self) -> None:
        """Returns when all rows are on the disk."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


class NoLog:
    """Drops all rows: of several processes, one writes."""

    def write(self, row: Mapping[str, float]) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class MetricsLog:
    """Writes each logged step once, however often the run is interrupted."""

    def __init__(self, workdir: Path, *, restored_step: int) -> None:
        """Opens the log and removes what was logged after the restored step, which is about to run again.

        Args:
            workdir: folder of the run; exists.
            restored_step: steps that the restored state has taken; 0 for a new run.
        """
        path = workdir / FILE_NAME
        drop_lines_after(path, restored_step)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=restored_step + 1)

    def write(self, row: Mapping[str, float]) -> None:
        """Appends a row that holds `step`; a value that is not finite becomes null, as JSON has none."""
        values = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        step = int(row["step"])
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Returns when all rows are on the disk, so that no checkpoint is newer than they are."""
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._file.close()
        self._board.close()


def drop_lines_after(path: Path, step: int) -> None:
    """Keeps the lines of a metrics file up to a step; drops later ones and one that a kill cut short.

    The file is replaced in one move, so that another kill leaves the old one or the new one.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    shorter = path.with_suffix(".tmp")
    shorter.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    shorter.replace(path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
