"""Connections whose end tells that a process is no more, and whether its host is."""

import errno
import socket

import jax
import pytest

from croc_jax.runtime import lifelines
from croc_jax.runtime.lifelines import Lifeline, Listener, Lost


class Texts(dict):
    """What process 0 keeps."""

    key_value_set = dict.__setitem__

    def blocking_key_value_get(self, name, patience):
        return self[name]


@pytest.fixture
def ends(monkeypatch):
    """The end of process 0, and that of process 3."""
    texts = Texts()
    monkeypatch.setattr(lifelines, "connection", lambda: texts)
    monkeypatch.setattr(lifelines, "coordinator_host", lambda: "localhost")
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    listener = Listener()
    lifeline = Lifeline()
    # The call, and the index.
    assert listener.wait(5) is None and listener.wait(5) is None
    yield listener, lifeline
    listener.close()
    lifeline.close()


def test_an_end_without_a_word_is_a_loss_on_both_sides(ends):
    listener, lifeline = ends
    assert listener.wait(0) is None and lifeline.wait(0) is None
    lifeline._socket.shutdown(socket.SHUT_WR)
    assert listener.wait(5) == Lost(3, silent=False)
    assert lifeline.wait(5) == Lost(0, silent=False)
    assert listener.wait(0) is None and lifeline.wait(0) is None


def test_an_end_that_is_meant_is_none(ends):
    listener, lifeline = ends
    listener.close()
    assert [lifeline.wait(0.1) for _ in range(3)] == [None] * 3
    lifeline.close()


def test_process_0_hears_that_an_end_is_meant(ends):
    listener, lifeline = ends
    lifeline.close()
    assert [listener.wait(0.1) for _ in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("number", "silent"), [(errno.ETIMEDOUT, True), (errno.EHOSTUNREACH, True), (errno.ECONNRESET, False)]
)
def test_a_host_that_is_silent_is_told_from_a_process_that_was_killed(ends, monkeypatch, number, silent):
    def recv(line, size):
        raise OSError(number, "")

    listener, lifeline = ends
    (line,) = listener._said
    line.sendall(b"x")
    lifeline._socket.sendall(b"x")
    monkeypatch.setattr(socket.socket, "recv", recv)
    assert listener.wait(5) == Lost(3, silent) and lifeline.wait(5) == Lost(0, silent)


def test_the_system_asks_the_other_host(ends):
    listener, lifeline = ends
    for line in (lifeline._socket, *listener._said):
        assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        times = [line.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in lifelines._KEEPALIVE]
        assert times[0] + times[1] * times[2] == 40
