"""Images named on the command line replace those of the config file, in whichever of its fields these are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("config", "argument", "message"),
    [
        ("croc_vits16_coco", "data.folders=nowhere", "the image folder nowhere does not exist"),
        ("camvid", "data.sources=tar:nowhere.tar", "called nowhere.tar"),
    ],
)
def test_images_on_the_command_line_are_all_there_is(tmp_path, config, argument, message):
    command = [sys.executable, ROOT / "launch" / "pretrain.py", f"--config={ROOT}/configs/{config}.py"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}/run", f"--config.{argument}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.startswith("error: ") and message in done.stderr
    assert not (tmp_path / "run").exists()
