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
from flops import model_flops, transformer
from timing import random_batch

from croc_jax.training.config import Recipe
from croc_jax.training.sharding import make_mesh, shard_batch
from croc_jax.training.state import abstract_batch, abstract_state, fresh_state
from croc_jax.training.step import make_train_step
from trial.findings import FAILED, OK, TOO_LARGE, Report, attempt, first_line
from trial.sizes import TrialSize, with_batch
from trial.trace_parts import NoLanesError, parts_of_program, read_trace, split_time

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
GIB = 2**30
_TRACED_STEPS = 3
_WARM_UP = 2


def name_devices(size: TrialSize, report: Report) -> None:
    """Reports what there is, and what "auto" means on it."""
    device, count = jax.devices()[0], jax.device_count()
    memory = (device.memory_stats() or {}).get("bytes_limit")
    found = {
        "kind": device.device_kind,
        "count": count,
        "platform": device.platform,
        "runtime": str(device.client.platform_version).splitlines()[0][:80],
        "memory": memory,
        "peak_tflops": peak_of(device.device_kind),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    limit = "unknown memory" if memory is None else f"{memory / GIB:.1f} GiB each"
    report("devices", f"{count} x {device.device_kind} ({device.platform}), {limit}", OK, **found)
    report("versions", f"jax {found['jax']}, jaxlib {found['jaxlib']}, Python {found['python']}, {found['runtime']}")
    report("host", f"{found['cores']} cores")
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
        except Exception as error:
            too_large = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
            report(name, first_line(error), TOO_LARGE if too_large else FAILED, batch=batch)
            if too_large:
                return


def _time_batch(recipe: Recipe, repeats: int, report: Report, name: str) -> None:
    size = recipe.schedule.batch_size
    compiled, needs, compile_seconds = compile_for(recipe)
    report.say(f"  {name}: compiled in {compile_seconds:.0f} s")
    state, batch = _first_state_and_batch(recipe)
    times, metrics = [], {}
    for _ in range(_WARM_UP + repeats):
        begin = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, batch))
        times.append(time.perf_counter() - begin)
    seconds = float(np.median(times[_WARM_UP:]))
    clusters = float(metrics["num_clusters"] * metrics["valid_fraction"])
    tflops = model_flops(recipe, clusters) * size / seconds / 1e12
    used = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    peak = peak_of(jax.devices()[0].device_kind)
    share = tflops / (peak * jax.device_count()) if peak else None
    figure = (
        f"{size / seconds:.1f} images/s, {1e3 * seconds:.1f} ms a step, {tflops:.2f} TFLOP/s"
        f"{'' if share is None else f' ({share:.1%} of the peak)'}; compiled in {compile_seconds:.1f} s; "
        f"memory {'unknown' if used is None else f'{used / GIB:.2f} GiB'}, {needs / GIB:.2f} GiB predicted"
    )
    report(
        name, figure, OK, batch=size, seconds=seconds, times=times, images_per_sec=size / seconds, tflops=tflops,
        share_of_peak=share, compile_seconds=compile_seconds, peak_bytes=used, predicted_bytes=needs, clusters=clusters,
    )  # fmt: skip


def compile_for(recipe: Recipe) -> tuple[jax.stages.Compiled, int, float]:
    """Returns the step for all devices, the bytes that one of them needs, and the seconds that it took to compile."""
    mesh, begin = make_mesh(), time.perf_counter()
    state = abstract_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    train_step = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    compiled = train_step.lower(state, abstract_batch(recipe, mesh=mesh)).compile()
    memory = compiled.memory_analysis()
    needs = 0 if memory is None else memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return compiled, needs, time.perf_counter() - begin


def _first_state_and_batch(recipe: Recipe) -> tuple[Any, Any]:
    mesh = make_mesh()
    batch = random_batch(recipe.schedule.batch_size, recipe.data.views.crop_size)
    return fresh_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh), shard_batch(batch, mesh)


def split_step(size: TrialSize, report: Report, folder: Path) -> None:
    """Traces steps of the smallest timed batch, and reports how their time splits over their parts.

    Args:
        size: sizes of the trial.
        report: takes the rows.
        folder: where the trace goes, and stays.
    """
    recipe = with_batch(size.recipe, size.speed_batches[0])
    compiled, _, _ = compile_for(recipe)
    state, batch = _first_state_and_batch(recipe)
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
        # There are none on CPU.
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
