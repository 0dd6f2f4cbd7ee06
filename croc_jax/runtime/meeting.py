"""All processes of a run meet before JAX joins them: JAX would abort one that waits for the others in vain."""

import contextlib
import os
import selectors
import socket
import time

# As long as JAX would wait.
PATIENCE_SECONDS = 300.0
_SECONDS_BETWEEN_CALLS = 0.2
_SECONDS_TO_SPEAK = 5.0
_MOST_NAMES = 8
# Whatever else answers at the port does not begin so.
_MARK = "croc_jax: "
_GO = "go"


class MeetingError(ValueError):
    """Not all processes have come, or they disagree on who they are; the message says which."""


def meet(address: str, count: int, index: int, *, seconds: float = PATIENCE_SECONDS) -> None:
    """Returns in all processes once the last one has come.

    Process 0 waits at the port that JAX takes afterwards; the others call there until it answers.

    Args:
        address: host and port of process 0.
        count: processes of the run.
        index: of this one.
        seconds: how long to wait for the others.

    Raises:
        MeetingError: if one does not come in time, or two give the same index or another count.
    """
    if index == 0:
        _receive(address, count, seconds)
    else:
        _call(address, count, index, seconds)


def listen(port: int) -> socket.socket:
    """Returns a socket that hears calls to all addresses of this host at a port; 0 takes a free one."""
    both = socket.has_dualstack_ipv6()
    return socket.create_server(("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both)


def _receive(address: str, count: int, seconds: float) -> None:
    try:
        server = listen(int(address.rpartition(":")[2]))
    except OSError as error:
        raise MeetingError(
            f"--coordinator_address={address}: process 0 cannot listen at this port: "
            f"{os.strerror(error.errno or 0)}; choose another"
        ) from None
    deadline = time.monotonic() + seconds
    with _Table(server, count) as table:
        while missing := table.missing():
            if time.monotonic() >= deadline:
                names = ", ".join(map(str, missing[:_MOST_NAMES])) + (", ..." if missing[_MOST_NAMES:] else "")
                text = f"process {names} of {count} did not come within {seconds:g} s; see what became of it"
                table.tell(text)
                raise MeetingError(text)
            table.wait(min(1.0, seconds))
        table.tell(_GO)


class _Table:
    """Where process 0 waits for the others."""

    def __init__(self, server: socket.socket, count: int) -> None:
        self._server, self._count = server, count
        self._guests: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *error: object) -> None:
        for guest in (*self._guests.values(), self._server):
            guest.close()
        self._selector.close()

    def missing(self) -> list[int]:
        return [index for index in range(1, self._count) if index not in self._guests]

    def wait(self, seconds: float) -> None:
        # Those who leave come first: one that was started again takes its own place.
        for key, _ in sorted(self._selector.select(seconds), key=lambda event: event[0].fileobj is self._server):
            if key.fileobj is self._server:
                self._welcome()
            else:
                self._part(key.data)

    def _welcome(self) -> None:
        guest, _ = self._server.accept()
        guest.settimeout(_SECONDS_TO_SPEAK)
        try:
            index, count = (int(word) for word in guest.recv(64).split())
        except (OSError, ValueError):
            guest.close()  # a stranger
            return
        refusal = ""
        if count != self._count:
            refusal = f"--num_processes={count} here, but {self._count} in process 0"
        elif index in self._guests:
            refusal = f"--process_id={index} has been given to two processes"
        if refusal:
            _say(guest, refusal)
            guest.close()
            return
        self._guests[index] = guest
        self._selector.register(guest, selectors.EVENT_READ, index)

    def _part(self, index: int) -> None:
        """One that waits says no more: this is its end, and another may come in its place."""
        guest = self._guests.pop(index)
        self._selector.unregister(guest)
        guest.close()

    def tell(self, text: str) -> None:
        for guest in self._guests.values():
            _say(guest, text)


def _say(line: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):
        line.sendall(f"{_MARK}{text}".encode())


def _call(address: str, count: int, index: int, seconds: float) -> None:
    host, _, port = address.rpartition(":")
    deadline, answer = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), seconds) as line:
                # The last to come may be as late again.
                line.settimeout(2 * seconds)
                line.sendall(f"{index} {count}".encode())
                answer = line.recv(1024).decode(errors="replace")
        except OSError as error:
            answer = error.strerror or str(error)
        if answer == _MARK + _GO:
            return
        if answer.startswith(_MARK):
            raise MeetingError(answer.removeprefix(_MARK))
        time.sleep(_SECONDS_BETWEEN_CALLS)
    raise MeetingError(
        f"--coordinator_address={address}: process 0 did not answer within {seconds:g} s "
        f"({answer.splitlines()[0] if answer else 'nobody speaks'}); see whether it runs, and can be reached from here"
    )
