"""The jobs of a sweep on a cluster: submitted by the templates, unless they wait or run there already."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from command_line import UserError
from sweeps import Sweep, Task, due_tasks

HERE = Path(__file__).resolve().parent
# Of Kubernetes, less what JobSet adds for the names of pods.
_LONGEST_NAME = 63 - len("-workers-0-000")


class Cluster(NamedTuple):
    """How to ask a cluster for its jobs, and for few devices.

    Attributes:
        find: a command whose output is empty if no job of a name is there; {} stands for the name.
        one_device: variables of the template for a program that uses one device.
    """

    find: tuple[str, ...]
    one_device: dict[str, str]


_SQUEUE = ("squeue", "--me", "--noheader", "--format=%i", "--name={}")
CLUSTERS = {
    "slurm": Cluster(_SQUEUE, {"NODES": "1", "GPUS_PER_NODE": "1"}),
    "lumi": Cluster(_SQUEUE, {"NODES": "1", "PROCESSES_PER_NODE": "1"}),
    "k8s": Cluster(
        ("kubectl", "get", "jobset", "{}", "--ignore-not-found", "--output=name", "--namespace={NAMESPACE}"),
        {"NODES": "1", "DEVICES_PER_NODE": "1"},
    ),
}


def job_name(workdir: Path, task: Task) -> str:
    """Returns a name that Slurm and Kubernetes take, and that tells what it is.

    Args:
        workdir: of the sweep.
        task: of it.

    Raises:
        UserError: if it is too long.
    """
    name = re.sub(r"[^a-z0-9]+", "-", f"{workdir.name}-{task.what}".lower()).strip("-")
    if len(name) > _LONGEST_NAME:
        raise UserError(f"{name}: the name of a job has {_LONGEST_NAME} letters at most; choose a shorter --workdir")
    return name


def preview(sweep: Sweep, workdir: Path, where: str) -> Iterator[str]:
    """Yields what would be run here or submitted; asks no cluster."""
    for job in sweep.jobs:
        for task in due_tasks(job, sweep.evaluations):
            yield f"# {task.what}"
            if where == "local":
                yield shlex.join(task.command)
            else:
                yield call_template(task, where, job_name(workdir, task), "--dry-run").rstrip("\n")


def submit_due(sweep: Sweep, workdir: Path, where: str) -> Iterator[str]:
    """Submits what is due and not there yet; yields a line about each job."""
    tasks = [task for job in sweep.jobs for task in due_tasks(job, sweep.evaluations)]
    for task in tasks:
        name = job_name(workdir, task)
        if found := find_job(name, where):
            yield f"{task.what}: is there as {found}"
        else:
            call_template(task, where, name)
            logs = sorted(task.folder.glob("*.log"), key=lambda log: log.stat().st_mtime)
            before = f"; it failed or was canceled before, see {logs[-1]}" if logs else ""
            yield f"{task.what}: submitted as {name}{before}"
    if tasks:
        yield "the same command later submits what is due then, such as the scores of runs that have finished"
    else:
        yield f"all {len(sweep.jobs)} runs are finished and scored"


def find_job(name: str, where: str) -> str:
    """Returns what a cluster calls the job of a name, or nothing."""
    namespace = os.environ.get("NAMESPACE", "default")
    asked = [part.format(name, NAMESPACE=namespace) for part in CLUSTERS[where].find]
    return check(subprocess.run(asked, capture_output=True, text=True, check=False)).strip()


def call_template(task: Task, where: str, name: str, *flags: str) -> str:
    """Returns what a template prints about a task."""
    given = {"JOB_NAME": name, "LOGS": str(task.folder), "PROGRAM": f"launch/{task.program}"}
    few = CLUSTERS[where].one_device if task.program == "evaluate.py" else {}
    environment = {"PYTHON": sys.executable} | dict(os.environ) | given | few
    called: Sequence[str] = [str(HERE / where / "submit.sh"), *flags, *task.flags]
    return check(subprocess.run(called, env=environment, capture_output=True, text=True, check=False))


def check(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the output of a command that ended well.

    Raises:
        UserError: with its last line about it, if it did not.
    """
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1].removeprefix("error: ")
        raise UserError(f"{Path(done.args[0]).name}: {reason}")
    return done.stdout
