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
from absl import app, flags  # noqa: E402
from collectives import Work, read_program  # noqa: E402
from flops import model_flops  # noqa: E402

from croc_jax.models import BackboneConfig  # noqa: E402
from croc_jax.training.comparison import CLUSTER_CHUNKS  # noqa: E402
from croc_jax.training.config import Recipe, ScheduleConfig  # noqa: E402
from croc_jax.training.memory import bytes_on_device  # noqa: E402
from croc_jax.training.sharding import MeshConfig, make_mesh  # noqa: E402
from croc_jax.training.start import abstract_batch, abstract_state  # noqa: E402
from croc_jax.training.step import make_train_step  # noqa: E402

OUTPUT = flags.DEFINE_string("output", None, "The page to write; printed if not given.")
NUM_DEVICES = (1, 8, 64)
# Of a device in one step; tables that tell one number tell the first one's.
IMAGES_OF_STEPS = (8, 32)
# Clusters of a head that both views show, about as many as runs have.
CLUSTERS = 5.0
# Of the peak of the matrix units.
UTILIZATION = 0.4
# Of a device's memory; drivers, exchanges and gaps between arrays take the rest.
USABLE = 0.9
BILLION = 10**9
SEEN = {
    "COCO, 300 epochs": 300 * 118_287,
    "ImageNet, 300 epochs": 300 * 1_281_167,
    "a billion images, once": BILLION,
    "a billion images, 300 epochs": 300 * BILLION,
}
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
        memory: GiB of one.
    """

    name: str
    devices: int
    peak: float
    bandwidth: float
    memory: int


class Figures(NamedTuple):
    """What a compiled step needs of each device.

    Attributes:
        state: bytes.
        work: bytes beside the state.
        done: exchanges and arithmetic.
    """

    state: int
    work: int
    done: Work


class Measured(NamedTuple):
    """All that is read from compiled programs.

    Attributes:
        figures: by model and number of devices, at `IMAGES_OF_STEPS[0]`.
        growth: bytes of work that one image more takes, by model.
    """

    figures: dict[tuple[Model, int], Figures]
    growth: dict[Model, float]


MODELS = (
    Model("ViT-S/16", "vit_small", 1, False),
    Model("ViT-B/16", "vit_base", 1, False),
    Model("ViT-L/16", "vit_large", 8, True),
    Model("ViT-g/16", "vit_giant", 8, True),
)
MACHINES = (
    Machine("8 x H100", 8, 989e12, 450e9, 80),
    Machine("64 x MI250X (GCD)", 64, 191.5e12, 12.5e9, 64),
    Machine("v5e-256", 256, 197e12, 100e9, 16),
)
PAGE = """# Scaling

Made by `python benchmarks/scaling.py --output=docs/scaling.md`: the training step is compiled for 1, 8 and 64
devices that are not there, and its memory and exchanges are read from the compiled program. **Nothing on this
page was measured on an accelerator.**

## What a step needs of a device

{images} images of 224 x 224 a device, 65,536 and 8,192 prototypes, float32. `fsdp` devices share parameters,
optimizer and teacher. *State* is exact. *Work* (activations, gradients, what is fetched) is what the compiler
for CPU sets aside; bfloat16 halves most of it. L and g compute their blocks again in the backward pass.

{needs}

Arithmetic is of matrix products, for one image. *Method* is what the method asks for, with {clusters:.0f} clusters a
head in both views; the times below use it. *Compiled* is read from the program: it has the blocks that are
computed again, and all clusters that there may be.

## What devices exchange in a step

Results of collective operations, and how many of them there are: each round of a loop counts. They do not
depend on the images. The compilers for accelerators join more of the small ones.

{exchanges}

Sums (all-reduce) are of gradients, losses and centers; gathers are of parameters that `fsdp` splits, one block
at a time. The clustering exchanges two numbers a round: the extremes of the cost. Slices
(`optimizer.accumulation_steps`) add none where `fsdp` is 1.

## What fits

GiB of a device for state and work, in float32, on the machine's number of devices; the program for 64 devices
stands for a v5e-256, too, as `fsdp` splits the state over no more than 8. *yes*: they take at most
{usable:.0%} of its memory; *bfloat16*: they do if the work takes half; *no*: take slices, or a larger `fsdp`.
The work of more images is that of {images} and what each further one adds on one device.

{fits}

## How long a run may take

A prediction, not a measurement: arithmetic at {utilization:.0%} of the peak in bfloat16, then the exchanges of
a step (which do not depend on its images) in float32, one after the other and not hidden behind the arithmetic.
Reading the images, saving and compiling are left out.

| machine | peak a device | exchange a device | memory a device |
|---|---|---|---|
{machines}

The first time of a pair is for {small} images a device in each step, the second for {large}. Few images ask for
the exchanges more often: where the two differ much, a slow link between nodes decides. A billion images are
told twice: each seen once, and each seen 300 times. Days are of 24 hours, years of 365 days.

{times}
"""


def main(argv: Sequence[str]) -> None:
    """Compiles all, one by one."""
    del argv
    page = make_page(measure_all())
    if OUTPUT.value:
        Path(OUTPUT.value).write_text(page, encoding="utf-8")
    else:
        print(page)


def measure_all() -> Measured:
    """Compiles each model for each number of devices, and for one device with more images."""
    figures, growth, (few, many) = {}, {}, IMAGES_OF_STEPS
    for model in MODELS:
        for count in NUM_DEVICES:
            figures[model, count] = measure(model, count, few)
        growth[model] = (measure(model, 1, many).work - figures[model, 1].work) / (many - few)
    return Measured(figures, growth)


def make_page(measured: Measured) -> str:
    """Returns the page in Markdown."""
    machines = (
        f"| {m.name} | {m.peak / 1e12:g} TFLOP/s | {m.bandwidth / 1e9:g} GB/s | {m.memory} GiB |" for m in MACHINES
    )
    return PAGE.format(
        images=IMAGES_OF_STEPS[0],
        utilization=UTILIZATION,
        usable=USABLE,
        small=IMAGES_OF_STEPS[0],
        large=IMAGES_OF_STEPS[1],
        clusters=CLUSTERS,
        needs=table_of_needs(measured),
        exchanges=table_of_exchanges(measured),
        fits=table_of_fits(measured),
        machines="\n".join(machines),
        times=table_of_times(measured),
    )


@functools.cache
def recipe_of(model: Model, batch: int) -> Recipe:
    """Returns the default recipe with this backbone and batch."""
    backbone = BackboneConfig(variant=model.variant, remat=model.remat, dtype="float32")
    return Recipe(backbone=backbone, schedule=ScheduleConfig(batch_size=batch))


def measure(model: Model, count: int, images: int) -> Figures:
    """Compiles the step for so many devices with so many images each, and reads the program."""
    begin, recipe = time.perf_counter(), recipe_of(model, count * images)
    mesh = make_mesh(jax.devices()[:count], MeshConfig(fsdp=min(model.fsdp, count)))
    state = abstract_state(recipe, steps_per_epoch=1000, mesh=mesh)
    lowered = make_train_step(recipe, steps_per_epoch=1000, mesh=mesh).lower(state, abstract_batch(recipe, mesh=mesh))
    # Nothing runs: the machine code need not be good.
    options: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    compiled = lowered.compile(options)
    analysis, text = compiled.memory_analysis(), compiled.as_text()
    assert analysis is not None and text is not None, "the compiler for CPU tells both"
    print(f"{model.name} on {count}, {images} images: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    done = read_program(text, unknown_trips=CLUSTER_CHUNKS)
    return Figures(sum(map(bytes_on_device, jax.tree.leaves(state))), analysis.temp_size_in_bytes, done)


def table_of_needs(measured: Measured) -> str:
    """Returns what one device needs, in Markdown."""
    lines = []
    for (model, count), found in measured.figures.items():
        fsdp, images = min(model.fsdp, count), IMAGES_OF_STEPS[0]
        method = model_flops(recipe_of(model, count * images), CLUSTERS)
        cells = found.state / GIB, found.work / GIB, method / 1e12, found.done.flops / images / 1e12
        lines.append([model.name, str(count), f"{count // fsdp} x {fsdp}", *(f"{cell:.2f}" for cell in cells)])
    head = "model, devices, data x fsdp, state (GiB), work (GiB), TFLOP: method, TFLOP: compiled"
    return table(head.split(", "), lines)


def table_of_exchanges(measured: Measured) -> str:
    """Returns what devices exchange, in Markdown."""
    lines = []
    for (model, count), found in measured.figures.items():
        if count == 1:
            continue
        kinds = "all-reduce", "all-gather"
        others = [kind for kind in found.done.sizes if kind not in kinds]
        cells = [model.name, f"{count}"]
        for names in (["all-reduce"], ["all-gather"], others):
            size, number = (sum(told.get(name, 0) for name in names) for told in (found.done.sizes, found.done.counts))
            cells.append(f"{size / GIB:.2f} GiB in {number}" if number else "none")
        lines.append(cells)
    return table(["model", "devices", "all-reduce", "all-gather", "other"], lines)


def table_of_fits(measured: Measured) -> str:
    """Returns what fits the devices of each machine, in Markdown."""
    lines = []
    for model in MODELS:
        for images in IMAGES_OF_STEPS:
            needs = (needed(model, machine, images, measured) for machine in MACHINES)
            cells = (
                f"{(state + work) / GIB:.1f}, {judge(state, work, machine)}"
                for machine, (state, work) in zip(MACHINES, needs, strict=True)
            )
            lines.append([model.name, f"{images}", *cells])
    return table(["model", "images a device", *(f"{m.name}, {m.memory} GiB" for m in MACHINES)], lines)


def table_of_times(measured: Measured) -> str:
    """Returns how long runs take, in Markdown."""
    lines = []
    for model in MODELS:
        for data, seen in SEEN.items():
            cells = (
                ", ".join(
                    duration(seen * seconds_an_image(model, machine, images, measured)) for images in IMAGES_OF_STEPS
                )
                for machine in MACHINES
            )
            lines.append([model.name, data, *cells])
    return table(["model", "images seen", *(machine.name for machine in MACHINES)], lines)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def compiled_for(machine: Machine) -> int:
    """Returns the number of devices whose figures stand for those of a machine."""
    return max(count for count in NUM_DEVICES if count <= machine.devices)


def needed(model: Model, machine: Machine, images: int, measured: Measured) -> tuple[float, float]:
    """Returns the bytes of a device for the state and for the work on so many images."""
    found = measured.figures[model, compiled_for(machine)]
    return found.state, found.work + measured.growth[model] * (images - IMAGES_OF_STEPS[0])


def judge(state: float, work: float, machine: Machine) -> str:
    """Says whether bytes of state and of work in float32 fit a device: yes, in bfloat16, or no."""
    usable = USABLE * machine.memory * GIB
    return "yes" if state + work <= usable else "bfloat16" if state + work / 2 <= usable else "no"


def seconds_an_image(model: Model, machine: Machine, images: int, measured: Measured) -> float:
    """Returns the predicted time of a step over its images, of which each device has so many."""
    sizes = measured.figures[model, compiled_for(machine)].done.sizes
    # A ring sends what it sums up twice, once to add and once to tell.
    sent = sum(size * (2 if kind == "all-reduce" else 1) for kind, size in sizes.items())
    arithmetic = images * model_flops(recipe_of(model, images), CLUSTERS) / (UTILIZATION * machine.peak)
    return (arithmetic + sent / machine.bandwidth) / (images * machine.devices)


def duration(seconds: float) -> str:
    """Returns minutes, hours, days or years, each with one decimal from one of the unit on."""
    for unit, size in (("y", 365 * 86400), ("d", 86400), ("h", 3600)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    app.run(main)
