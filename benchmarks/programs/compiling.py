"""Compiles the training step for accelerators that are not there and reads the program: one in a process.

`chips.py` starts it: the job comes as JSON on the standard input, and figures go as JSON to the standard output.
"""

import dataclasses
import json
import math
import os
import re
import runpy
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from flops import model_flops

from croc_jax.training.config import Recipe
from croc_jax.training.resolve import recipe_from_config
from croc_jax.training.sharding import make_mesh, num_data_shards
from croc_jax.training.state import abstract_batch, abstract_state
from croc_jax.training.step import make_train_step
from programs.program import Counts, Work, read_program
from programs.targets import Chip, chip_of, find_devices

# Rounds of the loop over chunks of clusters, whose number the images decide: half of all.
CHUNKS = 4
# Valid clusters of a head, about as many as runs have.
CLUSTERS = 5.0
NUM_LARGEST = 10
STEPS_PER_EPOCH = 1000
ROOT = Path(__file__).resolve().parents[2]
# How a failure for lack of memory begins.
TOO_LARGE = "does not fit"
# How compilers state what a program needs and what there is, in GiB.
_NEEDED = (
    re.compile(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)"),
    re.compile(r"Used ([\d.]+)G of ([\d.]+)G hbm"),
)


class Step(NamedTuple):
    """A training step for one mesh.

    Attributes:
        lowered: the step, not compiled yet.
        state: its first argument, as shapes with shardings.
        parts: number of devices that split the batch.
        mesh: sizes of the axes.
    """

    lowered: jax.stages.Lowered
    state: Any
    parts: int
    mesh: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures(Counts):
    """What a device needs for a step and does in it, according to its compiler; nothing is measured.

    Attributes:
        mesh: sizes of its axes.
        images: images of one device.
        state: bytes of the training state.
        arguments: bytes of the state and a batch.
        temporaries: bytes beside them.
        fits: whether the device has as much.
        seconds: estimated cycles over the clock (TPU); or, for each operation, the longer of the times that its bytes
            and its products take at the peak (GPU): a lower bound.
        method_flops: multiplications and additions that the method asks for.
        leaves: number of arrays of the state.
        largest: the operations that take longest: name, runs, seconds, bytes, products.
        exchanges: runs, and bytes by element type, of each kind of collective operation.
        compile_seconds: wall time.
        compile_cpu_seconds: CPU time over all cores.
    """

    mesh: dict[str, int]
    images: int
    state: int
    arguments: int
    temporaries: int
    fits: bool
    seconds: float
    method_flops: float
    leaves: int
    largest: list[tuple[str, int, float, int, int]]
    exchanges: dict[str, tuple[int, dict[str, int]]]
    compile_seconds: float
    compile_cpu_seconds: float


def main() -> None:
    """Does the job of the standard input."""
    job = json.load(sys.stdin)
    try:
        recipe = read_recipe(job["config"], job["fields"])
        answer = dataclasses.asdict(measure(recipe, job["topology"], dump=job["dump"]))
    # The latter two: no step can be made of these settings.
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        answer = {"failure": describe_failure(error)}
    json.dump(answer, sys.stdout)


def read_recipe(config: str, fields: Mapping[str, Any]) -> Recipe:
    """Returns the recipe of a config such as "croc_vit:vit_large", with fields such as {"schedule.batch_size": 256}."""
    name, _, variant = config.partition(":")
    get_config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]
    settings = get_config(*([variant] if variant else []))
    settings.update_from_flattened_dict(fields)
    return recipe_from_config(settings.to_dict(), given=fields)


def lower_step(recipe: Recipe, topology: str) -> Step:
    """Traces the training step for devices that are not there."""
    mesh = make_mesh(find_devices(topology), recipe.runtime.mesh)
    state = abstract_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    train_step = make_train_step(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    lowered = train_step.lower(state, abstract_batch(recipe, mesh=mesh))
    return Step(lowered, state, num_data_shards(mesh), dict(mesh.shape))


def measure(recipe: Recipe, topology: str, *, dump: str = "") -> Figures:
    """Compiles a step and reads the program.

    Args:
        recipe: settings of the step.
        topology: devices, such as "v5e:4x4".
        dump: file for the program's text; none if empty.

    Raises:
        jax.errors.JaxRuntimeError: if the compiler gives up, for lack of memory on the device, say.
    """
    step, chip = lower_step(recipe, topology), chip_of(topology)
    begin, cpu_begin = time.perf_counter(), _cpu_seconds()
    compiled = step.lowered.compile()
    seconds, cpu_seconds = time.perf_counter() - begin, _cpu_seconds() - cpu_begin
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None, "compilers for accelerators have both"
    if dump:
        Path(dump).write_text(text, encoding="utf-8")
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total += memory.temp_size_in_bytes
    images, leaves = recipe.schedule.batch_size // step.parts, jax.tree.leaves(step.state)
    is_transformer = recipe.backbone.variant.startswith("vit")
    return Figures(
        mesh=step.mesh,
        images=images,
        state=sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        fits=total <= chip.usable * chip.memory * 2**30,
        method_flops=images * model_flops(recipe, CLUSTERS) if is_transformer else 0.0,
        leaves=len(leaves),
        compile_seconds=seconds,
        compile_cpu_seconds=cpu_seconds,
        **summarize(read_program(text, unknown_trips=CHUNKS), chip),
    )


def summarize(work: Work, chip: Chip) -> dict[str, Any]:
    """Returns the fields of `Figures` that a program's text and a chip decide."""
    timed = [
        (cost.name, cost.count, _seconds(cost.cycles, cost.traffic, cost.flops, chip), cost.traffic, cost.flops)
        for cost in work.costs
    ]
    return {field.name: getattr(work, field.name) for field in dataclasses.fields(Counts)} | {
        "seconds": sum(line[2] for line in timed),
        # By cycles where the compiler counts them, else by bytes.
        "largest": sorted(timed, key=lambda line: line[2] if chip.clock else line[3], reverse=True)[:NUM_LARGEST],
        "exchanges": {kind: (exchange.count, exchange.sizes) for kind, exchange in work.exchanges.items()},
    }


def describe_failure(error: Exception) -> str:
    """Says in a few words why there is no program."""
    exhausted = "RESOURCE_EXHAUSTED" in str(error)
    for pattern in _NEEDED if exhausted else ():
        if match := pattern.search(str(error)):
            return f"{TOO_LARGE}: needs {float(match[1]):.1f} of {float(match[2]):.2f} GiB"
    reason = str(error).splitlines()[0][:300]
    return f"{TOO_LARGE}: {reason}" if exhausted else reason


def _seconds(cycles: int, traffic: int, flops: int, chip: Chip) -> float:
    return cycles / chip.clock if chip.clock else max(traffic / chip.bandwidth, flops / chip.peak)


def _cpu_seconds() -> float:
    # Compilers for GPUs start assemblers.
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
