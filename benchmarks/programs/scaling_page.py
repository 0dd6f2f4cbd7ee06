"""The page of figures of the training step on accelerators (docs/scaling.md), from programs compiled for them."""

from collections.abc import Sequence
from typing import NamedTuple

from programs.compiling import CHUNKS, CLUSTERS, NUM_LARGEST, Figures
from programs.targets import CHIPS, chip_of

GIB = 2**30
# Share of the peak that the best open trainers of ViTs reach, at least.
UTILIZATION = 0.15
SEEN = {"COCO, 300 epochs": 300 * 118_287, "ImageNet, 300 epochs": 300 * 1_281_167}
HEAD = (
    "step",
    "images a device",
    "state (GiB)",
    "arguments (GiB)",
    "temporaries (GiB)",
    "fits",
    "estimate (ms)",
    "matrix TFLOP",
    "of the peak",
    "traffic (GB)",
    "launches",
    "compile: wall, CPU (s)",
)
PAGE = """# Scaling

Written by `make chips OUTPUT=docs/scaling.md`: JAX's compilers compile the training step for accelerators that are not
there, and the figures are read from the compiled programs. **None of them was measured on an accelerator**;
measurements are in the [last section](#measured).

## What a step needs of a device

{steps}

- *State* is exact: a device's part of parameters, teacher, optimizer and centers. *Arguments* are the state and a
  batch, *temporaries* what the compiler reserves beside them.
- *Fits*: a TPU's compiler gives up where the memory is too small. Of a GPU's memory, JAX takes {usable:.0%} for
  programs, unless `XLA_PYTHON_CLIENT_MEM_FRACTION` says otherwise.
- *Matrix TFLOP*: multiplications and additions of the program's matrix products, with what is recomputed in the
  backward pass. *Of the peak*: the share of what the chip could do in the estimated time.
- *Launches*: operations that the device runs, in each round of a loop. The loop over chunks of clusters, whose number
  depends on the images, is counted {chunks} times.

The *estimate* is no measurement, and differs by kind of chip:

- **TPU: the compiler's estimate.** The cycles that it expects of each operation, over the clock, added up as if nothing
  overlapped. Custom calls and exchanges between devices count 0.
- **GPU: a lower bound.** Operations run one after the other, and each takes at least the time of its memory traffic
  (except for what is still in a cache), or of its products at the peak. Launches and exchanges count 0, and no
  kernel is perfect. Without a device the compiler cannot autotune; with one, it chooses other kernels.

| chip | peak (TFLOP/s, bfloat16) | memory (GB/s) | memory (GiB) | clock of the estimate (GHz) |
| --- | --- | --- | --- | --- |
{chips}

## The largest operations

The {largest} operations of each step that take most cycles (TPU) or move most bytes (GPU), summed over layers: the
largest result, and where in the step it comes from. What is neither forward nor backward is the teacher's, or of no
network. *ms* is the operation's part of the estimate.

{operations}

## What devices exchange in a step

Collective operations of one device, in each round of a loop, and the bytes of the whole arrays that are gathered or
summed. A ring sends about as many for an all-gather or a reduce-scatter, and twice as many for an all-reduce.

{exchanges}

## What is in the programs

What would be slow or wrong: sorts, float64, calls to the host (infeed, outfeed, callbacks). And how many arrays of the
state are updated in place (donated): others would be in memory twice.

{checks}

## How long may a run take

Steps alone, without reading images, saving and compiling: from the estimate above to {utilization:.0%} of the chip's
peak, for the products that the method asks for ({clusters:.0f} valid clusters a head, nothing recomputed). Where the
estimate is the longer time, it comes last. The best open trainers reach {utilization:.0%} to 26% of the peak with ViTs.

{times}

## Measured

{measured}
"""
MEASURED = "No accelerator has been measured yet."


class Entry(NamedTuple):
    """A row of the page.

    Attributes:
        title: name of the step and its devices.
        topology: devices, such as "v5e:2x2".
        found: figures, or why there are none.
    """

    title: str
    topology: str
    found: Figures | str


def measured_section(page: str) -> str:
    """Returns what an earlier page has under its last heading: tables of real devices, which are pasted there."""
    return page.partition("## Measured\n")[2].strip() or MEASURED


def make_page(entries: Sequence[Entry], measured: str = MEASURED) -> str:
    """Returns the page in Markdown, with a section for measurements (see `measured_section`)."""
    compiled = [(entry, entry.found) for entry in entries if isinstance(entry.found, Figures)]
    names = dict.fromkeys(entry.topology.partition(":")[0] for entry in entries)
    checks, times, exchanges = [], [], []
    for (title, topology, _), figures in compiled:
        updated = f"{figures.aliased} of {figures.leaves}"
        checks.append([title, f"{figures.sorts}", f"{figures.doubles}", f"{figures.host}", updated])
        times.append([title, *(time_range(figures, topology, seen) for seen in SEEN.values())])
        for kind, (count, sizes) in figures.exchanges.items():
            ordered = sorted(sizes.items(), key=lambda pair: -pair[1])
            listed = ", ".join(f"{_short(size / 1e6)} {element}" for element, size in ordered)
            exchanges.append([title, kind, f"{count}", listed])
    return PAGE.format(
        steps=_table(HEAD, list(map(cells_of, entries))),
        usable=CHIPS["h100"].usable,
        chunks=CHUNKS,
        chips="\n".join(map(_describe_chip, names)),
        largest=NUM_LARGEST,
        operations="\n\n".join(_list_operations(entry.title, figures) for entry, figures in compiled),
        exchanges=_table(["step", "operation", "number", "MB by element type"], exchanges),
        checks=_table(["step", "sorts", "float64", "host", "updated in place"], checks),
        utilization=UTILIZATION,
        clusters=CLUSTERS,
        times=_table(["step", *SEEN], times),
        measured=measured,
    )


def cells_of(entry: Entry) -> list[str]:
    """Returns the cells of a row of the first table, below `HEAD`."""
    chip, figures = chip_of(entry.topology), entry.found
    if isinstance(figures, str):
        return [entry.title, figures.replace("|", " "), *[""] * (len(HEAD) - 2)]
    share = figures.flops / (chip.peak * figures.seconds) if figures.seconds else 0.0
    return [
        entry.title,
        f"{figures.images}",
        *(f"{size / GIB:.2f}" for size in (figures.state, figures.arguments, figures.temporaries)),
        "yes" if figures.fits else "no",
        f"{_short(1e3 * figures.seconds)}{'' if chip.clock else ' at least'}",
        _short(figures.flops / 1e12),
        f"{share:.0%}{'' if chip.clock else ' at most'}",
        # A TPU's bytes say little: what stays in the fast memory does not travel.
        "" if chip.clock else _short(figures.traffic / 1e9),
        f"{figures.launches:,}",
        f"{figures.compile_seconds:.0f}, {figures.compile_cpu_seconds:.0f}",
    ]


def time_range(figures: Figures, topology: str, seen: int) -> str:
    """Returns the least and the most time of a run that sees so many images, from the figures of a step."""
    parts = figures.mesh["data"] * figures.mesh["fsdp"]
    slow = figures.method_flops / (UTILIZATION * chip_of(topology).peak)
    steps = seen / (figures.images * parts)
    first, last = (duration(steps * seconds) for seconds in sorted((figures.seconds, slow or figures.seconds)))
    return first if first == last else f"{first} to {last}"


def duration(seconds: float) -> str:
    """Returns minutes, hours or days, each with one decimal from one of the unit on."""
    for unit, size in (("d", 86400), ("h", 3600)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.1f} min"


def _describe_chip(name: str) -> str:
    chip = CHIPS[name]
    clock = f"{chip.clock / 1e9:g}" if chip.clock else ""
    return f"| {name} | {chip.peak / 1e12:g} | {chip.bandwidth / 1e9:g} | {chip.memory:g} | {clock} |"


def _list_operations(title: str, figures: Figures) -> str:
    rows = []
    for name, count, seconds, traffic, flops in figures.largest:
        share = seconds / figures.seconds if figures.seconds else 0.0
        sizes = _short(1e3 * seconds), f"{share:.1%}", _short(traffic / 1e9), _short(flops / 1e9)
        rows.append([f"`{name.replace('|', ' ').replace('`', ' ')}`", f"{count}", *sizes])
    return f"**{title}**\n\n{_table(['operation', 'runs', 'ms', 'share', 'GB', 'GFLOP'], rows)}"


def _short(number: float) -> str:
    """Returns a number with three digits, or all before the point, and at most three after it."""
    if number >= 100:
        return f"{number:,.0f}"
    return "0" if number == 0 else "< 0.001" if number < 0.001 else f"{number:.3g}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))
