"""Two processes, of which one knows more than the other, do the same after the same step."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from croc_jax.runtime.agreement import Ballot, Verdict
from croc_jax.runtime.stopping import StopRequest
from croc_jax.training.sharding import make_mesh
from tests.training.counting import expected_weights, rows

ROOT = Path(__file__).resolve().parents[2]


def run_both(workdir, signal_name):
    """Returns status, output and errors of both processes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "tests.runtime.toy_process", address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [
        subprocess.Popen([*command, str(index), str(workdir), signal_name], cwd=ROOT, env=environment, **pipes)
        for index in range(2)
    ]
    ended = [(*process.communicate(timeout=150), process.returncode) for process in both]
    return [(status, output, errors) for output, errors, status in ended]


def told(output):
    return json.loads(next(line for line in output.splitlines() if line.startswith("told ")).removeprefix("told "))


def test_a_signal_for_one_process_stops_both_after_the_same_step(tmp_path):
    ended = run_both(tmp_path, "SIGUSR1")
    assert [status for status, _, _ in ended] == [0, 0], ended
    # Warnings are those of process 0.
    for index, (_, _, errors) in enumerate(ended):
        assert ("skipping the damaged checkpoint" in errors) == ("the disk of process 1 lies" in errors) == (index == 0)
    first, second = (told(output) for _, output, _ in ended)
    # The votes of step 8 are read behind step 9.
    assert (
        first
        == second
        == {
            "step": 9,
            "stopped_by": "SIGUSR1",
            "saved": [2, 4, 6, 8, 9],
            "weight": expected_weights(9)[9],
        }
    )
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 10))
    # Unreadable images of both.
    assert rows(tmp_path)[-1]["skipped"] == 3


def test_a_failure_of_one_process_ends_both_with_its_reason(tmp_path):
    ended = run_both(tmp_path, "NONE")
    for status, _, errors in ended:
        assert status == 1 and "error: process 1 of 2 (" in errors and ") failed: OSError: disk gone\n" in errors
    assert "Traceback" in ended[1][2] and "Traceback" not in ended[0][2]


def test_one_process_decides_at_once():
    stop = StopRequest()
    ballot = Ballot(make_mesh(jax.devices()[:1]), stop)
    assert ballot.alone and ballot.settle() == Verdict(None, False, 0)
    assert ballot.cast(save=True, skipped=2) == ballot.last == Verdict(None, True, 2)
    stop.received = "SIGTERM"
    assert ballot.cast(save=False, skipped=2) == Verdict("SIGTERM", False, 2)


@pytest.mark.parametrize("devices", [1, 8])
def test_the_votes_of_a_process_are_counted_once(devices, monkeypatch):
    stop = StopRequest()
    ballot = Ballot(make_mesh(jax.devices()[:devices]), stop)
    monkeypatch.setattr(ballot, "alone", False)
    stop.received = "SIGTERM"
    assert ballot.cast(save=True, skipped=5) == Verdict(None, False, 0)
    stop.received = None
    assert ballot.cast(save=False, skipped=6) == Verdict("SIGTERM", True, 5)
    assert ballot.settle() == Verdict(None, False, 0)
