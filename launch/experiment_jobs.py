"""The jobs of an experiment: which is next, which run beside each other, and how they end."""

import os
import subprocess
from collections.abc import Callable, Sequence
from typing import IO

from commands import Command, start_program
from experiment_plan import Run

TRAINING = "training"
LOG = "log.txt"
_LINES_SHOWN = 12


class Job:
    """One program of one run: its training, or its scores on a data set."""

    def __init__(self, run: Run, kind: str, command: Command) -> None:
        """Starts nothing yet.

        Args:
            run: the run.
            kind: "training", or the name of a data set.
            command: the program.
        """
        self.run, self.kind, self.command = run, kind, command
        self.status: int | None = None

    def explain(self) -> str:
        """Returns what failed, and the last lines that it printed."""
        log = self.run.folder / LOG
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_SHOWN:]
        lines = "\n".join(f"  {line}" for line in tail)
        return f"{self.run.name}, {self.kind} ended with status {self.status}; the end of {log}:\n{lines}"


class Jobs:
    """All jobs of an experiment, a few of them at work."""

    def __init__(self, runs: Sequence[Run], count: int, start: Callable[..., subprocess.Popen] = start_program) -> None:
        """Starts nothing yet.

        Args:
            runs: the runs in their order.
            count: most programs at a time.
            start: starts a program, see `commands.start_program`.
        """
        # Each run has one program at work: more shares would leave cores idle.
        self._start, self._shares = start, share_cores(min(count, len(runs)))
        self._waiting: dict[str, list[Job]] = {}
        for run in runs:
            training = [] if run.is_trained() else [Job(run, TRAINING, run.training)] if run.training else []
            self._waiting[run.name] = training + [Job(run, kind, one) for kind, one in run.scorings.items()]
        self._running: dict[int, tuple[Job, subprocess.Popen, IO[bytes]]] = {}
        self._ended: list[Job] = []
        self._stopping, self._succeeded = False, False
        self.failed: list[Job] = []

    @property
    def count(self) -> int:
        """Most programs at a time."""
        return len(self._shares)

    @property
    def waiting(self) -> list[Job]:
        """Jobs that have not started."""
        return [job for jobs in self._waiting.values() for job in jobs]

    @property
    def running(self) -> list[Job]:
        """Jobs at work."""
        return [job for job, _, _ in self._running.values()]

    def advance(self) -> bool:
        """Starts what can start and looks who has ended; returns whether anything is left to wait for."""
        for slot, (job, process, log) in list(self._running.items()):
            if (status := process.poll()) is not None:
                log.close()
                del self._running[slot]
                job.status = status
                self._end(job)
        for slot in range(self.count):
            if slot not in self._running and not self._stopping and (job := self._next()):
                job.run.folder.mkdir(parents=True, exist_ok=True)
                log = (job.run.folder / LOG).open("ab")
                process = self._start(job.command.arguments, output=log, cores=self._shares[slot])
                self._running[slot] = job, process, log
                # A signal may have come while it started.
                if self._stopping:
                    process.terminate()
        return bool(self._running or self._ended)

    def take_ended(self) -> list[Job]:
        """Returns the jobs that have succeeded since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """Starts nothing more, and asks what runs to save and end."""
        self._stopping = True
        for _, process, _ in self._running.values():
            process.terminate()

    def _end(self, job: Job) -> None:
        if job.status == 0:
            job.command.mark_done()
            self._ended.append(job)
            self._succeeded = True
        elif not self._stopping:
            self.failed.append(job)
            if job.kind == TRAINING:
                self._waiting[job.run.name].clear()
            # One row may diverge; what fails before anything has succeeded fails for all of them.
            if not self._succeeded:
                self.stop()

    def _next(self) -> Job | None:
        """Takes the next job: a score if there is one to take, else the first training; none of a run at work."""
        busy = {job.run.name for job in self.running}
        for jobs in (jobs for name, jobs in self._waiting.items() if name not in busy):
            while jobs and jobs[0].kind != TRAINING and jobs[0].command.is_done():
                del jobs[0]
        ready = [jobs for name, jobs in self._waiting.items() if jobs and name not in busy]
        first = next((jobs for jobs in ready if jobs[0].kind != TRAINING), ready[0] if ready else None)
        return first.pop(0) if first else None


def count_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(count: int) -> list[list[int]]:
    """Returns the cores of each of some programs that run beside each other: all of them for one.

    Examples:
        >>> [len(share) > 0 for share in share_cores(2)]
        [True, True]
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(count_cores()))
    return [cores[index % len(cores) :: count] for index in range(count)]
