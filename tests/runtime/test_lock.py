"""One training at a time in a workdir."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys

import pytest

from croc_jax.runtime import lock
from croc_jax.runtime.lock import lock_workdir
from croc_jax.runtime.stopping import StopRequest
from croc_jax.runtime.workdir import WorkdirError

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(sys.argv[2])
file.flush()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def release(monkeypatch):
    """Gives back what a test has locked, and waits for nobody."""
    held = {}
    monkeypatch.setattr(lock, "_held", held)
    monkeypatch.setattr(lock, "_SECONDS_TO_END", 0.0)
    yield
    for file in held.values():
        file.close()


@pytest.fixture
def holder(tmp_path):
    """Another process that has the workdir."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock"), f"process 1 on {os.uname().nodename}\n"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_training_is_refused_by_name(tmp_path, holder):
    with pytest.raises(WorkdirError, match=r"is in use by process 1 on .*: wait for it, or choose another --workdir$"):
        lock_workdir(tmp_path)
    assert (tmp_path / "lock").read_text() == f"process 1 on {os.uname().nodename}\n"


def test_a_holder_on_another_host_may_be_gone_with_it(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock, "_SECONDS_TO_LOSE_HOST", 0.0)
    monkeypatch.setattr(lock.socket, "gethostname", lambda: "elsewhere")
    with pytest.raises(WorkdirError, match=r"or, if that host is gone, remove .*/lock$"):
        lock_workdir(tmp_path)


def test_a_signal_ends_the_wait(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock, "_SECONDS_TO_END", 60.0)
    with StopRequest() as stop:
        monkeypatch.setattr(lock.time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
        assert not lock_workdir(tmp_path, stop=stop)
        assert stop.received == "SIGTERM"
        holder.kill()
        holder.wait()
        # The end of another one counts more than a signal: the run saves what it does not have.
        assert lock_workdir(tmp_path, stop=stop)


def test_a_killed_one_gives_way_at_once(tmp_path, holder):
    holder.kill()
    holder.wait()
    lock_workdir(tmp_path)
    assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"
    # The same process may come by again.
    lock_workdir(tmp_path)


def test_one_that_is_about_to_end_is_waited_for(tmp_path, holder, monkeypatch, caplog):
    monkeypatch.setattr(lock, "_SECONDS_TO_END", 60.0)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (holder.kill(), holder.wait()))
    with caplog.at_level(logging.WARNING):
        lock_workdir(tmp_path)
    (warning,) = caplog.messages
    assert "is in use by process 1 on" in warning and "waiting a while" in warning


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        lock_workdir(tmp_path)
    (warning,) = caplog.messages
    assert warning == f"{tmp_path} has no locks ({os.strerror(number)}): start no second training there"


def test_a_workdir_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkdirError, match="cannot write to the workdir .*file/run: "):
        lock_workdir(tmp_path / "file" / "run")
