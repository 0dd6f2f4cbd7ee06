"""The display of an experiment: its table as far as there are scores, what runs, and the time left."""

import contextlib
import datetime
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from cli import make_progress
from experiment_jobs import TRAINING, Job, Jobs
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from croc_jax.report.experiment import make_tables
from croc_jax.runtime.metrics_writer import FILE_NAME, parse_row

_SECONDS_BETWEEN_LINES = 60.0
_TAIL_BYTES = 1 << 14
# Characters of a column; a deviation has a line of its own in the least.
_LEAST_WIDTH, _LEAST_WIDTH_OF_NAMES = 5, 12


class Display:
    """Shows the table and bars on a terminal; elsewhere, a line for each score and each minute."""

    def __init__(self, console: Console, jobs: Jobs, content: Mapping[str, Any]) -> None:
        """Prepares a display, which shows within its block.

        Args:
            console: where to print.
            jobs: what is to be done.
            content: content of experiment.json so far.
        """
        self._console, self._jobs, self._content = console, jobs, content
        self._bars, self._tasks = make_progress(console), dict[str, Any]()
        self._last_line, self._left = time.monotonic(), Estimate(content)
        # Refreshed by the thread that starts and ends jobs, which what it shows is of.
        self._live = Live(console=console, auto_refresh=False, get_renderable=self._render)

    def __enter__(self) -> Self:
        """Shows the display, on a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the table as it is."""
        if self._console.is_terminal:
            self._live.stop()

    def update(self, content: Mapping[str, Any], job: Job) -> None:
        """Takes the new content of experiment.json, after a job that has ended."""
        self._content, self._left = content, Estimate(content)
        if not self._console.is_terminal:
            self._console.print(f"{job.run.name}: {self._describe(job)}; {self._describe_rest()}")

    def refresh(self) -> None:
        """Moves the bars of what runs."""
        running = {job.run.name: job for job in self._jobs.running if job.kind == TRAINING}
        for name in self._tasks.keys() - running.keys():
            self._bars.remove_task(self._tasks.pop(name))
        for name, job in running.items():
            row, batch, total = last_row(job.run.folder), job.run.recipe.schedule.batch_size, job.run.total_steps
            done = int(row.get("step", 0))
            if name not in self._tasks:
                self._tasks[name] = self._bars.add_task(name, total=None)
            if total:
                self._bars.update(self._tasks[name], total=total * batch, completed=done * batch)
        now = time.monotonic()
        if self._console.is_terminal:
            self._live.refresh()
        elif now - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = now
            for task in self._bars.tasks:
                if task.total:
                    share = 100 * task.completed / task.total
                    self._console.print(f"{task.description}: {share:.0f}%; {self._describe_rest()}")

    def _describe(self, job: Job) -> str:
        if job.kind == TRAINING:
            return "trained"
        for run in self._content["runs"]:
            if (run["row"], run["seed"]) == (job.run.row.name, job.run.seed):
                found = run["scores"].get(job.kind, {})
                return f"{job.kind}: " + ", ".join(f"{name} {one['score']:.1f}" for name, one in found.items())
        return job.kind

    def _describe_rest(self) -> str:
        left = [*self._jobs.waiting, *self._jobs.running]
        trainings = [job for job in left if job.kind == TRAINING]
        # The number of steps of a run is known once it has read its images.
        totals = [job.run.total_steps or self._left.steps for job in trainings]
        done = [int(last_row(job.run.folder).get("step", 0)) for job in trainings]
        sizes = [job.run.recipe.schedule.batch_size for job in trainings]
        images = sum(map(lambda total, past, size: max(total - past, 0) * size, totals, done, sizes))
        known = images if all(totals) else None
        seconds = self._left.seconds(known, len(left) - len(trainings), jobs=self._jobs.count)
        time_left = "unknown" if seconds is None else f"about {datetime.timedelta(seconds=round(seconds))}"
        return f"to do: {len(trainings)} trainings, {len(left) - len(trainings)} evaluations, time left {time_left}"

    def _render(self) -> RenderableType:
        scoring = [f"{job.run.name}, {job.kind}" for job in self._jobs.running if job.kind != TRAINING]
        lines = [f"scoring {one}" for one in scoring] + [self._describe_rest()]
        # A low terminal cuts off what comes last.
        parts: list[RenderableType] = [self._bars.get_renderable(), Text("\n".join(lines))]
        for title, header, rows in make_tables(self._content):
            table = Table(title=title, box=None, padding=(0, 1, 0, 0))
            table.add_column(header[0], min_width=_LEAST_WIDTH_OF_NAMES)
            for name in header[1:]:
                # Ellipses would take digits.
                table.add_column(name, justify="right", overflow="fold", min_width=_LEAST_WIDTH)
            for row in rows:
                table.add_row(*row)
            parts += [table] if rows else []
        return Group(*parts)


class Estimate:
    """What trainings and evaluations have taken so far."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        """Reads experiment.json's content."""
        speeds = [run["images_per_sec"] for run in content["runs"] if run["images_per_sec"]]
        steps = [run["steps"] for run in content["runs"] if run["steps"]]
        totals = [
            sum(one["seconds"] for one in of.values()) for run in content["runs"] for of in run["scores"].values()
        ]
        self._speed = sum(speeds) / len(speeds) if speeds else None
        self._score = sum(totals) / len(totals) if totals else None
        self.steps = max(steps, default=0)

    def seconds(self, images: float | None, evaluations: int, *, jobs: int) -> float | None:
        """Returns the seconds that so many images of training and evaluations take, or None if it cannot be known."""
        if images is None or (images and self._speed is None) or (evaluations and self._score is None):
            return None
        return (images / (self._speed or 1) + evaluations * (self._score or 0)) / jobs


def last_row(folder: Path) -> dict[str, Any]:
    """Returns the last whole row of a run's metrics.jsonl; {} without one."""
    with contextlib.suppress(OSError), (folder / FILE_NAME).open("rb") as file:
        file.seek(max(file.seek(0, 2) - _TAIL_BYTES, 0))
        rows = filter(None, map(parse_row, reversed(file.read().splitlines())))
        return next(rows, {})
    return {}
