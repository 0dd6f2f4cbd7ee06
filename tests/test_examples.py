"""Notebooks run from the first cell to the last, on less data, and were committed with their pictures."""

import base64
import io
import json
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.ipynb"))
# By notebook: texts to replace so that less is computed, and no second is too short on a busy machine.
SHORTER = {
    "cluster_a_pair": {"start < 1": "start < 60"},
    "compare_checkpoints": {"num_train=32, num_val=16": "num_train=8, num_val=4", "epochs=20": "epochs=2"},
    "train_on_a_folder": {"num_train=48": "num_train=16", "epochs=12": "epochs=2", "num_images=12": "num_images=4"},
}


def code_cells(notebook):
    return [cell for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert {notebook.stem for notebook in NOTEBOOKS} > set(SHORTER)


SLOW = {"compare_checkpoints"}
TO_RUN = [pytest.param(n, id=n.stem, marks=[pytest.mark.slow] if n.stem in SLOW else []) for n in NOTEBOOKS]


@pytest.mark.parametrize("notebook", TO_RUN)
def test_it_runs(notebook, monkeypatch):
    matplotlib.use("agg")
    # As in Jupyter: they look for a run beside their folder.
    monkeypatch.chdir(notebook.parent)
    cells = ["".join(cell["source"]) for cell in code_cells(notebook)]
    for long, short in SHORTER.get(notebook.stem, {}).items():
        assert any(long in cell for cell in cells), f"{notebook.name} has no {long!r} any more: change SHORTER"
        cells = [cell.replace(long, short) for cell in cells]
    names = {}
    for number, cell in enumerate(cells):
        lines = [line for line in cell.splitlines() if not line.startswith("%")]
        exec(compile("\n".join(lines), f"{notebook.name}, cell {number}", "exec"), names)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_shows_what_it_does(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    widths = [Image.open(io.BytesIO(base64.b64decode(picture))).width for picture in pictures]
    assert pictures and min(widths) >= 400
    assert not any(output["output_type"] == "error" for output in outputs)
    assert notebook.stat().st_size < 600_000
