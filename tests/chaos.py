"""Kills a run of two processes again and again, and says whether anything was lost; pytest does not collect it.

    PYTHONPATH=. python tests/chaos.py [NUMBER OF KILLS] [SEED]

Each time, one of the processes, at random, gets SIGKILL at a random moment: while it starts, compiles,
trains, saves, or ends. The other one ends by itself, once they have met. Then both start again. The end must equal an
undisturbed run bit for bit.
"""

import pathlib
import random
import sys
import tempfile
import time

from tests.launch.several import finish_several, start_several
from tests.launch.test_pretrain import assert_same_run, fill_home, rows

EPOCHS = 14
PATIENCE = 15
SETTINGS = {"schedule__epochs": EPOCHS, "runtime__log_every_steps": 1}


def main(kills: int, seed: int) -> bool:
    """Runs it in a temporary folder; returns whether nothing was lost."""
    draw = random.Random(seed)
    home = pathlib.Path(tempfile.mkdtemp(prefix="chaos"))
    fill_home(home)
    print(f"{kills} kills, seed {seed}, in {home}", flush=True)
    calm, disturbed = home / "undisturbed", home / "disturbed"
    begin = time.monotonic()
    expect_end(start_several(home, calm, **SETTINGS, runtime__checkpoint_every_minutes=1000))
    print(f"undisturbed: {time.monotonic() - begin:.0f} s, final loss {rows(calm)[-1]['loss']:.6f}", flush=True)
    longest, alone, resumed, start_seconds = 0.0, 0, set(), 60.0
    for number in range(1, kills + 1):
        processes, started = start_several(home, disturbed, **SETTINGS), time.monotonic()
        if number % 3:
            wait_for_new_rows(processes, disturbed, draw.randint(1, 7))
            start_seconds = min(start_seconds, time.monotonic() - started)
            time.sleep(draw.uniform(0, 0.5))
        else:
            # While the processes start, meet, restore or compile.
            time.sleep(draw.uniform(0.2, 1) * start_seconds)
        victim, begin = draw.randrange(2), time.monotonic()
        processes[victim].kill()
        # One that has not met the other yet waits for it, for five minutes; a scheduler would not.
        while processes[1 - victim].poll() is None and time.monotonic() - begin < PATIENCE:
            time.sleep(0.05)
        waited, seconds = processes[1 - victim].poll() is None, time.monotonic() - begin
        if waited:
            alone += 1
            processes[1 - victim].kill()
        else:
            longest = max(longest, seconds)
        ended = finish_several(processes)
        step = rows(disturbed)[-1]["step"] if rows(disturbed) else 0
        saved = [int(path.name) for path in (disturbed / "checkpoints").glob("[0-9]*") if path.name.isdigit()]
        resumed.add(max(saved, default=0))
        print(
            f"{number}: killed {victim} at step {step}, saved {max(saved, default=0)}; "
            f"the other: {ended[1 - victim][0]} after {seconds:.1f} s",
            flush=True,
        )
        if waited:
            print(*(line for text in ended[1 - victim][1:] for line in text.splitlines()[-3:]), sep="\n", flush=True)
    expect_end(start_several(home, disturbed, **SETTINGS))
    damaged = list((disturbed / "damaged-checkpoints").glob("*"))
    try:
        assert_same_run(disturbed, calm)
    except AssertionError as error:
        print(f"LOST after {kills} kills (seed {seed}): {error}")
        return False
    steps = len(rows(disturbed))
    print(
        f"NOTHING LOST: after {kills} kills (seed {seed}), {steps} losses and the final state are those of the "
        f"undisturbed run, bit for bit; the other process ended by itself after at most {longest:.1f} s, but for "
        f"{alone} that were starting; it resumed from steps {sorted(resumed)}; {len(damaged)} damaged checkpoints"
    )
    return True


def wait_for_new_rows(processes, workdir, count):
    """Waits until so many steps are logged, beside those of before; those that run again are removed first."""
    lowest = len(rows(workdir))
    while len(rows(workdir)) < lowest + count and all(process.poll() is None for process in processes):
        lowest = min(lowest, len(rows(workdir)))
        time.sleep(0.02)


def expect_end(processes):
    """Waits for processes that must end well."""
    deadline = time.monotonic() + 600
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    ended = finish_several(processes)
    assert [status for status, _, _ in ended] == [0, 0], ended


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    kills, seed = [*numbers, *(20, random.randrange(2**32))[len(numbers) :]]
    raise SystemExit(not main(kills, seed))
