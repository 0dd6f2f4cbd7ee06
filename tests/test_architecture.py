"""Packages import in one direction, as setup.cfg says, and nothing imports what is private to JAX."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def test_the_package_keeps_its_contracts():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", LINT], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_nothing_uses_the_private_modules_of_jax():
    files = [file for folder in ("croc_jax", "launch") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert [file for file in files if "jax._src" in file.read_text()] == []
