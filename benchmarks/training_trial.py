"""A short run of the training program that is killed on its way, resumed by the same command, and looked over."""

import contextlib
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from findings import FAILED, OK, Report
from phases import describe_status, end, last_line, python
from trial_sizes import TrialSize

from croc_jax.data.sources import FolderSource
from croc_jax.runtime.metrics_writer import FILE_NAME, last_row, parse_row

ROOT = Path(__file__).resolve().parent.parent
# Imports, the first images and the first state, on a fresh machine.
_SECONDS_TO_START = 25.0
_SECONDS_BETWEEN_LINES = 10.0
# Images that a core decodes and crops in a second, at least.
_READ_BY_CORE = 250.0
# A speed that is assumed where none was measured.
_SLOW = 100.0


class Plan(NamedTuple):
    """A run that fills its time.

    Attributes:
        command: that starts and resumes it.
        workdir: its folder.
        steps: of the whole run.
        every: steps between two lines of its metrics.
        seconds: that both of its halves may take together.
        env: its environment.
    """

    command: list[str]
    workdir: Path
    steps: int
    every: int
    seconds: float
    env: dict[str, str]


def make_plan(
    size: TrialSize,
    images: Path,
    folder: Path,
    *,
    minutes: float,
    speed: float | None,
    compile_seconds: float,
    env: dict[str, str],
) -> Plan:
    """Returns a run of as many epochs as fit the time, and the images of a few of them.

    Args:
        size: of the trial.
        images: their folder.
        folder: for the workdir and the list of the images.
        minutes: for all.
        speed: images a second that the step was measured at, if it was.
        compile_seconds: that it took to compile; a second start finds the program in the cache.
        env: variables for the program.
    """
    training = max(60 * minutes - 2 * _SECONDS_TO_START - compile_seconds, 20.0)
    speed = min(speed or _SLOW, _READ_BY_CORE * (os.cpu_count() or 1))
    batch, source = int(size.overrides.get("schedule.batch_size", 256)), FolderSource(images)
    if len(source) < batch:
        raise ValueError(f"{images}: {len(source)} images, fewer than a batch of {batch}")
    # A margin for what comes beside the steps; and four epochs, at least, of a part of the images if they are many.
    seen = 0.8 * training * speed
    stride = math.ceil(len(source) / max(seen / 4, batch))
    paths = [str(Path(source.name(index)).resolve()) for index in range(0, len(source) // stride * stride, stride)]
    listing = folder / "images.txt"
    listing.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    epochs = size.overrides.get("schedule.epochs", max(4, int(seen // len(paths))))
    fields = {
        "schedule.batch_size": batch,
        "schedule.epochs": epochs,
        "optimizer.warmup_epochs": max(1, epochs // 10),
        "objective.warmup_teacher_temp_epochs": max(1, epochs // 10),
        "runtime.checkpoint_every_minutes": 0.3 * training / 60,
        "runtime.keep_every_epochs": 10**6,
        "runtime.log_every_steps": 10,
    } | size.overrides
    workdir = folder / "run"
    command = python("launch/pretrain.py", f"--config={size.config}", f"--workdir={workdir.resolve()}")
    command += [f"--config.data.sources=list:{listing.resolve()}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    steps = epochs * (len(paths) // batch)
    return Plan(command, workdir, steps, int(fields["runtime.log_every_steps"]), 60 * minutes, env)


def try_training(plan: Plan, report: Report) -> None:
    """Starts the run, kills it once it has gone on from a checkpoint, lets it finish, and reports on both halves.

    Args:
        plan: by `make_plan`; what an earlier trial has left in its workdir is removed.
        report: takes the rows.
    """
    shutil.rmtree(plan.workdir, ignore_errors=True)
    deadline = time.monotonic() + plan.seconds
    report.say(f"  {plan.steps} steps; the log is {_log(plan, 'first')}")
    killed_at, saved = _run_and_kill(plan, deadline, report)
    before = read_steps(plan.workdir)
    report("killed", f"by SIGKILL at step {killed_at}, with step {saved} saved", OK, step=killed_at, saved=saved)
    status = _run_to_the_end(plan, deadline, report)
    _report_resumption(plan, saved, before, status, report)
    _report_rows(plan, report)


def _run_and_kill(plan: Plan, deadline: float, report: Report) -> tuple[int, int]:
    """Returns the last step that was logged, and the last one saved, of a run that was killed after a save."""
    with _started(plan, "first") as run:
        while time.monotonic() < deadline:
            if run.process.poll() is not None:
                told = f"{describe_status(run.process.returncode)}: {last_line(run.log)}"
                raise RuntimeError(f"the run ended before it could be killed, {told}; see {run.log}")
            saved, logged = last_saved(plan.workdir), last_row(plan.workdir / FILE_NAME)
            # What comes after the save is to be done again.
            if saved and logged and logged["step"] > saved:
                run.process.send_signal(signal.SIGKILL)
                run.process.wait()
                return int(last_row(plan.workdir / FILE_NAME)["step"]), last_saved(plan.workdir)  # pyright: ignore
            run.tell(logged, report)
            time.sleep(0.01)
    raise TimeoutError(f"no checkpoint after {plan.seconds:.0f} s; see {run.log}")


def _run_to_the_end(plan: Plan, deadline: float, report: Report) -> int | None:
    """Resumes the run; returns its status, or None if the time was up first."""
    with _started(plan, "second") as run:
        while time.monotonic() < deadline:
            if run.process.poll() is not None:
                return run.process.returncode
            run.tell(last_row(plan.workdir / FILE_NAME), report)
            time.sleep(0.1)
    return None


def _report_resumption(plan: Plan, saved: int, before: Sequence[int], status: int | None, report: Report) -> None:
    log = _log(plan, "second")
    match = re.search(r"resumes after step (\d+)", log.read_text(encoding="utf-8"))
    resumed = int(match[1]) if match else 0
    good = bool(match) and resumed >= saved > 0
    report(
        "resumed", f"after step {resumed}" if match else f"not at all; see {log}", OK if good else FAILED, step=resumed
    )
    steps = read_steps(plan.workdir)
    last = steps[-1] if steps else 0
    kept = [step for step in before if step <= resumed]
    whole = steps == expected_steps(plan, last) and steps[: len(kept)] == kept
    figure = (
        f"{len(steps)} lines up to step {last}, {'none lost or doubled' if whole else f'not those expected: {steps}'}"
    )
    report("metrics.jsonl", figure, OK if whole else FAILED, lines=len(steps))
    if status is None:
        figure = f"stopped at step {last} of {plan.steps}, as the time was up"
    else:
        figure = f"{describe_status(status)} at step {last} of {plan.steps}"
        figure += "" if status == 0 else f": {last_line(log)}; see {log}"
    good = status is None or (status == 0 and last == plan.steps)
    report("end", figure, OK if good else FAILED, step=last, steps=plan.steps)


def _report_rows(plan: Plan, report: Report) -> None:
    """Tells the speed and the losses of the whole run."""
    rows = read_metrics(plan.workdir)
    # The first line of each half waits for the first batch.
    typical = rows[len(rows) // 2 :]
    speed, waited = (
        statistics.median(row[name] for row in typical) for name in ("images_per_sec", "data_wait_fraction")
    )
    figure = f"{speed:.1f} images/s, {waited:.1%} of the time waiting for images"
    report("speed of training", figure, "", images_per_sec=speed, data_wait_fraction=waited)
    losses = [row["loss"] for row in rows]
    # A value that is not finite is logged as null.
    finite = all(loss is not None for loss in losses)
    part = max(1, len(losses) // 5)
    first, last = (statistics.fmean(half) if finite else math.nan for half in (losses[:part], losses[-part:]))
    way = "falling" if last < first else "not falling (a short run need not)"
    figure = f"{first:.4g} in the first fifth, {last:.4g} in the last one, {way}" if finite else "not finite"
    report("losses of training", figure, OK if finite else FAILED, first=first, last=last, falling=last < first)


class _Run:
    """A start of the program, and what is told of it while it runs."""

    def __init__(self, process: subprocess.Popen, log: Path, plan: Plan) -> None:
        self.process, self.log, self._plan = process, log, plan
        self._next = time.monotonic() + _SECONDS_BETWEEN_LINES

    def tell(self, row: dict[str, Any] | None, report: Report) -> None:
        """Says now and then how far the run is."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _SECONDS_BETWEEN_LINES
        if row is None:
            report.say("  training: starting ...")
            return
        speed, left = row["images_per_sec"], self._plan.steps - row["step"]
        eta = left * row["step_seconds"] if row.get("step_seconds") else math.nan
        report.say(f"  training: step {row['step']} of {self._plan.steps}, {speed:.0f} images/s, ETA {eta:.0f} s")


@contextlib.contextmanager
def _started(plan: Plan, name: str) -> Iterator[_Run]:
    """Runs the program in the background; it ends with the block, however that ends."""
    log = _log(plan, name)
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(plan.command, cwd=ROOT, env=plan.env, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield _Run(process, log, plan)
        finally:
            end(process)


def _log(plan: Plan, name: str) -> Path:
    return plan.workdir.parent / f"training-{name}.log"


def last_saved(workdir: Path) -> int:
    """Returns the last step of which there is a whole checkpoint; 0 for none."""
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns all lines of metrics.jsonl; ValueError if one is spoiled."""
    lines = (workdir / FILE_NAME).read_bytes().splitlines()
    rows = [parse_row(line) for line in lines]
    if None in rows:
        raise ValueError(f"{workdir / FILE_NAME}: line {rows.index(None) + 1} is spoiled")
    return [row for row in rows if row is not None]


def read_steps(workdir: Path) -> list[int]:
    """Returns the steps that were logged, in the order of the lines."""
    return [int(row["step"]) for row in read_metrics(workdir)]


def expected_steps(plan: Plan, last: int) -> list[int]:
    """Returns the steps that an undisturbed run logs up to some step."""
    return [step for step in range(1, last + 1) if step % plan.every == 0 or step in (1, plan.steps)]
