"""The stream is a function of seed and step alone, and bad images do not stop it."""

import logging
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.config import ViewsConfig
from croc_jax.data.pipeline import DatasetError, UnreadableImagesError, make_dataset
from croc_jax.data.sources import FolderSource
from croc_jax.data.workers import SharedMemoryError

VIEWS = ViewsConfig(crop_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirteen images of one color each, so that a crop tells which it is from."""
    path = tmp_path_factory.mktemp("images")
    for i in range(13):
        Image.new("RGB", (30 + i, 25), (10 * i, 0, 0)).save(path / f"{i:02d}.png")
    return path


def _dataset(folder, *, batch_size=4, seed=0, **processes):
    return make_dataset(FolderSource(folder), views=VIEWS, batch_size=batch_size, seed=seed, **processes)


def _take(dataset, count, *, start_step=0, num_workers=0, num_threads=2):
    with dataset.iterate(start_step, num_workers=num_workers, num_threads=num_threads) as batches:
        return [next(batches) for _ in range(count)]


def _images_of(batches):
    return [int(red) // 10 for batch in batches for red in batch["views"][:, 0, 0, 0, 0]]


def _assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, reference in zip(batches, expected, strict=True):
        assert set(batch) == set(reference) == {"views", "boxes"}
        np.testing.assert_array_equal(batch["views"], reference["views"])
        np.testing.assert_array_equal(batch["boxes"], reference["boxes"])


def test_batches_hold_views_and_boxes_of_the_same_image(folder):
    dataset = _dataset(folder)
    assert (dataset.images_per_epoch, dataset.steps_per_epoch) == (13, 3)
    for batch in _take(dataset, 4):
        assert batch["views"].shape == (4, 2, 8, 8, 3) and batch["views"].dtype == np.uint8
        assert batch["boxes"].shape == (4, 2, 5) and batch["boxes"].dtype == np.float32
        image = batch["views"][:, 0, 0, 0, 0] // 10
        assert np.all(batch["views"][..., 0] // 10 == image[:, None, None, None])
        top, left, height, width, flip = np.moveaxis(batch["boxes"], -1, 0)
        assert np.all(top + height <= 25) and np.all(left + width <= 30 + image[:, None])
        assert np.all((flip == 0) | (flip == 1)) and len(np.unique(batch["boxes"].reshape(8, 5), axis=0)) == 8


def test_every_epoch_is_another_shuffle_of_all_images(folder):
    seen = _images_of(_take(_dataset(folder), 30))
    epochs = [tuple(seen[i : i + 12]) for i in range(0, 120, 12)]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert len(set(epochs)) == 10
    assert set(seen) == set(range(13))


def test_crops_of_an_image_differ_between_epochs(folder):
    batches = _take(_dataset(folder), 30)
    boxes = np.concatenate([batch["boxes"].reshape(-1, 10) for batch in batches])
    first = boxes[np.array(_images_of(batches)) == 0]
    assert len(first) > 5 and len(np.unique(first, axis=0)) == len(first)


def test_seeds_give_different_streams_and_the_same_seed_the_same(folder):
    streams = [_take(_dataset(folder, seed=seed), 9) for seed in (0, 0, 1)]
    _assert_equal(streams[1], streams[0])
    assert _images_of(streams[2]) != _images_of(streams[0])
    # Not the same epochs one epoch later either.
    assert _images_of(streams[2])[:12] != _images_of(streams[0])[12:24]


def test_resumes_at_any_step(folder):
    dataset = _dataset(folder)
    expected = _take(dataset, 9)
    for step in (1, 3, 7):
        _assert_equal(_take(dataset, 2, start_step=step), expected[step : step + 2])


@pytest.mark.parametrize("num_threads", [0, 1, 5])
def test_threads_do_not_change_the_stream(folder, num_threads):
    dataset = _dataset(folder)
    _assert_equal(_take(dataset, 7, num_threads=num_threads), _take(dataset, 7))


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_workers_do_not_change_the_stream(folder, num_workers):
    dataset = _dataset(folder)
    batches = _take(dataset, 5, start_step=1, num_workers=num_workers, num_threads=1)
    _assert_equal(batches, _take(dataset, 5, start_step=1))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_batch(folder, count):
    expected = _take(_dataset(folder), 7)
    parts = [_take(_dataset(folder, process_index=i, process_count=count), 7) for i in range(count)]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in ("views", "boxes")}
        for step in zip(*parts, strict=True)
    ]
    _assert_equal(joined, expected)


class _CountingSource(FolderSource):
    def __init__(self, folders):
        super().__init__(folders)
        self.reads = []

    def __getitem__(self, index):
        self.reads.append(index)
        return super().__getitem__(index)


def test_a_process_reads_its_own_rows_only(folder):
    source = _CountingSource(folder)
    dataset = make_dataset(source, views=VIEWS, batch_size=6, seed=0, process_index=1, process_count=3)
    batches = _take(dataset, 4, num_threads=0)
    assert source.reads == _images_of(batches) and len(source.reads) == 8


@pytest.fixture
def damaged(folder, tmp_path):
    """The same images with three bad files among them."""
    path = tmp_path / "damaged"
    shutil.copytree(folder, path)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path / "cut.jpg")
    (path / "cut.jpg").write_bytes((path / "cut.jpg").read_bytes()[:900])
    (path / "empty.png").write_bytes(b"")
    (path / "letter.jpg").write_text("Dear reader")
    return path


def test_bad_images_are_replaced_counted_and_named_once(damaged, caplog):
    dataset = _dataset(damaged)
    assert dataset.steps_per_epoch == 4
    with caplog.at_level(logging.WARNING, logger="absl"), dataset.iterate() as batches:
        stream = [next(batches) for _ in range(12)]
        skipped = dict(batches.skipped)
    assert all(batch["views"].shape == (4, 2, 8, 8, 3) for batch in stream)
    # Sixteen images fill four batches: every epoch comes to each bad one.
    bad = [str(damaged / name) for name in ("cut.jpg", "empty.png", "letter.jpg")]
    assert sorted(skipped) == bad and all(count >= 3 for count in skipped.values())
    messages = [record.getMessage() for record in caplog.records]
    assert sorted(name for name in bad for message in messages if name in message) == bad
    assert any("truncated" in message for message in messages)
    _assert_equal(_take(dataset, 12), stream)
    _assert_equal(_take(dataset, 3, start_step=5), stream[5:8])


def test_replacements_do_not_depend_on_workers(damaged):
    dataset = _dataset(damaged)
    with dataset.iterate(num_threads=0) as batches, dataset.iterate(num_workers=2, num_threads=1) as others:
        _assert_equal([next(others) for _ in range(4)], [next(batches) for _ in range(4)])
        assert others.skipped == batches.skipped and len(others.skipped) == 3


def test_vanished_files_are_replaced_too(damaged):
    dataset = _dataset(damaged)
    for i in range(4):
        (damaged / f"{i:02d}.png").unlink()
    with dataset.iterate() as batches:
        seen = set(_images_of([next(batches) for _ in range(8)]))
        assert len(batches.skipped) == 7
    assert seen <= set(range(4, 13))


def test_only_bad_images_are_an_error_that_names_one(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_text("not an image")
    with _dataset(tmp_path, batch_size=2).iterate() as batches:
        with pytest.raises(UnreadableImagesError, match=r"20 images in a row .*[abc]\.jpg .*cannot identify"):
            next(batches)


def test_too_few_images_and_odd_shares_are_errors(folder):
    with pytest.raises(DatasetError, match="13 images cannot fill a batch of 16"):
        _dataset(folder, batch_size=16)
    with pytest.raises(DatasetError, match="batch_size=9 does not divide over 2 processes"):
        _dataset(folder, batch_size=9, process_count=2)
    assert _dataset(folder, batch_size=13).steps_per_epoch == 1


def test_lack_of_shared_memory_is_explained(folder, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr("os.path.isdir", lambda path: True)
    with pytest.raises(SharedMemoryError, match="--shm-size.*runtime.num_workers"):
        _dataset(folder).iterate(num_workers=2)


def test_errors_survive_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(UnreadableImagesError("20 images")))
    assert isinstance(error, UnreadableImagesError) and str(error) == "20 images"


READ_AND_WAIT = """
import sys, time
from croc_jax.data.config import ViewsConfig
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import FolderSource

if __name__ == "__main__":
    dataset = make_dataset(FolderSource(sys.argv[1]), views=ViewsConfig(crop_size=64), batch_size=4, seed=0)
    with dataset.iterate(num_workers=2, num_threads=1) as batches:
        next(batches)
        print("reading", flush=True)
        time.sleep(float(sys.argv[2]))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to list processes")
def test_workers_of_a_killed_process_end(folder, tmp_path):
    script = tmp_path / "read.py"
    script.write_text(READ_AND_WAIT)
    with subprocess.Popen([sys.executable, script, folder, "60"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        lists = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [child for file in lists for child in file.read_text().split()]
        assert len(children) >= 2  # and multiprocessing's own
        process.kill()
    deadline = time.monotonic() + 20
    while any(_is_alive(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


KILL_ONE = """
import multiprocessing
import os
import signal
import sys
from croc_jax.data.config import ViewsConfig
from croc_jax.data.bad_records import ReadersLostError
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import FolderSource

if __name__ == "__main__":
    dataset = make_dataset(FolderSource(sys.argv[1]), views=ViewsConfig(crop_size=64), batch_size=4, seed=0)
    with dataset.iterate(num_workers=2, num_threads=1) as batches:
        for _ in range(4):
            next(batches)
        workers = multiprocessing.active_children()
        # Schedulers and terminals send these to all processes of a run.
        for worker in workers:
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                os.kill(worker.pid, number)
        for _ in range(6):
            next(batches)
        assert all(worker.is_alive() for worker in workers)
        os.kill(workers[0].pid, signal.SIGKILL)
        try:
            while True:
                next(batches)
        except ReadersLostError as error:
            print(error)
"""


def test_workers_outlive_signals_and_a_killed_one_is_an_error(folder, tmp_path):
    script = tmp_path / "kill.py"
    script.write_text(KILL_ONE)
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == (
        "a process that reads images was killed, as the system does when memory runs out: lower runtime.num_workers, "
        "or look for the cause (Worker process was terminated unexpectedly with exit code -9)\n"
    )


SIGNAL_ALL = """
import os
import signal
import sys
import threading
import time
from croc_jax.data.config import ViewsConfig
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import FolderSource

received = {}

def count(number, frame):
    received[number] = received.get(number, 0) + 1

def send():
    while not done.wait(0.01):
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.killpg(0, number)

if __name__ == "__main__":
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, count)
    done = threading.Event()
    thread = threading.Thread(target=send)
    thread.start()
    dataset = make_dataset(FolderSource(sys.argv[1]), views=ViewsConfig(crop_size=64), batch_size=4, seed=0)
    with dataset.iterate(num_workers=1, num_threads=1) as batches:
        for _ in range(4):
            next(batches)
            time.sleep(0.05)
        done.set()
        thread.join()
        print(len(received))
"""


def test_signals_to_all_processes_end_no_reader_at_any_time(folder, tmp_path):
    script = tmp_path / "shout.py"
    script.write_text(SIGNAL_ALL)
    done = subprocess.run(
        [sys.executable, script, folder], capture_output=True, text=True, timeout=100, start_new_session=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_workers_end_in_silence(folder, tmp_path):
    script = tmp_path / "read.py"
    script.write_text(READ_AND_WAIT)
    done = subprocess.run([sys.executable, script, folder, "1"], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("reading\n", "")


def _is_alive(process):
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
