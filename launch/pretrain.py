r"""Pre-trains on images, or resumes the run in --workdir.

    python launch/pretrain.py --config=configs/croc_vits16_coco.py --workdir=runs/coco \
        --config.data.folders=path/to/images --config.optimizer.base_lr=1e-3

Every field of the configuration can be set so; a flag is repeated for several folders. Images in other forms (COCO,
tar, ArrayRecord, tfds, Hugging Face, a list) are given by --config.data.sources=KIND:VALUE.
--config=configs/presets.py:auto chooses settings by the number of images, and says why.

Several processes form one run if Slurm, Open MPI, Kubernetes or a TPU starts them, or if each gets
--coordinator_address, --num_processes and --process_id. SIGTERM, SIGUSR1 and Ctrl-C save the state and end the run
with status 75, which asks for the same command again.

The teacher is scored while it trains by --config.evaluation.protocols=configs/eval/knn.py
--config.evaluation.root=ROOT, in at most 5% of the time, or at --config.evaluation.every_epochs=10; the scores go to
metrics.jsonl and TensorBoard. --eval_config=configs/eval/knn.py --eval_config.dataset.root=ROOT
--eval_every_epochs=10 is a short form for one protocol.
"""

import contextlib
import dataclasses
import datetime
import functools
import math
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cli
import jax
from absl import flags
from cli import define_path
from endings import closing, explaining_errors, name_last
from evaluations import InTurn, RunEvaluation, RunPictures, open_evaluator, with_protocol
from jax.sharding import Mesh
from ml_collections import config_flags
from rich.console import Console

from croc_jax.checkpoints import Checkpointer
from croc_jax.checkpoints.init_from import check_source, init_from
from croc_jax.checkpoints.manifest import CorruptError
from croc_jax.checkpoints.restore import CHECKPOINTS_NAME, list_checkpoints, read_manifest
from croc_jax.data.pipeline import CropDataset, make_dataset
from croc_jax.data.sources import open_data
from croc_jax.data.sources.identity import identify
from croc_jax.paths import local_path
from croc_jax.runtime import distributed, memory
from croc_jax.runtime.collapse import Watchdog
from croc_jax.runtime.metrics_writer import NoWriter
from croc_jax.runtime.preemption import StopSignals
from croc_jax.runtime.profile import Profiler, StepTimer, parse_steps
from croc_jax.runtime.progress import RunProgress
from croc_jax.runtime.starts import environment
from croc_jax.runtime.wandb_writer import check_wandb, open_writers
from croc_jax.runtime.workdir import CONFIG_NAME, Start, claim_workdir, leaving_nothing, plan_start
from croc_jax.runtime.workdir import read_recipe as read_saved_recipe
from croc_jax.training.config import Recipe, flatten, recipe_to_dict
from croc_jax.training.forward import make_networks
from croc_jax.training.loop import Hooks, Row, RunLength, run_training
from croc_jax.training.presets import explain_preset
from croc_jax.training.resolve import recipe_from_config
from croc_jax.training.sharding import check_batch_divides, make_mesh, num_data_shards, state_shardings
from croc_jax.training.state import TrainState, abstract_batch, abstract_state, init_state, state_shapes, training_bytes
from croc_jax.training.step import make_train_step

CONFIG = config_flags.DEFINE_config_file("config", help_string="The configuration, such as configs/demo.py.")
WORKDIR = define_path("workdir", None, "Where config, metrics and checkpoints are written.", required=True)
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0 of several processes.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes; 1 ignores the environment.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
EVAL_CONFIG = config_flags.DEFINE_config_file("eval_config", help_string="A protocol, such as configs/eval/knn.py.")
EVAL_EVERY_EPOCHS = flags.DEFINE_integer("eval_every_epochs", 10, "Epochs between its scores.", lower_bound=1)
CONNECT_TIMEOUT = flags.DEFINE_integer("connect_timeout", 300, "Seconds to wait for the other processes at the start.")
ACCEPT_CHANGED_IMAGES = flags.DEFINE_bool(
    "accept_changed_images", False, "Resume with other images than the run began with; its length and epochs stay."
)
PROFILE_STEPS = flags.DEFINE_string("profile_steps", None, "START:STOP, steps to trace with JAX's profiler.")


def main() -> None:
    """Connects the processes and trains; status 75 asks for another start."""
    distributed.initialize(
        COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, timeout_seconds=CONNECT_TIMEOUT.value
    )
    with distributed.failing_fast():
        status = pretrain()
    if status:
        raise SystemExit(status)


def pretrain() -> int:
    """Reads the configuration, arranges the devices, and trains; returns the exit status."""
    # Configuration.
    recipe, workdir = read_recipe(), WORKDIR.value
    check_wandb(recipe.runtime.wandb_project)

    # Mesh.
    memory_bytes = distributed.least(memory.memory_limit(jax.devices()))
    state_bytes = training_bytes(state_shapes(recipe, steps_per_epoch=1))
    mesh = make_mesh(config=recipe.runtime.mesh, state_bytes=state_bytes, memory_bytes=memory_bytes)
    batch_size, microbatches = recipe.schedule.batch_size, recipe.optimizer.accumulation_steps
    check_batch_divides(batch_size, devices=num_data_shards(mesh), num_microbatches=microbatches)

    with explaining_errors(recipe, mesh, workdir):
        return train(recipe, mesh, workdir, memory_bytes=memory_bytes)


def train(recipe: Recipe, mesh: Mesh, workdir: Path, *, memory_bytes: float) -> int:
    """Trains to the end of the run, or to a signal; returns the exit status."""
    begin, is_first = time.monotonic(), jax.process_index() == 0
    console = Console(soft_wrap=True, highlight=False, markup=False, quiet=not is_first)

    # Data.
    dataset, batch_size = open_dataset(recipe, workdir), recipe.schedule.batch_size
    images = identify(dataset.source)
    begun = Start(
        recipe=recipe,
        images=images,
        steps_per_epoch=dataset.steps_per_epoch,
        accept_changed_images=ACCEPT_CHANGED_IMAGES.value,
        saved_images=saved_images(workdir),
    )
    plan = plan_start(workdir, begun)
    for note in plan.notes:
        console.print(note)
    if recipe.preset:
        settings = flatten(recipe_to_dict(recipe))
        explained = explain_preset(recipe.preset, settings, num_images=dataset.images_per_epoch)
        console.print("\n".join(explained if plan.is_new else explained[:1]))
    steps_per_epoch = plan.steps_per_epoch
    length = RunLength(recipe.schedule.epochs * steps_per_epoch, steps_per_epoch, batch_size)
    traced = parse_steps(PROFILE_STEPS.value, total_steps=length.total_steps) if PROFILE_STEPS.value else range(0)
    progress = RunProgress(console, start=plan.step, total=length.total_steps)
    evaluator = open_evaluator(recipe, dataset, bars=progress.bars)

    # Shapes and shardings.
    init_fn = functools.partial(init_state, recipe, steps_per_epoch=steps_per_epoch)
    shapes = abstract_state(recipe, steps_per_epoch=steps_per_epoch, mesh=mesh)
    shardings = state_shardings(shapes, mesh)

    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(StopSignals())

        # Jitted init, unless there is a state. What is wrong with given weights is found before anything is written.
        def init() -> TrainState:
            check_source(recipe)
            return init_from(recipe, jax.jit(init_fn, out_shardings=shardings)(), log=console.print)

        fresh = init() if plan.step == 0 else None

        # Workdir.
        stack.enter_context(leaving_nothing(workdir))
        claim_workdir(workdir, begun)
        checkpointer = Checkpointer(
            workdir,
            recipe,
            keep_every_steps=recipe.runtime.keep_every_epochs * steps_per_epoch,
            save_every_minutes=recipe.runtime.checkpoint_every_minutes,
            notes=environment() | {"images": images.brief},
        )
        stack.enter_context(closing(checkpointer))

        # Restore.
        state = checkpointer.restore_latest(shapes)
        if state is not None:
            origin = f"resumes after step {int(state.step)}"
        else:
            origin = f"starts from {recipe.init_from.source or 'scratch'}"
            state = fresh or init()
        del fresh
        console.print(f"{describe(recipe, mesh, shapes, dataset, steps_per_epoch)}; {origin}")
        start = int(state.step)
        if start >= length.total_steps:
            console.print(f"finished at step {start}; {name_last(workdir)}")
            return 0

        # Jitted step.
        console.print("compiling the training step ...")
        compile_begin = time.monotonic()
        train_step = make_train_step(recipe, steps_per_epoch=steps_per_epoch, mesh=mesh)
        batch_shapes = abstract_batch(recipe, mesh=mesh)
        train_step = train_step.lower(shapes, batch_shapes).compile()
        compile_seconds = time.monotonic() - compile_begin
        # A first collective on CPU waits for its peers half a minute only, and others may compile longer.
        distributed.gather_texts("compiled")
        needs = memory.measure(train_step, shapes, batch_shapes)
        console.print(memory.describe(needs, limit=memory_bytes, advice=memory.advise(recipe, mesh)))
        if signals.arrived_before(start):
            console.print(f"stopped by {signals.received or 'a signal'} before the first step; {name_last(workdir)}")
            return signals.exit_status

        # Loop, with its evaluations.
        writer = open_writers(workdir, recipe, restored_step=start) if is_first else NoWriter()
        progress.advance(start)
        profiler = Profiler(workdir / "profile", traced if is_first else range(0), log=progress.log)
        watchdog = Watchdog(recipe, steps_per_epoch=steps_per_epoch)

        def on_row(row: Row) -> str:
            progress.show(row)
            findings = watchdog.look(row)
            for finding in findings:
                progress.log(f"warning: step {row['step']}: {finding.text}")
            return "; ".join(one.text for one in findings) if recipe.runtime.watchdog.stop_on_collapse else ""

        evaluation = RunEvaluation(
            recipe, evaluator, length, checkpointer, compile_seconds=compile_seconds, log=progress.log
        )
        pictures = RunPictures(recipe, dataset, length, workdir, log=progress.log)
        if start == 0 and pictures.is_due(0):
            pictures.evaluate(0, state)
        in_turn = InTurn(evaluation, pictures)
        hooks = Hooks[TrainState](
            trace=profiler.step,
            on_step=progress.advance,
            on_row=on_row,
            should_stop=signals.should_stop,
            interruptible=signals.interruptible,
            agree=distributed.from_first,
            is_evaluation_due=in_turn.is_due,
            evaluate=in_turn.evaluate,
        )
        runtime = recipe.runtime
        stream = dataset.iterate(start, num_workers=runtime.num_workers, num_threads=runtime.num_threads)
        with contextlib.closing(stream), contextlib.closing(writer), progress, contextlib.closing(profiler):
            outcome = run_training(
                train_step,
                state,
                stream,
                mesh=mesh,
                length=length,
                checkpointer=checkpointer,
                writer=writer,
                timer=StepTimer(batch_size=batch_size, count_skipped=lambda: sum(stream.skipped.values())),
                hooks=hooks,
                log_every_steps=runtime.log_every_steps,
            )

    # End: the loop has saved the last state.
    took, where = datetime.timedelta(seconds=round(time.monotonic() - begin)), name_last(workdir)
    if outcome.reason:
        raise SystemExit(
            f"error: step {outcome.step}: training has collapsed, and runtime.watchdog.stop_on_collapse is set: "
            f"{outcome.reason}; {where}"
        )
    if outcome.finished:
        if note := evaluation.explain_none():
            console.print(note)
        console.print(f"finished at step {outcome.step} after {took}; {where}")
        return 0
    cause = signals.received or "a signal to another process"
    console.print(f"stopped by {cause} at step {outcome.step} after {took}; {where}")
    console.print(f"to resume, run the same command:\n  python {shlex.join(sys.argv)}")
    if outcome.is_waiting:
        # The interpreter would wait for the threads that wait for images.
        distributed.end_at_once(signals.exit_status)
    return signals.exit_status


def read_recipe() -> Recipe:
    """Returns the configuration; images given on the command line replace all those of the config file."""
    config, given = CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"])
    if {"data.folders", "data.sources"} & given.keys():
        for name in ("folders", "sources", "weights"):
            if f"data.{name}" not in given:
                config.data[name] = ()
    saved = WORKDIR.value / CONFIG_NAME
    is_resumed = bool(config.data.statistics or config.preset) and saved.is_file()
    recipe = recipe_from_config(config.to_dict(), given=given, saved=read_saved_recipe(saved) if is_resumed else None)
    if EVAL_CONFIG.value is not None:
        flag = flags.FLAGS["eval_config"]
        file, overrides = config_flags.get_config_filename(flag), config_flags.get_override_values(flag)
        evaluation = with_protocol(recipe.evaluation, file, overrides, every_epochs=EVAL_EVERY_EPOCHS.value)
        recipe = dataclasses.replace(recipe, evaluation=evaluation)
    for folder in recipe.data.folders:
        local_path(folder, name="--config.data.folders")
    recipe.data.photometric.check_channels(recipe.data.channels)
    return recipe


def open_dataset(recipe: Recipe, workdir: Path) -> CropDataset:
    """Returns the batches of the run, of which this process reads its rows."""
    index = jax.process_index()
    return make_dataset(
        open_data(recipe.data),
        views=recipe.data.views,
        local_views=recipe.data.local_views,
        pixels=recipe.data.pixels,
        batch_size=recipe.schedule.batch_size,
        seed=recipe.seed,
        process_index=index,
        process_count=jax.process_count(),
        skipped_file=workdir / (f"skipped-{index}.txt" if index else "skipped.txt"),
        max_bad_fraction=recipe.data.max_bad_fraction,
    )


def saved_images(workdir: Path) -> Mapping[str, Any] | None:
    """Returns number and digest of the images in the latest checkpoint, if there is one that states them."""
    with contextlib.suppress(OSError, CorruptError):
        for folder in list_checkpoints(workdir / CHECKPOINTS_NAME)[:1]:
            return read_manifest(folder).get("images")
    return None


def describe(recipe: Recipe, mesh: Mesh, shapes: TrainState, dataset: CropDataset, steps_per_epoch: int) -> str:
    """Returns a line on what is about to run, and on what."""
    millions = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.student["backbone"])) / 1e6
    backbone, batch = make_networks(recipe, mesh=mesh).backbone, recipe.schedule.batch_size
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    devices = f"{mesh.size} {mesh.devices.flat[0].platform} device(s)" + (f" ({axes})" if axes else "")
    devices += f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    multiplied = getattr(backbone, "multiply", backbone.dtype)
    products = f", products in {multiplied}" if multiplied != backbone.dtype else ""
    attention = ", cuDNN attention" if getattr(backbone, "attention", "") == "cudnn" else ""
    return (
        f"{recipe.backbone.variant}/{recipe.backbone.patch_size}, {millions:.1f} M parameters, {backbone.dtype}"
        f"{products}{attention}, on {devices}: {dataset.images_per_epoch} images, batch {batch} "
        f"({batch // num_data_shards(mesh)} a device), {steps_per_epoch} steps an epoch, "
        f"{recipe.schedule.epochs} epochs"
    )


if __name__ == "__main__":
    cli.run(main)
