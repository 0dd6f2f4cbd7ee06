"""Connections that say nothing, and whose end tells process 0 at once that another process was killed."""

import contextlib
import selectors
import socket
import time

import jax

from croc_jax.training.processes import connection, coordinator_host

_PORT = "croc_jax/lifelines"
_BYE = b"bye"
_SECONDS_TO_CONNECT = 10.0


class Listener:
    """The end in process 0."""

    def __init__(self) -> None:
        """Opens a port, and tells the other processes which."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._server = socket.create_server(("", 0), family=family, dualstack_ipv6=both)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._said: dict[socket.socket, bytes] = {}
        connection().key_value_set(_PORT, str(self._server.getsockname()[1]))

    def wait(self, seconds: float) -> int | None:
        """Returns the index of a process that ended without a word, or None after a time."""
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._server:
                other, _ = self._server.accept()
                self._selector.register(other, selectors.EVENT_READ)
                self._said[other] = b""
                continue
            other = key.fileobj
            assert isinstance(other, socket.socket)
            lost = self._hear(other)
            if lost is not None:
                return lost
        return None

    def _hear(self, other: socket.socket) -> int | None:
        try:
            word = other.recv(64)
        except OSError:
            word = b""
        if word:
            self._said[other] += word
            return None
        self._selector.unregister(other)
        other.close()
        index, _, rest = self._said.pop(other).partition(b"\n")
        return int(index) if index.isdigit() and rest != _BYE else None

    def close(self) -> None:
        """Closes all connections."""
        for other in self._said:
            other.close()
        self._selector.close()
        self._server.close()


class Lifeline:
    """The end in any other process. Without it, where a firewall is in the way, JAX's heartbeats must do."""

    def __init__(self) -> None:
        """Connects to process 0."""
        self._socket: socket.socket | None = None
        port = int(connection().blocking_key_value_get(_PORT, 60_000))
        with contextlib.suppress(OSError):
            self._socket = socket.create_connection((coordinator_host(), port), _SECONDS_TO_CONNECT)
            self._socket.sendall(f"{jax.process_index()}\n".encode())

    def wait(self, seconds: float) -> None:
        """Lets time pass: JAX ends this process when process 0 is gone."""
        time.sleep(seconds)

    def close(self) -> None:
        """Says that this end is meant."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendall(_BYE)
            self._socket.close()
