"""The folder of checkpoints, apart from what is in them: what is finished, torn, or cannot be written."""

import contextlib
import shutil
import time
from pathlib import Path

import jax
import orbax.checkpoint as ocp

_TORN = f"*{ocp.utils.TMP_DIR_SUFFIX}*"
_SECONDS_TO_CALM = 60.0


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the finished checkpoints in a folder, the latest first; unfinished ones have longer names."""
    found = [path for path in folder.iterdir() if path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def find_torn(folder: Path) -> list[str]:
    """Returns the steps whose saves were cut short, in order."""
    return sorted({path.name.partition(".")[0] for path in folder.glob(_TORN)}, key=lambda name: (len(name), name))


def remove_torn(folder: Path) -> None:
    """Removes what saves that were cut short have left, as far as the disk allows."""
    for torn in folder.glob(_TORN):
        shutil.rmtree(torn, ignore_errors=True)


def remove_torn_for_good(folder: Path) -> None:
    """Removes what a failed save has left until nothing follows, as its writers may go on for a while."""
    deadline = time.monotonic() + _SECONDS_TO_CALM
    remove_torn(folder)
    time.sleep(1.0)
    while any(folder.glob(_TORN)) and time.monotonic() < deadline:
        remove_torn(folder)
        time.sleep(1.0)


def probe(folder: Path) -> str:
    """Says why no checkpoint can be written, if so; makes the folder if need be.

    Orbax, if it meets this first, leaves threads that wait for an hour.
    """
    mine = folder / f"probe-{jax.process_index()}"
    try:
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
        mine.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            mine.rmdir()
    except FileNotFoundError:
        # A network file system may show another process the folder of process 0 a while later.
        return "" if jax.process_index() else f"{folder} has vanished"
    except OSError as error:
        return f"cannot write to {folder}: {error.strerror}"
    return ""
