"""launch/report.py from the command line."""

import os
import subprocess
import sys
from pathlib import Path

from tests.report.tiny_results import write_linear

ROOT = Path(__file__).resolve().parents[2]


def report(*flags):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "launch/report.py", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_a_page_of_two_folders(tmp_path):
    for name, miou in (("random", 10.0), ("mine", 20.0)):
        write_linear(tmp_path / name / "linear", miou=miou, checkpoint=name, sky=miou)
    page = tmp_path / "pages" / "page.html"
    done = report(f"--folder={tmp_path / 'mine'}", f"--folder={tmp_path / 'random'}", f"--output={page}")
    assert done.returncode == 0, done.stderr
    assert str(page) in done.stdout and "10.0 → 20.0" in page.read_text(encoding="utf-8")
