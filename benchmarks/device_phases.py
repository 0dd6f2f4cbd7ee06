"""What is measured on the devices themselves: their names, the speed of a step, and the share of each of its parts."""

import importlib.metadata
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from findings import FAILED, OK, TOO_LARGE, Report, attempt, first_line
from flops import model_flops, transformer
from trace_parts import NoLanesError, parts_of_program, read_trace, split_time
from trial_sizes import TrialSize, with_batch

from croc_jax.runtime.memory import format_bytes, is_exhausted, measure, memory_limit
from croc_jax.training.config import Recipe
from croc_jax.training.sharding import make_mesh, shard_batch
from croc_jax.training.state import abstract_batch, abstract_state, fresh_state
from croc_jax.training.step import make_train_step

STEPS_PER_EPOCH = 1000
# TFLOP/s in bfloat16 without sparsity; the first name that a device's kind contains counts.
PEAKS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "MI250": 191.5,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v6": 918.0,
}
_TRACED_STEPS = 3
_WARM_UP = 2


def name_devices(size: TrialSize, report: Report) -> None:
    """Tells what there is, and what "auto" stands for on it."""
    devices, limit = jax.devices(), memory_limit(jax.devices())
    first = devices[0]
    told = {
        "kind": first.device_kind,
        "count": len(devices),
        "platform": first.platform,
        "runtime": str(first.client.platform_version).splitlines()[0][:80],
        "memory": None if np.isinf(limit) else int(limit),
        "peak_tflops": peak_of(first.device_kind),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    memory = "memory not told" if np.isinf(limit) else f"{format_bytes(limit)} each"
    report("devices", f"{len(devices)} x {first.device_kind} ({first.platform}), {memory}", OK, **told)
    report("versions", f"jax {told['jax']}, jaxlib {told['jaxlib']}, Python {told['python']}, {told['runtime']}")
    report("host", f"{told['cores']} cores")
    attempt(report, lambda: _name_choices(size, report), "choices of auto")


def _name_choices(size: TrialSize, report: Report) -> None:
    backbone = transformer(size.recipe)
    dtype, kept = str(np.dtype(backbone.dtype)), backbone.kept
    found = {"dtype": dtype, "attention": backbone.attention, "kept": list(kept), "unrolled": backbone.unrolled}
    blocks = f"{'one by one' if backbone.unrolled else 'in a loop'}, keeping {', '.join(kept) or 'nothing'}"
    report("choices of auto", f"{dtype}, attention by {backbone.attention}, blocks {blocks}", "", **found)


def time_steps(size: TrialSize, report: Report) -> None:
    """Times the whole step at each batch; one that does not fit is a row, and ends the phase."""
    for batch in size.speed_batches:
        name = f"batch {batch}"
        try:
            _time_batch(with_batch(size.recipe, batch), size.repeats, report, name)
        except jax.errors.JaxRuntimeError as error:
            if not is_exhausted(error):
                report(name, first_line(error), FAILED)
                continue
            report(name, first_line(error), TOO_LARGE, batch=batch)
            return
        except Exception as error:
            report(name, first_line(error), FAILED)


def _time_batch(recipe: Recipe, repeats: int, report: Report, name: str) -> None:
    mesh, size = make_mesh(), recipe.schedule.batch_size
    compiled, needs, compile_seconds = compile_for(recipe)
    report.say(f"  {name}: compiled in {compile_seconds:.0f} s")
    state = fresh_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    batch = shard_batch(noise_batch(size, recipe.data.views.crop_size), mesh)
    times, metrics = [], {}
    for _ in range(_WARM_UP + repeats):
        begin = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, batch))
        times.append(time.perf_counter() - begin)
    seconds = float(np.median(times[_WARM_UP:]))
    clusters = float(metrics["num_clusters"] * metrics["valid_fraction"])
    tflops = model_flops(recipe, clusters) * size / seconds / 1e12
    stats = jax.local_devices()[0].memory_stats() or {}
    used, peak = stats.get("peak_bytes_in_use"), peak_of(jax.devices()[0].device_kind)
    share = tflops / (peak * jax.device_count()) if peak else None
    figure = (
        f"{size / seconds:.1f} images/s, {1e3 * seconds:.1f} ms a step, {tflops:.2f} TFLOP/s"
        f"{'' if share is None else f' ({share:.1%} of the peak)'}; compiled in {compile_seconds:.1f} s; "
        f"memory {'not told' if used is None else format_bytes(used)}, {format_bytes(needs)} predicted"
    )
    report(
        name, figure, OK, batch=size, seconds=seconds, times=times, images_per_sec=size / seconds, tflops=tflops,
        share_of_peak=share, compile_seconds=compile_seconds, peak_bytes=used, predicted_bytes=needs, clusters=clusters,
    )  # fmt: skip


def compile_for(recipe: Recipe) -> tuple[jax.stages.Compiled, int, float]:
    """Returns the step for all devices, the bytes that one of them needs, and the seconds that it took to compile."""
    mesh = make_mesh()
    state = abstract_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    batch, begin = abstract_batch(recipe, mesh=mesh), time.perf_counter()
    compiled = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh).lower(state, batch).compile()
    return compiled, measure(compiled, state, batch).total, time.perf_counter() - begin


def split_step(size: TrialSize, report: Report, folder: Path) -> None:
    """Traces steps of the smallest timed batch, and tells how their time splits over their parts.

    Args:
        size: of the trial.
        report: takes the rows.
        folder: for the trace, which stays.
    """
    recipe = with_batch(size.recipe, size.speed_batches[0])
    compiled, _, _ = compile_for(recipe)
    mesh = make_mesh()
    state = fresh_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    batch = shard_batch(noise_batch(recipe.schedule.batch_size, recipe.data.views.crop_size), mesh)
    for _ in range(_WARM_UP):
        state, _ = jax.block_until_ready(compiled(state, batch))
    options: Any = jax.profiler.ProfileOptions()
    # A trace in this format holds a million events: those of Python would crowd out the kernels.
    options.python_tracer_level, options.host_tracer_level = 0, 1
    shutil.rmtree(folder, ignore_errors=True)
    with jax.profiler.trace(str(folder), profiler_options=options):
        for _ in range(_TRACED_STEPS):
            state, _ = jax.block_until_ready(compiled(state, batch))
    try:
        split = split_time(read_trace(folder), parts_of_program(compiled.as_text() or ""))
    except NoLanesError as error:
        # On CPU there are none, and no figure is made up.
        on_cpu = jax.default_backend() == "cpu"
        report("share of each part", f"{error}{'' if on_cpu else '; see parts.log'}", OK if on_cpu else FAILED)
        return
    each = sum(split.seconds.values()) / _TRACED_STEPS / jax.device_count()
    report("time on a device", f"{1e3 * each:.1f} ms a step, busy {split.busy:.0%} of the time", OK, seconds=each)
    for part, share in split.shares.items():
        report(part, f"{share:.1%}, {1e3 * share * each:.1f} ms a step", "", share=share)
    if split.unknown:
        report("longest of other", ", ".join(split.unknown), "", seconds=split.unknown)


def peak_of(kind: str) -> float | None:
    """Returns TFLOP/s in bfloat16 of a kind of device, if known."""
    return next((peak for name, peak in PEAKS.items() if name in kind), None)


def noise_batch(size: int, crop_size: int) -> dict[str, np.ndarray]:
    """Returns noise in the place of crops; the speed does not depend on the pixels."""
    rng = np.random.default_rng(0)
    corners, sizes = rng.uniform(0, 100, (size, 2, 2)), rng.uniform(100, 300, (size, 2, 2))
    boxes = np.concatenate([corners, sizes, np.zeros((size, 2, 1))], axis=-1)
    views = rng.integers(0, 256, (size, 2, crop_size, crop_size, 3), dtype=np.uint8)
    return {"views": views, "boxes": boxes.astype(np.float32)}
