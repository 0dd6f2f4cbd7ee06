"""Two processes of four devices each train as one, give the numbers of one device, and go on after one was killed."""

import os
import random
import re
import signal

import numpy as np
import pytest

from tests.launch.several import finish_several, start_several
from tests.launch.test_pretrain import assert_same_run, finish, home, rows, start, wait_for_rows  # noqa: F401

EPOCHS = 3
LAST = 3 * EPOCHS
SETTINGS = {
    "schedule__epochs": EPOCHS,
    "runtime__log_every_steps": 1,
    "backbone__drop_path_rate": 0.2,
    # Warm enough for losses that are far from 0.
    "objective__student_temp": 0.5,
}


@pytest.fixture(scope="module")
def undisturbed(home):  # noqa: F811
    workdir = home / "undisturbed"
    ended = finish_several(start_several(home, workdir, **SETTINGS, runtime__checkpoint_every_minutes=1000))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "on 8 cpu device(s) of 2 processes" in ended[0][1] and f"finished at step {LAST}" in ended[0][1]
    # Gloo tells of its connections, all at the same time; nothing of ours comes from another process than the first.
    gloo = r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :"
    said = re.sub(rf"{gloo}|\d|\s", "", ended[1][1])
    assert not said and not ended[1][2]
    assert [row["step"] for row in rows(workdir)] == list(range(1, LAST + 1))
    return workdir


def test_one_device_in_slices_gives_the_same_losses(home, undisturbed):  # noqa: F811
    workdir = home / "alone"
    changes = {"runtime__checkpoint_every_minutes": 1000, "optimizer__accumulation_steps": 4}
    status, output, errors = finish(start(home, workdir, **SETTINGS, **changes))
    assert status == 0 and "on 1 cpu device(s)" in output, errors
    names = ("loss", "loss_dense", "loss_global")
    ours, theirs = (np.array([[row[name] for name in names] for row in rows(run)]) for run in (workdir, undisturbed))
    assert ours.shape == (LAST, 3) and ours.min() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_kill_of_one_process_loses_nothing(home, undisturbed):  # noqa: F811
    seed = int(os.environ.get("CROC_CHAOS_SEED", random.randrange(2**32)))
    print(f"CROC_CHAOS_SEED={seed}")
    draw = random.Random(seed)
    workdir, victim = home / "disturbed", draw.randrange(2)
    processes = start_several(home, workdir, **SETTINGS)
    wait_for_rows(processes[0], workdir, draw.randint(1, 7))
    processes[victim].kill()
    ended = finish_several(processes)
    killed, survivor = ended[victim], ended[1 - victim]
    assert killed[0] == -signal.SIGKILL
    assert survivor[0] == 1 and f"error: process {victim} of 2 was killed\n" in survivor[2], survivor

    # One that was killed before its first save was done starts anew.
    saved = [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    ended = finish_several(start_several(home, workdir, **SETTINGS))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert (f"resumes after step {max(map(int, saved))}\n" if saved else "; starts anew\n") in ended[0][1]
    assert_same_run(workdir, undisturbed)
