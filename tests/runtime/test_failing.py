"""Several processes end together, whatever one of them dies of."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from croc_jax.runtime.failing import means_lost

ROOT = Path(__file__).resolve().parents[2]


def end_all(*deeds):
    """Returns status, output and errors of processes that end so, and the seconds from the first end to the last."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "tests.runtime.ending_process", address, str(len(deeds))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    several = [
        subprocess.Popen([*command, str(index), deed], cwd=ROOT, env=environment, **pipes)
        for index, deed in enumerate(deeds)
    ]
    ends = []
    deadline = time.monotonic() + 120
    while len(ends) < len(several) and time.monotonic() < deadline:
        ends += [time.monotonic()] * (sum(process.poll() is not None for process in several) - len(ends))
        time.sleep(0.02)
    for process in several:
        process.kill()
    told = [process.communicate() for process in several]
    return [(one.returncode, *texts) for one, texts in zip(several, told, strict=True)], ends[-1] - ends[0]


def test_one_that_is_done_hears_of_a_later_failure_of_another():
    ended, seconds = end_all("leave", "fail later", "leave")
    assert [status for status, _, _ in ended] == [1, 1, 1], ended
    for status, _, errors in ended:
        assert status == 1 and errors.count("error: process 1 of 3 (") == 1 and "failed: OSError: disk gone\n" in errors
    assert seconds < 10 and [output for _, output, _ in ended] == ["left\n", "", "left\n"]


def test_a_lack_of_memory_in_one_is_no_loss_of_another():
    ended, seconds = end_all("wait in barrier", "need memory")
    reason = "failed: JaxRuntimeError: RESOURCE_EXHAUSTED: NCCL: out of memory"
    assert [status for status, _, _ in ended] == [1, 1], ended
    assert all(reason in errors and "another process" not in errors for _, _, errors in ended) and seconds < 10


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("UNAVAILABLE: failed to connect to all addresses", True),
        ("DEADLINE_EXCEEDED: Barrier timed out", True),
        ("ABORTED: the job is being shut down", True),
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", True),
        ("INTERNAL: NCCL operation ncclAllReduce failed", True),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes", False),
        ("INTERNAL: ptxas exited with 1", False),
    ],
)
def test_some_errors_of_the_runtime_tell_of_another_process(said, lost):
    assert means_lost(jax.errors.JaxRuntimeError(said)) == lost
    assert not means_lost(OSError(said))


def test_the_others_notice_that_process_0_was_killed():
    ended, seconds = end_all("kill", "wait", "wait in barrier")
    assert [status for status, _, _ in ended] == [-signal.SIGKILL, 1, 1], ended
    assert all("error: process 0 of 3 was killed\n" in errors for _, _, errors in ended[1:]) and seconds < 10
