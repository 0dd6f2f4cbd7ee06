"""launch/sweep.py: what it expands to, what it refuses, and how it goes on."""

import json
import math
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from croc_jax.report.paper import TABLES
from croc_jax.training.stopping import StopRequest
from croc_jax.training.sweep import format_value
from croc_jax.training.workdir import claim_workdir
from tests.launch.sweeping import FakeRunner, sweep_config
from tests.launch.test_pretrain import OVERRIDES

ROOT = Path(__file__).resolve().parents[2]
ABLATIONS = ROOT / "configs" / "sweeps" / "ablations.py"
SMALL = """
from ml_collections import ConfigDict


def get_config():
    grids = ({"seed": (7, 8)},)
    common = {"seed": 8, "objective": {"alpha": 0.0}}
    return ConfigDict({"base": "configs/demo.py", "common": common, "grids": grids, "evaluations": {}})
"""


def read(sweeps, config, workdir, *overrides, base=""):
    return sweeps.read_sweep(config, workdir, base=base, overrides=overrides)


@pytest.mark.parametrize(("variant", "number"), [("lambda_pos", 4), ("k_start", 5), ("tokens", 6)])
def test_the_ablations_are_those_of_the_paper(sweeps, variant, number):
    (table,) = [table for table in TABLES if table.number == number]
    settings = runpy.run_path(str(ABLATIONS))["get_config"](variant)
    sweep = sweeps.read_sweep(settings, Path("runs"), base="", overrides=(), has_data=False)
    (axis,) = sweep.axes
    assert table.setting in axis.fields
    assert [format_value(value) for value in axis.values] == [row.label for row in table.rows]
    center = {"clustering.lambda_pos": 3.0, "clustering.k_start": 12, "objective.tokens": "keys"}
    for job, value in zip(sweep.jobs, axis.values, strict=True):
        expected = center | {table.setting: value}
        ours, method = job.recipe.clustering, job.recipe.objective.tokens
        assert (ours.lambda_pos, ours.k_start, method) == tuple(expected.values()) and ours.k_max == ours.k_start
        assert (job.recipe.schedule.epochs, job.recipe.data.sources) == (300, ("coco:data/coco",))
    protocols = {
        (*one.flags[0].rpartition("/")[2].partition(".py")[:1], one.name.rpartition("_")[2])
        for one in sweep.evaluations
    }
    assert protocols == {
        (protocol, name) for protocol in ("linear", "unsupervised") for name in ("voc", "things", "stuff")
    }


def test_all_ablations_share_the_run_at_their_center(sweeps):
    settings = runpy.run_path(str(ABLATIONS))["get_config"]()
    sweep = sweeps.read_sweep(settings, Path("runs"), base="", overrides=(), has_data=False)
    assert [job.run.name for job in sweep.jobs] == [
        *("lambda_pos-0", "lambda_pos-1", "lambda_pos-2", "base", "lambda_pos-4", "lambda_pos-inf"),
        *("k_start-4", "k_start-8", "k_start-16", "tokens-last", "tokens-queries", "tokens-values"),
    ]
    infinite = next(job for job in sweep.jobs if job.run.name == "lambda_pos-inf")
    assert infinite.recipe.clustering.lambda_pos == math.inf and infinite.workdir == Path("runs/lambda_pos-inf")
    with pytest.raises(ValueError, match="variant='token': choose 'all', 'lambda_pos'"):
        runpy.run_path(str(ABLATIONS))["get_config"]("token")


def test_overrides_hold_for_all_runs_and_above_what_they_have_in_common(sweeps, data, tmp_path):
    grids = ({"schedule.epochs": (1, 2)},)
    sweep = read(
        sweeps, sweep_config(data, grids=grids), tmp_path, "--config.clustering.lambda_pos=1", "--config.seed=7"
    )
    for job, epochs in zip(sweep.jobs, (1, 2), strict=True):
        assert (job.recipe.clustering.lambda_pos, job.recipe.seed, job.recipe.schedule.epochs) == (1.0, 7, epochs)
    other = read(sweeps, sweep_config(data, grids=grids), tmp_path, base="configs/camvid.py")
    assert other.jobs[0].recipe.optimizer.warmup_epochs == 5 and other.jobs[0].flags[0] == "--config=configs/camvid.py"


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"grids": ({"clustering.lambda_po": (1.0,)},)}, (), "unknown field lambda_po .*did you mean lambda_pos"),
        ({"grids": ({"clustering.k_max": (99,)},)}, (), "k_max=99: must lie between 2 and k_start=12"),
        ({"grids": ({"clustering.k_start": ("many",)},)}, (), "k_start"),
        (
            {"common": {"clustering": {"lambda_p": 3.0}}},
            (),
            "unknown field lambda_p in --config.clustering.lambda_p=3.0",
        ),
        ({}, ("--config.schedule.epoch=3",), "unknown field epoch .*did you mean epochs"),
        ({}, ("--config.clustering.lambda_pos=3",), "the sweep varies clustering.lambda_pos; change its grid"),
        ({"grid": ()}, (), "a sweep has the fields base, common, evaluations, grids; this one has .* grid,"),
        ({"evaluations": {"voc": {"config": "configs/eval/nothing.py"}}}, (), "voc.config='configs/eval/nothing.py'"),
        ({"evaluations": {"voc": {}}}, (), "voc.config='': there is no such file"),
        (
            {"evaluations": {"voc": {"config": "configs/eval/knn.py", "dataset": {"rot": "x"}}}},
            (),
            "unknown field rot .*did you mean root",
        ),
        (
            {"evaluations": {"voc": {"config": "configs/eval/linear.py", "dataset": {"root": "nowhere"}}}},
            (),
            "sweep.evaluations.voc: no folder nowhere/images/train",
        ),
    ],
)
def test_mistakes_are_found_before_anything_starts(sweeps, data, tmp_path, changes, overrides, message):
    with pytest.raises(ValueError, match=message):
        read(sweeps, sweep_config(data, **changes), tmp_path / "runs", *overrides)
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_another_sweep_is_refused(sweeps, data, tmp_path):
    (job, _) = read(sweeps, sweep_config(data), tmp_path).jobs
    claim_workdir(job.workdir, job.recipe)
    read(sweeps, sweep_config(data), tmp_path, "--config.data.folders=elsewhere", "--config.runtime.num_workers=0")
    with pytest.raises(ValueError, match=r"lambda_pos-0 holds a run of another sweep \(seed: 0 there, 3 now\)"):
        read(sweeps, sweep_config(data), tmp_path, "--config.seed=3")


def go(sweeps, sweep, **behavior):
    runner = FakeRunner(sweep, **behavior)
    console = Console(file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    return runner, *sweeps.run_here(sweep, console, runner), console.export_text()


def test_runs_are_trained_and_scored_once_and_failures_named(sweeps, data, tmp_path):
    sweep = read(sweeps, sweep_config(data), tmp_path)
    runner, failures, stopped, text = go(sweeps, sweep, fails=("pretrain.py lambda_pos-0",))
    assert runner.seen == ["pretrain.py lambda_pos-0", "pretrain.py base", "evaluate.py base"] and stopped is None
    assert failures == [("lambda_pos-0", 1, tmp_path / "lambda_pos-0" / "sweep.log")]
    assert "lambda_pos-0: failed" in text and "base, dense: done" in text
    runner, failures, _, _ = go(sweeps, sweep, fails=("evaluate.py lambda_pos-0",))
    assert runner.seen == ["pretrain.py lambda_pos-0", "evaluate.py lambda_pos-0"]
    assert failures == [("lambda_pos-0, dense", 1, tmp_path / "lambda_pos-0" / "eval" / "dense" / "sweep.log")]
    assert go(sweeps, sweep)[0].seen == ["evaluate.py lambda_pos-0"]
    runner, failures, _, _ = go(sweeps, sweep)
    assert (runner.seen, failures) == ([], [])
    page = sweeps.write_report(sweep, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What clustering.lambda_pos does" in page


def test_a_signal_ends_the_sweep_and_the_next_call_goes_on(sweeps, data, tmp_path):
    sweep = read(sweeps, sweep_config(data), tmp_path)
    runner, failures, stopped, _ = go(sweeps, sweep, stop_at="pretrain.py base")
    assert (failures, stopped) == ([], "SIGTERM")
    assert runner.seen == ["pretrain.py lambda_pos-0", "evaluate.py lambda_pos-0", "pretrain.py base"]
    assert go(sweeps, sweep)[0].seen == ["pretrain.py base", "evaluate.py base"]
    assert sweeps.write_report(read(sweeps, sweep_config(data), tmp_path / "other"), tmp_path / "none.html") is None


def test_a_training_that_ends_early_without_an_error_counts_as_failed(sweeps, data, tmp_path):
    sweep = read(sweeps, sweep_config(data), tmp_path)
    failures = sweeps.run_here(sweep, Console(quiet=True), lambda *_: 0)[0]
    assert [(failure.what, failure.status) for failure in failures] == [("lambda_pos-0", 0), ("base", 0)]


def test_all_runs_are_on_the_page_whatever_has_become_of_them(sweeps, data, tmp_path):
    sweep = read(sweeps, sweep_config(data, points=(0.0, 1.0, 2.0, 4.0)), tmp_path)
    assert sweeps.write_report(sweep, tmp_path / "report.html") is None
    runner = FakeRunner(sweep)
    first, second, *_ = sweep.jobs
    runner.train(first)
    claim_workdir(second.workdir, second.recipe)
    row = {"step": 3, "epoch": 0.5, "loss": None, "loss_dense": 1.0, "loss_global": 1.0}
    (second.workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    failures = [sweeps.Failure("lambda_pos-1", 9, second.workdir / "sweep.log")]
    page = sweeps.write_report(sweep, tmp_path / "report.html", failures).read_text(encoding="utf-8")
    text = " ".join(re.sub("<[^>]+>", " ", page).split())
    assert "All runs 1 of 4 are finished." in text and "No run has been scored yet." in text
    epochs = first.recipe.schedule.epochs
    assert f"lambda_pos-0 finished (no score yet: dense) {epochs:.1f} 1.000" in text
    assert "lambda_pos-1 unfinished (failed: lambda_pos-1, with status 9) 0.5 lambda_pos-2 not started (no" in text
    # The page about scores keeps the table.
    go(sweeps, sweep, fails=("pretrain.py lambda_pos-1", "pretrain.py lambda_pos-2"))
    page = sweeps.write_report(sweep, tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("2 of 4 are finished") < page.index("What clustering.lambda_pos does")


def test_a_damaged_end_is_named_and_not_scored_again_and_again(sweeps, data, tmp_path):
    sweep = read(sweeps, sweep_config(data, points=(0.0,)), tmp_path)
    (job,) = sweep.jobs
    FakeRunner(sweep).train(job)
    results = job.workdir / "eval" / "dense" / "results.json"
    results.parent.mkdir(parents=True)
    results.write_text('{"step": 3}')
    # Scored on the way, before the last checkpoint was there.
    os.utime(results, (1, 1))
    assert [task.program for task in sweeps.due_tasks(job, sweep.evaluations)] == ["evaluate.py"]
    assert list(sweeps.name_damaged(sweep)) == []
    # Scored after that, by the one before it.
    os.utime(results, (2**33, 2**33))
    assert list(sweeps.due_tasks(job, sweep.evaluations)) == []
    (line,) = sweeps.name_damaged(sweep)
    last = job.workdir / "checkpoints" / "6"
    assert line.startswith(f"lambda_pos-0, dense: scored at step 3, as {last} seems damaged; remove that folder")
    last.rmdir()
    assert [task.program for task in sweeps.due_tasks(job, sweep.evaluations)] == ["pretrain.py"]
    results.write_text('{"st')
    assert sweeps.scored_step(results.parent) is None


def test_programs_end_with_the_sweep_that_started_them(sweeps, tmp_path):
    log = tmp_path / "one" / "sweep.log"
    child = (
        "import signal, sys, time, command_line; command_line.end_with_parent();"
        "signal.signal(15, lambda *_: (print('saved', flush=True), sys.exit(75)));"
        "print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import sys, pathlib, sweeps; from croc_jax.training.stopping import StopRequest;"
        f"command, log = [sys.executable, '-c', {child!r}], pathlib.Path({str(log)!r});"
        "sweeps.run_program(command, log, lambda: None, StopRequest())"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'launch'}"}
    process = subprocess.Popen([sys.executable, "-c", parent], env=environment)
    wait_for(lambda: log.exists() and "up" in log.read_text())
    process.kill()
    process.wait()
    if sys.platform == "linux":
        wait_for(lambda: log.read_text() == "up\nsaved\n")


def test_ctrl_c_ends_a_sweep_as_it_ends_a_run():
    code = (
        "import rich.console, sweep; sweep.run_here = lambda *_: ([], 'SIGINT');"
        "sweep.run_all(None, None, rich.console.Console(quiet=True))"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'launch'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_program_gets_one_sigterm_and_its_output_is_kept(sweeps, tmp_path):
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: (print('saved'), sys.exit(75)));"
        "print('up', flush=True); time.sleep(60)"
    )
    log = tmp_path / "one" / "sweep.log"

    def interrupt():
        wait_for(lambda: log.exists() and "up" in log.read_text())
        os.kill(os.getpid(), signal.SIGINT)

    with StopRequest() as stop:
        timer = threading.Thread(target=interrupt)
        timer.start()
        status = sweeps.run_program([sys.executable, "-c", code], log, lambda: None, stop)
        timer.join()
    assert status == 75 and log.read_text() == "up\nsaved\n"


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def call(*flags, home):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "launch/sweep.py", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_real_sweep_of_two_runs(data, tmp_path):
    file = tmp_path / "small.py"
    file.write_text(SMALL)
    changes = OVERRIDES | {"schedule.epochs": 2, "data.folders": data / "images", "runtime.checkpoint_every_minutes": 9}
    overrides = [f"--config.{name}={value}" for name, value in changes.items()]
    done = call(f"--sweep={file}", f"--workdir={tmp_path}/runs", *overrides, home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed-7: done" in done.stdout and "base: done" in done.stdout
    for name, seed in (("seed-7", 7), ("base", 8)):
        workdir = tmp_path / "runs" / name
        settings = json.loads((workdir / "config.json").read_text())
        assert (settings["seed"], settings["objective"]["alpha"]) == (seed, 0.0)
        assert "finished at step 2" in (workdir / "sweep.log").read_text()
