"""What a step needs of a device's memory, told before anything is allocated."""

import math
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from croc_jax.training.config import Recipe
from croc_jax.training.forward import make_networks
from croc_jax.training.sharding import DATA_AXIS, memory_limit, num_data_shards

# In the text of a compiled program: where a computation begins, arrays by type and sides, and where a line comes from.
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
ORIGIN = re.compile(r'op_name="([^"]*)"')
# Results of these operations are other results.
NO_ARRAYS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call")
_NUM_LARGEST = 3
# One is used while the next one travels.
_BATCHES = 2
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
# What is inside these has no place in memory.
_INNER = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")
_RESULT = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)")
# Parts of an origin that tell how it is run, not what it is.
_MANNER = re.compile(r"jit\(.*|while|body|closed_call|checkpoint|rematted_computation|shard_map")


class StepTooLargeError(ValueError):
    """The compiler finds no room for a step on a device; the message says what to change."""


class Needs(NamedTuple):
    """What one device needs.

    Attributes:
        state: bytes of each array of the state, by name.
        batches: bytes of the batches that it holds at a time.
        work: bytes of the step's work; None if the compiler does not tell.
        results: bytes of the largest results on the way, by shape and origin.
    """

    state: dict[str, int]
    batches: int
    work: int | None
    results: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(self.state.values()) + self.batches + (self.work or 0)


def compile_step(
    train_step: jax.stages.Wrapped, state: Any, batch: Any, *, recipe: Recipe, mesh: Mesh, say: Callable[[str], None]
) -> jax.stages.Compiled:
    """Compiles a step for a state and a batch that need not exist yet, and tells what it needs of each device.

    Args:
        train_step: jitted (state, batch) -> (state, metrics).
        state: shapes with shardings.
        batch: alike.
        recipe: of the run; decides the advice if the memory is too small.
        mesh: of all devices.
        say: shows a line.

    Raises:
        StepTooLargeError: if the compiler finds no room for the step.
    """
    say("compiling the training step ...")
    begin = time.perf_counter()
    try:
        compiled = train_step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        reason = str(error).splitlines()[0]
        raise StepTooLargeError(f"a step does not fit a device: {advise(recipe, mesh)} ({reason})") from error
    needs, limit = measure(compiled, state, batch), memory_limit(mesh.devices.ravel())
    say(f"compiled in {time.perf_counter() - begin:.1f} s; {describe(needs, limit)}")
    if needs.total > limit:
        short = f"a device needs {format_bytes(needs.total)} and may hold {format_bytes(limit)}"
        say(f"warning: {short}: {advise(recipe, mesh)}")
    return compiled


def is_exhausted(error: Exception) -> bool:
    """Returns whether an error of the runtime says that the memory of a device is too small."""
    return "RESOURCE_EXHAUSTED" in str(error)


def measure(compiled: jax.stages.Compiled, state: Any, batch: Any) -> Needs:
    """Returns what a device needs for a compiled step.

    Args:
        compiled: the step.
        state: its first argument, or shapes with shardings.
        batch: its second argument, alike.
    """
    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): bytes_on_device(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    batches = _BATCHES * sum(map(bytes_on_device, jax.tree.leaves(batch)))
    analysis = compiled.memory_analysis()
    work = None if analysis is None else analysis.temp_size_in_bytes
    return Needs(sizes, batches, work, largest_results(compiled.as_text() or ""))


def bytes_on_device(leaf: Any) -> int:
    """Returns what the part of an array takes that one device holds."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def array_bytes(kind: str, sides: str) -> int:
    """Returns what an array of a program takes, by its type and sides, such as "f32" and "8,4"; 0 for other types."""
    return _BYTES.get(kind, 0) * math.prod(int(side) for side in sides.split(",") if side)


def largest_results(text: str) -> dict[str, int]:
    """Returns bytes of the largest arrays between the arguments and the results of a program, by shape and origin.

    Args:
        text: of the compiled program (`Compiled.as_text()`).
    """
    inner, name, is_entry = set(_INNER.findall(text)), "", False
    found: dict[str, int] = {}
    final: set[str] = set()
    origins: dict[str, str] = {}
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            is_entry, name = bool(match[1]), match[2]
        elif name not in inner and (match := _RESULT.match(line)):
            root, result, shapes, operation, operands = match.groups()
            if root and is_entry:
                final = set(re.findall(r"%?([\w.\-]+)", operands)) if operation == "tuple" else {result}
            if operation in NO_ARRAYS:
                continue
            sizes = [(array, array_bytes(*array)) for array in ARRAY.findall(shapes)]
            kind, size = max(sizes, key=lambda pair: pair[1], default=(None, 0))
            if kind is not None and size:
                origins[result] = f"{kind[0]}[{kind[1]}]{_origin(line)}"
                found[result] = size
    largest: dict[str, int] = {}
    for result in sorted(found.keys() - final, key=lambda result: (-found[result], result)):
        largest.setdefault(origins[result], found[result])
        if len(largest) == _NUM_LARGEST:
            break
    return largest


def describe(needs: Needs, limit: float) -> str:
    """Says what a device holds: the state, batches, what the compiler sets aside, and the largest arrays of them.

    Args:
        needs: of a device.
        limit: bytes that it may hold; infinite if unknown.
    """
    parts = [
        f"{format_bytes(sum(needs.state.values()))} of state{_list_largest(needs.state)}",
        f"{format_bytes(needs.batches)} of batches",
    ]
    if needs.work is not None:
        parts.append(f"{format_bytes(needs.work)} for the work of a step{_list_largest(needs.results)}")
    total = f"{format_bytes(needs.total)} in all"
    total += "" if math.isinf(limit) else f", of {format_bytes(limit)}"
    return f"a device needs {', '.join(parts[:-1])}, and {parts[-1]}: {total}"


def advise(recipe: Recipe, mesh: Mesh) -> str:
    """Says which settings lower what a device needs."""
    ways = []
    if mesh.shape[DATA_AXIS] > 1:
        ways.append("raise runtime.mesh.fsdp")
    if recipe.schedule.batch_size > num_data_shards(mesh) * recipe.optimizer.accumulation_steps:
        ways.append("raise optimizer.accumulation_steps")
    # Where a transformer keeps nothing anyway (on TPU), it would change nothing.
    if getattr(make_networks(recipe, mesh=mesh).backbone, "kept", not recipe.backbone.remat):
        ways.append("set backbone.remat=True")
    return " or ".join(ways) or "take more devices or a smaller backbone"


def format_bytes(count: float) -> str:
    """Returns bytes in the largest unit of which there is one."""
    for unit, size in _UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def _list_largest(sizes: dict[str, int]) -> str:
    largest = sorted(sizes, key=lambda name: -sizes[name])[:_NUM_LARGEST]
    return f" (largest: {', '.join(f'{name} {format_bytes(sizes[name])}' for name in largest)})" if largest else ""


def _origin(line: str) -> str:
    match = ORIGIN.search(line)
    parts = [part for part in match[1].split("/") if not _MANNER.fullmatch(part)] if match else []
    return f" of {'/'.join(parts[-2:])}" if parts else ""
