"""What a person sees while a run goes on: a bar on a terminal, a line now and then elsewhere."""

import datetime
import time
from collections.abc import Mapping
from typing import Self

import rich.progress
from rich.console import Console

_SECONDS_BETWEEN_LINES = 30.0


class RunProgress:
    """Shows how far a run is, its loss, mean K, speed, and the time that is left."""

    def __init__(self, console: Console, *, start: int, total: int) -> None:
        """Prepares a display; nothing shows before the block is entered.

        Args:
            console: where it shows.
            start: steps done already.
            total: steps of the run.
        """
        self._console, self._total = console, total
        self._last_line = -_SECONDS_BETWEEN_LINES
        self._bar = _make_bar(console)
        self._task = self._bar.add_task("pre-training", total=total, completed=start, numbers="")

    def __enter__(self) -> Self:
        """Shows the bar, on a terminal."""
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the bar as it is."""
        if self._console.is_terminal:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=step)

    def show(self, row: Mapping[str, float]) -> None:
        """Shows the numbers of a logged step."""
        numbers = f"loss {row['loss']:.3f}  K {row['num_clusters']:.2f}  {row['images_per_sec']:.1f} images/s"
        self._bar.update(self._task, numbers=numbers)
        step, now = int(row["step"]), time.monotonic()
        waited = now - self._last_line >= _SECONDS_BETWEEN_LINES
        if not self._console.is_terminal and (waited or step == self._total):
            self._last_line = now
            percent = 100 * step / self._total
            self.say(f"step {step}/{self._total} ({percent:.1f}%)  {numbers}  ETA {self._time_left()}")

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _time_left(self) -> datetime.timedelta | str:
        seconds = self._bar.tasks[0].time_remaining
        return "unknown" if seconds is None else datetime.timedelta(seconds=round(seconds))


def _make_bar(console: Console) -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[numbers]}"),
        rich.progress.TextColumn("ETA"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        # The speed of the last minutes, as steps take minutes on a laptop and a tenth of a second on a pod.
        speed_estimate_period=300.0,
    )
