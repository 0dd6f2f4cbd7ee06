"""How long steps take, which process the others wait for, and how full the devices are."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float

_GIB = 2**30


class StepTimes:
    """Times between the ends of steps, since the last report."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Starts the clock of the first step.

        Args:
            clock: seconds since some time, never going back.
        """
        self._clock = clock
        self._last, self._seconds, self._waited = clock(), [], 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of the block as that of the devices, not of this host."""
        begin = self._clock()
        yield
        self._waited += self._clock() - begin

    def tick(self) -> None:
        """Notes the end of a step."""
        now = self._clock()
        self._seconds.append(now - self._last)
        self._last = now

    def take(self) -> dict[str, float]:
        """Returns the numbers of the steps since the last call, of which there is one or more, and forgets them.

        All processes of a run must call this after the same steps: it gathers from them.
        """
        seconds, waited = np.array(self._seconds), self._waited
        self._seconds, self._waited = [], 0.0
        host_seconds = max(0.0, float(seconds.sum()) - waited) / len(seconds)
        return {**summarize(seconds), **find_straggler(gather(host_seconds)), **device_memory()}


def summarize(seconds: Float[np.ndarray, " steps"]) -> dict[str, float]:
    """Returns median, 95th percentile and maximum of step times, in seconds."""
    return {
        "step_seconds": float(np.median(seconds)),
        "step_seconds_p95": float(np.percentile(seconds, 95)),
        "step_seconds_max": float(np.max(seconds)),
    }


def find_straggler(host_seconds: Float[np.ndarray, " processes"]) -> dict[str, float]:
    """Returns how long a step keeps the hosts busy, and which of several processes is the slowest.

    Processes step together, so that all have the same step time; the one that the others wait for is the one
    that itself waits least for its devices.

    Args:
        host_seconds: of a step that each process did not wait for its devices, in the order of processes.

    Returns:
        `host_seconds`, the maximum; of several processes, also `straggler`, the process that has it, and
        `straggler_excess`, by how much it exceeds the median, in seconds.
    """
    slowest = int(np.argmax(host_seconds))
    numbers = {"host_seconds": float(host_seconds[slowest])}
    if len(host_seconds) > 1:
        excess = host_seconds[slowest] - np.median(host_seconds)
        numbers |= {"straggler": float(slowest), "straggler_excess": float(excess)}
    return numbers


def gather(value: float) -> Float[np.ndarray, " processes"]:
    """Returns the numbers of all processes, in their order; all must come by here, the same number of times."""
    if jax.process_count() == 1:
        return np.array([value])
    return np.asarray(multihost_utils.process_allgather(np.float32(value))).reshape(-1)


def device_memory() -> dict[str, float]:
    """Returns memory in use and its peak in GiB, of the fullest local device; nothing if the backend does not tell."""
    stats = [stats for device in jax.local_devices() if (stats := device.memory_stats())]
    names = {"memory_gib": "bytes_in_use", "memory_peak_gib": "peak_bytes_in_use"}
    return {
        name: max(values) / _GIB
        for name, field in names.items()
        if (values := [device[field] for device in stats if field in device])
    }
