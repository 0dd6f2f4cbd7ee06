r"""Pre-trains on images, or goes on where the same command stopped.

    python launch/pretrain.py --config=configs/croc_vits16_coco.py --workdir=runs/coco \
        --config.data.folders=path/to/images --config.optimizer.base_lr=1e-3

Every field of the recipe can be set so; several folders are given by repeating the flag. Images
in other forms (COCO, tar, ArrayRecord, tfds, Hugging Face, a list) go by --config.data.sources=KIND:VALUE.

Several processes form one run if Slurm, Open MPI, Kubernetes or a TPU starts them, or if each is told
--coordinator_address, --num_processes and --process_id. A run that SIGTERM or SIGUSR1 has ended exits with 75.
"""

from croc_jax.runtime.stopping import StopRequest, end_at_once, exit_status

if __name__ == "__main__":
    # The imports take minutes from a slow disk, and a signal in the meantime is no failure.
    end_at_once()

import contextlib
import datetime
import errno
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
from absl import flags
from cli import run
from jax.sharding import Mesh
from ml_collections import config_flags
from rich.console import Console

from croc_jax.checkpoints import Checkpointer
from croc_jax.checkpoints.init_from import check_source, init_from
from croc_jax.data.bad_records import ReadersLostError, UnreadableImagesError
from croc_jax.data.pipeline import CropDataset, make_dataset
from croc_jax.data.sources import open_data
from croc_jax.runtime.collapse import CollapseError, Watchdog
from croc_jax.runtime.failing import failing_together
from croc_jax.runtime.health import NonFiniteError, explain
from croc_jax.runtime.lock import lock_workdir
from croc_jax.runtime.memory import advise, compile_step, is_exhausted
from croc_jax.runtime.metrics_writer import MetricsWriter, NoLog
from croc_jax.runtime.processes import gather_texts, join_processes
from croc_jax.runtime.profile import Profiler, StepRange, parse_steps
from croc_jax.runtime.progress import RunProgress
from croc_jax.runtime.workdir import check_agreed, check_shared, init_workdir
from croc_jax.training.config import Recipe, recipe_from_dict
from croc_jax.training.forward import make_networks
from croc_jax.training.loop import Outcome, Outputs, RunLength, SaveError, run_training
from croc_jax.training.sharding import check_batch_divides, make_mesh, num_data_shards
from croc_jax.training.start import abstract_batch, abstract_state, fresh_state, state_shapes, training_bytes
from croc_jax.training.state import TrainState
from croc_jax.training.step import make_train_step

CONFIG = config_flags.DEFINE_config_file("config", help_string="The recipe, such as configs/demo.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where config, metrics and checkpoints go.", required=True)
COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, if there are several processes."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many form the run; 1 ignores what the environment says."
)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
PROFILE_STEPS = flags.DEFINE_string("profile_steps", None, "START:STOP, steps that the profiler of JAX traces.")

# The disk is full, a quota is reached, nothing may be written, or something else has the name of what would be.
_DISK_REFUSES = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
)  # fmt: skip


class Plan(NamedTuple):
    """A run that can be, as far as can be told without its folder.

    Attributes:
        recipe: of the run.
        workdir: its folder.
        mesh: of all devices.
        dataset: this process's part of the batches.
        length: of the whole run.
        shapes: of the state, with types and shardings.
        traced: steps for the profiler, if any.
    """

    recipe: Recipe
    workdir: Path
    mesh: Mesh
    dataset: CropDataset
    length: RunLength
    shapes: TrainState
    traced: StepRange | None


def main() -> None:
    """Joins the other processes, if any, and trains; status 75 asks to be started again."""
    join_processes(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    with StopRequest() as stop, failing_together():
        stopped_by = pretrain(stop)
    if stopped_by:
        raise SystemExit(exit_status(stopped_by))


def pretrain(stop: StopRequest) -> str | None:
    """Checks all that can be checked, restores or starts a run, and trains it; returns the signal that ended it."""
    begin = time.monotonic()
    console = Console(soft_wrap=True, highlight=False, markup=False, quiet=jax.process_index() > 0)
    plan = make_plan()
    if stopped_by := claim(plan, stop):
        console.print(f"stopped by {stopped_by} before the start; there was nothing to save yet")
        return stopped_by
    steps_kept = plan.recipe.runtime.keep_every_epochs * plan.length.steps_per_epoch
    saver = Checkpointer(plan.workdir, plan.recipe, keep_every_steps=steps_kept)
    with closing(saver), explaining(plan, saver):
        outcome = find_end(plan, saver) or train(plan, saver, console, stop=stop)
        console.print(conclude(outcome, saver, seconds=time.monotonic() - begin))
    return outcome.stopped_by


def make_plan() -> Plan:
    """Checks the recipe against the devices and the data; raises ValueError or FileNotFoundError if they do not fit."""
    recipe, workdir = read_recipe_flag(), Path(WORKDIR.value)
    # Before anything that all processes have to do alike, and which another recipe may leave out.
    check_agreed(recipe)
    state_bytes = training_bytes(state_shapes(recipe, steps_per_epoch=1))
    mesh = make_mesh(config=recipe.runtime.mesh, state_bytes=state_bytes)
    batch_size, slices = recipe.schedule.batch_size, recipe.optimizer.accumulation_steps
    check_batch_divides(batch_size, devices=num_data_shards(mesh), slices=slices)
    dataset = open_dataset(recipe, workdir)
    epoch = dataset.steps_per_epoch
    length = RunLength(recipe.schedule.epochs * epoch, steps_per_epoch=epoch, batch_size=batch_size)
    traced = parse_steps(PROFILE_STEPS.value, total_steps=length.total_steps) if PROFILE_STEPS.value else None
    shapes = abstract_state(recipe, steps_per_epoch=epoch, mesh=mesh)
    return Plan(recipe, workdir, mesh, dataset, length, shapes, traced)


def claim(plan: Plan, stop: StopRequest) -> str | None:
    """Takes the workdir for this run; returns the signal that ended the wait for another one, if any."""
    ended = ""
    if jax.process_index() == 0:
        if lock_workdir(plan.workdir, stop=stop):
            init_workdir(plan.workdir, plan.recipe)
        else:
            ended = stop.received or ""
    ended = gather_texts(ended)[0]
    if not ended:
        check_shared(plan.workdir)
    return ended or None


def find_end(plan: Plan, saver: Checkpointer) -> Outcome | None:
    """Returns how the run has ended if its last state is there, and whole; checks what a new one starts from."""
    # One looks, as a network file system may show others less.
    latest = json.loads(gather_texts(json.dumps(saver.latest_step()))[0])
    if latest is None:
        check_source(plan.recipe)
    elif latest >= plan.length.total_steps:
        state = saver.restore_latest(plan.shapes)
        if state is not None and int(state.step) >= plan.length.total_steps:
            return Outcome(state, int(state.step), finished=True)
    return None


def train(plan: Plan, saver: Checkpointer, console: Console, *, stop: StopRequest) -> Outcome:
    """Compiles the step, tells what memory it needs, and only then makes or restores the state, and trains it."""
    recipe, mesh, epoch = plan.recipe, plan.mesh, plan.length.steps_per_epoch
    # What runs is this program: another state or batch than was foretold would be an error.
    jitted, batch = make_train_step(recipe, steps_per_epoch=epoch, mesh=mesh), abstract_batch(recipe, mesh=mesh)
    train_step = compile_step(jitted, plan.shapes, batch, recipe=recipe, mesh=mesh, say=console.print)
    state = saver.restore_latest(plan.shapes)
    console.print(describe(plan, restored=state))
    if state is None:
        state = init_from(recipe, fresh_state(recipe, steps_per_epoch=epoch, mesh=mesh), log=console.print)
    start, first = int(state.step), jax.process_index() == 0
    log = MetricsWriter(plan.workdir, restored_step=start) if first else NoLog()
    display = RunProgress(console, start=start, total=plan.length.total_steps)
    profiler = Profiler(plan.workdir / "profile", plan.traced if first else None, say=display.say)
    watchdog = Watchdog(recipe, steps_per_epoch=epoch)
    with contextlib.closing(log), display, profiler:
        return run_training(
            train_step,
            state,
            plan.dataset,
            outputs=Outputs(saver=saver, log=log, display=display, watchdog=watchdog, profiler=profiler),
            length=plan.length,
            runtime=recipe.runtime,
            mesh=mesh,
            stop=stop,
        )


def read_recipe_flag() -> Recipe:
    """Returns the recipe; images named on the command line replace all those of the config file."""
    config, given = CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])
    if {"data.folders", "data.sources"} & given.keys():
        for name in ("folders", "sources", "weights"):
            if f"data.{name}" not in given:
                config.data[name] = ()
    return recipe_from_dict(config.to_dict())


def open_dataset(recipe: Recipe, workdir: Path) -> CropDataset:
    """Returns this process's part of the stream of batches."""
    index = jax.process_index()
    return make_dataset(
        open_data(recipe.data),
        views=recipe.data.views,
        local_views=recipe.data.local_views,
        batch_size=recipe.schedule.batch_size,
        seed=recipe.seed,
        process_index=index,
        process_count=jax.process_count(),
        skipped_file=workdir / (f"skipped-{index}.txt" if index else "skipped.txt"),
        max_bad_fraction=recipe.data.max_bad_fraction,
    )


@contextlib.contextmanager
def closing(saver: Checkpointer) -> Iterator[None]:
    """Waits for what is being written, unless other processes, which this one has left alone, would have to help."""
    try:
        yield
    except BaseException:
        if jax.process_count() == 1:
            saver.close()
        raise
    saver.close()


@contextlib.contextmanager
def explaining(plan: Plan, saver: Checkpointer) -> Iterator[None]:
    """Ends the program with status 1 and advice if the numbers blow up, or what it reads from or writes to does."""
    try:
        yield
    except (CollapseError, ReadersLostError, SaveError, UnreadableImagesError) as error:
        raise SystemExit(f"error: {error}; {name_last(saver)}") from None
    except OSError as error:
        if error.errno not in _DISK_REFUSES:
            raise
        raise SystemExit(f"error: {error}; {name_last(saver)}") from None
    except NonFiniteError as error:
        raise SystemExit(f"error: {explain(error, plan.recipe, last_good=saver.latest_path())}") from None
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        reason = str(error).splitlines()[0][:300]
        advice = advise(plan.recipe, plan.mesh)
        raise SystemExit(f"error: the memory is too small: {advice} ({reason}); {name_last(saver)}") from None


def name_last(saver: Checkpointer) -> str:
    """Says where the last state is."""
    path = saver.latest_path()
    return f"the last state is {path}" if path else "no state has been saved"


def describe(plan: Plan, *, restored: TrainState | None) -> str:
    """Says what is about to run, and on what."""
    recipe, mesh, shapes = plan.recipe, plan.mesh, plan.shapes
    millions = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.student["backbone"])) / 1e6
    batch, epochs = recipe.schedule.batch_size, recipe.schedule.epochs
    devices = f"{mesh.size} {mesh.devices.flat[0].platform} device(s)"
    if mesh.size > num_data_shards(mesh) or mesh.shape["fsdp"] > 1:
        devices += f" ({' x '.join(f'{name} {size}' for name, size in mesh.shape.items())})"
    devices += f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    backbone = make_networks(recipe, mesh=mesh).backbone
    attention = ", attention by cuDNN" if getattr(backbone, "attention", "") == "cudnn" else ""
    anew = f"starts from {recipe.init_from.source}" if recipe.init_from.source else "starts anew"
    where = anew if restored is None else f"resumes after step {int(restored.step)}"
    return (
        f"{recipe.backbone.variant}/{recipe.backbone.patch_size}, {millions:.1f} M parameters, "
        f"{backbone.dtype}{attention}, on {devices}: "
        f"{plan.dataset.images_per_epoch} images, batch {batch} ({batch // num_data_shards(mesh)} a device), "
        f"{plan.length.steps_per_epoch} steps an epoch, {epochs} epochs; {where}"
    )


def conclude(outcome: Outcome, saver: Checkpointer, *, seconds: float) -> str:
    """Says how it ended, and what to do next."""
    took, path = datetime.timedelta(seconds=round(seconds)), saver.latest_path()
    if outcome.finished:
        return f"finished at step {outcome.step} after {took}; the last state is {path}"
    saved = f"the state is saved in {path}" if path else "there was nothing to save yet"
    command = f"python {shlex.join(sys.argv)}"
    return (
        f"stopped by {outcome.stopped_by} at step {outcome.step} after {took}; {saved}; "
        f"to go on, run the same command:\n  {command}"
    )


if __name__ == "__main__":
    run(main)
