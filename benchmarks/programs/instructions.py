"""Parses the text of a compiled program (`Compiled.as_text()`) into instructions, and reads their types."""

import math
import re
from typing import NamedTuple

# Where a computation begins; arrays by element type and sides; where in the source a line comes from.
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
ORIGIN = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
# Operations that compute nothing themselves.
NO_ARRAYS = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_LAYOUT = re.compile(rf"{ARRAY.pattern}(?:\{{([^}}]*)\}})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|to_apply|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)


class Instruction(NamedTuple):
    """A line of a program.

    Attributes:
        name: name of the result.
        type: type of the result, with layouts; a tuple in parentheses.
        operation: kind, such as "fusion" or "all-reduce-start".
        operands: names of the operands.
        line: the whole line.
        is_root: whether it is the result of its computation.
    """

    name: str
    type: str
    operation: str
    operands: tuple[str, ...]
    line: str
    is_root: bool


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the instructions of each computation of a program, and the name of the entry computation."""
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


def array_bytes(element: str, sides: str) -> int:
    """Returns the bytes of an array such as ("f32", "8,4"); 0 for other types."""
    return _BYTES.get(element, 0) * math.prod(sides_of(sides))


def padded_bytes(kind: str) -> int:
    """Returns the bytes of a type's arrays in main memory, in whole tiles; without a TPU's fast memory, S(1)."""
    total = 0
    for element, sides, layout in _LAYOUT.findall(kind):
        if "S(1)" in layout:
            continue
        lengths, tile = list(sides_of(sides)), re.search(r"T\(([\d,]+)\)", layout)
        order = [int(axis) for axis in layout.partition(":")[0].split(",") if axis]
        steps = reversed(sides_of(tile[1])) if tile else ()
        for axis, step in zip(order, steps, strict=False):
            lengths[axis] = math.ceil(lengths[axis] / step) * step
        total += _BYTES.get(element, 0) * math.prod(lengths)
    return total


def result_type(instruction: Instruction) -> str:
    """Returns the type of an operation's result; the type of an asynchronous start has its operands, too."""
    kind, operation = instruction.type, instruction.operation
    if not operation.endswith("-start") or not kind.startswith("("):
        return kind
    parts = _split_tuple(kind)
    if operation == "copy-start":
        return parts[0]
    has_operands = parts[0].startswith("(") or operation in ("all-gather-start", "collective-permute-start")
    return parts[1] if has_operands and len(parts) > 1 else kind


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
    """Returns the computations that an instruction calls, by some attributes such as "calls"; by default by all."""
    names = [names for role, names in _CALLED.findall(line) if not roles or role in roles]
    return [name.strip().lstrip("%") for group in names for name in group.strip("{}").split(",")]


def attribute(name: str, line: str) -> str:
    """Returns the name that follows an attribute such as "body"; empty if it is missing."""
    match = re.search(rf"{name}=%?([\w.\-]+)", line)
    return match[1] if match else ""


def sides_of(text: str) -> tuple[int, ...]:
    """Returns the numbers of a list such as "8,4"."""
    return tuple(int(side) for side in text.split(",") if side)


def first_sides(kind: str) -> tuple[int, ...]:
    """Returns the sides of the first array of a type."""
    match = ARRAY.search(kind)
    return sides_of(match[2]) if match else ()
