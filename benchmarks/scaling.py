r"""What a step needs on many devices, from programs compiled for them without having them; writes docs/scaling.md.

python benchmarks/scaling.py --output=docs/scaling.md
"""

import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=64"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from absl import app, flags  # noqa: E402
from collectives import collective_bytes  # noqa: E402
from flops import model_flops  # noqa: E402

from croc_jax.models import BackboneConfig  # noqa: E402
from croc_jax.training.comparison import CLUSTER_CHUNKS  # noqa: E402
from croc_jax.training.config import Recipe, ScheduleConfig  # noqa: E402
from croc_jax.training.memory import bytes_on_device  # noqa: E402
from croc_jax.training.sharding import MeshConfig, make_mesh  # noqa: E402
from croc_jax.training.start import abstract_state  # noqa: E402
from croc_jax.training.step import make_train_step  # noqa: E402

OUTPUT = flags.DEFINE_string("output", None, "The page to write; printed if not given.")
NUM_DEVICES = (1, 8, 64)
IMAGES_A_DEVICE = 8
# Clusters of a head that both views show, about as many as runs have.
CLUSTERS = 5.0
# Of the peak of the matrix units.
UTILIZATION = 0.4
# For the prediction, images of a device in one step.
IMAGES_OF_STEPS = (8, 32)
SEEN = {"COCO, 300 epochs": 300 * 118_287, "ImageNet, 300 epochs": 300 * 1_281_167, "a billion images, once": 10**9}
GIB = 2**30


class Model(NamedTuple):
    """A backbone, and how far its parameters are split where there are several devices."""

    name: str
    variant: str
    fsdp: int
    remat: bool


class Machine(NamedTuple):
    """Devices of one kind.

    Attributes:
        name: of the machine.
        devices: how many.
        peak: bfloat16 operations a second of one.
        bandwidth: bytes a second that one exchanges with others on the slowest link between them.
    """

    name: str
    devices: int
    peak: float
    bandwidth: float


class Figures(NamedTuple):
    """What a compiled step needs of each device, in bytes."""

    state: int
    work: int
    traffic: dict[str, int]


MODELS = (
    Model("ViT-S/16", "vit_small", 1, False),
    Model("ViT-B/16", "vit_base", 1, False),
    Model("ViT-L/16", "vit_large", 8, True),
    Model("ViT-g/16", "vit_giant", 8, True),
)
MACHINES = (
    Machine("8 x H100", 8, 989e12, 450e9),
    Machine("64 x MI250X (GCD)", 64, 191.5e12, 12.5e9),
    Machine("v5e-256", 256, 197e12, 100e9),
)
PAGE = """# Scaling

Made by `python benchmarks/scaling.py --output=docs/scaling.md`: the training step is compiled for 1, 8 and 64
devices that are not there, and its memory and exchanges are read from the compiled program. **Nothing on this
page was measured on an accelerator.**

## What a step needs of a device

{images} images of 224 x 224 a device, 65,536 and 8,192 prototypes, float32. `fsdp` devices share parameters,
optimizer and teacher. *State* is exact. *Work* (activations, gradients, what is fetched) is what the compiler
for CPU sets aside; bfloat16 halves most of it. The exchanges are the results of collective operations in one
step. L and g compute their blocks again in the backward pass.

{needs}

Sums (all-reduce) are of gradients, losses and centers; gathers are of parameters that `fsdp` splits, one block
at a time. The clustering exchanges two numbers a round: the extremes of the cost.

## How long a run may take

A prediction, not a measurement: arithmetic at {utilization:.0%} of the peak in bfloat16, then the exchanges of
a step (which do not depend on its images) in float32, one after the other and not hidden behind the arithmetic;
{clusters:.0f} clusters a head in both views. Reading the images, saving and compiling are left out. Several
epochs of a billion images take as many times as long.

| machine | peak a device | exchange a device |
|---|---|---|
{machines}

The first time of a pair is for {small} images a device in each step, the second for {large}. Few images ask for
the exchanges more often: where the two differ much, a slow link between nodes decides.

{times}
"""


def main(argv: Sequence[str]) -> None:
    """Compiles all, one by one."""
    del argv
    figures = {}
    for model in MODELS:
        for count in NUM_DEVICES:
            begin = time.perf_counter()
            figures[model, count] = measure(model, count)
            print(f"{model.name} on {count}: compiled in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    page = PAGE.format(
        images=IMAGES_A_DEVICE,
        utilization=UTILIZATION,
        small=IMAGES_OF_STEPS[0],
        large=IMAGES_OF_STEPS[1],
        clusters=CLUSTERS,
        needs=table_of_needs(figures),
        machines="\n".join(f"| {m.name} | {m.peak / 1e12:g} TFLOP/s | {m.bandwidth / 1e9:g} GB/s |" for m in MACHINES),
        times=table_of_times(figures),
    )
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(page, encoding="utf-8")
    else:
        print(page)


@functools.cache
def recipe_of(model: Model, count: int) -> Recipe:
    """Returns the default recipe with this backbone and a batch for so many devices."""
    backbone = BackboneConfig(variant=model.variant, remat=model.remat, dtype="float32")
    return Recipe(backbone=backbone, schedule=ScheduleConfig(batch_size=IMAGES_A_DEVICE * count))


def measure(model: Model, count: int) -> Figures:
    """Compiles the step for so many devices, and reads the program."""
    recipe = recipe_of(model, count)
    mesh = make_mesh(jax.devices()[:count], MeshConfig(fsdp=min(model.fsdp, count)))
    state = abstract_state(recipe, steps_per_epoch=1000, mesh=mesh)
    size, batch = recipe.data.views.crop_size, recipe.schedule.batch_size
    images = {
        "views": jax.ShapeDtypeStruct((batch, 2, size, size, 3), jnp.uint8),
        "boxes": jax.ShapeDtypeStruct((batch, 2, 5), jnp.float32),
    }
    lowered = make_train_step(recipe, steps_per_epoch=1000, mesh=mesh).lower(state, images)
    # Nothing runs: the machine code need not be good.
    options: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    compiled = lowered.compile(options)
    analysis, text = compiled.memory_analysis(), compiled.as_text()
    assert analysis is not None and text is not None, "the compiler for CPU tells both"
    traffic = collective_bytes(text, unknown_trips=CLUSTER_CHUNKS)
    return Figures(sum(map(bytes_on_device, jax.tree.leaves(state))), analysis.temp_size_in_bytes, traffic)


def table_of_needs(figures: dict[tuple[Model, int], Figures]) -> str:
    """Returns the first table in Markdown."""
    lines = [
        "| model | devices | data x fsdp | state (GiB) | work (GiB) | TFLOP an image "
        "| all-reduce (GiB) | all-gather (GiB) | other (GiB) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (model, count), found in figures.items():
        fsdp, traffic = min(model.fsdp, count), dict(found.traffic)
        sums, gathers = traffic.pop("all-reduce", 0), traffic.pop("all-gather", 0)
        flops = model_flops(recipe_of(model, count), CLUSTERS) / 1e12
        numbers = (found.state / GIB, found.work / GIB, flops, sums / GIB, gathers / GIB, sum(traffic.values()) / GIB)
        cells = " | ".join(f"{number:.2f}" for number in numbers)
        lines.append(f"| {model.name} | {count} | {count // fsdp} x {fsdp} | {cells} |")
    return "\n".join(lines)


def table_of_times(figures: dict[tuple[Model, int], Figures]) -> str:
    """Returns the second table in Markdown."""
    names = [machine.name for machine in MACHINES]
    lines = [f"| model | images seen | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for model in MODELS:
        for data, seen in SEEN.items():
            cells = (
                ", ".join(
                    duration(seen * seconds_an_image(model, machine, images, figures)) for images in IMAGES_OF_STEPS
                )
                for machine in MACHINES
            )
            lines.append(f"| {model.name} | {data} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seconds_an_image(model: Model, machine: Machine, images: int, figures: dict[tuple[Model, int], Figures]) -> float:
    """Returns the predicted time of a step over its images, of which each device has so many."""
    compiled_for = max(count for count in NUM_DEVICES if count <= machine.devices)
    traffic = figures[model, compiled_for].traffic
    # A ring sends what it sums up twice, once to add and once to tell.
    sent = sum(size * (2 if kind == "all-reduce" else 1) for kind, size in traffic.items())
    arithmetic = images * model_flops(recipe_of(model, compiled_for), CLUSTERS) / (UTILIZATION * machine.peak)
    return (arithmetic + sent / machine.bandwidth) / (images * machine.devices)


def duration(seconds: float) -> str:
    """Returns minutes, hours or days."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    return f"{days:.1f} d" if days >= 2 else f"{hours:.1f} h" if hours >= 1 else f"{minutes:.0f} min"


if __name__ == "__main__":
    app.run(main)
