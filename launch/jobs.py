"""The jobs of a sweep on a cluster: submitted by the templates, unless they wait or run there already."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from command_line import UserError
from sweeps import Sweep, Task, due_tasks, name_task

HERE = Path(__file__).resolve().parent
# Of Kubernetes, less what JobSet adds for the names of pods.
_LONGEST_NAME = 63 - len("-workers-0-000")


class Cluster(NamedTuple):
    """How to ask a cluster for its jobs, and for few devices.

    Attributes:
        find: a command whose output is empty if no job of a name is there, and else what the cluster calls it and,
            where ended jobs stay, how it has ended; {} stands for the name.
        one_device: variables of the template for a program that uses one device.
        remove: a command that removes a job that has ended, where these stay.
    """

    find: tuple[str, ...]
    one_device: dict[str, str]
    remove: tuple[str, ...] = ()


class Found(NamedTuple):
    """A job that is there.

    Attributes:
        name: as the cluster calls it.
        ended: how it has ended, or nothing.
    """

    name: str
    ended: str


_SQUEUE = ("squeue", "--me", "--noheader", "--format=%i", "--name={}")
CLUSTERS = {
    "slurm": Cluster(_SQUEUE, {"NODES": "1", "GPUS_PER_NODE": "1"}),
    "lumi": Cluster(_SQUEUE, {"NODES": "1", "PROCESSES_PER_NODE": "1"}),
    "k8s": Cluster(
        (
            *("kubectl", "get", "jobset", "{}", "--ignore-not-found", "--namespace={NAMESPACE}"),
            "--output=jsonpath={{.metadata.name}} {{.status.terminalState}}",
        ),
        {"NODES": "1", "DEVICES_PER_NODE": "1"},
        # Its pods, which have the names of the next ones, must be gone, too.
        ("kubectl", "delete", "jobset", "{}", "--cascade=foreground", "--namespace={NAMESPACE}"),
    ),
}


def name_jobs(sweep: Sweep, workdir: Path) -> dict[str, str]:
    """Returns, by what is done, names that Slurm and Kubernetes take, that tell what it is, and that differ.

    Args:
        sweep: all of whose tasks get one, due or not, so that each keeps its name.
        workdir: of the sweep.

    Raises:
        UserError: if one is too long.
    """
    whats = [what for job in sweep.jobs for what in (job.run.name, *(name_task(job, e) for e in sweep.evaluations))]
    plain = {what: re.sub(r"[^a-z0-9]+", "-", f"{workdir.name}-{what}".lower()).strip("-") for what in whats}
    shared = [name for name in plain.values() if list(plain.values()).count(name) > 1]
    names = {
        what: f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:6]}" if name in shared else name
        for what, name in plain.items()
    }
    for name in names.values():
        if len(name) > _LONGEST_NAME:
            raise UserError(
                f"{name}: the name of a job has {_LONGEST_NAME} letters at most; choose a shorter --workdir"
            )
    return names


def preview(sweep: Sweep, workdir: Path, where: str) -> Iterator[str]:
    """Yields what would be run here or submitted; asks no cluster."""
    names: Mapping[str, str] = {} if where == "local" else name_jobs(sweep, workdir)
    for job in sweep.jobs:
        for task in due_tasks(job, sweep.evaluations):
            yield f"# {task.what}"
            if where == "local":
                yield shlex.join(task.command)
            else:
                yield call_template(task, where, names[task.what], "--dry-run").rstrip("\n")


def submit_due(sweep: Sweep, workdir: Path, where: str) -> Iterator[str]:
    """Submits what is due and not there yet; yields a line about each job."""
    names = name_jobs(sweep, workdir)
    tasks = [task for job in sweep.jobs for task in due_tasks(job, sweep.evaluations)]
    for task in tasks:
        yield f"{task.what}: {submit(task, workdir, where, names[task.what])}"
    if tasks:
        yield "the same command later submits what is due then, such as the scores of runs that have finished"
    else:
        yield f"all {len(sweep.jobs)} runs are finished and scored"


def submit(task: Task, workdir: Path, where: str, name: str) -> str:
    """Submits a task unless it is there, in place of a job that has ended; returns what was done."""
    found, before = find_job(name, where), ""
    if found and not found.ended:
        return f"is there as {found.name}"
    if found and found.ended == "Completed" and not workdir.is_dir():
        return f"is finished as {found.name}; its files are not here, so it is left alone"
    if found:
        ask(CLUSTERS[where].remove, name)
        before = f"; the one before has ended ({found.ended})"
    call_template(task, where, name)
    logs = sorted(task.folder.glob("*.log"), key=lambda log: log.stat().st_mtime)
    before += f"; it failed or was canceled before, see {logs[-1]}" if logs else ""
    return f"submitted as {name}{before}"


def find_job(name: str, where: str) -> Found | None:
    """Returns the job of a name, if a cluster has it."""
    asked = CLUSTERS[where]
    answer = ask(asked.find, name).split()
    # Where ended jobs do not stay, further words are further jobs.
    return Found(answer[0], answer[1] if asked.remove and len(answer) > 1 else "") if answer else None


def ask(command: Sequence[str], name: str) -> str:
    """Returns what a command about a job prints."""
    filled = [part.format(name, NAMESPACE=os.environ.get("NAMESPACE", "default")) for part in command]
    return check(subprocess.run(filled, capture_output=True, text=True, check=False))


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
