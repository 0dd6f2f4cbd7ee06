"""Phases of a trial as processes of their own, each with a time limit: a crash or a hang of one ends no other."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from trial.findings import FAILED, Row, first_line, read_rows

_SECONDS_TO_EXIT = 10.0


def run_phase(command: Sequence[str], *, name: str, folder: Path, seconds: float, env: Mapping[str, str]) -> list[Row]:
    """Runs a program that writes rows to FOLDER/NAME.jsonl, and its errors to NAME.log.

    Args:
        command: program and arguments.
        name: name of the phase.
        folder: where rows and log go.
        seconds: time limit.
        env: environment variables.

    Returns:
        Its rows, with one more if it failed or timed out, and one of the time that it took.
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
            terminate(process)
    rows = read_rows(file)
    if status is None:
        rows.append(Row(name, "the whole phase", f"timed out after {seconds:.0f} s; see {log}", FAILED))
    elif status:
        rows.append(Row(name, "the whole phase", f"{describe_status(status)}: {last_line(log)}; see {log}", FAILED))
    rows.append(Row(name, "time", f"{time.monotonic() - begin:.0f} s", "", {"seconds": time.monotonic() - begin}))
    return rows


def terminate(process: subprocess.Popen) -> None:
    """Ends a process that still runs, by SIGTERM first, then by SIGKILL."""
    for stop in (process.terminate, process.kill):
        if process.poll() is None:
            stop()
            try:
                process.wait(_SECONDS_TO_EXIT)
            except subprocess.TimeoutExpired:
                continue


def describe_status(status: int) -> str:
    """Says how a process ended."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def last_line(log: Path) -> str:
    """Returns the last line of a log, where an error is."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return first_line(next((line for line in reversed(lines) if line.strip()), "no message"))


def environment(cache: Path, **changes: str) -> dict[str, str]:
    """Returns the environment of a phase: the package, a compilation cache, and the CPU beside the accelerator.

    Args:
        cache: folder of the compilation cache, unless the caller's environment names another one.
        **changes: variables to set.
    """
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    env = {"JAX_COMPILATION_CACHE_DIR": str(cache), **os.environ, "PYTHONPATH": paths, **changes}
    platforms = env.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms.split(","):
        # It computes the reference.
        env["JAX_PLATFORMS"] = f"{platforms},cpu"
    return env
