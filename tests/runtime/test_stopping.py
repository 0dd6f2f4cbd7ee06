"""Signals: the first is remembered, the second acts."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from croc_jax.runtime.stopping import StopRequest, end_at_once, exit_status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_first_signal_is_remembered(number):
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number.name


def test_the_second_signal_acts():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.received == "SIGINT"


def test_handlers_are_as_before_outside_the_block():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_what_schedulers_repeat_changes_nothing():
    with StopRequest() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.received == "SIGUSR1"


def test_the_status_tells_schedulers_what_to_do():
    assert [exit_status(name) for name in ("SIGTERM", "SIGUSR1", "SIGINT")] == [75, 75, 130]


def test_once_there_may_be_a_state_nothing_ends_at_once_any_more():
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        end_at_once()
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        after = [signal.getsignal(number) for number in numbers]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert after == [signal.SIG_DFL, signal.SIG_DFL, signal.default_int_handler]


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_before_there_is_a_state_ends_at_once(name, status):
    code = f"""
import os, signal
from croc_jax.runtime.stopping import end_at_once
end_at_once()
try:
    os.kill(os.getpid(), signal.{name})
finally:
    print("not reached")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = f"stopped by {name} before the start; there was nothing to save yet\n"
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


def test_a_signal_during_the_imports_of_the_program_asks_for_another_start(tmp_path):
    """The import of jax, the first heavy one, never ends here."""
    (tmp_path / "jax.py").write_text("import pathlib, time\npathlib.Path(__file__ + '.met').touch()\ntime.sleep(60)\n")
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"}
    program = subprocess.Popen(
        [sys.executable, "launch/pretrain.py"], cwd=root, env=environment, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "jax.py.met").exists() and program.poll() is None:
        time.sleep(0.01)
    program.send_signal(signal.SIGUSR1)
    _, errors = program.communicate(timeout=30)
    assert program.returncode == 75 and "stopped by SIGUSR1 before the start" in errors
