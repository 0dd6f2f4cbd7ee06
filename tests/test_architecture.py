"""Rooms import in one direction, as setup.cfg says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def lint(folder: Path) -> subprocess.CompletedProcess:
    """Checks the package and the contracts in a folder."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_package_keeps_its_contracts():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("clustering/positions.py", "import croc_jax.models", "Rooms import in one direction"),
        ("data/sources.py", "import croc_jax.training.config", "Rooms import in one direction"),
        ("checkpoints/contents.py", "import croc_jax.evaluation", "Rooms import in one direction"),
        ("models/vit.py", "import PIL", "The method knows neither configuration files nor input and output"),
        ("attic/__init__.py", '"""A room without a place."""', "Rooms import in one direction"),
    ],
)
def test_a_breach_is_found(tmp_path, module, line, contract):
    shutil.copytree(ROOT / "croc_jax", tmp_path / "croc_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    file = tmp_path / "croc_jax" / module
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as source:
        source.write(f"\n{line}\n")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stderr
    assert f"{contract} BROKEN" in result.stdout
