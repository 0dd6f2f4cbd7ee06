"""The stream is a function of seed and step alone, and bad images do not stop it."""

import io
import logging
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from croc_jax.data import workers
from croc_jax.data.bad_records import BadRecords, UnreadableImagesError
from croc_jax.data.config import ViewsConfig
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.prepare import PrepareConfig, prepare
from croc_jax.data.sources import FolderSource, open_sources
from croc_jax.data.workers import BY_MACHINE, choose_workers
from tests.data.test_shards import write_tar

VIEWS = ViewsConfig(crop_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirteen images of one color each, so that a crop shows which it is from."""
    path = tmp_path_factory.mktemp("images")
    for i in range(13):
        Image.new("RGB", (30 + i, 25), (10 * i, 0, 0)).save(path / f"{i:02d}.png")
    return path


def _dataset(folder, *, batch_size=4, seed=0, **settings):
    return make_dataset(FolderSource(folder), **{"views": VIEWS} | settings, batch_size=batch_size, seed=seed)


def _take(dataset, count, *, start_step=0, num_workers=0, num_threads=2):
    with dataset.iterate(start_step, num_workers=num_workers, num_threads=num_threads) as batches:
        return [next(batches) for _ in range(count)]


@pytest.fixture(scope="module")
def stream(folder):
    """The first thirty batches of four: ten epochs."""
    return _take(_dataset(folder), 30)


def _images_of(batches):
    return [int(red) // 10 for batch in batches for red in batch["views"][:, 0, 0, 0, 0]]


def _assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, reference in zip(batches, expected, strict=True):
        assert set(batch) == set(reference) == {"views", "boxes"}
        np.testing.assert_array_equal(batch["views"], reference["views"])
        np.testing.assert_array_equal(batch["boxes"], reference["boxes"])


def test_batches_hold_views_and_boxes_of_the_same_image(folder, stream):
    dataset = _dataset(folder)
    assert (dataset.images_per_epoch, dataset.steps_per_epoch) == (13, 3)
    for batch in stream[:4]:
        assert batch["views"].shape == (4, 2, 8, 8, 3) and batch["views"].dtype == np.uint8
        assert batch["boxes"].shape == (4, 2, 5) and batch["boxes"].dtype == np.float32
        image = batch["views"][:, 0, 0, 0, 0] // 10
        assert np.all(batch["views"][..., 0] // 10 == image[:, None, None, None])
        top, left, height, width, flip = np.moveaxis(batch["boxes"], -1, 0)
        assert np.all(top + height <= 25) and np.all(left + width <= 30 + image[:, None])
        assert np.all((flip == 0) | (flip == 1)) and len(np.unique(batch["boxes"].reshape(8, 5), axis=0)) == 8


def test_every_epoch_is_another_shuffle_with_other_crops(stream):
    seen = _images_of(stream)
    epochs = [tuple(seen[i : i + 12]) for i in range(0, 120, 12)]
    assert all(len(set(epoch)) == 12 for epoch in epochs) and len(set(epochs)) == 10 and set(seen) == set(range(13))
    first = np.concatenate([batch["boxes"].reshape(-1, 10) for batch in stream])[np.array(seen) == 0]
    assert len(first) > 5 and len(np.unique(first, axis=0)) == len(first)


def test_seeds_give_different_streams_and_the_same_seed_the_same(folder, stream):
    _assert_equal(_take(_dataset(folder), 9), stream[:9])
    other, own = _images_of(_take(_dataset(folder, seed=1), 9)), _images_of(stream)
    # Not the same epochs one epoch later either.
    assert other != own[:36] and other[:12] != own[12:24]


@pytest.mark.parametrize(("start", "num_workers", "num_threads"), [(1, 0, 0), (3, 0, 1), (7, 0, 5), (1, 2, 1)])
def test_start_workers_and_threads_do_not_change_the_stream(folder, stream, start, num_workers, num_threads):
    batches = _take(_dataset(folder), 5, start_step=start, num_workers=num_workers, num_threads=num_threads)
    _assert_equal(batches, stream[start : start + 5])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_batch(folder, stream, count):
    parts = [_take(_dataset(folder, process_index=i, process_count=count), 7) for i in range(count)]
    joined = [
        {name: np.concatenate([part[name] for part in step]) for name in ("views", "boxes")}
        for step in zip(*parts, strict=True)
    ]
    _assert_equal(joined, stream[:7])


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


def test_the_kind_of_source_does_not_change_the_stream(folder, stream, tmp_path):
    files = sorted(folder.iterdir())
    (tmp_path / "list.txt").write_text("".join(f"{file}\n" for file in files))
    for number, part in enumerate((files[:5], files[5:])):
        write_tar(tmp_path / f"{number}.tar", {file.name: file.read_bytes() for file in part})
    prepare(PrepareConfig(sources=(str(folder),), shard_size=7), tmp_path / "shards", num_workers=1)
    for spec in ("list:{}/list.txt", "tar:{}/{{0..1}}.tar", "arrayrecord:{}/shards"):
        dataset = make_dataset(open_sources([spec.format(tmp_path)]), views=VIEWS, batch_size=4, seed=0)
        _assert_equal(_take(dataset, 7), stream[:7])
    mixed = open_sources([f"tar:{tmp_path}/0.tar", f"arrayrecord:{tmp_path}/shards"], [1, 1])
    dataset = make_dataset(mixed, views=VIEWS, batch_size=2, seed=0)
    batches = _take(dataset, 13)
    # An epoch of 13 images of each source: those of the tar file, whose number is below 5, occur again in the other.
    assert np.sum(np.array(_images_of(batches)) < 5) == 13 + 5


def _encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def damaged(folder, tmp_path):
    """The same images, odd ones that can be read, and damaged ones that cannot; returns the names of those, too."""
    path = tmp_path / "damaged"
    shutil.copytree(folder, path)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = {
        "cmyk.jpg": _encode(photo.convert("CMYK"), "JPEG"),
        "deep.png": _encode(Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50) * 30), "PNG"),
        "gray.jpg": _encode(photo.convert("L"), "JPEG"),
        "rotated.jpg": _encode(photo, "JPEG", exif=exif),
        "dot.png": _encode(photo.resize((1, 1)), "PNG"),
        "long.jpg": _encode(photo.resize((20_000, 50)), "JPEG"),
    }
    bad = {
        "bomb.png": _encode(Image.new("1", (15_000, 15_000)), "PNG"),
        "cut.jpg": _encode(photo, "JPEG")[:700],
        "empty.png": b"",
        "letter.jpg": b"Dear reader",
    }
    for name, data in (odd | bad).items():
        (path / name).write_bytes(data)
    # A link to nowhere cannot be read by anyone, root included.
    os.symlink(tmp_path / "nowhere", path / "missing.jpg")
    return path, sorted(str(path / name) for name in (*bad, "missing.jpg"))


@pytest.mark.parametrize("decoding", ["exact", "fast"])
def test_bad_images_are_replaced_counted_and_listed_once(damaged, tmp_path, decoding):
    path, bad = damaged
    views, listing = ViewsConfig(crop_size=8, decoding=decoding), tmp_path / "skipped.txt"
    dataset = _dataset(path, views=views, skipped_file=listing, max_bad_fraction=0.01)
    assert (dataset.images_per_epoch, dataset.steps_per_epoch) == (24, 6)
    streams = []
    for num_threads in (1, 2):  # a run, and the same one resumed
        with dataset.iterate(num_workers=0, num_threads=num_threads) as batches:
            streams.append([next(batches) for _ in range(12)])
            assert all(batch["views"].shape == (4, 2, 8, 8, 3) for batch in streams[-1])
            # 24 images fill six batches: every epoch comes to each bad one.
            assert sorted(batches.skipped) == bad and all(count >= 2 for count in batches.skipped.values())
    _assert_equal(*streams)
    rows = dict(line.split("\t") for line in listing.read_text().splitlines())
    assert sorted(rows) == bad and len(listing.read_text().splitlines()) == len(bad)
    assert "100 million pixels" in rows[bad[0]] and "truncated" in rows[bad[1]] and "No such file" in rows[bad[-1]]


def test_too_many_bad_images_end_the_stream_after_a_thousand(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "images")
    dataset = _dataset(tmp_path / "images", max_bad_fraction=0.05)
    for i in range(4):  # they vanish after they were listed
        (tmp_path / "images" / f"{i:02d}.png").unlink()
    with dataset.iterate() as batches:
        seen = [next(batches) for _ in range(150)]  # 600 good images and about 250 bad ones
        assert set(_images_of(seen)) == set(range(4, 13)) and len(batches.skipped) == 4
        with pytest.raises(
            UnreadableImagesError, match=r"of 1\d\d\d images .* more than data.max_bad_fraction=0.05 .*mounted"
        ):
            for _ in range(60):
                next(batches)


def test_bad_images_alone_are_an_error_that_names_one(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_text("not an image")
    with _dataset(tmp_path, batch_size=2).iterate() as batches:
        with pytest.raises(UnreadableImagesError, match=r"20 images in a row .*[abc]\.jpg .*cannot identify"):
            next(batches)


def test_bad_records_allow_a_share_and_list_each_image_once(tmp_path, caplog):
    file = tmp_path / "skipped.txt"
    # Of two processes.
    first, second = (BadRecords(file=file, max_fraction=0.01) for _ in range(2))
    with caplog.at_level(logging.WARNING, logger="absl"):
        first.add("a.jpg", "torn\nacross lines")
        second.add("a.jpg", "torn")
        for _ in range(9):
            second.add("b\n\udcff\r\x85\t\u2028.jpg", "b\udcff is empty")
    name = r"b\n\udcff\r\x85\t\u2028.jpg"
    assert (
        file.read_bytes()
        == rf"a.jpg|torn across lines/{name}|b\udcff is empty/".translate({ord("|"): "\t", ord("/"): "\n"}).encode()
    )
    assert second.counts == {"a.jpg": 1, name: 9} and len(caplog.records) == 3
    caplog.text.encode("ascii")
    second.check(990)
    second.add("one more", "reason")
    with pytest.raises(
        UnreadableImagesError, match="^11 of 1001 images could not be read, such as a.jpg, b.* Repair or"
    ):
        second.check(0)


def test_make_dataset_refuses_too_few_images_and_odd_shares(folder):
    with pytest.raises(ValueError, match="13 images cannot fill a batch of 16"):
        _dataset(folder, batch_size=16)
    with pytest.raises(ValueError, match="batch_size=9 does not divide over 2 processes"):
        _dataset(folder, batch_size=9, process_count=2)
    assert _dataset(folder, batch_size=13).steps_per_epoch == 1


@pytest.mark.parametrize(
    ("cores", "room", "accelerated", "given", "expected"),
    [
        # Room below zero is the limit of open files.
        (16, -48, True, (BY_MACHINE, BY_MACHINE), (0, 2)),
        (16, -256, True, (BY_MACHINE, BY_MACHINE), (10, 1)),
        (16, -48, False, (2, 1), "2 worker processes need 100 open files, but the limit is 48: .*ulimit -n"),
        (16, 1000, True, (BY_MACHINE, BY_MACHINE), (15, 1)),
        (128, 1000, True, (BY_MACHINE, BY_MACHINE), (32, 1)),
        (1, 1000, True, (BY_MACHINE, BY_MACHINE), (0, 1)),
        (16, 9, True, (BY_MACHINE, BY_MACHINE), (4, 1)),
        (16, 0, True, (BY_MACHINE, BY_MACHINE), (0, 2)),
        (16, 1000, False, (BY_MACHINE, BY_MACHINE), (0, 2)),
        (1, 1000, False, (BY_MACHINE, BY_MACHINE), (0, 1)),
        (16, 1000, True, (3, 5), (3, 5)),
        (16, 1000, True, (0, BY_MACHINE), (0, 2)),
        (16, 0, False, (0, 0), (0, 0)),
        (16, 4, True, (2, 1), "need 5 MiB in /dev/shm, but 4 MiB are free.*--shm-size.*runtime.num_workers"),
    ],
)
def test_choose_workers(monkeypatch, cores, room, accelerated, given, expected):
    monkeypatch.setattr(workers, "count_cores", lambda: cores)
    files, room = (-room, 1000) if room < 0 else (resource.RLIM_INFINITY, room)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (files, files))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, room * 2**20))
    monkeypatch.setattr("os.path.isdir", lambda path: True)
    if isinstance(expected, tuple):
        assert choose_workers(*given, batch_bytes=2**20, accelerated=accelerated) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            choose_workers(*given, batch_bytes=2**20, accelerated=accelerated)


READ = """
import multiprocessing, os, signal, sys, threading, time
from croc_jax.data.bad_records import ReadersLostError
from croc_jax.data.config import ViewsConfig
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import FolderSource

received, done = set(), threading.Event()

def send():
    while not done.wait(0.01):
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.killpg(0, number)

def main(mode):
    dataset = make_dataset(FolderSource(sys.argv[1]), views=ViewsConfig(crop_size=64), batch_size=4, seed=0)
    if mode == "preempted":  # while the workers start, and later
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, lambda number, frame: received.add(number))
        thread = threading.Thread(target=send)
        thread.start()
    with dataset.iterate(num_workers=1, num_threads=1) as batches:
        for _ in range(4):
            next(batches)
        print("reading", flush=True)
        if mode == "preempted":
            done.set()
            thread.join()
            for _ in range(6):
                next(batches)
            print(len(received))
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            try:
                while True:
                    next(batches)
            except ReadersLostError as error:
                print(error)
        elif mode == "main killed":
            time.sleep(60)

if __name__ == "__main__":
    main(sys.argv[2])
"""


def _start(folder, tmp_path, mode):
    script = tmp_path / "read.py"
    script.write_text(READ)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, script, folder, mode], start_new_session=True, **pipes)


def test_workers_outlive_signals_and_a_killed_one_is_an_error(folder, tmp_path):
    output, errors = _start(folder, tmp_path, "preempted").communicate(timeout=100)
    assert errors == "" and output == (
        "reading\n2\na process that reads images was killed, as the system does when memory runs out: lower runtime."
        "num_workers, or look for the cause (Worker process was terminated unexpectedly with exit code -9)\n"
    )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux to list processes")
def test_workers_of_a_killed_process_end(folder, tmp_path):
    with _start(folder, tmp_path, "main killed") as process:
        assert process.stdout is not None and process.stdout.readline() == "reading\n"
        lists = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [child for file in lists for child in file.read_text().split()]
        assert len(children) >= 2  # and multiprocessing's own
        process.kill()
        deadline = time.monotonic() + 20
        while any(map(_is_alive, children)):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def _is_alive(process):
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
