"""From the config of a sweep to its runs: checked before anything starts, then trained, scored and reported."""

import functools
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from command_line import PARENT, UserError, make_progress, parse_config
from protocols import plan
from rich.console import Console
from rich.progress import Progress as Bars

from croc_jax.evaluation.results import RESULTS
from croc_jax.report import build_comparison
from croc_jax.report.sweep import overview_section, read_run
from croc_jax.training.config import Recipe, flatten, recipe_from_dict
from croc_jax.training.stopping import StopRequest
from croc_jax.training.sweep import Axis, Grid, Run, expand, parse_grid, read_progress
from croc_jax.training.workdir import CHECKPOINTS_NAME, CONFIG_NAME, differing_fields, read_recipe

HERE = Path(__file__).resolve().parent
LOG_NAME = "sweep.log"
POLL_SECONDS = 1.0
FIELDS = {"base", "common", "grids", "evaluations"}
# Data sets may lie elsewhere when a run goes on; pretrain.py looks at these itself.
PLACES = ("data.folders", "data.sources", "data.weights")
# Runs a command with its output in a file, calls the function now and then, and returns its status.
RunFn = Callable[[Sequence[str], Path, Callable[[], None], StopRequest], int]


class Evaluation(NamedTuple):
    """A protocol that scores every run.

    Attributes:
        name: of its folder.
        flags: of launch/evaluate.py, without checkpoint and output.
    """

    name: str
    flags: tuple[str, ...]


class Job(NamedTuple):
    """One run and its place.

    Attributes:
        run: of the sweep.
        workdir: its own.
        recipe: all its settings.
        flags: of launch/pretrain.py.
    """

    run: Run
    workdir: Path
    recipe: Recipe
    flags: tuple[str, ...]


class Sweep(NamedTuple):
    """All that is to be done.

    Attributes:
        jobs: in order.
        evaluations: of each.
        axes: that are varied.
    """

    jobs: list[Job]
    evaluations: list[Evaluation]
    axes: list[Axis]


class Task(NamedTuple):
    """One program to run.

    Attributes:
        what: it does, in the sweep's words.
        program: beside this one.
        flags: its arguments.
        folder: that it writes in.
    """

    what: str
    program: str
    flags: tuple[str, ...]
    folder: Path

    @property
    def command(self) -> list[str]:
        """How to run it here."""
        return [sys.executable, str(HERE / self.program), *self.flags]


class Failure(NamedTuple):
    """A program that did not end well, and its output."""

    what: str
    status: int
    log: Path


def read_sweep(config: Any, workdir: Path, *, base: str, overrides: Sequence[str], has_data: bool = True) -> Sweep:
    """Returns the jobs of a sweep, every setting of which has been checked.

    Args:
        config: of a file in configs/sweeps.
        workdir: whose folders the runs get.
        base: another base config than the file's, or nothing.
        overrides: --config.FIELD=VALUE for all runs.
        has_data: whether the labeled images of the evaluations are on this machine.

    Raises:
        UserError: for an unknown field, in the sweep or in an override, or an evaluation that cannot be run.
        ValueError: for values that cannot work, or a folder that holds another run.
    """
    if set(config) != FIELDS:
        raise UserError(f"a sweep has the fields {', '.join(sorted(FIELDS))}; this one has {', '.join(sorted(config))}")
    base, given = base or config.base, {name_of(flag) for flag in overrides}
    common = {name: value for name, value in flatten(config.common.to_dict()).items() if name not in given}
    grids = [parse_grid(grid) for grid in config.grids]
    swept = [field for grid in grids for axis in grid for field in axis.fields]
    if both := [flag for flag in overrides if name_of(flag) in swept]:
        raise UserError(f"{both[0]}: the sweep varies {name_of(both[0])}; change its grid")
    for axis in itertools.chain(*grids):
        # An unknown field is named here, with the nearest known one.
        parse_config(base, to_flags(dict.fromkeys(axis.fields, axis.values[0])))
    center = parse_config(base, [*overrides, *to_flags(common)])
    runs = expand(grids, flatten(center.to_dict()))
    jobs = [make_job(run, workdir / run.name, base, [*overrides, *to_flags(common | run.settings)]) for run in runs]
    evaluations = [make_evaluation(name, of.to_dict(), has_data) for name, of in config.evaluations.items()]
    return Sweep(jobs, evaluations, merge_axes(grids))


def make_job(run: Run, workdir: Path, base: str, flags: Sequence[str]) -> Job:
    """Returns the job of a run, whose folder must not hold another one."""
    recipe = recipe_from_dict(parse_config(base, flags).to_dict())
    saved = workdir / CONFIG_NAME
    if saved.is_file():
        changes = differing_fields(read_recipe(saved), recipe)
        listed = ", ".join(f"{n}: {a!r} there, {b!r} now" for n, (a, b) in changes.items() if n not in PLACES)
        if listed:
            raise UserError(f"{workdir} holds a run of another sweep ({listed}); choose another --workdir")
    return Job(run, workdir, recipe, (f"--config={base}", f"--workdir={workdir}", *flags))


def make_evaluation(name: str, settings: dict[str, Any], has_data: bool) -> Evaluation:
    """Returns an evaluation whose settings, and data if they are here, can be used."""
    file = settings.pop("config", "")
    if not Path(file.partition(":")[0]).is_file():
        raise UserError(f"sweep.evaluations.{name}.config={file!r}: there is no such file")
    flags = to_flags(flatten(settings))
    protocol = parse_config(file, flags)
    if has_data:
        try:
            plan(protocol)
        except ValueError as error:
            raise UserError(f"sweep.evaluations.{name}: {error}") from error
    return Evaluation(name, (f"--config={file}", *flags))


def name_of(flag: str) -> str:
    """Returns the field of --config.FIELD=VALUE."""
    return flag.partition("=")[0].lstrip("-").removeprefix("config.")


def to_flags(settings: dict[str, Any]) -> list[str]:
    """Returns --config.FIELD=VALUE for each setting, several for a tuple."""
    return [
        f"--config.{field}={item}"
        for field, value in settings.items()
        for item in (value if isinstance(value, list | tuple) else (value,))
    ]


def merge_axes(grids: Sequence[Grid]) -> list[Axis]:
    """Returns each axis once, with the values of all grids."""
    values: dict[tuple[str, ...], list[Any]] = {}
    for axis in itertools.chain(*grids):
        values.setdefault(axis.fields, []).extend(axis.values)
    return [Axis(fields, tuple(dict.fromkeys(of))) for fields, of in values.items()]


def due_tasks(job: Job, evaluations: Sequence[Evaluation]) -> Iterator[Task]:
    """Yields the training of a run that is not finished, and then, if it is, the scores that are missing.

    Each is looked for when it is asked for, so that a run may finish in between.
    """
    if read_progress(job.workdir, job.recipe).state != "finished":
        yield Task(job.run.name, "pretrain.py", job.flags, job.workdir)
    progress = read_progress(job.workdir, job.recipe)
    for one in evaluations if progress.state == "finished" else ():
        folder = job.workdir / "eval" / one.name
        if not is_scored(folder, job.workdir / CHECKPOINTS_NAME / str(progress.step)):
            flags = (*one.flags, f"--checkpoint={job.workdir}", f"--output={folder}")
            yield Task(name_task(job, one), "evaluate.py", flags, folder)


def name_task(job: Job, evaluation: Evaluation) -> str:
    """Returns what a scoring is called."""
    return f"{job.run.name}, {evaluation.name}"


def scored_step(folder: Path) -> int | None:
    """Returns the step of a results.json, or None if there is none that is whole."""
    try:
        return json.loads((folder / RESULTS).read_bytes())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_scored(folder: Path, checkpoint: Path) -> bool:
    """Says whether the last checkpoint of a run has been scored, or an older one in its place, as it is damaged."""
    step = scored_step(folder)
    later = step is not None and (folder / RESULTS).stat().st_mtime > checkpoint.stat().st_mtime
    return step == int(checkpoint.name) or later


def name_damaged(sweep: Sweep) -> Iterator[str]:
    """Yields a line for each score of a finished run that is of an older checkpoint than its last."""
    for job in sweep.jobs:
        progress = read_progress(job.workdir, job.recipe)
        last = job.workdir / CHECKPOINTS_NAME / str(progress.step)
        for one in sweep.evaluations if progress.state == "finished" else ():
            folder = job.workdir / "eval" / one.name
            if is_scored(folder, last) and (step := scored_step(folder)) != progress.step:
                yield (
                    f"{name_task(job, one)}: scored at step {step}, as {last} seems damaged; "
                    "remove that folder and give the same command again, to train from there"
                )


def run_here(sweep: Sweep, console: Console, run: RunFn) -> tuple[list[Failure], str | None]:
    """Trains and scores what is not done yet, one after another.

    Args:
        sweep: to run.
        console: for progress.
        run: does it.

    Returns:
        What failed, and the signal that ended it all, if one did.
    """
    failures: list[Failure] = []
    with StopRequest() as stop, make_progress(console) as bars:
        show = make_display(bars, sweep)
        for index, job in enumerate(sweep.jobs):
            show(index)
            for task in due_tasks(job, sweep.evaluations):
                status = run(task.command, task.folder / LOG_NAME, functools.partial(show, index), stop)
                if stop.received:
                    return failures, stop.received
                unfinished = (
                    task.program == "pretrain.py" and read_progress(job.workdir, job.recipe).state != "finished"
                )
                if status or unfinished:
                    failures.append(Failure(task.what, status, task.folder / LOG_NAME))
                console.print(f"{task.what}: {'failed' if status or unfinished else 'done'}")
            show(index)
    return failures, None


def make_display(bars: Bars, sweep: Sweep) -> Callable[[int], None]:
    """Returns a function that shows how far the run of an index is, and with it the sweep."""
    epochs = [job.recipe.schedule.epochs for job in sweep.jobs]
    bar = bars.add_task("", total=sum(epochs))

    def show(index: int) -> None:
        job = sweep.jobs[index]
        done = sum(epochs[:index]) + int(read_progress(job.workdir, job.recipe).epoch)
        bars.update(bar, description=f"{index + 1}/{len(sweep.jobs)} {job.run.name} (epochs)", completed=done)

    return show


def run_program(command: Sequence[str], log: Path, watch: Callable[[], None], stop: StopRequest) -> int:
    """Runs a program to its end, or lets it save when a signal comes; returns its status.

    Args:
        command: and its arguments.
        log: that its output is added to.
        watch: called now and then.
        stop: passed on as one SIGTERM.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        environment = os.environ | {PARENT: str(os.getpid())}
        # In a session of its own, it does not hear the Ctrl-C that this program passes on.
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        told, last = False, time.monotonic()
        while True:
            try:
                return process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                if stop.received and not told:
                    told = True
                    process.terminate()
                if time.monotonic() - last > POLL_SECONDS:
                    last = time.monotonic()
                    watch()


def write_report(sweep: Sweep, file: Path, failures: Sequence[Failure] = ()) -> Path | None:
    """Writes the page about all runs, whatever has become of them; None if none has been started.

    Args:
        sweep: that the runs are of.
        file: the page.
        failures: of this call.
    """
    started = [job for job in sweep.jobs if job.workdir.is_dir()]
    if not started:
        return None
    scored = {job.workdir: job.run.settings for job in started if any((job.workdir / "eval").glob(f"*/{RESULTS}"))}
    states = [read_run(job.run.name, job.workdir, job.recipe, note=note_of(job, sweep, failures)) for job in sweep.jobs]
    folders = [job.workdir for job in started]
    return build_comparison(folders, file, axes=sweep.axes, swept=scored, overview=overview_section(states))


def note_of(job: Job, sweep: Sweep, failures: Sequence[Failure]) -> str:
    """Returns what has failed of a run in this call, or else which scores it lacks."""
    failed = [one for one in failures if one.log.is_relative_to(job.workdir)]
    if failed:
        return "; ".join(f"failed: {one.what}, with status {one.status}" for one in failed)
    lacking = [one.name for one in sweep.evaluations if scored_step(job.workdir / "eval" / one.name) is None]
    return f"no score yet: {', '.join(lacking)}" if lacking else ""
