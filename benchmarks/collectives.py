"""What devices exchange and compute in one run of a compiled program, read from its text."""

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from croc_jax.training.memory import ARRAY, COMPUTATION, array_bytes

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply|branch_computations)=(?:\{([^}]*)\}|([%\w.\-]+))")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_RESULT = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]*)\]")
_PRODUCT = re.compile(r" dot\((?:\w+\[[^ ]* )?%?([\w.\-]+),.*lhs_contracting_dims=\{([\d,]*)\}")


class Work(NamedTuple):
    """What one device does in one run.

    Attributes:
        sizes: bytes of the results of each kind of collective operation.
        counts: how many of them there are.
        flops: multiplications and additions of matrix products.
    """

    sizes: dict[str, int]
    counts: dict[str, int]
    flops: int


def read_program(text: str, *, unknown_trips: int = 1) -> Work:
    """Adds up what a program does, each loop as often as it runs.

    Args:
        text: of a compiled program (`Compiled.as_text()`).
        unknown_trips: how often a loop runs whose number of rounds the program does not state.
    """
    lines, entry = _computations(text)
    sizes: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    flops = 0
    for name, times in _runs(lines, entry, unknown_trips):
        shapes = {match[1]: _sides(match[2]) for line in lines[name] if (match := _RESULT.match(line))}
        for line in lines[name]:
            if match := _COLLECTIVE.search(line):
                sizes[match[2]] += times * _array_bytes(match[1])
                counts[match[2]] += times
            elif match := _PRODUCT.search(line):
                left, result = shapes[match[1]], shapes[_RESULT.match(line)[1]]  # pyright: ignore
                flops += times * 2 * math.prod(result) * math.prod(left[axis] for axis in _sides(match[2]))
    return Work(dict(sizes), dict(counts), flops)


def _runs(lines: Mapping[str, list[str]], entry: str, unknown_trips: int) -> Iterator[tuple[str, int]]:
    """Yields each computation with how often it runs, once for each place that it is called from."""
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        if name not in lines:
            continue
        yield name, times
        for line in lines[name]:
            for role, several, one in _CALLED.findall(line):
                known = _TRIPS.search(line)
                rounds = 1 if role != "body" else int(known[1]) if known else unknown_trips
                waiting += [(called.lstrip("%"), times * rounds) for called in (several or one).split(", ")]


def _computations(text: str) -> tuple[Mapping[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            name = match[2]
            found[name] = []
            entry = name if match[1] else entry
        elif name:
            found[name].append(line)
    return found, entry


def _sides(text: str) -> tuple[int, ...]:
    return tuple(int(side) for side in text.split(",") if side)


def _array_bytes(shapes: str) -> int:
    return sum(array_bytes(kind, sides) for kind, sides in ARRAY.findall(shapes))
