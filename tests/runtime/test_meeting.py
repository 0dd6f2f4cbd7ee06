"""Processes that wait for each other: here threads, as nothing of it depends on JAX."""

import contextlib
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from croc_jax.runtime.meeting import MeetingError, listen, meet


@pytest.fixture
def address():
    with listen(0) as server:
        port = server.getsockname()[1]
    return f"localhost:{port}"


def meet_all(address, places, *, seconds=10.0):
    """Returns the message of each process, or None, for places of (index, count)."""

    def come(index, count):
        try:
            meet(address, count, index, seconds=seconds)
        except MeetingError as error:
            return str(error)

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(come, *zip(*places, strict=True)))


def call(address, text):
    line = socket.create_connection(("localhost", int(address.partition(":")[2])), 5)
    line.sendall(text)
    return line


def test_all_leave_when_the_last_has_come(address):
    late = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        first, second = (pool.submit(meet, address, 3, index, seconds=20) for index in (1, 0))
        third = pool.submit(lambda: late.wait() and meet(address, 3, 2, seconds=20))
        with pytest.raises(TimeoutError):
            first.result(0.5)
        assert not second.done()
        late.set()
        assert [one.result(10) for one in (first, second, third)] == [None] * 3
    # The port is free again, for JAX.
    listen(int(address.partition(":")[2])).close()


def test_who_has_not_come_is_named_by_all(address):
    said = "process 2, 4 of 5 did not come within 1 s; see what became of it"
    assert meet_all(address, [(0, 5), (1, 5), (3, 5)], seconds=1.0) == [said] * 3


def test_a_process_0_that_never_comes_is_named(address):
    (said,) = meet_all(address, [(1, 2)], seconds=0.5)
    assert said.startswith(
        f"--coordinator_address={address}: process 0 did not answer within 0.5 s (Connection refused)"
    )


def test_a_wrong_number_of_processes_is_named(address):
    said = meet_all(address, [(0, 2), (1, 3)], seconds=1.0)
    assert said[1] == "--num_processes=3 here, but 2 in process 0" and said[0].startswith("process 1 of 2 did not come")


def test_one_number_for_two_processes_is_named(address):
    said = sorted(str(text) for text in meet_all(address, [(0, 3), (1, 3), (1, 3)], seconds=1.0))
    assert said[0] == "--process_id=1 has been given to two processes"
    assert said[1] == said[2] == "process 2 of 3 did not come within 1 s; see what became of it"


def test_strangers_and_those_who_leave_do_not_count(address):
    with ThreadPoolExecutor(3) as pool:
        host = pool.submit(meet, address, 3, 0, seconds=20)
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                gone = call(address, b"1 3")
                break
        call(address, b"GET / HTTP/1.1\r\n").close()
        call(address, b"").close()
        gone.close()
        others = [pool.submit(meet, address, 3, index, seconds=20) for index in (1, 2)]
        assert [one.result(10) for one in (host, *others)] == [None] * 3


@pytest.mark.parametrize("index", [0, 1])
def test_a_signal_ends_one_that_waits(address, index):
    code = f"""
from croc_jax.runtime.meeting import meet
from croc_jax.runtime.stopping import end_at_once
end_at_once()
print("waits", flush=True)
meet("{address}", 2, {index})
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == "waits\n"
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 75 and errors.startswith("stopped by SIGTERM before the start")


def test_a_port_that_is_taken_is_an_error_at_once():
    with listen(0) as server:
        address = f"localhost:{server.getsockname()[1]}"
        (said,) = meet_all(address, [(0, 2)])
    assert said == (
        f"--coordinator_address={address}: process 0 cannot listen at this port: Address already in use; choose another"
    )
