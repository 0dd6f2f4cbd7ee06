"""Notebooks run from the first cell to the last, and were committed with their pictures."""

import base64
import io
import json
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 5


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_runs(notebook, monkeypatch):
    matplotlib.use("agg")
    # As in Jupyter: they look for a run beside their folder.
    monkeypatch.chdir(notebook.parent)
    names = {}
    for number, cell in enumerate(code_cells(notebook)):
        lines = [line for line in "".join(cell["source"]).splitlines() if not line.startswith("%")]
        exec(compile("\n".join(lines), f"{notebook.name}, cell {number}", "exec"), names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_shows_what_it_does(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    widths = [Image.open(io.BytesIO(base64.b64decode(picture))).width for picture in pictures]
    assert pictures and min(widths) >= 400
    assert not any(output["output_type"] == "error" for output in outputs)
    assert notebook.stat().st_size < 600_000
