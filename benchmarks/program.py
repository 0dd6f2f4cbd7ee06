"""What one run of a compiled program computes, moves and exchanges, read from its text."""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from instructions import (
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
from products import product_flops

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"({'|'.join(KINDS)})(-start)?")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CYCLES = re.compile(r'estimated_cycles":"(\d+)"')
_HOST = re.compile(r'custom_call_target="[^"]*(?:callback|host)[^"]*"', re.IGNORECASE)
_TRANSFORMED = re.compile(r"\b(?:transpose|jvp|vmap|jit)\(")
# Parts of an origin that tell how it is run, not what it is.
_MANNER = ("while", "body", "closed_call", "eval_jaxpr", "checkpoint", "rematted_computation", "shard_map")
_LAYER = re.compile(r"(blocks?)_\d+", re.IGNORECASE)
_ORIGIN_PARTS = 4
# What the origin of an operation says about its pass, the rarer mark first.
_DIRECTIONS = {"transpose(jvp(": "backward: ", "jvp(": "forward: "}
# How the compiler for TPUs names a computation in which a device sums up its own part alone.
_SUMMED_IN_PARTS = "all-reduce-scatter"
# Names for the same array.
_SAME = ("bitcast", "get-tuple-element", "reshape")


class Exchange(NamedTuple):
    """Collective operations of one kind.

    Attributes:
        count: how many there are.
        sizes: bytes of the whole arrays that are gathered or summed up, by element type such as "f32".
    """

    count: int
    sizes: dict[str, int]


class Cost(NamedTuple):
    """What one operation takes, in all its runs.

    Attributes:
        name: element type and sides of its largest result, and where it comes from.
        count: how often it runs.
        cycles: that the compiler estimates; 0 where it does not tell.
        traffic: bytes that it reads from memory and writes.
        flops: multiplications and additions of its matrix products.
    """

    name: str
    count: int
    cycles: int
    traffic: int
    flops: int


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device does in one run.

    Attributes:
        costs: of operations, those that differ in their number alone (layers, say) as one.
        exchanges: collective operations, by kind.
        flops: multiplications and additions of matrix products.
        loops: how often the body of each loop runs.
        assumed: how many of these loops do not state their number of rounds.
        sorts: operations of the program that sort.
        doubles: operations that have results of float64.
        host: operations that call, or wait for, the host.
        aliased: arguments whose memory results take over.
    """

    costs: list[Cost]
    exchanges: dict[str, Exchange]
    flops: int
    loops: list[int]
    assumed: int
    sorts: int
    doubles: int
    host: int
    aliased: int

    @property
    def cycles(self) -> int:
        """Cycles of all operations, one after the other."""
        return sum(cost.cycles for cost in self.costs)

    @property
    def traffic(self) -> int:
        """Bytes that all operations move."""
        return sum(cost.traffic for cost in self.costs)

    @property
    def launches(self) -> int:
        """Operations that run."""
        return sum(cost.count for cost in self.costs)


def read_program(text: str, *, unknown_trips: int = 1) -> Work:
    """Adds up what a program does, each loop as often as it runs.

    Args:
        text: of a compiled program (`Compiled.as_text()`).
        unknown_trips: how often a loop runs whose number of rounds the program does not state.
    """
    computations, entry = parse(text)
    reader = _Reader(computations, unknown_trips)
    reader.walk(entry, 1)
    instructions = [instruction for body in computations.values() for instruction in body]
    exchanges = {kind: Exchange(reader.counts[kind], dict(sizes)) for kind, sizes in reader.sizes.items()}
    return Work(
        costs=[Cost(name, *numbers) for name, numbers in reader.costs.items()],
        exchanges=exchanges,
        flops=reader.flops,
        loops=reader.loops,
        assumed=reader.assumed,
        sorts=sum(instruction.operation == "sort" for instruction in instructions),
        doubles=sum("f64[" in instruction.type for instruction in instructions),
        host=sum(map(_is_of_host, instructions)),
        aliased=text.partition("\n")[0].count("-alias)"),
    )


class _Reader:
    """Sums over the runs of all computations."""

    def __init__(self, computations: Mapping[str, Sequence[Instruction]], unknown_trips: int) -> None:
        self.computations, self.unknown_trips = computations, unknown_trips
        # Runs, cycles, bytes and products, by name.
        self.costs: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0, 0])
        self.counts: collections.Counter[str] = collections.Counter()
        self.sizes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.flops = self.assumed = 0
        self.loops: list[int] = []

    def walk(self, name: str, times: int) -> None:
        """Adds what a computation does whose operations run one by one."""
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
            flops = self._inside(instruction, types, "", times, seen)
            self.flops += flops
            cycles = _CYCLES.search(instruction.line)
            traffic = _traffic(instruction, types, self.computations)
            numbers = self.costs[_describe(instruction)]
            for index, amount in enumerate((1, int(cycles[1]) if cycles else 0, traffic)):
                numbers[index] += times * amount
            numbers[3] += flops

    def _inside(
        self, instruction: Instruction, types: Mapping[str, str], inside: str, times: int, seen: set[str]
    ) -> int:
        """Adds what an operation, or those that are fused into it, exchange; returns the work of their products."""
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
        # Each fusion that computes in the meantime has the operation, too, of the same channel and shape; others may
        # have that channel.
        if channel := re.search(r"channel_id=(\d+)", instruction.line):
            name = f"{kind} {channel[1]} {results}"
            if name in seen:
                return
            seen.add(name)
        self.counts[kind] += times
        arrays = max(
            results, ARRAY.findall(" ".join(operands)), key=lambda some: sum(array_bytes(*one) for one in some)
        )
        for element, sides in arrays:
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


def _traffic(
    instruction: Instruction, types: Mapping[str, str], computations: Mapping[str, Sequence[Instruction]]
) -> int:
    """Returns the bytes that an operation reads and writes."""
    result = padded_bytes(result_type(instruction))
    if instruction.operation in ("dynamic-slice", "slice"):
        return 2 * result
    if instruction.operation == "dynamic-update-slice":
        return 2 * padded_bytes(types.get(instruction.operands[1], ""))
    operands = [padded_bytes(types.get(operand, "")) for operand in instruction.operands]
    called = [computations[name] for name in called_names(instruction.line, "calls") if name in computations]
    if not called:
        return result + sum(operands)
    read = _read_sizes(called[0])
    return min(result, _written(called[0], result)) + sum(
        min(whole, read.get(number, whole)) for number, whole in enumerate(operands)
    )


def _read_sizes(body: Sequence[Instruction]) -> dict[int, int]:
    """Returns the bytes of parameters of which a fusion takes, or replaces, slices alone, by their number."""
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for instruction in body:
        for operand in instruction.operands:
            users[operand].append(instruction)

    def slices(name: str) -> Iterator[int | None]:
        for user in users[name]:
            if user.operation in _SAME:
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
    """Returns the bytes that a fusion writes: where it replaces a slice, no more than that."""
    lines = {instruction.name: instruction for instruction in body}

    def write(instruction: Instruction) -> int:
        if instruction.operation == "tuple":
            return sum(write(lines[name]) for name in instruction.operands)
        if instruction.operation in _SAME and instruction.operands[0] in lines:
            source = write(lines[instruction.operands[0]])
            return min(source, padded_bytes(instruction.type))
        if instruction.operation == "dynamic-update-slice":
            return padded_bytes(lines[instruction.operands[1]].type) if instruction.operands[1] in lines else 0
        return padded_bytes(instruction.type)

    roots = [instruction for instruction in body if instruction.is_root]
    return write(roots[0]) if roots else result


def _describe(instruction: Instruction) -> str:
    """Names an operation by its largest result and its origin, in the same way for each layer."""
    arrays = ARRAY.findall(result_type(instruction))
    element, sides = max(arrays, key=lambda array: array_bytes(*array), default=("nothing", ""))
    match = ORIGIN.search(instruction.line)
    # What is fused may have several origins: the first is enough. All have the name of the program.
    parts = match[1].partition(":")[0].split("/")[1:] if match else []
    plain = (_TRANSFORMED.sub("", part).strip("()") if _TRANSFORMED.search(part) else part.strip("(") for part in parts)
    names = [name for name in plain if name and name not in _MANNER]
    origin = _LAYER.sub(r"\1", "/".join(names[-_ORIGIN_PARTS:]))
    direction = next((told for mark, told in _DIRECTIONS.items() if mark in instruction.line), "")
    return f"{element}[{sides}] {direction}{origin or instruction.operation}"


def _is_of_host(instruction: Instruction) -> bool:
    kinds = ("infeed", "outfeed", "send", "recv")
    return instruction.operation in kinds or bool(_HOST.search(instruction.line))
