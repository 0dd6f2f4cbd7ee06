"""The numbers of a run for Weights & Biases, beside the files of the workdir; training never depends on it."""

import contextlib
import importlib.util
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from croc_jax.atomic_write import atomic_write
from croc_jax.runtime.metrics_writer import FILE_NAME, MetricsWriter, parse_row
from croc_jax.training.config import Recipe, recipe_to_dict

ID_NAME = "wandb.json"
FOLDER_NAME = "wandb"
_SECONDS_TO_START = 60.0


def check_wandb(project: str) -> None:
    """Raises ValueError if a project is named and the library is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"runtime.wandb_project={project!r}: Weights & Biases is not installed: pip install 'croc_jax[wandb]'"
        )


def open_writers(workdir: Path, recipe: Recipe, *, restored_step: int) -> "MetricsWriter | Writers":
    """Returns what writes the rows of a run; arguments as for `MetricsWriter`."""
    if not recipe.runtime.wandb_project:
        return MetricsWriter(workdir, restored_step=restored_step)
    # It reads what an earlier start has logged, before rows are dropped.
    board = WandbWriter(workdir, recipe)
    return Writers(MetricsWriter(workdir, restored_step=restored_step), board)


class WandbWriter:
    """Sends rows to one run of Weights & Biases, which later starts of the same workdir go on with.

    What fails there is a warning, after which nothing more is sent. WANDB_MODE, WANDB_NAME, WANDB_ENTITY and so on are
    read by the library.
    """

    def __init__(self, workdir: Path, recipe: Recipe) -> None:
        """Begins the run, or resumes it.

        Args:
            workdir: folder of the run; its name is that of the run, unless WANDB_NAME is set.
            recipe: settings, which become the run's config.
        """
        self._run: Any = None
        # After a restart, steps that have been sent run again, with the same numbers.
        self._last = _last_logged_step(workdir / FILE_NAME)

        def start() -> None:
            import wandb

            self._run = wandb.init(
                project=recipe.runtime.wandb_project,
                id=_run_id(workdir),
                resume="allow",
                dir=workdir,
                name=os.environ.get("WANDB_NAME") or workdir.resolve().name,
                config=recipe_to_dict(recipe),
                # The program's own output stays as it is.
                settings=wandb.Settings(console="off", init_timeout=_SECONDS_TO_START),
            )
            if not self._run.offline:
                # What the server lacks, such as after a kill, is sent again.
                self._last = self._run.step - 1

        self._try(start)

    def write(self, row: Mapping[str, float]) -> None:
        """Sends a row that holds `step`, unless it has been sent; values that are not finite are left out."""
        step = int(row["step"])
        if step > self._last:
            values = {name: value for name, value in row.items() if name != "step" and math.isfinite(value)}
            self._try(lambda: self._run.log(values, step=step))

    def close(self) -> None:
        """Waits until all rows are sent."""
        run, self._run = self._run, None
        if run is not None:
            self._try(run.finish)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a network can do
            reason = (str(error) or type(error).__name__).splitlines()[0][:300]
            logging.warning(
                "Weights & Biases gets no more rows: %s; training goes on. WANDB_MODE=offline writes them to "
                "%s/ in the workdir, for `wandb sync` later",
                reason,
                FOLDER_NAME,
            )
            self._last = math.inf


class Writers:
    """Several writers as one: the first keeps the rows, the second only shows them."""

    def __init__(self, keeper: MetricsWriter, board: WandbWriter) -> None:
        """Takes the writers."""
        self._keeper, self._board = keeper, board

    def write(self, row: Mapping[str, float]) -> None:
        """Writes a row everywhere."""
        self._keeper.write(row)
        self._board.write(row)

    def flush(self) -> bool:
        """Returns whether all rows are on the disk."""
        return self._keeper.flush()

    def close(self) -> None:
        """Closes all."""
        self._keeper.close()
        self._board.close()


def _run_id(workdir: Path) -> str:
    """Returns the id of the run, which the workdir keeps."""
    file = workdir / ID_NAME
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(file.read_bytes())["id"])
    name = uuid.uuid4().hex[:12]
    atomic_write(file, json.dumps({"id": name}).encode() + b"\n")
    return name


def _last_logged_step(file: Path) -> float:
    """Returns the step of the last row of a metrics file, 0 without one."""
    with contextlib.suppress(OSError):
        rows = (parse_row(line) for line in file.read_bytes().split(b"\n"))
        return max((row["step"] for row in rows if row), default=0)
    return 0
