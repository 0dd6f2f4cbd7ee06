"""Two processes of four devices each train as one, stop as one, and resume after one was killed."""

import json
import random
import re
import signal
import time

import numpy as np
import pytest

from croc_jax.runtime.preemption import EXIT_STATUS
from tests.launch.several import finish_several, start_several
from tests.launch.test_pretrain import assert_same_run, finish, home, rows, start, wait_for_rows  # noqa: F401

EPOCHS = 5
LAST = 3 * EPOCHS
SETTINGS = {
    "schedule__epochs": EPOCHS,
    "runtime__log_every_steps": 1,
    "backbone__drop_path_rate": 0.2,
    # High enough for losses that are far from 0.
    "objective__student_temp": 0.5,
}


@pytest.fixture(scope="module")
def undisturbed(home):  # noqa: F811
    workdir = home / "undisturbed"
    # The first process evaluates, and the other waits.
    scored = {"evaluation__every_epochs": 2, "evaluation__best": "unlabeled_rank"}
    ended = finish_several(start_several(home, workdir, **SETTINGS, **scored, runtime__checkpoint_every_minutes=1000))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert "on 4 cpu device(s) (data 4) of 2 processes" in ended[0][1] and f"finished at step {LAST}" in ended[0][1]
    assert [row["step"] for row in rows(workdir)] == list(range(1, LAST + 1))
    ranks = {row["step"]: row["unlabeled_rank"] for row in rows(workdir) if "unlabeled_rank" in row}
    best = json.loads((workdir / "best.json").read_text())
    assert list(ranks) == [6, 12, LAST] and best["step"] == max(ranks, key=lambda step: ranks[step])
    return workdir


# Devices of one process are compared in tests/training/test_step.py, in less time.
@pytest.mark.slow
def test_one_device_in_microbatches_gives_the_same_losses(home, undisturbed):  # noqa: F811
    workdir = home / "alone"
    changes = {"runtime__checkpoint_every_minutes": 1000, "optimizer__accumulation_steps": 4}
    status, output, errors = finish(start(home, workdir, **SETTINGS, **changes))
    assert status == 0 and "on 1 cpu device(s)" in output, errors
    names = ("loss", "loss_dense", "loss_global")
    ours, theirs = (np.array([[row[name] for name in names] for row in rows(run)]) for run in (workdir, undisturbed))
    assert ours.shape == (LAST, 3) and ours.min() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_kill_and_a_signal_to_one_process_lose_nothing(home, undisturbed):  # noqa: F811
    workdir, victim = home / "disturbed", random.randrange(2)
    # 1. One is killed: the other ends by itself, with a reason.
    processes = start_several(home, workdir, **SETTINGS)
    wait_for_rows(processes[0], workdir, 3)
    processes[victim].kill()
    begin = time.monotonic()
    ended = finish_several(processes)
    assert time.monotonic() - begin < 120 and ended[victim][0] == -signal.SIGKILL
    status, _, errors = ended[1 - victim]
    assert status not in (0, EXIT_STATUS)
    # JAX's own client may be faster than the error of the collective.
    assert re.search("error: another process ended or cannot be reached|another task died", errors), errors

    # 2. One gets SIGTERM: both stop after the same step.
    processes = start_several(home, workdir, **SETTINGS)
    wait_for_rows(processes[0], workdir, len(rows(workdir)) + 1)
    processes[victim].terminate()
    ended = finish_several(processes)
    assert [status for status, _, _ in ended] == [EXIT_STATUS] * 2, ended
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert re.search(rf"stopped by .* at step {saved} ", ended[0][1]) and saved < LAST

    # 3. The same command again.
    ended = finish_several(start_several(home, workdir, **SETTINGS))
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert f"resumes after step {saved}\n" in ended[0][1]
    assert_same_run(workdir, undisturbed)
