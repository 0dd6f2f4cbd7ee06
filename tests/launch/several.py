"""Runs of several processes of the pre-training program on this machine."""

import socket
import time

from tests.launch.test_pretrain import finish, start

# Longer than all take to train, or to end when one has died: a minute where its heartbeats have to be missed.
SECONDS_TO_END = 600


def start_several(home, workdir, *, count=2, devices=2, **changes):
    """Starts `count` processes with so many devices each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    several = [f"--coordinator_address={address}", f"--num_processes={count}"]
    given = [[*several, f"--process_id={index}"] for index in range(count)]
    return [start(home, workdir, *flags, devices=devices, **changes) for flags in given]


def finish_several(processes):
    """Returns status, output and errors of each, when all have ended."""
    begin = time.monotonic()
    try:
        while any(process.poll() is None for process in processes):
            assert time.monotonic() - begin < SECONDS_TO_END, [process.poll() for process in processes]
            time.sleep(0.05)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    return [finish(process) for process in processes]
