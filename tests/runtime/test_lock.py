"""One running program holds the lock of a workdir at a time."""

import errno
import fcntl
import logging
import os
import subprocess
import sys

import pytest

from croc_jax.runtime import lock
from croc_jax.runtime.lock import WorkdirError, is_locked, lock_workdir, unlock_workdir

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(sys.argv[2])
file.flush()
print("held", flush=True)
time.sleep(60)
"""


def test_a_lock_is_this_process_until_it_is_released(tmp_path):
    assert not is_locked(tmp_path / "new")
    for _ in range(2):
        lock_workdir(tmp_path / "new")
        assert is_locked(tmp_path / "new")
    unlock_workdir(tmp_path / "new")
    assert not is_locked(tmp_path / "new") and (tmp_path / "new" / "lock").exists()


def test_a_lock_whose_file_its_holder_has_removed_is_taken_anew(tmp_path, monkeypatch):
    flock, removed = fcntl.flock, []

    def flock_after_removal(file, how):
        if not removed:
            removed.append((tmp_path / "lock").unlink())
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_after_removal)
    lock_workdir(tmp_path)
    assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock"), f"process 1 on {os.uname().nodename}\n"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_program_is_refused(tmp_path, holder, monkeypatch):
    with pytest.raises(WorkdirError, match=r"is in use by process 1 on .*: wait for it, or choose another --workdir$"):
        lock_workdir(tmp_path)
    monkeypatch.setattr(lock, "_SECONDS_TO_LOSE_HOST", 0.0)
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(WorkdirError, match=r"or, if that host is lost, remove .*/lock$"):
        lock_workdir(tmp_path)


def test_one_that_is_about_to_end_is_waited_for(tmp_path, holder, monkeypatch, caplog):
    monkeypatch.setattr(lock, "_SECONDS_TO_WAIT", 60.0)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (holder.kill(), holder.wait()))
    with caplog.at_level(logging.WARNING):
        lock_workdir(tmp_path)
    assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"
    (warning,) = caplog.messages
    assert "is in use by process 1 on" in warning and "waiting for it to end" in warning


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        lock_workdir(tmp_path)
    (warning,) = caplog.messages
    assert "no file locks" in warning and os.strerror(number) in warning
