"""Counts what one run of a compiled program computes, moves and exchanges, from its text."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from programs.instructions import (
    ARRAY,
    NO_ARRAYS,
    ORIGIN,
    Instruction,
    array_bytes,
    attribute,
    called_names,
    first_sides,
    padded_bytes,
    parse,
    result_type,
)
from programs.products import product_flops

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"({'|'.join(KINDS)})(-start)?")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'estimated_cycles":"(\d+)"')
_HOST = re.compile(r'custom_call_target="[^"]*(?:callback|host)[^"]*"', re.IGNORECASE)
_TRANSFORMED = re.compile(r"\b(?:transpose|jvp|vmap|jit)\(")
# Parts of an origin that say how an operation is run, not what it is.
_WRAPPERS = ("while", "body", "closed_call", "eval_jaxpr", "checkpoint", "rematted_computation", "shard_map")
_LAYER = re.compile(r"(blocks?)_\d+", re.IGNORECASE)
_ORIGIN_PARTS = 4
# What an origin says about the pass, the rarer mark first.
_DIRECTIONS = {"transpose(jvp(": "backward: ", "jvp(": "forward: "}
# The TPU compiler's name for a computation in which a device sums only its own part.
_SUMMED_IN_PARTS = "all-reduce-scatter"
# Other names of the same array.
_ALIASES = ("bitcast", "get-tuple-element", "reshape")

Computations = Mapping[str, Sequence[Instruction]]


class Exchange(NamedTuple):
    """Collective operations of one kind.

    Attributes:
        count: number of operations that run.
        sizes: bytes of the whole arrays that are gathered or summed, by element type such as "f32".
    """

    count: int
    sizes: dict[str, int]


class Cost(NamedTuple):
    """What one operation takes, over all its runs.

    Attributes:
        name: element type and sides of its largest result, and its origin.
        count: number of runs.
        cycles: the compiler's estimate; 0 where it gives none.
        traffic: bytes that it reads from memory and writes.
        flops: multiplications and additions of its matrix products.
    """

    name: str
    count: int
    cycles: int
    traffic: int
    flops: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What one device does in one run, in numbers.

    Attributes:
        flops: multiplications and additions of matrix products.
        traffic: bytes that operations move.
        launches: number of operations that run.
        loops: number of rounds of each loop.
        assumed: number of loops that do not state their number of rounds.
        sorts: operations of the program that sort.
        doubles: operations with float64 results.
        host: operations that call, or wait for, the host.
        aliased: arguments whose memory results reuse.
    """

    flops: int
    traffic: int
    launches: int
    loops: list[int]
    assumed: int
    sorts: int
    doubles: int
    host: int
    aliased: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work(Counts):
    """What one device does in one run.

    Attributes:
        costs: operations; those that differ only in a number (the layer) are one.
        exchanges: collective operations, by kind.
    """

    costs: list[Cost]
    exchanges: dict[str, Exchange]


def read_program(text: str, *, unknown_trips: int = 1) -> Work:
    """Sums up what a program does, each loop as often as it runs.

    Args:
        text: a compiled program (`Compiled.as_text()`).
        unknown_trips: rounds of a loop whose number the program does not state.
    """
    computations, entry = parse(text)
    counter = _Counter(computations, unknown_trips)
    counter.walk(entry, 1)
    instructions = [instruction for body in computations.values() for instruction in body]
    costs = [Cost(name, *numbers) for name, numbers in counter.costs.items()]
    return Work(
        costs=costs,
        exchanges={kind: Exchange(counter.counts[kind], dict(sizes)) for kind, sizes in counter.sizes.items()},
        flops=sum(cost.flops for cost in costs),
        traffic=sum(cost.traffic for cost in costs),
        launches=sum(cost.count for cost in costs),
        loops=counter.loops,
        assumed=counter.assumed,
        sorts=sum(instruction.operation == "sort" for instruction in instructions),
        doubles=sum("f64[" in instruction.type for instruction in instructions),
        host=sum(map(_calls_host, instructions)),
        aliased=text.partition("\n")[0].count("-alias)"),
    )


class _Counter:
    """Sums over the runs of all computations."""

    def __init__(self, computations: Computations, unknown_trips: int) -> None:
        self.computations, self.unknown_trips = computations, unknown_trips
        # Runs, cycles, bytes and products, by name.
        self.costs: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0, 0])
        self.counts: collections.Counter[str] = collections.Counter()
        self.sizes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.assumed = 0
        self.loops: list[int] = []

    def walk(self, name: str, times: int) -> None:
        """Adds a computation whose operations run one by one."""
        body = self.computations.get(name, ())
        types = {instruction.name: instruction.type for instruction in body}
        seen: set[str] = set()
        for instruction in body:
            if instruction.operation == "while":
                rounds = times * self._rounds(instruction)
                self.loops.append(rounds)
                self.walk(attribute("body", instruction.line), rounds)
            elif instruction.operation in ("call", "conditional"):
                for called in called_names(instruction.line):
                    self.walk(called, times)
            if instruction.operation in NO_ARRAYS or instruction.operation.endswith("-done"):
                continue
            cycles = _CYCLES.search(instruction.line)
            traffic = _traffic(instruction, types, self.computations)
            flops = self._inside(instruction, types, "", times, seen)
            amounts = times, times * int(cycles[1]) if cycles else 0, times * traffic, flops
            numbers = self.costs[_describe(instruction)]
            numbers[:] = map(sum, zip(numbers, amounts, strict=True))

    def _inside(
        self, instruction: Instruction, types: Mapping[str, str], inside: str, times: int, seen: set[str]
    ) -> int:
        """Adds what an operation, or those fused into it, exchange; returns the work of their products."""
        operands = [types.get(operand, "") for operand in instruction.operands]
        if match := _COLLECTIVE.fullmatch(instruction.operation):
            kind = "reduce-scatter" if inside.startswith(_SUMMED_IN_PARTS) else match[1]
            self._exchange(kind, instruction, operands, times, seen)
            return 0
        shapes = [first_sides(operand) for operand in operands]
        flops = times * product_flops(instruction.operation, instruction.line, first_sides(instruction.type), shapes)
        for called in called_names(instruction.line, "calls"):
            body = self.computations.get(called, ())
            within = {fused.name: fused.type for fused in body}
            flops += sum(self._inside(fused, within, called, times, seen) for fused in body)
        return flops

    def _exchange(
        self, kind: str, instruction: Instruction, operands: Sequence[str], times: int, seen: set[str]
    ) -> None:
        results = ARRAY.findall(result_type(instruction))
        # Each fusion that computes in the meantime repeats the operation, with its channel and shape; other operations
        # may have the same channel.
        if channel := re.search(r"channel_id=(\d+)", instruction.line):
            name = f"{kind} {channel[1]} {results}"
            if name in seen:
                return
            seen.add(name)
        self.counts[kind] += times
        candidates = results, ARRAY.findall(" ".join(operands))
        for element, sides in max(candidates, key=lambda arrays: sum(array_bytes(*array) for array in arrays)):
            self.sizes[kind][element] += times * array_bytes(element, sides)

    def _rounds(self, loop: Instruction) -> int:
        """Returns the stated rounds of a loop, or the only number that its condition may compare with."""
        if known := _TRIPS.search(loop.line):
            return int(known[1])
        condition = self.computations.get(attribute("condition", loop.line), ())
        constants = (re.search(r" constant\((\d+)\)", line.line) for line in condition if line.operation == "constant")
        limits = [int(match[1]) for match in constants if match]
        if len(limits) == 1:
            return limits[0]
        self.assumed += 1
        return self.unknown_trips


def _traffic(instruction: Instruction, types: Mapping[str, str], computations: Computations) -> int:
    """Returns the bytes that an operation reads and writes."""
    result = padded_bytes(result_type(instruction))
    if instruction.operation in ("dynamic-slice", "slice"):
        return 2 * result
    if instruction.operation == "dynamic-update-slice":
        return 2 * padded_bytes(types.get(instruction.operands[1], ""))
    operands = [padded_bytes(types.get(operand, "")) for operand in instruction.operands]
    fused = next((computations[name] for name in called_names(instruction.line, "calls") if name in computations), None)
    if fused is None:
        return result + sum(operands)
    read = _read_sizes(fused)
    reads = sum(min(whole, read.get(number, whole)) for number, whole in enumerate(operands))
    return min(result, _written(fused, result)) + reads


def _read_sizes(body: Sequence[Instruction]) -> dict[int, int]:
    """Returns {number: bytes} of the parameters of a fusion that it only takes, or replaces, slices of."""
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for instruction in body:
        for operand in instruction.operands:
            users[operand].append(instruction)

    def slices(name: str) -> Iterator[int | None]:
        for user in users[name]:
            if user.operation in _ALIASES:
                yield from slices(user.name)
            elif user.operation in ("dynamic-slice", "slice"):
                yield padded_bytes(user.type)
            else:
                yield 0 if user.operation == "dynamic-update-slice" and user.operands[0] == name else None

    found = {}
    for instruction in body:
        if instruction.operation == "parameter" and (number := re.search(r"parameter\((\d+)\)", instruction.line)):
            sizes = list(slices(instruction.name))
            if None not in sizes:
                found[int(number[1])] = sum(size or 0 for size in sizes)
    return found


def _written(body: Sequence[Instruction], result: int) -> int:
    """Returns the bytes that a fusion writes: the slice alone where it replaces one."""
    lines = {instruction.name: instruction for instruction in body}

    def write(instruction: Instruction) -> int:
        if instruction.operation == "tuple":
            return sum(write(lines[name]) for name in instruction.operands)
        if instruction.operation in _ALIASES and instruction.operands[0] in lines:
            return min(write(lines[instruction.operands[0]]), padded_bytes(instruction.type))
        if instruction.operation == "dynamic-update-slice":
            return padded_bytes(lines[instruction.operands[1]].type) if instruction.operands[1] in lines else 0
        return padded_bytes(instruction.type)

    return next((write(instruction) for instruction in body if instruction.is_root), result)


def _describe(instruction: Instruction) -> str:
    """Names an operation by its largest result and its origin, in the same way for each layer."""
    arrays = ARRAY.findall(result_type(instruction))
    element, sides = max(arrays, key=lambda array: array_bytes(*array), default=("nothing", ""))
    match = ORIGIN.search(instruction.line)
    # A fusion may have several origins: the first is enough. All begin with the name of the program.
    parts = match[1].partition(":")[0].split("/")[1:] if match else []
    plain = (_TRANSFORMED.sub("", part).strip("()") if _TRANSFORMED.search(part) else part.strip("(") for part in parts)
    names = [name for name in plain if name and name not in _WRAPPERS]
    origin = _LAYER.sub(r"\1", "/".join(names[-_ORIGIN_PARTS:]))
    direction = next((text for mark, text in _DIRECTIONS.items() if mark in instruction.line), "")
    return f"{element}[{sides}] {direction}{origin or instruction.operation}"


def _calls_host(instruction: Instruction) -> bool:
    kinds = ("infeed", "outfeed", "send", "recv")
    return instruction.operation in kinds or bool(_HOST.search(instruction.line))
