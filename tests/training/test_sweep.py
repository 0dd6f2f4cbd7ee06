"""Grids of settings, and how far their runs are."""

import dataclasses
import json
import math

import pytest

from croc_jax.training.config import Recipe, ScheduleConfig
from croc_jax.training.sweep import Axis, Progress, Run, SweepError, expand, parse_grid, read_progress

CENTER = {"clustering.lambda_pos": 3.0, "clustering.k_start": 12, "clustering.k_max": 12, "objective.tokens": "keys"}
LAMBDA = {"clustering.lambda_pos": (0.0, 3.0, math.inf)}
K_START = {"clustering.k_start, clustering.k_max": (8, 12)}


def test_grids_share_their_center():
    runs = expand([parse_grid(LAMBDA), parse_grid(K_START)], CENTER)
    swept = {name: CENTER[name] for name in ("clustering.lambda_pos", "clustering.k_start", "clustering.k_max")}
    assert runs == [
        Run("lambda_pos-0", swept | {"clustering.lambda_pos": 0.0}),
        Run("base", swept),
        Run("lambda_pos-inf", swept | {"clustering.lambda_pos": math.inf}),
        Run("k_start-8", swept | {"clustering.k_start": 8, "clustering.k_max": 8}),
    ]


def test_one_grid_of_two_axes_has_every_combination():
    runs = expand([parse_grid(LAMBDA | K_START)], CENTER)
    assert [run.name for run in runs] == [
        "lambda_pos-0_k_start-8",
        "lambda_pos-0",
        "k_start-8",
        "base",
        "lambda_pos-inf_k_start-8",
        "lambda_pos-inf",
    ]


def test_names_are_fit_for_folders_and_told_apart():
    grid = parse_grid({"a.rate": (1e-3, 0.5), "b.rate": (1, 2), "c.source": ("x/y z",)})
    names = [run.name for run in expand([grid], {"a.rate": 0.5, "b.rate": 1, "c.source": ""})]
    tail = "c.source-x-y-z".removeprefix("c.")
    assert names == [f"a.rate-0.001_{tail}", f"a.rate-0.001_b.rate-2_{tail}", tail, f"b.rate-2_{tail}"]
    with pytest.raises(SweepError, match="two runs would both be called source-x-y"):
        expand([parse_grid({"c.source": ("x y", "x/y")})], {"c.source": ""})


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"objective.tokens": "keys"}, "objective.tokens='keys': expected a tuple"),
        ({"objective.tokens": 3}, "objective.tokens=3: expected a tuple"),
        ({"objective.tokens": ()}, r"objective.tokens=\(\): an axis takes one or more values"),
        ({"objective.tokens": ("keys", "keys")}, "one or more values, each once"),
        ({"a,b": (1,), "b": (2,)}, "b: comes twice"),
    ],
)
def test_bad_grids_are_named(grid, message):
    with pytest.raises(SweepError, match=message):
        parse_grid(grid)


def test_an_unknown_field_is_named():
    with pytest.raises(SweepError, match="unknown field objective.token"):
        expand([(Axis(("objective.token",), ("keys",)),)], CENTER)


def test_progress_is_read_from_the_files_of_a_run(tmp_path):
    recipe = dataclasses.replace(Recipe(), schedule=ScheduleConfig(epochs=2))
    assert read_progress(tmp_path / "nowhere", recipe) == Progress("new")
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    assert read_progress(tmp_path, recipe) == Progress("started")
    log = tmp_path / "metrics.jsonl"
    rows = [{"step": 4, "epoch": 1.0}, {"step": 8, "epoch": 2.0}]
    # The second line is still being written.
    log.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[1])[:7])
    assert read_progress(tmp_path, recipe) == Progress("started", 4, 1.0)
    # A crash of the host leaves such ends.
    for spoiled in (b'{"st\n', b"\x00" * 9, b"\xff\n"):
        log.write_bytes(json.dumps(rows[0]).encode() + b"\n" + spoiled)
        assert read_progress(tmp_path, recipe) == Progress("started", 4, 1.0)
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_progress(tmp_path, recipe) == Progress("started", 8, 2.0)
    (tmp_path / "checkpoints" / "8").mkdir()
    assert read_progress(tmp_path, recipe) == Progress("finished", 8, 2.0)
