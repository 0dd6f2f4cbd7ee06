"""launch/sweep.py: what it expands to, what it refuses, and how it goes on."""

import json
import math
import os
import runpy
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from rich.console import Console

from croc_jax.report.paper import TABLES
from croc_jax.training.sweep import format_value
from tests.launch.test_pretrain import OVERRIDES
from tests.launch.test_templates import FAKE
from tests.report.tiny_results import write_linear

ROOT = Path(__file__).resolve().parents[2]
ABLATIONS = ROOT / "configs" / "sweeps" / "ablations.py"
SMALL = """
from ml_collections import ConfigDict

def get_config():
    grids = ({"seed": (7, 8)},)
    common = {"seed": 8, "objective": {"alpha": 0.0}}
    return ConfigDict({"base": "configs/demo.py", "common": common, "grids": grids, "evaluations": {}})
"""
GRID = '{"clustering.lambda_pos": (0.0, 4.0)}'


@pytest.fixture
def launch(monkeypatch):
    """The modules behind the program, which define no flags."""
    monkeypatch.syspath_prepend(str(ROOT / "launch"))
    monkeypatch.chdir(ROOT)
    import clusters
    import sweeps

    return sweeps, clusters


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve images, some of them labeled."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / split / f"{index}.png")
            Image.fromarray((pixels[..., 0] > 127).astype(np.uint8)).save(folder / "labels" / split / f"{index}.png")
    return folder


def config(data, points=GRID, **changes):
    fields = {
        "base": "configs/demo.py",
        "common": {"clustering": {"lambda_pos": 4.0}},
        "grids": (eval(points),),
        "evaluations": {"dense": {"config": "configs/eval/unsupervised.py", "dataset": {"root": str(data)}}},
    }
    return ConfigDict(fields | changes)


def read(launch, config, workdir, *overrides, base=""):
    return launch[0].read_sweep(config, workdir, base=base, overrides=overrides)


@pytest.mark.parametrize(("variant", "number"), [("lambda_pos", 4), ("k_start", 5), ("tokens", 6)])
def test_the_ablations_are_those_of_the_paper(launch, variant, number):
    (table,) = [table for table in TABLES if table.number == number]
    settings = runpy.run_path(str(ABLATIONS))["get_config"](variant)
    sweep = launch[0].read_sweep(settings, Path("runs"), base="", overrides=(), has_data=False)
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


def test_all_ablations_share_the_run_at_their_center(launch):
    settings = runpy.run_path(str(ABLATIONS))["get_config"]()
    sweep = launch[0].read_sweep(settings, Path("runs"), base="", overrides=(), has_data=False)
    assert [job.run.name for job in sweep.jobs] == [
        *("lambda_pos-0", "lambda_pos-1", "lambda_pos-2", "base", "lambda_pos-4", "lambda_pos-inf"),
        *("k_start-4", "k_start-8", "k_start-16", "tokens-last", "tokens-queries", "tokens-values"),
    ]
    infinite = next(job for job in sweep.jobs if job.run.name == "lambda_pos-inf")
    assert infinite.recipe.clustering.lambda_pos == math.inf and infinite.workdir == Path("runs/lambda_pos-inf")
    with pytest.raises(ValueError, match="variant='token': choose 'all', 'lambda_pos'"):
        runpy.run_path(str(ABLATIONS))["get_config"]("token")


def test_overrides_hold_for_all_runs_and_above_what_they_have_in_common(launch, data, tmp_path):
    grid = '{"schedule.epochs": (1, 2)}'
    sweep = read(launch, config(data, grid), tmp_path, "--config.clustering.lambda_pos=1", "--config.seed=7")
    for job, epochs in zip(sweep.jobs, (1, 2), strict=True):
        assert (job.recipe.clustering.lambda_pos, job.recipe.seed, job.recipe.schedule.epochs) == (1.0, 7, epochs)
    other = read(launch, config(data, grid), tmp_path, base="configs/camvid.py")
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
def test_mistakes_are_found_before_anything_starts(launch, data, tmp_path, changes, overrides, message):
    with pytest.raises(ValueError, match=message):
        read(launch, config(data, **changes), tmp_path / "runs", *overrides)
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_another_sweep_is_refused(launch, data, tmp_path):
    (job, _) = read(launch, config(data), tmp_path).jobs
    write_config(job)
    read(launch, config(data), tmp_path, "--config.data.folders=elsewhere", "--config.runtime.num_workers=0")
    with pytest.raises(ValueError, match=r"lambda_pos-0 holds a run of another sweep \(seed: 0 there, 3 now\)"):
        read(launch, config(data), tmp_path, "--config.seed=3")


def write_config(job):
    from croc_jax.training.workdir import claim_workdir

    claim_workdir(job.workdir, job.recipe)


class FakeRunner:
    """Does in no time what the programs do; `fails` says which do not."""

    def __init__(self, sweep, fails=(), stop_at=None):
        self.jobs, self.fails, self.stop_at = {str(job.workdir): job for job in sweep.jobs}, fails, stop_at
        self.seen = []

    def __call__(self, command, log, watch, stop):
        program, flags = Path(command[1]).name, dict(flag.lstrip("-").split("=", 1) for flag in command[2:])
        workdir = flags.get("workdir") or flags["checkpoint"]
        name = f"{program} {Path(workdir).name}"
        self.seen.append(name)
        watch()
        if name == self.stop_at:
            stop.received = "SIGTERM"
            return 75
        if name in self.fails:
            return 1
        if program == "pretrain.py":
            self.train(self.jobs[workdir])
        else:
            assert Path(flags["output"]) == Path(workdir) / "eval" / "dense"
            write_linear(Path(flags["output"]), miou=50.0, checkpoint=workdir, step=6, sky=50.0)
        return 0

    def train(self, job):
        write_config(job)
        (job.workdir / "checkpoints" / "6").mkdir(parents=True)
        row = {"step": 6, "epoch": job.recipe.schedule.epochs, "loss": 1.0, "loss_dense": 1.0, "loss_global": 1.0}
        (job.workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")


def go(launch, sweep, **behavior):
    runner = FakeRunner(sweep, **behavior)
    console = Console(file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    return runner, *launch[0].run_here(sweep, console, runner), console.export_text()


def test_runs_are_trained_and_scored_once_and_failures_named(launch, data, tmp_path):
    sweep = read(launch, config(data), tmp_path)
    runner, failures, stopped, text = go(launch, sweep, fails=("pretrain.py lambda_pos-0",))
    assert runner.seen == ["pretrain.py lambda_pos-0", "pretrain.py base", "evaluate.py base"] and stopped is None
    assert failures == [("lambda_pos-0", 1, tmp_path / "lambda_pos-0" / "sweep.log")]
    assert "lambda_pos-0: failed" in text and "base, dense: done" in text
    runner, failures, _, _ = go(launch, sweep, fails=("evaluate.py lambda_pos-0",))
    assert runner.seen == ["pretrain.py lambda_pos-0", "evaluate.py lambda_pos-0"]
    assert failures == [("lambda_pos-0, dense", 1, tmp_path / "lambda_pos-0" / "eval" / "dense" / "sweep.log")]
    assert go(launch, sweep)[0].seen == ["evaluate.py lambda_pos-0"]
    runner, failures, _, _ = go(launch, sweep)
    assert (runner.seen, failures) == ([], [])
    page = launch[0].write_report(sweep, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What clustering.lambda_pos does" in page


def test_a_signal_ends_the_sweep_and_the_next_call_goes_on(launch, data, tmp_path):
    sweep = read(launch, config(data), tmp_path)
    runner, failures, stopped, _ = go(launch, sweep, stop_at="pretrain.py base")
    assert (failures, stopped) == ([], "SIGTERM")
    assert runner.seen == ["pretrain.py lambda_pos-0", "evaluate.py lambda_pos-0", "pretrain.py base"]
    assert go(launch, sweep)[0].seen == ["pretrain.py base", "evaluate.py base"]
    assert launch[0].write_report(read(launch, config(data), tmp_path / "other"), tmp_path / "none.html") is None


def test_a_training_that_ends_early_without_an_error_counts_as_failed(launch, data, tmp_path):
    sweep = read(launch, config(data), tmp_path)
    failures = launch[0].run_here(sweep, Console(quiet=True), lambda *_: 0)[0]
    assert [(failure.what, failure.status) for failure in failures] == [("lambda_pos-0", 0), ("base", 0)]


def test_a_program_gets_one_sigterm_and_its_output_is_kept(launch, tmp_path):
    from croc_jax.training.stopping import StopRequest

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
        status = launch[0].run_program([sys.executable, "-c", code], log, lambda: None, stop)
        timer.join()
    assert status == 75 and log.read_text() == "up\nsaved\n"


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Fakes of the commands of Slurm and Kubernetes; returns what they were called with."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    bodies = {
        "sbatch": "",
        "squeue": 'cat "$QUEUE" 2>/dev/null || :\n',
        "kubectl": "[[ $1 == get ]] || cat > /dev/null\n",
        "srun": "",
    }
    for name, body in bodies.items():
        (folder / name).write_text(FAKE + body)
        (folder / name).chmod(0o755)
    variables = {"CALLS": calls, "QUEUE": tmp_path / "queue", "IMAGE": "croc", "CLAIM": "croc", "ACCOUNT": "mine"}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def look():
        text = calls.read_text() if calls.exists() else ""
        calls.unlink(missing_ok=True)
        return [call.split("\x1f")[:-1] for call in text.split("\x1e")[:-1]]

    return look


@pytest.mark.parametrize("where", ["slurm", "lumi", "k8s", "local"])
def test_a_dry_run_asks_and_writes_nothing(launch, data, tmp_path, cluster, where):
    workdir = tmp_path / "runs"
    lines = list(launch[1].preview(read(launch, config(data), workdir), workdir, where))
    assert cluster() == [] and not workdir.exists() and lines[::2] == ["# lambda_pos-0", "# base"]
    first = "sbatch --job-name=runs-lambda-pos-0 " if where in ("slurm", "lumi") else "apiVersion: jobset"
    assert lines[1].startswith(f"{sys.executable} " if where == "local" else first)
    assert f"--workdir={workdir}/lambda_pos-0" in lines[1] and "--config.clustering.lambda_pos=0.0" in lines[1]


def test_slurm_gets_each_job_once_and_scores_when_runs_are_finished(launch, data, tmp_path, cluster):
    workdir = tmp_path / "runs"
    sweep = read(launch, config(data), workdir)
    shown = [shlex.split(line) for line in list(launch[1].preview(sweep, workdir, "slurm"))[1::2]]
    assert list(launch[1].submit_due(sweep, workdir, "slurm")) == [
        "lambda_pos-0: submitted as runs-lambda-pos-0",
        "base: submitted as runs-base",
        "the same command later submits what is due then, such as the scores of runs that have finished",
    ]
    calls = cluster()
    assert [call for call in calls if call[0] == "sbatch"] == shown
    assert calls[0] == ["squeue", "--me", "--noheader", "--format=%i", "--name=runs-lambda-pos-0"]

    (tmp_path / "queue").write_text("17\n")
    first, *_ = launch[1].submit_due(sweep, workdir, "slurm")
    assert first == "lambda_pos-0: is there as 17" and all(call[0] == "squeue" for call in cluster())

    (tmp_path / "queue").unlink()
    FakeRunner(sweep).train(sweep.jobs[0])
    (workdir / "base").mkdir(exist_ok=True)
    (workdir / "base" / "runs-base-16.log").touch()
    scored, again, _ = launch[1].submit_due(sweep, workdir, "slurm")
    assert scored == "lambda_pos-0, dense: submitted as runs-lambda-pos-0-dense"
    assert (
        again == f"base: submitted as runs-base; it failed or was canceled before, see {workdir}/base/runs-base-16.log"
    )
    evaluation = next(call for call in cluster() if call[0] == "sbatch")
    assert {"--nodes=1", "--gpus-per-node=1", "--ntasks-per-node=1", "launch/evaluate.py"} <= set(evaluation)
    assert evaluation[-2:] == [f"--checkpoint={workdir}/lambda_pos-0", f"--output={workdir}/lambda_pos-0/eval/dense"]


def test_kubernetes_is_asked_by_name(launch, data, tmp_path, cluster):
    workdir = tmp_path / "runs"
    sweep = read(launch, config(data), workdir)
    list(launch[1].submit_due(sweep, workdir, "k8s"))
    get = ["kubectl", "get", "jobset", "runs-base", "--ignore-not-found", "--output=name", "--namespace=default"]
    assert cluster()[2:] == [get, ["kubectl", "create", "--filename=-"]]


def test_a_template_that_refuses_is_quoted(launch, data, tmp_path, cluster, monkeypatch):
    sweep = read(launch, config(data), tmp_path / "runs")
    monkeypatch.setenv("ACCOUNT", "")
    with pytest.raises(ValueError, match="submit.sh: LUMI runs no job without a project: set ACCOUNT"):
        list(launch[1].submit_due(sweep, tmp_path / "runs", "lumi"))
    with pytest.raises(ValueError, match="the name of a job has 49 letters at most; choose a shorter --workdir"):
        list(launch[1].submit_due(sweep, tmp_path / ("long" * 20), "slurm"))


def call(*flags, home):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    command = [sys.executable, "launch/sweep.py", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


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
