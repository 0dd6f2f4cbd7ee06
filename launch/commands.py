"""Runs programs of this repository: one after another or beside each other, and not again where their result is."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Command(NamedTuple):
    """A program with its arguments; one that evaluates a run, with its folders of results, of the run and of data."""

    arguments: list[str]
    output: Path | None = None
    workdir: Path = Path()
    data: str = ""

    def is_done(self) -> bool:
        """Returns whether the program has given the same result already; never of one that evaluates nothing."""
        if self.output is None:
            return False
        # Only here: they import jax, for seconds that printing commands does not need.
        from croc_jax.evaluation.reuse import is_done

        return is_done(self.output, self._request())

    def mark_done(self) -> None:
        """Notes that the program has given its result, if it evaluates."""
        if self.output is not None:
            from croc_jax.evaluation.reuse import mark_done

            mark_done(self.output, self._request())

    def run(self) -> int:
        """Runs the program, unless it has given the same result already; returns its status."""
        if self.is_done():
            return 0
        if not (status := run_program(self.arguments)):
            self.mark_done()
        return status

    def _request(self) -> dict:
        from croc_jax.evaluation.reuse import make_request
        from croc_jax.runtime.workdir import CONFIG_NAME, latest_step

        config, step = self.workdir / CONFIG_NAME, latest_step(self.workdir) or 0
        return make_request(self.arguments, config=config, step=step, data=self.data)


def start_program(
    arguments: list[str], *, output: IO[bytes] | None = None, cores: Collection[int] = ()
) -> subprocess.Popen:
    """Starts a program of this repository.

    Args:
        arguments: its path in the repository, and its flags.
        output: file that takes what it prints; by default, what this program prints to.
        cores: CPU cores that it may use, all of its threads together; by default, those of this program.
    """
    command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    process = subprocess.Popen(command, stdout=output, stderr=output and subprocess.STDOUT)
    # Its threads inherit this; it has none before it imports anything.
    if cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    return process


def run_program(arguments: list[str]) -> int:
    """Runs a program of this repository and returns its status; it receives SIGTERM, too, and then saves."""
    with start_program(arguments) as process, on_signals(lambda number: process.terminate(), signal.SIGTERM):
        return process.wait()


@contextlib.contextmanager
def on_signals(handle, *numbers: signal.Signals) -> Iterator[None]:
    """Calls a function with the number of each of some signals that come within the block."""
    before = {number: signal.signal(number, lambda got, _: handle(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
