"""The paper's ablations: which runs they are, and their commands, which the programs understand."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from croc_jax.report.paper import TABLES
from croc_jax.training.config import recipe_from_dict

ROOT = Path(__file__).resolve().parents[2]


def ablations(*flags):
    command = [sys.executable, "launch/ablations.py", "--workdir=runs/ab", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def commands():
    done = ablations("--config.data.sources=coco:images")
    assert done.returncode == 0, done.stderr
    return [shlex.split(line)[1:] for line in done.stdout.splitlines()]


def test_each_run_is_pretrained_scored_on_six_columns_and_compared(commands, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    from cli import parse_config

    assert [command[0] for command in commands] == [
        *["launch/pretrain.py", *["launch/evaluate.py"] * 6] * 12,
        "launch/report.py",
    ]
    found = set()
    for _, config, *fields, workdir in commands[:-1:7]:
        recipe = recipe_from_dict(parse_config(config.removeprefix("--config="), fields).to_dict())
        assert recipe.data.sources == ("coco:images",) and recipe.clustering.k_start == recipe.clustering.k_max
        found.add((recipe.clustering.lambda_pos, recipe.clustering.k_start, recipe.objective.tokens))
        assert f"--folder={workdir.removeprefix('--workdir=')}" in commands[-1]
    for table in TABLES[-3:]:
        index = ("clustering.lambda_pos", "clustering.k_start", "objective.tokens").index(table.setting)
        values = {str(point[index]).removesuffix(".0") for point in found}
        assert {row.label for row in table.rows} <= values
    assert len(found) == 12
    for _, config, *fields, checkpoint, output in commands[1:7]:
        protocol = parse_config(config.removeprefix("--config="), fields)
        assert output.removeprefix("--output=").startswith(f"{checkpoint.removeprefix('--checkpoint=')}/eval/")
        assert protocol.protocol in ("linear", "unsupervised") and protocol.dataset.root
