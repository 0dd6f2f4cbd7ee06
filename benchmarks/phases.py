"""Phases of a trial as processes of their own, each with its time: a crash or a hang of one leaves the others alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from findings import FAILED, Row, first_line, read_rows

_SECONDS_TO_END = 10.0


def run_phase(command: Sequence[str], *, name: str, folder: Path, seconds: float, env: Mapping[str, str]) -> list[Row]:
    """Runs a program that writes rows; what it has found stays, whatever its end.

    Args:
        command: the program.
        name: of the phase.
        folder: for its rows, NAME.jsonl, and for what it writes to standard error, NAME.log.
        seconds: that it may take.
        env: its environment.

    Returns:
        Its rows, with one more if it failed or took too long.
    """
    file, log, begin = folder / f"{name}.jsonl", folder / f"{name}.log", time.monotonic()
    file.unlink(missing_ok=True)
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stderr=errors, env=dict(env))
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end(process)
    rows = read_rows(file)
    if status is None:
        rows.append(Row(name, "the whole phase", f"not done after {seconds:.0f} s; see {log}", FAILED))
    elif status:
        rows.append(Row(name, "the whole phase", f"{describe_status(status)}: {last_line(log)}; see {log}", FAILED))
    rows.append(Row(name, "time", f"{time.monotonic() - begin:.0f} s", "", {"seconds": time.monotonic() - begin}))
    return rows


def end(process: subprocess.Popen) -> None:
    """Ends a process, gently first; nothing happens if it has ended."""
    for stop in (process.terminate, process.kill):
        if process.poll() is None:
            stop()
            try:
                process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                continue


def describe_status(status: int) -> str:
    """Says how a process ended."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def last_line(log: Path) -> str:
    """Returns the last line of a file, where an error is told."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return first_line(next((line for line in reversed(lines) if line.strip()), "no message"))


def environment(cache: Path, **changes: str) -> dict[str, str]:
    """Returns the variables for a phase: it finds the package, a cache of compiled programs, and the CPU beside a GPU.

    Args:
        cache: its folder, unless the caller's environment names another one.
        **changes: variables to add.
    """
    root = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    env = {"JAX_COMPILATION_CACHE_DIR": str(cache), **os.environ, "PYTHONPATH": paths, **changes}
    platforms = env.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        # The reference is computed there.
        env["JAX_PLATFORMS"] = f"{platforms},cpu"
    return env


def python(*arguments: str) -> list[str]:
    """Returns the command line of a Python program."""
    return [sys.executable, *arguments]
