"""What all processes do between two steps: decided by all, as each may know something else."""

import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from croc_jax.runtime.stopping import StopRequest

_SIGNAL, _SAVE, _SKIPPED = range(3)


class Verdict(NamedTuple):
    """What the processes have decided.

    Attributes:
        stopped_by: name of a signal that has reached one of them, or None.
        save: whether to save; process 0, whose clock counts, says so.
        skipped: unreadable images of all of them.
    """

    stopped_by: str | None
    save: bool
    skipped: int


class Ballot:
    """Collects what each process knows, and says what follows from it.

    One process decides at once. Several add up their knowledge on the devices, in a program of its
    own behind the step, and read the sum a step later, when the numbers of that step are read anyway:
    so no device waits, and all learn of it after the same step.
    """

    def __init__(self, mesh: Mesh, stop: StopRequest) -> None:
        """Takes the devices of all processes, and the signals of this one."""
        self._stop = stop
        self._sharding = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))
        self._own = mesh.local_devices
        self._size = mesh.size
        self._sum = jax.jit(_sum_up, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._under_way: Array | None = None
        self.alone = jax.process_count() == 1
        self.last = Verdict(None, False, 0)

    def cast(self, *, save: bool, skipped: int) -> Verdict:
        """Tells what this process knows, and returns the verdict: of now if it is alone, else of the call before.

        Args:
            save: whether it is time to; ignored but in process 0.
            skipped: unreadable images so far.
        """
        if self.alone:
            self.last = Verdict(self._stop.received, save, skipped)
            return self.last
        before, self._under_way = self._under_way, self._start(save=save, skipped=skipped)
        if before is not None:
            self.last = _read(before)
        return self.last

    def settle(self) -> Verdict:
        """Returns the verdict on what all know now; waits for it."""
        if self.alone:
            return self.cast(save=False, skipped=0)
        return _read(self._start(save=False, skipped=0))

    def _start(self, *, save: bool, skipped: int) -> Array:
        received = self._stop.received
        number = 0 if received is None else int(signal.Signals[received])
        mine = np.array([number, save and jax.process_index() == 0, skipped], np.int32)
        silent = mine * np.array([1, 1, 0], np.int32)
        # What is added up is said by one device of each process.
        rows = [
            jax.device_put((mine if place == 0 else silent)[None], device) for place, device in enumerate(self._own)
        ]
        votes = jax.make_array_from_single_device_arrays((self._size, 3), self._sharding, rows)
        result = self._sum(votes)
        result.copy_to_host_async()
        return result


def _sum_up(votes: Int[Array, "devices 3"]) -> Int[Array, "3"]:
    return jnp.stack(
        [jnp.max(votes[:, _SIGNAL]), jnp.max(votes[:, _SAVE]), jnp.sum(votes[:, _SKIPPED], dtype=jnp.int32)]
    )


def _read(result: Array) -> Verdict:
    number, save, skipped = (int(value) for value in np.asarray(result.addressable_data(0)))
    return Verdict(signal.Signals(number).name if number else None, bool(save), skipped)
