"""Files that hold many images each: how they are named, and their open handles."""

import collections
import glob
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from croc_jax.data.sources.base import SourceError

# Well below the 1,024 open files that many systems allow a process.
_MAX_OPEN = 400

T = TypeVar("T")


def find_shards(pattern: str | os.PathLike, *, named: re.Pattern[str], kind: str) -> list[str]:
    """Returns the files of a folder, or those that a pattern stands for, in order.

    Args:
        pattern: a folder, or a path in which `{000..123}` and `{a,b}` stand for each of these
            (all must exist) and `*`, `?` and `[...]` for whatever there is.
        named: how the file names of a folder end that count.
        kind: what to call such a file in a message.

    Raises:
        SourceError: if a file is missing, or there are none.
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
        raise SourceError(f"no {kind} {verb} {missing}{where}: correct the path (now in {os.getcwd()})")
    return files


def expand_braces(pattern: str) -> Iterator[str]:
    """Yields a pattern with each choice of its braces: `{08..10}` for numbers, `{a,b}` for words."""
    # Split by a group, every second part is the inside of a pair of braces.
    parts = re.split(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return map("".join, itertools.product(*choices))


def _choices(inside: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers is None:
        return inside.split(",")
    first, last = numbers.groups()
    padded = (first.startswith("0") and first != "0") or (last.startswith("0") and last != "0")
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]


class Handles(Generic[T]):
    """Opens files when they are first read, and keeps those used last open.

    Threads share them. A pickled copy is without them, so that each process opens its own.
    """

    def __init__(self, open_file: Callable[[str], T], limit: int = _MAX_OPEN) -> None:
        """Opens nothing yet.

        Args:
            open_file: returns a handle, which closes when nobody holds it any more.
            limit: of handles at a time.
        """
        self._open_file, self._limit = open_file, limit
        self._opened: collections.OrderedDict[str, T] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, file: str) -> T:
        """Returns the handle of a file; raises what opening it raises."""
        with self._lock:
            if file in self._opened:
                self._opened.move_to_end(file)
                return self._opened[file]
        # Outside the lock: on a slow disk, a file that opens must not block those that are open.
        handle = self._open_file(file)
        with self._lock:
            handle = self._opened.setdefault(file, handle)
            while len(self._opened) > self._limit:
                self._opened.popitem(last=False)
        return handle

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves the handles out."""
        return Handles, (self._open_file, self._limit)
