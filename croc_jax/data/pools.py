"""Work on all images of a source with several processes, each of which has its own copy of the source."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from typing import Any

from croc_jax.data.sources.base import ImageSource
from croc_jax.data.workers import count_cores, init_worker

# What a process works with, as set by `_init`.
_source: ImageSource
_stop: Event


def work_on(
    source: ImageSource, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], *, num_workers: int | None
) -> Iterator[tuple[int, Any]]:
    """Yields the number of each task and its result, as they are completed.

    Args:
        source: the images.
        function: called as function(source, stop, *task), where `stop` is an event that is set once results are no
            longer asked for; of the top level of a module, as are all arguments of its kind.
        tasks: the remaining arguments of each call.
        num_workers: processes; 1 works in this one; None for one a core.

    Raises:
        ValueError: if a process died.
        Exception: the first that `function` raises.
    """
    num_workers = min(num_workers or count_cores(), len(tasks) or 1)
    # Processes that start afresh: a copy of this one would share the locks of its threads.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    if num_workers > 1:
        pool: Executor = ProcessPoolExecutor(num_workers, context, _init, (source, stop))
    else:
        pool = ThreadPoolExecutor(1, initializer=_init, initargs=(source, stop))
    try:
        # Processes inherit that Ctrl-C is ignored, and leave it to this one.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            pending = {pool.submit(_call, function, task): number for number, task in enumerate(tasks)}
        finally:
            signal.signal(signal.SIGINT, before)
        for future in as_completed(pending):
            # What has been returned need not be kept.
            yield pending.pop(future), future.result()
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process died, perhaps for lack of memory: run the same command again with fewer --workers"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _init(source: ImageSource, stop: Event) -> None:
    global _source, _stop
    _source, _stop = source, stop
    if multiprocessing.parent_process() is not None:
        init_worker()


def _call(function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    return function(_source, _stop, *task)
