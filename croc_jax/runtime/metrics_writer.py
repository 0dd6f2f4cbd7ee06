"""The numbers of a run: metrics.jsonl, one line a logged step, and the same for TensorBoard and Prometheus."""

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from croc_jax.atomic_write import atomic_write

FILE_NAME = "metrics.jsonl"
PROMETHEUS_NAME = "metrics.prom"
# As many as its queue may hold on all systems, so that a slow disk does not block training.
_MAX_EVENTS = 30_000


class NoWriter:
    """Drops all rows: one of several processes writes."""

    def write(self, row: Mapping[str, float]) -> None:
        """Does nothing."""

    def flush(self) -> bool:
        """Does nothing."""
        return True

    def close(self) -> None:
        """Does nothing."""


class MetricsWriter:
    """Writes each row once, however often the run is interrupted; rows that find the disk full wait in memory."""

    def __init__(self, workdir: Path, *, restored_step: int) -> None:
        """Opens the files and removes rows after the restored step, whose steps are about to run again.

        Args:
            workdir: folder of the run; exists.
            restored_step: steps that the restored state has taken; 0 for a new run.
        """
        # Imports PyTorch where that is installed, which readers of rows should not wait for.
        from tensorboardX import SummaryWriter

        self._workdir = workdir
        drop_lines_after(workdir / FILE_NAME, restored_step)
        self._file = (workdir / FILE_NAME).open("ab", buffering=0)
        self._waiting = b""
        self._registry, self._gauges = CollectorRegistry(), dict[str, Gauge]()
        folder = str(workdir / "tensorboard")
        self._board: SummaryWriter | None = SummaryWriter(folder, purge_step=restored_step + 1, max_queue=_MAX_EVENTS)

    def write(self, row: Mapping[str, float]) -> None:
        """Appends a row that holds `step`; a value that is not finite becomes null, as JSON has none."""
        values = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._waiting += json.dumps(values).encode() + b"\n"
        self.flush(to_disk=False)
        with contextlib.suppress(OSError):
            self._write_prometheus(row)
        if self._board is not None and not _is_alive(self._board):
            # Its queue would block when it is full.
            logging.warning("TensorBoard's files end at step %d; %s continues", row["step"], FILE_NAME)
            self._board = None
        if self._board is not None:
            for name in row.keys() - {"step"}:
                self._board.add_scalar(name, row[name], int(row["step"]))

    def flush(self, *, to_disk: bool = True) -> bool:
        """Writes the rows that wait; if the disk refuses them, warns and keeps them.

        Args:
            to_disk: return only when all is on the disk, not just in the cache of the system.

        Returns:
            Whether all rows are written.
        """
        end = None
        try:
            end = os.fstat(self._file.fileno()).st_size
            left = memoryview(self._waiting)
            while left:
                left = left[self._file.write(left) :]
            self._waiting = b""
            if to_disk:
                os.fsync(self._file.fileno())
        except OSError as error:
            if end is not None and self._waiting:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file.fileno(), end)
            logging.warning("rows of %s wait in memory: %s", FILE_NAME, error.strerror)
            return False
        if to_disk:
            self._try_board(lambda board: board.flush())
        return True

    def close(self) -> None:
        """Writes what is left; a warning says what could not be written."""
        self.flush()
        self._file.close()
        self._try_board(lambda board: board.close())

    def _try_board(self, act: Callable[[Any], None]) -> None:
        try:
            if self._board is not None:
                act(self._board)
        except OSError as error:
            logging.warning("TensorBoard's files end here: %s; %s continues", error.strerror, FILE_NAME)
            self._board = None

    def _write_prometheus(self, row: Mapping[str, float]) -> None:
        """Replaces metrics.prom, for the textfile collector of node exporter."""
        for name, value in {**row, "logged_timestamp_seconds": time.time()}.items():
            if name not in self._gauges:
                safe = "".join(letter if letter.isalnum() else "_" for letter in name)
                self._gauges[name] = Gauge(f"croc_{safe}", name, ["run"], registry=self._registry)
            self._gauges[name].labels(run=self._workdir.resolve().name).set(value)
        write_to_textfile(str(self._workdir / PROMETHEUS_NAME), self._registry)


def _is_alive(board: Any) -> bool:
    """Returns whether the thread that writes TensorBoard's files runs."""
    return board.file_writer is None or board.file_writer.event_writer._worker.is_alive()


def drop_lines_after(path: Path, step: int) -> None:
    """Keeps the rows of a metrics file up to a step, and drops later ones and lines that are torn."""
    if path.exists():
        kept = [line for line in path.read_bytes().split(b"\n") if (row := parse_row(line)) and row["step"] <= step]
        atomic_write(path, b"".join(line + b"\n" for line in kept))


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Returns the row in a line of a metrics file, or None if there is no complete one."""
    try:
        row = json.loads(line.decode())
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int | float) else None
