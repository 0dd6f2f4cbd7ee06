"""The numbers of a run: metrics.jsonl, one line a logged step, and the same for TensorBoard and Prometheus."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from absl import logging

from croc_jax.atomic_write import atomic_write
from croc_jax.runtime.prometheus import write_prometheus

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

FILE_NAME = "metrics.jsonl"
_MOST_EVENTS = 30_000


class Log(Protocol):
    """Where the rows of a run go."""

    def write(self, row: Mapping[str, float]) -> None:
        """Takes a row that holds `step`."""
        ...

    def sync(self) -> None:
        """Returns when all rows are on the disk; raises OSError if it is full."""
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


class MetricsWriter:
    """Writes each logged step once, however often the run is interrupted.

    Rows that find the disk full wait for the next one; TensorBoard is given up then.
    """

    def __init__(self, workdir: Path, *, restored_step: int) -> None:
        """Opens the log and removes what was logged after the restored step, which is about to run again.

        Args:
            workdir: folder of the run; exists.
            restored_step: steps that the restored state has taken; 0 for a new run.
        """
        # Imports PyTorch where that is installed: who only reads weights has no use for it.
        from tensorboardX import SummaryWriter

        self._workdir, path = workdir, workdir / FILE_NAME
        drop_lines_after(path, restored_step)
        self._file = path.open("ab", buffering=0)
        self._waiting = b""
        # A full queue would wait for good for a thread that a full disk has ended.
        board = SummaryWriter(str(workdir / "tensorboard"), purge_step=restored_step + 1, max_queue=_MOST_EVENTS)
        self._board: SummaryWriter | None = board

    def write(self, row: Mapping[str, float]) -> None:
        """Appends a row that holds `step`; a value that is not finite becomes null, as JSON has none."""
        values = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._waiting += json.dumps(values).encode() + b"\n"
        try:
            self._append()
        except OSError as error:
            logging.warning("metrics.jsonl waits for the disk: %s", error.strerror)
        with contextlib.suppress(OSError):
            write_prometheus(self._workdir, row)
        if self._board is not None and _is_alive(self._board):
            for name in row.keys() - {"step"}:
                self._board.add_scalar(name, row[name], int(row["step"]))
        elif self._board is not None:
            self._give_up("its thread has ended")

    def sync(self) -> None:
        """Returns when all rows are on the disk, so that no checkpoint is newer than they are.

        Raises:
            OSError: if the disk is full.
        """
        self._append()
        os.fsync(self._file.fileno())
        if self._board is not None:
            try:
                self._board.flush()
            except OSError as error:
                self._give_up(error.strerror)

    def close(self) -> None:
        """Writes what is left."""
        with contextlib.suppress(OSError):
            self._append()
        self._file.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()

    def _append(self) -> None:
        """Writes all that waits, or leaves the file as it was."""
        end = os.fstat(self._file.fileno()).st_size
        left = memoryview(self._waiting)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            os.ftruncate(self._file.fileno(), end)
            raise
        self._waiting = b""

    def _give_up(self, reason: str | None) -> None:
        logging.warning("the files for TensorBoard end here: %s; metrics.jsonl goes on", reason)
        self._board = None


def _is_alive(board: "SummaryWriter") -> bool:
    """Says whether the thread that writes for TensorBoard is there; an error ends it."""
    worker = getattr(getattr(board.file_writer, "event_writer", None), "_worker", None)
    return worker is not None and worker.is_alive()


def drop_lines_after(path: Path, step: int) -> None:
    """Keeps the lines of a metrics file up to a step; drops later ones and those that a kill or a crash has spoiled.

    The file is replaced in one move, so that another kill leaves the old one or the new one.
    """
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    kept = [line for line in lines if (row := parse_row(line)) and row["step"] <= step]
    atomic_write(path, b"".join(line + b"\n" for line in kept))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics file, which may be missing, but those that a kill or a crash has spoiled."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [row for line in lines if (row := parse_row(line))]


def last_row(path: Path) -> dict[str, Any] | None:
    """Returns the last of `read_rows`, if any."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return next((row for line in reversed(lines) if (row := parse_row(line))), None)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Returns what a line of a metrics file says, or None if it is no whole row."""
    try:
        row = json.loads(line.decode())
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int | float) else None
