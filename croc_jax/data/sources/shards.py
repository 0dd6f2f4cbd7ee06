"""The paths of shards: a folder, a file, or a pattern of several."""

import glob
import itertools
import os
import re
import zlib
from collections.abc import Iterator

_END_BYTES = 2**16


def find_shards(pattern: str | os.PathLike, *, named: re.Pattern[str], kind: str) -> list[str]:
    """Returns the files of a folder, or those that a pattern stands for, in order.

    Args:
        pattern: a folder, or a path in which `{000..123}` and `{a,b}` stand for each of these
            (all must exist) and `*`, `?` and `[...]` for the files that exist.
        named: matches the file names of a folder that count.
        kind: name of such a file in messages.

    Raises:
        ValueError: if a file is missing, or there are none.
    """
    pattern = os.fspath(pattern)
    if os.path.isdir(pattern):
        files = [os.path.join(pattern, name) for name in sorted(os.listdir(pattern)) if named.search(name)]
    elif os.path.exists(pattern):
        files = [pattern]
    else:
        files = [file for path in expand_braces(pattern) for file in (sorted(glob.glob(path)) or [path])]
    missing = next((file for file in files if not os.path.isfile(file)), None if files else pattern)
    if missing is not None:
        where = f" of {pattern}" if missing != pattern else ""
        verb = "in" if os.path.isdir(missing) else "called"
        raise ValueError(f"no {kind} {verb} {missing}{where}: correct the path (now in {os.getcwd()})")
    return files


def describe_shard(file: str | os.PathLike) -> tuple[str, int]:
    """Returns what identifies a file of records: its name with a checksum of its end, where indices lie, and its size.

    Files of ArrayRecord are padded to 64 KiB, so that their sizes alone say little.
    """
    with open(file, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _END_BYTES))
        checksum = zlib.crc32(stream.read())
    return f"{os.path.basename(file)} ({checksum:08x})", size


def expand_braces(pattern: str) -> Iterator[str]:
    """Yields a pattern with each choice of its braces: `{08..10}` for numbers, `{a,b}` for words."""
    # Split by a group, every second part is the inside of a pair of braces.
    parts = re.split(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def _choices(inside: str) -> list[str]:
    first, range_dots, last = inside.partition("..")
    if not range_dots or "," in inside:
        return inside.split(",")
    padded = any(number.startswith("0") and number != "0" for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
