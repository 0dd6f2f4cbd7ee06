"""`make parity` cannot pass by skipping what it is for."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_library_that_must_be_there_and_is_not_ends_the_run():
    command = [sys.executable, "-m", "pytest", "-q", "--installed=jax,no_such_library", __file__]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 4
    assert "--installed=no_such_library: tests that need it would be skipped: No module named" in done.stderr
