"""Pages of files are released, and their content stays."""

import resource
import tempfile

import numpy as np

from croc_jax.evaluation.mmap import release_pages


def resident_pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])


def test_what_was_written_stays_but_not_in_this_process(tmp_path):
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        array = np.memmap(file, np.uint8, "w+", shape=(64, 2**20))
    view = array.reshape(-1, 1024)[7:]
    array[:] = np.arange(64, dtype=np.uint8)[:, None]
    before = resident_pages()
    release_pages(view)
    freed = (before - resident_pages()) * resource.getpagesize()
    assert freed > 0.9 * array.nbytes
    np.testing.assert_array_equal(array[:, ::4096], np.broadcast_to(np.arange(64)[:, None], (64, 256)))


def test_other_arrays_are_left_alone():
    array = np.arange(10)
    release_pages(array)
    release_pages(array[3:])
    np.testing.assert_array_equal(array, np.arange(10))
