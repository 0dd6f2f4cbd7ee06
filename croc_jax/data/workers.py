"""How many processes and threads read images, by what the machine has."""

import multiprocessing
import os
import shutil
import threading
from multiprocessing.connection import wait
from typing import NamedTuple

# The value of a setting that leaves its choice to this module.
BY_MACHINE = -1

_MOST_WORKERS = 32
_SHARED_MEMORY = "/dev/shm"


class Readers(NamedTuple):
    """Who decodes and crops.

    Attributes:
        workers: processes; 0 for threads of the main process.
        threads: of each of them.
    """

    workers: int
    threads: int


class SharedMemoryError(ValueError):
    """Worker processes have no room to hand batches over; the message says how much they need."""


def choose_readers(num_workers: int, num_threads: int, *, batch_bytes: int, accelerated: bool) -> Readers:
    """Returns the given numbers, or those that suit the machine in their place.

    Beside an accelerator, that is a process for each core but one, as far as shared memory
    reaches. On CPU, training takes all cores, and two threads keep ahead of it.

    Args:
        num_workers: processes; `BY_MACHINE` to choose.
        num_threads: threads of each; `BY_MACHINE` to choose.
        batch_bytes: what a batch of one process takes.
        accelerated: whether training runs elsewhere than on the cores.
    """
    if num_workers == BY_MACHINE:
        most = (_free_shared_memory() // max(batch_bytes, 1) - 1) // 2
        num_workers = max(0, min(count_cores() - 1, most, _MOST_WORKERS)) if accelerated else 0
    if num_threads == BY_MACHINE:
        num_threads = 1 if num_workers else min(2, count_cores())
    return Readers(num_workers, num_threads)


def check_shared_memory(num_workers: int, *, batch_bytes: int) -> None:
    """Raises SharedMemoryError if so many workers lack the room for their batches.

    Without this, a worker that finds none dies of a bus error, which explains nothing.
    """
    # Each worker keeps a batch waiting and writes the next; one more is in use.
    needed, free = (2 * num_workers + 1) * batch_bytes, _free_shared_memory()
    if free < needed:
        raise SharedMemoryError(
            f"worker processes need {needed / 2**20:.0f} MiB in {_SHARED_MEMORY}, but {free / 2**20:.0f} MiB "
            "are free: enlarge it (docker run --shm-size), or lower runtime.num_workers (0 uses threads)"
        )


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Ends this worker process when the one that started it is gone, however it went; call it in the worker.

    Killed, a main process cannot end its workers, and they would hold its memory for good.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _free_shared_memory() -> int:
    """Bytes; as good as endless where there is no such folder to fill up."""
    return shutil.disk_usage(_SHARED_MEMORY).free if os.path.isdir(_SHARED_MEMORY) else 2**60
