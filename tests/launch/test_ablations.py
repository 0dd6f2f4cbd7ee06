"""The paper's ablations: which runs they are, and their commands, which the programs understand."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from croc_jax.evaluation import reuse
from croc_jax.report.paper import TABLES
from croc_jax.training.config import recipe_from_dict
from tests.launch.program import on_command_line

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


@pytest.fixture
def program():
    """The program as a module."""
    with on_command_line("ablations"):
        yield importlib.import_module("ablations")
    del sys.modules["ablations"]


def test_a_score_is_kept_for_the_same_run_settings_and_images_alone(program, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.png").write_bytes(b"an image")
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    output, calls = tmp_path / "run" / "eval", []

    def run_program(arguments):
        output.mkdir(exist_ok=True)
        (output / "results.json").write_text("{}")
        calls.append(arguments)
        return 0 if arguments != ["fails"] else 1

    monkeypatch.setattr(program, "run_program", run_program)

    def run(*arguments):
        reuse._brief.cache_clear()
        before = len(calls)
        status = program.Command(list(arguments), output, tmp_path / "run", str(tmp_path / "data")).run()
        return status, len(calls) - before

    assert [run("evaluate") for _ in range(2)] == [(0, 1), (0, 0)]
    assert [run("evaluate", "--more") for _ in range(2)] == [(0, 1), (0, 0)]
    (tmp_path / "data" / "0.png").write_bytes(b"another image")
    assert [run("evaluate", "--more") for _ in range(2)] == [(0, 1), (0, 0)]
    (tmp_path / "run" / "checkpoints" / "6").mkdir()
    assert [run("evaluate", "--more") for _ in range(2)] == [(0, 1), (0, 0)]
    (tmp_path / "run" / "config.json").write_text("{}")
    assert [run("evaluate", "--more") for _ in range(2)] == [(0, 1), (0, 0)]
    assert [run("fails") for _ in range(2)] == [(1, 1), (1, 1)]


def test_sigterm_reaches_the_program_that_runs_and_its_status_is_returned(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\nsignal.pause()\n"
    )
    code = f"import ablations; raise SystemExit(ablations.run_program([{str(program)!r}]))"
    env = os.environ | {"PYTHONPATH": f"{ROOT / 'launch'}:{ROOT}"}
    assert subprocess.run([sys.executable, "-c", code], env=env, timeout=60).returncode == 75
