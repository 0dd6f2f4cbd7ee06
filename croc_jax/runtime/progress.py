"""The display of a run: a bar on a terminal, a line every half minute elsewhere."""

import contextlib
import datetime
import time
from collections.abc import Iterator, Mapping
from typing import Self

from rich import progress
from rich.console import Console

_SECONDS_BETWEEN_LINES = 30.0


class _Numbers(progress.ProgressColumn):
    """The numbers of a task that has some."""

    def render(self, task: progress.Task) -> str:
        return task.fields.get("numbers", "")


class RunProgress:
    """Shows how far a run is, its loss, mean K, speed, and the time left."""

    def __init__(self, console: Console, *, start: int, total: int) -> None:
        """Prepares a display, which shows within its block.

        Args:
            console: where to print.
            start: steps done already.
            total: steps of the run.
        """
        self._console, self._total = console, total
        self._last_line = -_SECONDS_BETWEEN_LINES
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            _Numbers(),
            progress.TextColumn("ETA"),
            progress.TimeRemainingColumn(),
            console=console,
            # Steps take from a tenth of a second to minutes.
            speed_estimate_period=300.0,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("pre-training", total=total, completed=start, numbers="")

    def __enter__(self) -> Self:
        """Shows the bar, on a terminal."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=step)

    @contextlib.contextmanager
    def bars(self) -> Iterator[progress.Progress]:
        """Returns a place for other bars, which go away at the end of the block."""
        before = set(self._bar.task_ids)
        try:
            yield self._bar
        finally:
            for task in set(self._bar.task_ids) - before:
                self._bar.remove_task(task)

    def show(self, row: Mapping[str, float]) -> None:
        """Shows the numbers of a logged step."""
        numbers = f"loss {row['loss']:.3f}  K {row['num_clusters']:.2f}  {row['images_per_sec']:.1f} images/s"
        self._bar.update(self._task, numbers=numbers)
        step, now = int(row["step"]), time.monotonic()
        is_due = now - self._last_line >= _SECONDS_BETWEEN_LINES or step == self._total
        if not self._console.is_terminal and is_due:
            self._last_line = now
            seconds = self._bar.tasks[0].time_remaining
            left = "unknown" if seconds is None else datetime.timedelta(seconds=round(seconds))
            self.log(f"step {step}/{self._total} ({100 * step / self._total:.1f}%)  {numbers}  ETA {left}")

    def log(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
