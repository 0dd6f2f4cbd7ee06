"""Kills a run of two processes again and again, and says whether anything was lost; run by hand, not by pytest.

    PYTHONPATH=. python tests/chaos.py [NUMBER OF KILLS] [SEED]

Each time, one of the processes, at random, gets SIGKILL at a random moment: while it starts, compiles, trains, saves or
ends. The other one must end by itself, unless it still waits for the first one to start. Then both start again. The end
must equal an undisturbed run bit for bit.
"""

import pathlib
import random
import re
import sys
import tempfile
import time

from tests.launch.several import finish_several, start_several
from tests.launch.test_pretrain import assert_same_run, fill_home, rows

SETTINGS = {"schedule__epochs": 14, "runtime__log_every_steps": 1}
# A process that waits for another one to start is not waited for longer.
SECONDS_TO_WAIT = 60


def main(kills, seed):
    """Runs it in a temporary folder; returns whether nothing was lost."""
    draw, home = random.Random(seed), pathlib.Path(tempfile.mkdtemp(prefix="chaos"))
    fill_home(home)
    print(f"{kills} kills, seed {seed}, in {home}", flush=True)
    calm, disturbed, longest, starting = home / "undisturbed", home / "disturbed", 0.0, 0
    begin = time.monotonic()
    finish_well(start_several(home, calm, **SETTINGS, runtime__checkpoint_every_minutes=1000))
    whole_seconds = time.monotonic() - begin
    for number in range(1, kills + 1):
        processes = start_several(home, disturbed, **SETTINGS)
        if number % 3:
            wait_for_new_rows(processes, disturbed, draw.randint(1, 7))
            time.sleep(draw.uniform(0, 0.5))
        else:
            # While the processes start, connect, restore or compile.
            time.sleep(draw.uniform(0, 0.5) * whole_seconds)
        if any(process.poll() is not None for process in processes):
            print(f"ENDED BEFORE KILL {number} (seed {seed}): {finish_several(processes)}")
            return False
        victim, begin = draw.randrange(2), time.monotonic()
        processes[victim].kill()
        other = processes[1 - victim]
        while other.poll() is None and time.monotonic() - begin < SECONDS_TO_WAIT:
            time.sleep(0.05)
        if other.poll() is None:
            starting += 1
            other.kill()
        else:
            longest = max(longest, time.monotonic() - begin)
        ended = finish_several(processes)
        saved = [int(path.name) for path in (disturbed / "checkpoints").glob("*") if path.name.isdigit()]
        print(
            f"{number}: killed {victim} after {len(rows(disturbed))} rows, saved {max(saved, default=0)}; "
            f"the other ended with {ended[1 - victim][0]} after {time.monotonic() - begin:.1f} s: "
            f"{' '.join(re.findall('error: .*|Terminat.*', ended[1 - victim][2]))[:200]}",
            flush=True,
        )
    finish_well(start_several(home, disturbed, **SETTINGS))
    try:
        assert_same_run(disturbed, calm)
    except AssertionError as error:
        print(f"LOST after {kills} kills (seed {seed}): {error}")
        return False
    print(
        f"NOTHING LOST: after {kills} kills (seed {seed}), {len(rows(disturbed))} losses and the final state are those "
        f"of the undisturbed run, bit for bit; the other process ended by itself after at most {longest:.1f} s, except "
        f"for {starting} that waited for the killed one to start"
    )
    return True


def wait_for_new_rows(processes, workdir, count):
    """Waits until so many steps are logged beyond those that resuming keeps."""
    lowest = len(rows(workdir))
    while len(rows(workdir)) < lowest + count and all(process.poll() is None for process in processes):
        lowest = min(lowest, len(rows(workdir)))
        time.sleep(0.02)


def finish_well(processes):
    """Waits for processes that must end with status 0."""
    ended = finish_several(processes)
    assert [status for status, _, _ in ended] == [0, 0], ended


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    kills, seed = [*numbers, *(20, random.randrange(2**32))[len(numbers) :]]
    raise SystemExit(not main(kills, seed))
