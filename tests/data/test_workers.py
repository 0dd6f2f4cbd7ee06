"""The number of processes and threads that read images."""

import shutil

import pytest

from croc_jax.data import workers
from croc_jax.data.workers import BY_MACHINE, check_shared_memory, choose_workers

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
    "cores, room, accelerated, given, expected",
    [
        (16, 1000, True, (BY_MACHINE, BY_MACHINE), (15, 1)),
        (128, 1000, True, (BY_MACHINE, BY_MACHINE), (32, 1)),
        (1, 1000, True, (BY_MACHINE, BY_MACHINE), (0, 1)),
        (16, 9, True, (BY_MACHINE, BY_MACHINE), (4, 1)),
        (16, 0, True, (BY_MACHINE, BY_MACHINE), (0, 2)),
        (16, 1000, False, (BY_MACHINE, BY_MACHINE), (0, 2)),
        (1, 1000, False, (BY_MACHINE, BY_MACHINE), (0, 1)),
        (16, 1000, True, (3, 5), (3, 5)),
        (16, 1000, True, (0, BY_MACHINE), (0, 2)),
        (16, 1000, True, (BY_MACHINE, 4), (15, 4)),
        (16, 1000, False, (0, 0), (0, 0)),
    ],
)
def test_choose_workers(machine, cores, room, accelerated, given, expected):
    machine(cores, room)
    chosen = choose_workers(*given, batch_bytes=BATCH, accelerated=accelerated)
    assert chosen == expected
    check_shared_memory(chosen[0], batch_bytes=BATCH if chosen[0] else 0)


def test_check_shared_memory_names_the_remedy(machine):
    machine(16, 4)
    check_shared_memory(1, batch_bytes=BATCH)
    with pytest.raises(ValueError, match="need 5 MiB in /dev/shm, but 4 MiB are free.*--shm-size.*num_workers"):
        check_shared_memory(2, batch_bytes=BATCH)
