"""The number of processes and threads that read images."""

import shutil

import pytest

from croc_jax.data import workers
from croc_jax.data.workers import BY_MACHINE, SharedMemoryError, check_shared_memory, choose_readers

BATCH = 2**20


@pytest.fixture
def machine(monkeypatch):
    """Sets the cores and the free shared memory in batches."""

    def become(cores, room):
        monkeypatch.setattr(workers, "count_cores", lambda: cores)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, room * BATCH))
        monkeypatch.setattr("os.path.isdir", lambda path: True)

    return become


@pytest.mark.parametrize(
    "cores, room, accelerated, expected",
    [
        (16, 1000, True, (15, 1)),
        (128, 1000, True, (32, 1)),
        (1, 1000, True, (0, 1)),
        (16, 9, True, (4, 1)),
        (16, 0, True, (0, 2)),
        (16, 1000, False, (0, 2)),
        (1, 1000, False, (0, 1)),
    ],
)
def test_the_machine_decides(machine, cores, room, accelerated, expected):
    machine(cores, room)
    chosen = choose_readers(BY_MACHINE, BY_MACHINE, batch_bytes=BATCH, accelerated=accelerated)
    assert chosen == expected
    check_shared_memory(chosen.workers, batch_bytes=BATCH if chosen.workers else 0)


def test_given_numbers_stay(machine):
    machine(16, 1000)
    assert choose_readers(3, 5, batch_bytes=BATCH, accelerated=True) == (3, 5)
    assert choose_readers(0, BY_MACHINE, batch_bytes=BATCH, accelerated=True) == (0, 2)
    assert choose_readers(BY_MACHINE, 4, batch_bytes=BATCH, accelerated=True) == (15, 4)
    assert choose_readers(0, 0, batch_bytes=BATCH, accelerated=False) == (0, 0)


def test_too_little_shared_memory_is_explained(machine):
    machine(16, 4)
    check_shared_memory(1, batch_bytes=BATCH)
    with pytest.raises(SharedMemoryError, match="need 5 MiB in /dev/shm, but 4 MiB are free.*--shm-size"):
        check_shared_memory(2, batch_bytes=BATCH)
