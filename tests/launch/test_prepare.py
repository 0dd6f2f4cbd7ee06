"""The program that writes shards: an interrupt and a second start, and mistakes."""

import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image

from croc_jax.data.sources.arrayrecord import ArrayRecordSource
from croc_jax.runtime.workdir import differing_fields, init_workdir
from tests.launch.program import on_command_line, run_program

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


def read_recipe(*arguments):
    """Returns the recipe that launch/pretrain.py reads from its flags."""
    with on_command_line("pretrain", *arguments):
        read = runpy.run_path("launch/pretrain.py", run_name="pretrain")["read_recipe"]
        flags.FLAGS(sys.argv)
        return read()


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


def test_statistics_reach_a_recipe_and_its_run_resumes_without_them(tmp_path, capsys):
    """As from the command line: measured, named by a run, moved away, and measured anew."""
    photos, file, workdir = tmp_path / "photos", tmp_path / "new" / "bands.json", tmp_path / "run"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        image = rng.integers(1000, 5000, (20, 30)).astype(np.uint16)
        Image.fromarray(image).save(photos / f"{index}.png")
    (photos / "letter.png").write_text("Dear reader")
    measure = [f"--source={photos}", f"--statistics={file}", "--channels=1", "--dtype=uint16", "--workers=1"]
    run_program("prepare", *measure)
    told = capsys.readouterr().out
    assert "3 of 4 images are measured after" in told
    assert f"1 images are left out, such as {photos / 'letter.png'} (" in told
    low, high = json.loads(file.read_text())["range"]

    arguments = ["--config=configs/gray16.py", f"--workdir={workdir}", f"--config.data.folders={photos}"]
    arguments.append(f"--config.data.statistics={file}")
    recipe = read_recipe(*arguments)
    assert recipe.data.range == (low, high) and 1000 <= low < 1100 and 4900 < high < 5000
    assert len(recipe.backbone.image_mean) == 1
    init_workdir(workdir, recipe)
    file.rename(tmp_path / "moved.json")
    assert read_recipe(*arguments) == recipe
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_recipe(*arguments[:1], f"--workdir={tmp_path / 'other'}", *arguments[2:])
    # Of other values, the run is another one.
    run_program("prepare", *measure, "--range=0,6000")
    assert differing_fields(recipe, read_recipe(*arguments)).keys() == {
        "data.range", "backbone.image_mean", "backbone.image_std",
    }  # fmt: skip
    (tmp_path / "config.py").write_text(
        "from croc_jax.training.config_dict import recipe_config\n"
        "def get_config():\n    config = recipe_config()\n"
        f"    config.data.statistics = {str(file)!r}\n    return config\n"
    )
    with on_command_line("evaluate"):
        find_recipe = runpy.run_path("launch/evaluate.py", run_name="evaluate")["find_recipe"]
    assert find_recipe(str(tmp_path / "config.py")).data.range == (0.0, 6000.0)
    assert find_recipe(str(workdir)) == recipe
