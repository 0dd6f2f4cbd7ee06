"""Worker processes that read images: how many, with how much shared memory, and how they end."""

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import wait

# The value of a setting that leaves its choice to this module.
BY_MACHINE = -1

_MAX_WORKERS = 32
_SHARED_MEMORY = "/dev/shm"
# Files that the main process opens for a worker, its pipes and batches, and for all the rest.
_FILES_A_WORKER, _OTHER_FILES = 18, 64
# A worker outlives SIGTERM by so long, as the training process may need it to finish its step.
_SECONDS_TO_SAVE = 60
_PREEMPTION_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


def choose_workers(num_workers: int, num_threads: int, *, batch_bytes: int, accelerated: bool) -> tuple[int, int]:
    """Returns processes, and threads of each, to read with; replaces `BY_MACHINE` by what suits the machine.

    Beside an accelerator, that is a process for each core but one, as far as shared memory and
    the limit of open files reach. On CPU, training takes all cores, and two threads of the main
    process keep ahead of it.

    Args:
        num_workers: processes; 0 for threads of the main process.
        num_threads: threads of each process.
        batch_bytes: size of a batch of one process.
        accelerated: whether training runs elsewhere than on the cores.

    Raises:
        ValueError: if shared memory, or the limit of open files, is too small for so many workers as were asked for.
            Without this, a worker that finds no memory dies of a bus error, which explains nothing.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = 2**20 if files == resource.RLIM_INFINITY else files
    free = shutil.disk_usage(_SHARED_MEMORY).free if os.path.isdir(_SHARED_MEMORY) else 2**60
    if num_workers == BY_MACHINE:
        most = min((free // max(batch_bytes, 1) - 1) // 2, (files - _OTHER_FILES) // _FILES_A_WORKER)
        num_workers = max(0, min(count_cores() - 1, most, _MAX_WORKERS)) if accelerated else 0
    if num_threads == BY_MACHINE:
        num_threads = 1 if num_workers else min(2, count_cores())
    # Each worker keeps a batch waiting and writes the next; one more is in use.
    needed = (2 * num_workers + 1) * batch_bytes
    if num_workers and free < needed:
        raise ValueError(
            f"worker processes need {needed / 2**20:.0f} MiB in {_SHARED_MEMORY}, but {free / 2**20:.0f} MiB "
            "are free: enlarge it (docker run --shm-size), or lower runtime.num_workers (0 uses threads)"
        )
    needed = num_workers * _FILES_A_WORKER + _OTHER_FILES
    if num_workers and files < needed:
        raise ValueError(
            f"{num_workers} worker processes need {needed} open files, but the limit is {files}: raise it (ulimit -n), "
            "or lower runtime.num_workers (0 uses threads)"
        )
    return num_workers, num_threads


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Blocks preemption signals in processes that start in the block, until their `init_worker`.

    Among them is Python's tracker of shared memory, which frees the batches that were prefetched but not used when
    the program ends; it would call them leaks.
    """
    option = "ignore:resource_tracker:UserWarning"
    if option not in sys.warnoptions:
        sys.warnoptions.append(option)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PREEMPTION_SIGNALS)
    try:
        resource_tracker.ensure_running()
        # Starting the tracker unblocks SIGTERM.
        signal.pthread_sigmask(signal.SIG_BLOCK, _PREEMPTION_SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kill_workers() -> None:
    """Kills the processes that this one has started to read images, whatever they wait for."""
    for process in multiprocessing.active_children():
        if process.name.startswith("grain-process-prefetch"):
            process.kill()


def init_worker(worker: int = 0, num_workers: int = 0) -> None:
    """Leaves preemption signals to the main process, and ends this worker with it; the arguments are grain's."""
    del worker, num_workers
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # An interpreter that exits sends SIGTERM to its workers and waits for them: then this is the end.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_SECONDS_TO_SAVE))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PREEMPTION_SIGNALS)
    # A killed main process cannot end its workers, and they would hold its memory forever.
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
