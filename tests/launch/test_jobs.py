"""The jobs of a sweep on a cluster, whose commands are fakes."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.launch.sweeping import FakeRunner, sweep_config
from tests.launch.templates import Desk


@pytest.fixture
def desk(tmp_path_factory, monkeypatch):
    """Fakes of the commands of Slurm and Kubernetes, found before the real ones."""
    found = Desk(tmp_path_factory.mktemp("desk"))
    found.fake("squeue", 'cat "$QUEUE" 2>/dev/null || :\n')
    found.fake(
        "kubectl",
        'case $1 in get) cat "$QUEUE" 2>/dev/null || : ;; delete) rm "$QUEUE" ;; *) cat > /dev/null ;; esac\n',
    )
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
    get = ["kubectl", "get", "jobset", "runs-base", "--ignore-not-found", "--namespace=default"]
    get += ["--output=jsonpath={.metadata.name} {.status.terminalState}"]
    assert desk.calls()[2:] == [get, ["kubectl", "create", "--filename=-"]]
    (desk.folder / "queue").write_text("runs-lambda-pos-0 ")
    first, *_ = jobs.submit_due(sweep, workdir, "k8s")
    assert first == "lambda_pos-0: is there as runs-lambda-pos-0" and {call[1] for call in desk.calls()} == {"get"}


def test_a_job_of_kubernetes_that_has_ended_makes_room(sweeps, jobs, data, tmp_path, desk, monkeypatch):
    monkeypatch.setenv("MOUNT", str(tmp_path))
    workdir = tmp_path / "runs"
    sweep = sweeps.read_sweep(sweep_config(data, points=(0.0,)), workdir, base="", overrides=())
    # Where the volume is not mounted, a run that ended well must not start anew.
    (desk.folder / "queue").write_text("runs-lambda-pos-0 Completed")
    first, _ = jobs.submit_due(sweep, workdir, "k8s")
    assert first == "lambda_pos-0: is finished as runs-lambda-pos-0; its files are not here, so it is left alone"
    assert [call[1] for call in desk.calls()] == ["get"]
    for state in ("Failed", "Completed"):
        workdir.mkdir(exist_ok=True)
        (desk.folder / "queue").write_text(f"runs-lambda-pos-0 {state}")
        first, _ = jobs.submit_due(sweep, workdir, "k8s")
        assert first == f"lambda_pos-0: submitted as runs-lambda-pos-0; the one before has ended ({state})"
        _, removed, created = desk.calls()
        assert removed == [*"kubectl delete jobset runs-lambda-pos-0 --cascade=foreground --namespace=default".split()]
        assert created[1] == "create"


def test_no_two_jobs_have_the_same_name(sweeps, jobs, data):
    def named(points):
        grids = ({"optimizer.base_lr": points},)
        sweep = sweeps.read_sweep(sweep_config(data, grids=grids), Path("w"), base="", overrides=())
        runs = [job._replace(run=job.run._replace(name=name)) for job, name in zip(sweep.jobs, names, strict=True)]
        return jobs.name_jobs(sweep._replace(jobs=runs), Path("w"))

    names = ["b--1", "b-1", "b-0.5", "b-0-5", "c", "c-dense"]
    found = named((1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    assert set(found) == {*names, *(f"{name}, dense" for name in names)} and len(set(found.values())) == 12
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name) for name in found.values())
    # What differs anyway keeps its name.
    assert (found["c"], found["c-dense, dense"]) == ("w-c", "w-c-dense-dense")
    assert found["b-1"].startswith("w-b-1-") and found == named((1.0, 2.0, 3.0, 4.0, 5.0, 6.0))


def test_a_template_that_refuses_is_quoted(sweeps, jobs, data, tmp_path, desk, monkeypatch):
    sweep = sweeps.read_sweep(sweep_config(data), tmp_path / "runs", base="", overrides=())
    monkeypatch.setenv("ACCOUNT", "")
    with pytest.raises(ValueError, match="submit.sh: LUMI runs no job without a project: set ACCOUNT"):
        list(jobs.submit_due(sweep, tmp_path / "runs", "lumi"))
    with pytest.raises(ValueError, match="the name of a job has 49 letters at most; choose a shorter --workdir"):
        list(jobs.submit_due(sweep, tmp_path / ("long" * 20), "slurm"))
