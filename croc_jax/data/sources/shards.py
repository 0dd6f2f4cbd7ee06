"""The paths of shards: a folder, a file, or a pattern of several."""

import glob
import itertools
import os
import re
import stat
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from croc_jax.data.sources.base import report_left_out
from croc_jax.data.sources.entries import list_entries
from croc_jax.machine_errors import is_machine_error
from croc_jax.paths import local_path
from croc_jax.regular_files import open_regular

_END_BYTES = 2**16
_DESCRIPTIONS = (".json", ".txt", ".md")


def find_shards(pattern: str | os.PathLike, *, named: re.Pattern[str], kind: str, source: str) -> list[str]:
    """Returns the files of a folder, or those that a pattern stands for, in order.

    Args:
        pattern: a folder, or a path in which `{000..123}` and `{a,b}` stand for each of these
            (all must exist) and `*`, `?` and `[...]` for the files that exist.
        named: matches the file names of a folder that count.
        kind: name of such a file in messages.
        source: kind of the source, as in KIND:PATHS.

    Raises:
        ValueError: if a file is missing or no regular one, or named twice, or there are none, or for a URL.
        OSError: for a fault of the machine.
    """
    pattern = os.fspath(pattern)
    local_path(pattern, name=f"{source}:PATHS")
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        found = list_entries(pattern)
        names = sorted(filter(named.search, found.files))
        # What describes shards is expected beside them.
        unknown = {*found.files} - {*names}
        left_out = [name for name in unknown if not name.endswith(_DESCRIPTIONS)] + found.sidecars
        others = found.others + Counter(folders=len(found.folders))
        report_left_out(pattern, left_out, others=others, taken=len(names))
        if not names:
            raise ValueError(f"no {kind} in {pattern}: correct the path (now in {os.getcwd()})")
        files = [os.path.join(pattern, name) for name in names]
    elif os.path.exists(pattern):
        files = [pattern]
    else:
        files = [file for path in expand_braces(pattern) for file in (sorted(glob.glob(path)) or [path])]
    _check_files(files, where="" if files == [pattern] else f" of {pattern}", kind=kind)
    return files


def _check_files(files: Sequence[str], *, where: str, kind: str) -> None:
    """Raises ValueError for files that are missing, not regular, or named twice."""
    known: dict[tuple[int, int], str] = {}
    for file in files:
        try:
            status = os.stat(file)
        except OSError as error:
            if is_machine_error(error):
                raise
            reason = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror})"
            raise ValueError(
                f"no {kind} called {file}{where}{reason}: correct the path (now in {os.getcwd()})"
            ) from error
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{file}{where} is not a regular file, but a folder, a FIFO or a device: move it away")
        key = status.st_dev, status.st_ino
        # Some network file systems have no numbers of files.
        if key in known and status.st_ino:
            raise ValueError(f"{known[key]} and {file}{where} are the same file: name it once")
        known[key] = file


def describe_shard(file: str | Path) -> tuple[str, int]:
    """Returns what identifies a file of records: its name with a checksum of its end, where indices lie, and its size.

    Files of ArrayRecord are padded to 64 KiB, so that their sizes alone say little.
    """
    with open_regular(file) if isinstance(file, str) else file.open("rb") as stream:
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
