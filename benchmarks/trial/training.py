"""A short run of the training program that is killed on its way, resumed by the same command, and checked."""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from croc_jax.data.sources import FolderSource
from trial.findings import FAILED, OK, Report
from trial.phases import describe_status, last_line, terminate
from trial.sizes import TrialSize

ROOT = Path(__file__).resolve().parents[2]
# Imports, the first images and the first state, on a fresh machine.
_SECONDS_TO_START = 25.0
_SECONDS_BETWEEN_LINES = 10.0
# Images that a core decodes and crops in a second, at least.
_READ_BY_CORE = 250.0
# Images a second that are assumed if none were measured.
_SLOW = 100.0


class Plan(NamedTuple):
    """A run that fills its time.

    Attributes:
        command: the command that starts and resumes it.
        workdir: its folder.
        steps: number of steps of the whole run.
        every: number of steps between two lines of its metrics.
        seconds: time limit of both of its parts together.
        env: environment variables.
    """

    command: list[str]
    workdir: Path
    steps: int
    every: int
    seconds: float
    env: dict[str, str]


def make_plan(size: TrialSize, images: Path, folder: Path, *, seconds: float, speed: float | None, env: dict) -> Plan:
    """Returns a run of as many epochs as fit the time, at least four; with many images, of the first of them.

    Args:
        size: sizes of the trial.
        images: folder of images.
        folder: where the workdir and the list of the images go.
        seconds: time of both parts, without compilation, which the second part finds in the cache.
        speed: images a second that the step was measured at, if it was.
        env: environment variables for the program.
    """
    training = max(seconds - 2 * _SECONDS_TO_START, 20.0)
    batch, source = int(size.overrides["schedule.batch_size"]), FolderSource(images)
    if len(source) < batch:
        raise ValueError(f"{images}: {len(source)} images, fewer than a batch of {batch}")
    # A margin for everything but steps.
    seen = 0.8 * training * min(speed or _SLOW, _READ_BY_CORE * (os.cpu_count() or 1))
    count = min(len(source), max(int(seen / 4), batch))
    listing = folder / "images.txt"
    paths = (str(Path(source.name(index)).resolve()) for index in range(count))
    listing.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    epochs = size.overrides.get("schedule.epochs", max(4, int(seen // count)))
    fields = {
        "schedule.epochs": epochs,
        "optimizer.warmup_epochs": max(1, epochs // 10),
        "objective.warmup_teacher_temp_epochs": max(1, epochs // 10),
        "runtime.checkpoint_every_minutes": 0.3 * training / 60,
        "runtime.keep_every_epochs": 10**6,
    } | size.overrides
    workdir = (folder / "run").resolve()
    command = [sys.executable, "launch/pretrain.py", f"--config=configs/{size.config}.py", f"--workdir={workdir}"]
    command += [f"--config.data.sources=list:{listing.resolve()}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    return Plan(command, workdir, epochs * (count // batch), int(fields["runtime.log_every_steps"]), seconds, env)


def try_training(plan: Plan, report: Report) -> None:
    """Starts the run, kills it some steps after a checkpoint, resumes it to its end, and reports on both parts."""
    shutil.rmtree(plan.workdir, ignore_errors=True)
    deadline = time.monotonic() + plan.seconds
    report.say(f"  {plan.steps} steps; the log is {log_of(plan, 'first')}")
    # What comes after the checkpoint is to be done again.
    status = _run(plan, "first", deadline, report, until=lambda step: 0 < last_saved(plan.workdir) < step)
    before, saved, log = read_steps(plan.workdir), last_saved(plan.workdir), log_of(plan, "first")
    if status != -9:
        ending = "no checkpoint in time" if status is None else f"{describe_status(status)}: {last_line(log)}"
        raise RuntimeError(f"the run could not be killed after a checkpoint, {ending}; see {log}")
    report("killed", f"by SIGKILL at step {before[-1]}, with step {saved} saved", OK, step=before[-1], saved=saved)
    status = _run(plan, "second", deadline, report)
    report_resumption(plan, saved, before, status, report)
    _report_metrics(plan, report)


def _run(
    plan: Plan, part: str, deadline: float, report: Report, until: Callable[[int], bool] | None = None
) -> int | None:
    """Runs the program to its end, or kills it as soon as its last logged step is as asked for.

    Returns:
        Its status; None if it timed out.
    """
    next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
    with log_of(plan, part).open("w", encoding="utf-8") as output:
        process = subprocess.Popen(plan.command, cwd=ROOT, env=plan.env, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and time.monotonic() < deadline:
                steps = read_steps(plan.workdir)
                if steps and until is not None and until(steps[-1]):
                    process.kill()
                    return process.wait()
                if time.monotonic() >= next_line:
                    next_line += _SECONDS_BETWEEN_LINES
                    report.say(f"  training: step {steps[-1] if steps else 0} of {plan.steps}")
                time.sleep(0.01)
            return process.poll()
        finally:
            terminate(process)


def report_resumption(plan: Plan, saved: int, before: Sequence[int], status: int | None, report: Report) -> None:
    """Reports whether the run resumed from its checkpoint, lost or repeated no line of its metrics, and finished.

    Args:
        plan: the run.
        saved: last step that was saved before the kill.
        before: steps that were logged before the kill.
        status: exit status of the second part, or None if it timed out.
        report: takes the rows.
    """
    log = log_of(plan, "second")
    match = re.search(r"resum\w* \w+ step (\d+)", log.read_text(encoding="utf-8"))
    resumed = int(match[1]) if match else 0
    figure, good = f"after step {resumed}" if match else f"not at all; see {log}", resumed >= saved > 0
    report("resumed", figure, OK if good else FAILED, step=resumed)
    steps = read_steps(plan.workdir)
    last = steps[-1] if steps else 0
    kept = [step for step in before if step <= resumed]
    expected = [step for step in range(1, last + 1) if step % plan.every == 0 or step in (1, plan.steps)]
    whole = steps == expected and steps[: len(kept)] == kept
    found = "none lost or doubled" if whole else f"not those expected: {steps}"
    report("metrics.jsonl", f"{len(steps)} lines up to step {last}, {found}", OK if whole else FAILED, lines=len(steps))
    ending = "stopped by the time limit" if status is None else describe_status(status)
    figure = f"{ending} at step {last} of {plan.steps}{f': {last_line(log)}; see {log}' if status else ''}"
    good = status is None or (status == 0 and last == plan.steps)
    report("end", figure, OK if good else FAILED, step=last, steps=plan.steps)


def _report_metrics(plan: Plan, report: Report) -> None:
    """Reports the speed and the losses of the whole run."""
    rows = read_metrics(plan.workdir)
    # The first line of each part waits for the first batch.
    typical = rows[len(rows) // 2 :]
    names = "images_per_sec", "data_wait_fraction"
    speed, waited = (statistics.median(row[name] for row in typical) for name in names)
    figure = f"{speed:.1f} images/s, {waited:.1%} of the time waiting for images"
    report("speed of training", figure, "", images_per_sec=speed, data_wait_fraction=waited)
    losses = [row["loss"] for row in rows]
    # A value that is not finite is logged as null.
    if None in losses:
        report("losses of training", "not finite", FAILED)
        return
    part = max(1, len(losses) // 5)
    first, last = statistics.fmean(losses[:part]), statistics.fmean(losses[-part:])
    figure = f"{first:.4g} in the first fifth, {last:.4g} in the last one (a short run need not fall)"
    report("losses of training", figure, OK, first=first, last=last)


def log_of(plan: Plan, part: str) -> Path:
    """Returns the file with the output of the "first" or "second" part of a run."""
    return plan.workdir.parent / f"training-{part}.log"


def last_saved(workdir: Path) -> int:
    """Returns the last step with a complete checkpoint; 0 without one."""
    folder = workdir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns all complete lines of metrics.jsonl; ValueError if one is corrupt."""
    file = workdir / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in lines]


def read_steps(workdir: Path) -> list[int]:
    """Returns the steps that were logged, in the order of the lines."""
    return [int(row["step"]) for row in read_metrics(workdir)]
