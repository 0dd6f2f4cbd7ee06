"""Connections between process 0 and the others that say nothing, and whose end tells that a process is no more."""

import contextlib
import errno
import selectors
import socket
import time
from typing import NamedTuple

import jax

from croc_jax.runtime.meeting import listen
from croc_jax.runtime.processes import connection, coordinator_host

_PORT = "croc_jax/lifelines"
_BYE = b"bye"
_SECONDS_TO_CONNECT = 10.0
# A host is given up after 40 seconds without an answer: before JAX does, which could not say so.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Lost(NamedTuple):
    """A process that ended without a word.

    Attributes:
        index: of the process.
        silent: its host does not answer any more; otherwise the process alone was killed.
    """

    index: int
    silent: bool


class Listener:
    """The ends in process 0."""

    def __init__(self) -> None:
        """Opens a port, and tells the other processes which."""
        self._server = listen(0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._said: dict[socket.socket, bytes] = {}
        connection().key_value_set(_PORT, str(self._server.getsockname()[1]))

    def wait(self, seconds: float) -> Lost | None:
        """Returns a process that ended without a word, or None after a time."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._server:
                other, _ = self._server.accept()
                _keep_alive(other)
                self._selector.register(other, selectors.EVENT_READ)
                self._said[other] = b""
                continue
            other = key.fileobj
            assert isinstance(other, socket.socket)
            lost = self._hear(other)
            if lost is not None:
                return lost
        return None

    def _hear(self, other: socket.socket) -> Lost | None:
        word, silent = _read(other)
        if word:
            self._said[other] += word
            return None
        self._selector.unregister(other)
        other.close()
        index, _, rest = self._said.pop(other).partition(b"\n")
        return Lost(int(index), silent) if index.isdigit() and rest != _BYE else None

    def close(self) -> None:
        """Says that this end is meant, and closes all connections."""
        for other in self._said:
            _say_bye(other)
        self._selector.close()
        self._server.close()


class Lifeline:
    """The end in any other process. Without it, where a firewall is in the way, JAX's heartbeats must do."""

    def __init__(self) -> None:
        """Connects to process 0."""
        self._selector = selectors.DefaultSelector()
        self._socket: socket.socket | None = None
        self._said = b""
        port = int(connection().blocking_key_value_get(_PORT, 60_000))
        with contextlib.suppress(OSError):
            self._socket = socket.create_connection((coordinator_host(), port), _SECONDS_TO_CONNECT)
            _keep_alive(self._socket)
            self._socket.sendall(f"{jax.process_index()}\n".encode())
            self._selector.register(self._socket, selectors.EVENT_READ)

    def wait(self, seconds: float) -> Lost | None:
        """Returns process 0 if it ended without a word, or None after a time."""
        if not self._selector.get_map():
            time.sleep(seconds)
            return None
        if self._socket is None or not self._selector.select(seconds):
            return None
        word, silent = _read(self._socket)
        self._said += word
        if word:
            return None
        self._selector.unregister(self._socket)
        return None if self._said == _BYE else Lost(0, silent)

    def close(self) -> None:
        """Says that this end is meant."""
        if self._socket is not None:
            _say_bye(self._socket)
        self._selector.close()


def _keep_alive(line: socket.socket) -> None:
    """Lets the system ask the other host, which answers even while the process there is busy."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _read(line: socket.socket) -> tuple[bytes, bool]:
    """Returns what has come, nothing at the end, and whether that is because the other host is silent."""
    try:
        return line.recv(64), False
    except OSError as error:
        return b"", error.errno in _UNREACHABLE


def _say_bye(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.sendall(_BYE)
    line.close()
