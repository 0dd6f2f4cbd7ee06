"""The program that prepares shards, as one runs it: its words, a kill and a second start, and mistakes."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.prepare import PrepareConfig, prepare, verify
from croc_jax.data.sources import ArrayRecordSource
from tests.data.tiny_images import encode

ROOT = Path(__file__).resolve().parents[2]
NUM_IMAGES = 24


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "launch/prepare.py", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **pipes)


def finish(process):
    """Returns status, standard output and standard error."""
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images that take a moment each, and a letter."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1400, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG", compress_level=1)
    for index in range(NUM_IMAGES):
        (folder / f"{index:02d}.png").write_bytes(stream.getvalue())
    (folder / "letter.jpg").write_text("Dear reader")
    return folder


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def is_running(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_until(condition, what):
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"never happened: {what}")
        time.sleep(0.01)


def test_a_killed_run_leaves_no_process_and_is_resumed(photos, tmp_path):
    out = tmp_path / "out"
    arguments = [f"--source={photos}", f"--output={out}", "--short_side=200", "--shard_size=2", "--workers=2"]
    journal = out / "manifest.jsonl"
    first = start(*arguments)
    wait_until(lambda: journal.exists() and journal.read_text().count("\n") > 2, "two shards")
    workers = children(first.pid)
    first.kill()
    assert finish(first)[0] == -signal.SIGKILL
    wait_until(lambda: not any(map(is_running, workers)), "the end of the workers")
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    assert 0 < len(finished) < 13 and not (out / "manifest.json").exists()
    listed = journal.read_text().count("\n") - 1

    status, output, errors = finish(start(*arguments))
    assert status == 0, errors
    assert "24 images in 13 shards, " in output and f"{listed} shards were there already" in output
    assert "images/s" in output and "1 images are left out" in output and f"  {photos}/letter.jpg: " in output
    kept = [path for path, written in finished.items() if path.stat().st_mtime_ns == written]
    assert len(kept) == listed and not list(out.glob("*.tmp")) and not journal.exists()
    assert "cannot identify" in (out / "skipped.txt").read_text()
    verify(out)
    source = ArrayRecordSource(out)
    assert len(source) == NUM_IMAGES and Image.open(io.BytesIO(source[7])).size == (233, 200)


@pytest.mark.parametrize(("workers", "lines"), [(1, 2), (2, 1)])
def test_an_interrupt_stops_with_one_line_and_keeps_what_is_finished(photos, tmp_path, workers, lines):
    out = tmp_path / "out"
    arguments = f"--source={photos}", f"--output={out}", "--short_side=200", "--shard_size=2", f"--workers={workers}"
    process = start(*arguments)
    journal = out / "manifest.jsonl"
    # After the first shard; or soon after there are worker processes (and multiprocessing's own), which get it too.
    wait_until(lambda: journal.exists() and journal.read_text().count("\n") >= lines, "a shard")
    wait_until(lambda: workers == 1 or len(children(process.pid)) > workers, "the start of the workers")
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    status, _, errors = finish(process)
    assert status == 1 and errors.startswith("stopped; finished shards are kept") and errors.count("\n") == 1
    assert journal.exists() and not list(out.glob("*.tmp"))


def test_verify_compares_checksums(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(encode(1))
    out = tmp_path / "out"
    prepare(PrepareConfig(sources=(f"{tmp_path}/photos",)), out, num_workers=1)
    status, output, errors = finish(start(f"--output={out}", "--verify"))
    assert status == 0 and "1 images in 1 shards: all checksums are right" in output, errors
    (shard,) = out.glob("*.array_record")
    shard.write_bytes(shard.read_bytes() + b"?")
    assert_refused(start(f"--output={out}", "--verify"), f"1 of 1 shards in {out} are missing or damaged")


def assert_refused(process, message):
    status, output, errors = finish(process)
    assert status == 1 and "Traceback" not in output + errors
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors


def test_mistakes_are_explained_in_one_line(tmp_path):
    mistakes = [
        start(f"--output={tmp_path}/a"),
        start("--source=photos"),
        start(f"--output={tmp_path}/a", "--source=zip:photos"),
        start(f"--output={tmp_path}/a", f"--source=coco+:{tmp_path}"),
    ]
    messages = ["add --source=KIND:VALUE", "--output", "unknown kind of source 'zip'", "unlabeled2017.zip"]
    for process, message in zip(mistakes, messages, strict=True):
        assert_refused(process, message)
    assert not (tmp_path / "a").exists()
