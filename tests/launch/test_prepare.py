"""The program that writes shards: an interrupt and a second start, and mistakes."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from croc_jax.data.sources.arrayrecord import ArrayRecordSource

ROOT = Path(__file__).resolve().parents[2]


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "launch/prepare.py", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **pipes)


def finish(process):
    """Returns status, standard output and standard error."""
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def test_an_interrupted_run_is_resumed(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG", compress_level=1)
    (tmp_path / "noise.png").write_bytes(stream.getvalue())
    for index in range(100):
        (photos / f"{index:02d}.png").symlink_to(tmp_path / "noise.png")
    (photos / "letter.jpg").write_text("Dear reader")
    arguments = [f"--source={photos}", f"--output={out}", "--short_side=200", "--shard_size=2"]

    process = start(*arguments, "--workers=2")
    while not list(out.glob("*.array_record")) and process.poll() is None:
        time.sleep(0.01)
    # As a terminal does, to the worker processes too.
    os.killpg(process.pid, signal.SIGINT)
    status, _, errors = finish(process)
    assert (status, errors) == (1, "stopped; finished shards are kept: run the same command to resume\n")
    assert 0 < len(list(out.glob("*.array_record"))) < 51 and not list(out.glob("*.tmp"))

    status, output, errors = finish(start(*arguments, "--workers=1"))
    assert status == 0, errors
    assert "the shards are complete after" in output and "1 images are left out" in output
    assert "cannot identify" in (out / "skipped.txt").read_text()
    source = ArrayRecordSource(out)
    assert len(source) == 100 and Image.open(io.BytesIO(source[7])).size == (233, 200)
