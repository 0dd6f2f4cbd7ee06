"""The text of a compiled program as instructions, and what their types say."""

import math
import re
from typing import NamedTuple

# Where a computation begins, arrays by type and sides, and where a line comes from.
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
ORIGIN = re.compile(r'op_name="([^"]*)"')
# Results of these operations are other results.
NO_ARRAYS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_LAYOUT = re.compile(rf"{ARRAY.pattern}(?:\{{([^}}]*)\}})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|to_apply|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)


def array_bytes(kind: str, sides: str) -> int:
    """Returns the size of an array by its type and sides, such as "f32" and "8,4"; 0 for other types."""
    return _BYTES.get(kind, 0) * math.prod(int(side) for side in sides.split(",") if side)


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
        name: of its result.
        type: of its result, with layouts; a tuple in parentheses.
        operation: its kind, such as "fusion" or "all-reduce-start".
        operands: names of what it takes.
        line: all of it.
        is_root: whether it gives the result of its computation.
    """

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    line: str
    is_root: bool


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the instructions of each computation of a program, and which one is the entry."""
    found: dict[str, list[Instruction]] = {}
    entry = name = ""
    for line in text.splitlines():
        if not line.startswith(" ") and (match := COMPUTATION.match(line)):
            name = match[2]
            found[name] = []
            entry = name if match[1] else entry
        elif name and (match := _LINE.match(line)):
            root, result, kind, operation, rest = match.groups()
            operands = tuple(_NAME.findall(re.split(r"\)(?:, |$)", rest, maxsplit=1)[0]))
            found[name].append(Instruction(result, kind, operation, operands, line, bool(root)))
    return found, entry


def padded_bytes(kind: str) -> int:
    """Returns the bytes of a type's arrays in main memory, in whole tiles; a TPU's fast memory, S(1), is none."""
    total = 0
    for element, sides, layout in _LAYOUT.findall(kind):
        if "S(1)" in layout:
            continue
        lengths, tile = list(sides_of(sides)), re.search(r"T\(([\d,]+)\)", layout)
        order = [int(axis) for axis in layout.partition(":")[0].split(",") if axis]
        steps = reversed(sides_of(tile[1])) if tile else ()
        for axis, step in zip(order, steps, strict=False):
            lengths[axis] = math.ceil(lengths[axis] / step) * step
        total += array_bytes(element, ",".join(map(str, lengths)))
    return total


def result_type(instruction: Instruction) -> str:
    """Returns the type of what an operation gives; what starts one names its operands, too."""
    kind, operation = instruction.type, instruction.operation
    if not operation.endswith("-start") or not kind.startswith("("):
        return kind
    parts = _split_tuple(kind)
    if operation == "copy-start":
        return parts[0]
    names_operands = parts[0].startswith("(") or operation in ("all-gather-start", "collective-permute-start")
    return parts[1] if names_operands and len(parts) > 1 else kind


def _split_tuple(kind: str) -> list[str]:
    """Splits the type of a tuple into those of its elements."""
    parts, depth, begin = [], 0, 1
    for place, letter in enumerate(kind):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 1 and letter == "," or depth == 0:
            parts.append(re.sub(r"/\*.*?\*/", "", kind[begin:place]).strip())
            begin = place + 1
    return parts


def called_names(line: str, *roles: str) -> list[str]:
    """Returns the computations that an instruction calls, once each.

    Args:
        line: of the instruction.
        roles: attributes that count, such as "calls" (of fusions); by default, all but those of loops.
    """
    return [name for role, names in _CALLED.findall(line) if not roles or role in roles for name in _names(names)]


def _names(text: str) -> list[str]:
    return [name.strip().lstrip("%") for name in text.strip("{}").split(",")]


def attribute(name: str, line: str) -> str:
    """Returns the name that follows an attribute such as "body"; empty if there is none."""
    match = re.search(rf"{name}=%?([\w.\-]+)", line)
    return match[1] if match else ""


def sides_of(text: str) -> tuple[int, ...]:
    """Returns the numbers of a list such as "8,4"."""
    return tuple(int(side) for side in text.split(",") if side)


def first_sides(kind: str) -> tuple[int, ...]:
    """Returns the sides of the first array of a type."""
    match = ARRAY.search(kind)
    return sides_of(match[2]) if match else ()
