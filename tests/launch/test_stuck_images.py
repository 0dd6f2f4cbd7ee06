"""Disks that do not answer, and limits of the machine: the program ends with its last state saved, and says why."""

import errno
import re
import signal
import time

import pytest

from croc_jax.runtime.preemption import EXIT_STATUS, EXIT_STATUS_OF_SIGINT
from tests.launch.several import finish_several, start_several
from tests.launch.test_pretrain import finish, home, rows, start, wait_for_rows  # noqa: F401

# After so many images.
READS = 60
READ = """
import itertools, os, threading
from croc_jax.data.sources.files import FileSource
numbers, read = itertools.count(), FileSource.__getitem__
def get(self, index):
    if next(numbers) >= {reads}:
        {act}
    return read(self, index)
FileSource.__getitem__ = get
"""
SETTINGS = {"runtime__log_every_steps": 1, "runtime__checkpoint_every_minutes": 1000}


def start_with(home, workdir, act, **changes):  # noqa: F811
    """Starts the program; after some images, each read does `act` first."""
    code = READ.format(reads=READS, act=act)
    return start(home, workdir, patch=f"exec({code!r})", **SETTINGS, **changes)


def wait_until_stuck(process, workdir):
    """Waits until no more steps are done; returns the number of rows."""
    wait_for_rows(process, workdir, 3)
    done = -1
    while done != len(rows(workdir)):
        done = len(rows(workdir))
        time.sleep(3)
    return done


def saved_step(workdir):
    return [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "num_threads", "status"),
    [(signal.SIGTERM, 2, EXIT_STATUS), (signal.SIGUSR1, 0, EXIT_STATUS), (signal.SIGINT, 2, EXIT_STATUS_OF_SIGINT)],
)
def test_a_signal_ends_a_wait_for_images_that_never_come(home, number, num_threads, status):  # noqa: F811
    workdir = home / f"stuck-{number.name}"
    process = start_with(home, workdir, "threading.Event().wait()", runtime__num_threads=num_threads)
    done = wait_until_stuck(process, workdir)
    process.send_signal(number)
    ended, output, errors = finish(process)
    step, *_ = saved_step(workdir)
    assert ended == status and "Traceback" not in errors, errors
    assert done <= step <= READS // 8 and f"stopped by {number.name} at step {step} after" in output
    assert [row["step"] for row in rows(workdir)] == list(range(1, step + 1))
    ended, output, errors = finish(start(home, workdir, **SETTINGS))
    assert ended == 0 and f"resumes after step {step}" in output, errors


@pytest.mark.slow
def test_several_processes_that_wait_for_images_end_after_a_signal(home):  # noqa: F811
    workdir = home / "stuck-several"
    code = READ.format(reads=READS, act="threading.Event().wait()")
    processes = start_several(home, workdir, devices=1, patch=f"exec({code!r})", **SETTINGS)
    wait_until_stuck(processes[0], workdir)
    processes[0].terminate()
    ended = finish_several(processes)
    assert [status for status, _, _ in ended] == [EXIT_STATUS] * 2, ended
    assert all("a signal asks to stop, and the images of step" in errors for _, _, errors in ended)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "remedy"),
    [
        (errno.EIO, EXIT_STATUS, "run the same command again once the disk answers"),
        (errno.EMFILE, 1, r"ulimit -n\), and run the same command again; the last state is .*checkpoints/\d"),
    ],
)
def test_a_fault_of_the_machine_ends_the_run_with_its_state_saved(home, number, status, remedy):  # noqa: F811
    workdir = home / f"fault-{number}"
    ended, _, errors = finish(start_with(home, workdir, f"raise OSError({number}, os.strerror({number}), 'a.jpg')"))
    assert ended == status and "Traceback" not in errors
    assert re.search(rf"^error: \[Errno {number}\] .*'a\.jpg': .*{remedy}$", errors, re.M), errors
    assert saved_step(workdir) and not (workdir / "skipped.txt").exists()
