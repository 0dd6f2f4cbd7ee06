"""Faults of the machine end a stream with their reason, and are never counted as unreadable images."""

import errno
import functools
import os
import resource
import socket
import threading

import numpy as np
import pytest

from croc_jax import machine_errors, regular_files
from croc_jax.data.bad_records import UnreadableImagesError
from croc_jax.data.config import ViewsConfig
from croc_jax.data.labeled.boxes import read_boxes
from croc_jax.data.labeled.label_files import read_colors, read_ids, read_image
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.prefetch import load_ahead
from croc_jax.data.prepare import PrepareConfig, prepare
from croc_jax.data.sources import FolderSource, arrayrecord, open_sources
from croc_jax.data.sources.arrayrecord import ArrayRecordSource
from croc_jax.data.sources.tar import TarSource
from croc_jax.machine_errors import find_fault, from_library
from croc_jax.regular_files import read_regular
from tests.data.test_shards import write_records, write_tar
from tests.data.tiny_images import encode

ENCODED = [encode(number, size=(20, 20)) for number in range(8)]


class Failing:
    """Eight images; `errors` maps an index, or None for all, to what its reads raise, one after another."""

    def __init__(self, errors, times=10**9):
        self.errors, self.left, self.reads = errors, dict.fromkeys(errors, times), 0

    def __len__(self):
        return len(ENCODED)

    def __getitem__(self, index):
        key = index if index in self.errors else None
        self.reads += 1
        if self.left.get(key, 0):
            self.left[key] -= 1
            raise self.errors[key]
        return ENCODED[index]

    def name(self, index):
        return f"image {index}"

    def entries(self):
        return iter([(self.name(index), len(encoded)) for index, encoded in enumerate(ENCODED)])


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(machine_errors, "_SECONDS_TO_WAIT", (0.0, 0.0, 0.0))


def read(source, count=4, *, num_threads=0, **settings):
    """Returns the first batches, and the counts of unreadable images."""
    dataset = make_dataset(source, views=ViewsConfig(crop_size=8), batch_size=4, seed=0, **settings)
    with dataset.iterate(num_workers=0, num_threads=num_threads) as batches:
        return [next(batches)["views"] for _ in range(count)], batches.skipped


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM, errno.EIO, errno.ESTALE])
def test_a_fault_of_the_machine_ends_the_stream_with_its_number_and_the_image(tmp_path, number, num_threads):
    listing = tmp_path / "skipped.txt"
    with pytest.raises(OSError) as caught:
        read(Failing({3: OSError(number, "fault")}), num_threads=num_threads, skipped_file=listing)
    assert (caught.value.errno, caught.value.filename) == (number, "image 3") and not listing.exists()


def test_a_lack_of_memory_is_a_fault_of_the_machine():
    with pytest.raises(OSError) as caught:
        read(Failing({None: MemoryError()}))
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_fault_that_passes_changes_nothing(number):
    expected, _ = read(Failing({}))
    source = Failing({None: OSError(number, "fault")}, times=3)
    batches, skipped = read(source)
    np.testing.assert_array_equal(batches, expected)
    assert not skipped and source.reads == 16 + 3


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, None])
def test_an_error_of_one_file_is_counted(tmp_path, number):
    listing = tmp_path / "skipped.txt"
    error = OSError("cut") if number is None else OSError(number, "gone")
    _, skipped = read(Failing({3: error}), skipped_file=listing)
    assert list(skipped) == ["image 3"] and listing.read_text() == f"image 3\t{error}\n"


def test_a_disk_that_is_gone_is_called_so():
    with pytest.raises(UnreadableImagesError, match=r"^20 images in a row are gone, .*image \d .*still mounted\?"):
        read(Failing({None: FileNotFoundError(errno.ENOENT, "No such file or directory")}))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO])
def test_prepare_leaves_out_no_image_for_a_fault_of_the_machine(tmp_path, monkeypatch, number):
    monkeypatch.setattr(
        "croc_jax.data.prepare.open_sources", lambda sources, **_: Failing({3: OSError(number, "fault")})
    )
    with pytest.raises(OSError) as caught:
        prepare(PrepareConfig(sources=("x",)), tmp_path, num_workers=1)
    assert caught.value.errno == number and [file.name for file in tmp_path.iterdir()] == ["prepare.json"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("open() failed: Too many open files; opening a.array_record", errno.EMFILE),
        ("pread() failed: Input/output error", errno.EIO),
        ("pread() failed: Stale file handle; reading a", errno.ESTALE),
        ("chunk header hash mismatch", None),
    ],
)
def test_libraries_put_faults_in_words(text, number):
    error = from_library(RuntimeError(text), "a:7")
    assert error.errno == number and "a:7" in str(error)
    assert (find_fault(error, "a:7") is None) is (number is None)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.png")
    socket.socket(socket.AF_UNIX).bind(str(tmp_path / "socket.png"))
    for path in (tmp_path / "fifo.png", tmp_path / "socket.png", "/dev/zero", tmp_path):
        with pytest.raises(OSError, match="not a regular file") as caught:
            read_regular(path)
        assert caught.value.errno is None
    (tmp_path / "a.png").write_bytes(ENCODED[1])
    (tmp_path / "link.png").symlink_to("a.png")
    assert read_regular(tmp_path / "link.png") == ENCODED[1]
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "missing.png")


def test_a_fifo_in_the_place_of_an_image_is_counted(tmp_path):
    for number, encoded in enumerate(ENCODED):
        (tmp_path / f"{number}.png").write_bytes(encoded)
    source = FolderSource(tmp_path)
    (tmp_path / "3.png").unlink()
    os.mkfifo(tmp_path / "3.png")
    _, skipped = read(source)
    assert list(skipped) == [str(tmp_path / "3.png")]


@pytest.mark.parametrize("read_file", [read_image, read_ids, read_colors, functools.partial(read_boxes, hard=False)])
def test_labels_are_regular_files_and_faults_are_not_theirs(tmp_path, monkeypatch, read_file):
    os.mkfifo(tmp_path / "a")
    with pytest.raises(ValueError, match="a FIFO, a device or a socket, not a regular file"):
        read_file(tmp_path / "a")

    def fail(path, flags):
        raise OSError(errno.EMFILE, "Too many open files", path)

    monkeypatch.setattr(regular_files, "_open", fail)
    with pytest.raises(OSError) as caught:
        read_file(tmp_path / "a")
    assert caught.value.errno == errno.EMFILE


@pytest.fixture
def few_handles():
    """Lets this process open few more files than it has open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    arrayrecord._readers.cache_clear()
    highest = max(map(int, os.listdir("/dev/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 32, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    arrayrecord._readers.cache_clear()


@pytest.mark.parametrize("kind", ["tar", "arrayrecord"])
def test_more_shards_than_files_may_be_open(tmp_path, few_handles, kind):
    count = 2 * resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for number in range(count):
        if kind == "tar":
            write_tar(tmp_path / f"{number:03d}.tar", {"0.jpg": b"%d" % number})
        else:
            write_records(tmp_path / f"{number:03d}.array_record", b"%d" % number)
    source = TarSource(tmp_path) if kind == "tar" else ArrayRecordSource(tmp_path)
    for _ in range(2):
        assert [source[index] for index in range(count)] == [b"%d" % number for number in range(count)]
    mixed = open_sources([f"{kind}:{tmp_path}"] * 2)
    assert mixed[count] == b"0"


def test_loading_ahead_ends_at_once_though_threads_wait():
    never, started = threading.Event(), threading.Event()

    def load(index):
        if index >= 2:
            started.set()
            never.wait()
        return index

    batches = load_ahead(load, 100, 2, num_threads=2)
    assert next(batches) == [0, 1] and started.wait(60)
    batches.close()
    assert not never.is_set()
    never.set()
