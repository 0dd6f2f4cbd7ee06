"""The jobs of a sweep on a cluster, whose commands are fakes."""

import os
import shlex
import sys

import pytest

from tests.launch.sweeping import FakeRunner, sweep_config
from tests.launch.test_templates import Desk


@pytest.fixture
def desk(tmp_path_factory, monkeypatch):
    """Fakes of the commands of Slurm and Kubernetes, found before the real ones."""
    found = Desk(tmp_path_factory.mktemp("desk"))
    found.fake("squeue", 'cat "$QUEUE" 2>/dev/null || :\n')
    found.fake("kubectl", "[[ $1 == get ]] || cat > /dev/null\n")
    variables = {"QUEUE": str(found.folder / "queue"), "IMAGE": "croc", "CLAIM": "croc", "ACCOUNT": "mine"}
    for name, value in found.environment(**variables).items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    return found


@pytest.mark.parametrize("where", ["slurm", "lumi", "k8s", "local"])
def test_a_dry_run_asks_and_writes_nothing(sweeps, jobs, data, tmp_path, desk, monkeypatch, where):
    monkeypatch.setenv("MOUNT", str(tmp_path))
    workdir = tmp_path / "runs"
    lines = list(jobs.preview(sweeps.read_sweep(sweep_config(data), workdir, base="", overrides=()), workdir, where))
    assert desk.calls() == [] and not workdir.exists() and lines[::2] == ["# lambda_pos-0", "# base"]
    first = "sbatch --job-name=runs-lambda-pos-0 " if where in ("slurm", "lumi") else "apiVersion: jobset"
    assert lines[1].startswith(f"{sys.executable} " if where == "local" else first)
    assert f"--workdir={workdir}/lambda_pos-0" in lines[1] and "--config.clustering.lambda_pos=0.0" in lines[1]


def test_slurm_gets_each_job_once_and_scores_when_runs_are_finished(sweeps, jobs, data, tmp_path, desk):
    workdir = tmp_path / "runs"
    sweep = sweeps.read_sweep(sweep_config(data), workdir, base="", overrides=())
    shown = [shlex.split(line) for line in list(jobs.preview(sweep, workdir, "slurm"))[1::2]]
    assert list(jobs.submit_due(sweep, workdir, "slurm")) == [
        "lambda_pos-0: submitted as runs-lambda-pos-0",
        "base: submitted as runs-base",
        "the same command later submits what is due then, such as the scores of runs that have finished",
    ]
    calls = desk.calls()
    assert [call for call in calls if call[0] == "sbatch"] == shown
    assert calls[0] == ["squeue", "--me", "--noheader", "--format=%i", "--name=runs-lambda-pos-0"]

    (desk.folder / "queue").write_text("17\n")
    first, *_ = jobs.submit_due(sweep, workdir, "slurm")
    assert first == "lambda_pos-0: is there as 17" and all(call[0] == "squeue" for call in desk.calls())

    (desk.folder / "queue").unlink()
    FakeRunner(sweep).train(sweep.jobs[0])
    (workdir / "base").mkdir(exist_ok=True)
    (workdir / "base" / "runs-base-16.log").touch()
    scored, again, _ = jobs.submit_due(sweep, workdir, "slurm")
    assert scored == "lambda_pos-0, dense: submitted as runs-lambda-pos-0-dense"
    assert (
        again == f"base: submitted as runs-base; it failed or was canceled before, see {workdir}/base/runs-base-16.log"
    )
    evaluation = next(call for call in desk.calls() if call[0] == "sbatch")
    assert {"--nodes=1", "--gpus-per-node=1", "--ntasks-per-node=1", "launch/evaluate.py"} <= set(evaluation)
    assert evaluation[-2:] == [f"--checkpoint={workdir}/lambda_pos-0", f"--output={workdir}/lambda_pos-0/eval/dense"]


def test_kubernetes_is_asked_by_name(sweeps, jobs, data, tmp_path, desk, monkeypatch):
    monkeypatch.setenv("MOUNT", str(tmp_path))
    workdir = tmp_path / "runs"
    sweep = sweeps.read_sweep(sweep_config(data), workdir, base="", overrides=())
    list(jobs.submit_due(sweep, workdir, "k8s"))
    get = ["kubectl", "get", "jobset", "runs-base", "--ignore-not-found", "--output=name", "--namespace=default"]
    assert desk.calls()[2:] == [get, ["kubectl", "create", "--filename=-"]]


def test_a_template_that_refuses_is_quoted(sweeps, jobs, data, tmp_path, desk, monkeypatch):
    sweep = sweeps.read_sweep(sweep_config(data), tmp_path / "runs", base="", overrides=())
    monkeypatch.setenv("ACCOUNT", "")
    with pytest.raises(ValueError, match="submit.sh: LUMI runs no job without a project: set ACCOUNT"):
        list(jobs.submit_due(sweep, tmp_path / "runs", "lumi"))
    with pytest.raises(ValueError, match="the name of a job has 49 letters at most; choose a shorter --workdir"):
        list(jobs.submit_due(sweep, tmp_path / ("long" * 20), "slurm"))
