"""What devices exchange in one run of a compiled program, read from its text."""

import collections
import math
import re
from collections.abc import Mapping

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"\b(body|condition|calls|to_apply|branch_computations)=(?:\{([^}]*)\}|([%\w.\-]+))")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def collective_bytes(text: str, *, unknown_trips: int = 1) -> dict[str, int]:
    """Returns the bytes of the results of each kind of collective operation, over one run.

    Args:
        text: of a compiled program (`Compiled.as_text()`).
        unknown_trips: how often a loop runs whose number of rounds the program does not state.
    """
    lines, entry = _computations(text)
    total: collections.Counter[str] = collections.Counter()

    def add(name: str, times: int) -> None:
        for line in lines.get(name, ()):
            if match := _COLLECTIVE.search(line):
                total[match[2]] += times * _array_bytes(match[1])
            for role, several, one in _CALLED.findall(line):
                known = _TRIPS.search(line)
                rounds = 1 if role != "body" else int(known[1]) if known else unknown_trips
                for called in (several or one).split(", "):
                    add(called.lstrip("%"), times * rounds)

    add(entry, 1)
    return dict(total)


def _computations(text: str) -> tuple[Mapping[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            found[name] = []
            entry = name if match[1] else entry
        elif name:
            found[name].append(line)
    return found, entry


def _array_bytes(shapes: str) -> int:
    total = 0
    for kind, dims in _ARRAY.findall(shapes):
        total += _BYTES.get(kind, 0) * math.prod(int(side) for side in dims.split(",") if side)
    return total
