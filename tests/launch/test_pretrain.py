"""The pre-training program as one runs it: ends, kills, resumption, and mistakes."""

import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from croc_jax.runtime.stopping import EX_TEMPFAIL
from PIL import Image

from croc_jax.checkpoints import Checkpointer
from croc_jax.runtime.workdir import read_recipe
from croc_jax.training.sharding import make_mesh
from croc_jax.training.start import abstract_state

ROOT = Path(__file__).resolve().parents[2]
STEPS_PER_EPOCH, EPOCHS = 3, 10
LAST = STEPS_PER_EPOCH * EPOCHS
TIMING = ["step_seconds", "step_seconds_p95", "step_seconds_max", "host_seconds", "straggler", "straggler_excess"]
LOGGED = [1, *range(2, LAST + 1, 2)]
OVERRIDES = {
    "backbone.width": 16,
    "backbone.depth": 1,
    "backbone.num_heads": 2,
    "head.hidden_dim": 16,
    "head.bottleneck_dim": 8,
    "head.num_prototypes": 16,
    "head.num_prototypes_dense": 16,
    "clustering.k_start": 3,
    "clustering.k_max": 3,
    "data.views.crop_size": 16,
    "optimizer.base_lr": 0.01,
    "optimizer.warmup_epochs": 2,
    "schedule.batch_size": 8,
    "schedule.epochs": EPOCHS,
    "runtime.log_every_steps": 2,
    "runtime.checkpoint_every_minutes": 0,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with 24 images and a cache of compiled programs."""
    folder = tmp_path_factory.mktemp("pretrain")
    fill_home(folder)
    return folder


def fill_home(folder):
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(STEPS_PER_EPOCH * 8):
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.png")


def start(home, workdir, *arguments, devices=1, **changes):
    """Starts the program; `changes` are fields of the recipe, with __ for a dot."""
    fields = OVERRIDES | {name.replace("__", "."): value for name, value in changes.items()}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }
    program = [sys.executable, "launch/pretrain.py", "--config=configs/demo.py", f"--workdir={workdir}"]
    command = [*program, f"--config.data.folders={home / 'photos'}", *flags, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    """Returns status, standard output and standard error."""
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def rows(workdir):
    path = Path(workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_rows(process, workdir, count):
    """Waits until so many rows are logged; the program must still be running."""
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        path = Path(workdir) / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.01)
    pytest.fail(f"{count} rows never came: {finish(process)}")


def last_state(workdir):
    recipe = read_recipe(Path(workdir) / "config.json")
    mesh = make_mesh(jax.devices()[:1])
    saver = Checkpointer(Path(workdir), recipe)
    state = saver.restore_latest(abstract_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh))
    saver.close()
    return state


def assert_same_run(workdir, reference):
    """Same final state, bit for bit, and each logged step once with the same numbers."""
    ours, theirs = last_state(workdir), last_state(reference)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for our_leaf, their_leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(our_leaf, their_leaf)
    timing = {"images_per_sec", "data_wait_fraction", *TIMING}
    for our_row, their_row in zip(rows(workdir), rows(reference), strict=True):
        assert {name: our_row[name] for name in our_row.keys() - timing} == {
            name: their_row[name] for name in their_row.keys() - timing
        }


@pytest.fixture(scope="module")
def uninterrupted(home):
    """A run from start to end, with a single save."""
    workdir = home / "uninterrupted"
    process = start(home, workdir, "--profile_steps=4:6", runtime__checkpoint_every_minutes=1000)
    status, output, errors = finish(process)
    assert status == 0, errors
    assert f"the trace of steps 4 to 5 is in {workdir / 'profile'}" in output
    assert f"finished at step {LAST}" in output and "starts anew" in output
    # Memory is told before there is anything in it.
    assert 0 < output.index("; a device needs ") < output.index("starts anew")
    return workdir


def test_a_run_leaves_config_metrics_and_checkpoint(home, uninterrupted):
    recipe = read_recipe(uninterrupted / "config.json")
    assert recipe.data.folders == (str(home / "photos"),) and recipe.backbone.width == 16
    assert [row["step"] for row in rows(uninterrupted)] == LOGGED
    keys = "step epoch loss loss_dense loss_global lr images_per_sec num_clusters valid_fraction teacher_entropy"
    for row in rows(uninterrupted):
        assert {*keys.split(), "teacher_entropy_c"} <= set(row) and row["epoch"] == row["step"] / 3
    assert [path.name for path in (uninterrupted / "checkpoints").iterdir()] == [str(LAST)]
    assert any((uninterrupted / "tensorboard").iterdir())
    assert re.fullmatch(r"process \d+ on .+\n", (uninterrupted / "lock").read_text())


def test_a_finished_run_is_told_without_compiling_anything(home, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    status, output, errors = finish(start(home, uninterrupted, runtime__checkpoint_every_minutes=1000))
    assert status == 0, errors
    assert f"finished at step {LAST}" in output and f"the last state is {uninterrupted}/checkpoints/{LAST}" in output
    assert "compiling" not in output and (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_weights_that_are_not_there_are_told_before_anything_is_compiled(home):
    process = start(home, home / "sourceless", init_from__source=f"{home}/nowhere.pth")
    status, output, errors = finish(process)
    assert status == 1 and "compiling" not in output
    assert errors.endswith(f"error: init_from.source={home}/nowhere.pth: there is no such file or folder\n")


def test_a_signal_while_another_process_has_the_workdir_ends_with_75(home):
    workdir = home / "taken-over"
    workdir.mkdir()
    with (workdir / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("process 1 on another host\n")
        held.flush()
        process = start(home, workdir)
        said = ""
        while "waiting a while for it to end" not in said:
            said = process.stderr.readline()
            assert said, finish(process)
        process.terminate()
        status, output, _ = finish(process)
    assert status == EX_TEMPFAIL and output == "stopped by SIGTERM before the start; there was nothing to save yet\n"
    assert not (workdir / "config.json").exists()


def test_kill_then_sigterm_then_the_end_equals_an_uninterrupted_run(home, uninterrupted):
    workdir = home / "interrupted"
    first = start(home, workdir)
    wait_for_rows(first, workdir, random.randint(1, 5))
    first.kill()
    assert finish(first)[0] == -signal.SIGKILL

    second = start(home, workdir)
    wait_for_rows(second, workdir, len(rows(workdir)) + 3)
    second.terminate()
    status, output, errors = finish(second)
    assert status == EX_TEMPFAIL, errors
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert f"stopped by SIGTERM at step {saved}" in output and "run the same command:\n  python " in output

    status, output, errors = finish(start(home, workdir))
    assert status == 0, errors
    assert f"resumes after step {saved}" in output
    assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_three_kills_at_random_moments_lose_nothing(home, uninterrupted):
    workdir = home / "killed"
    for _ in range(3):
        process = start(home, workdir)
        wait_for_rows(process, workdir, len(rows(workdir)) + 1)
        time.sleep(random.uniform(0, 0.2))
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    status, _, errors = finish(start(home, workdir))
    assert status == 0, errors
    assert_same_run(workdir, uninterrupted)


def assert_refused(process, *parts):
    status, output, errors = finish(process)
    assert status != 0 and "Traceback" not in output + errors
    message = errors[errors.index("error:") :]
    for part in parts:
        assert part in message
    return message


def test_a_workdir_of_another_config_is_refused_field_by_field(home, uninterrupted):
    before = (uninterrupted / "config.json").read_text()
    process = start(home, uninterrupted, optimizer__base_lr=0.5, schedule__epochs=7)
    message = assert_refused(
        process, "optimizer.base_lr: 0.01 there, 0.5 now", f"schedule.epochs: {EPOCHS} there, 7 now"
    )
    assert "runtime" not in message and (uninterrupted / "config.json").read_text() == before


def test_what_stands_in_the_way_of_a_file_is_one_line(home):
    workdir = home / "taken"
    (workdir / "metrics.jsonl").mkdir(parents=True)
    message = assert_refused(start(home, workdir), "Is a directory", f"{workdir}/metrics.jsonl", "no state has been")
    assert message.count("\n") == 1


def test_an_unknown_field_gets_a_hint(home):
    process = start(home, home / "unknown", "--config.schedule.epoch=3")
    message = assert_refused(process, "--config.schedule.epoch", "did you mean epochs?")
    assert message.count("\n") == 1 and not (home / "unknown").exists()


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_sizes(home):
    assert_refused(start(home, home / "odd", devices=3), "batch_size=8", "6 or 9")
    assert not (home / "odd").exists()


def test_numbers_that_blow_up_end_the_run_with_advice(home):
    workdir = home / "blown-up"
    message = assert_refused(start(home, workdir, optimizer__base_lr=1e38, optimizer__warmup_epochs=1))
    step = int(message.split("step ")[1].split(":")[0])
    saved = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    assert max(saved) == step - 1
    assert f"The last good checkpoint is {workdir / 'checkpoints' / str(step - 1)}" in message
    assert "--config.optimizer.base_lr=" in message and "float32" in message


def test_a_run_leaves_a_trace_and_numbers_for_prometheus(home, uninterrupted):
    assert list((uninterrupted / "profile").rglob("*.xplane.pb"))
    assert f'croc_step{{run="uninterrupted"}} {LAST}.0' in (uninterrupted / "metrics.prom").read_text().splitlines()


def test_steps_to_trace_that_never_come_are_refused(home):
    status, _, errors = finish(start(home, home / "untraced", f"--profile_steps=5:{LAST + 2}"))
    assert status == 1 and f"STOP is {LAST + 1} at most in a run of {LAST} steps" in errors
    assert not (home / "untraced").exists()


def test_a_collapse_ends_a_run_that_asks_for_it_and_its_state_is_saved(home):
    changes = {"window": 2, "grace_steps": 0, "min_feature_rank": 100.0, "stop_on_collapse": True}
    changes = {f"runtime__watchdog__{name}": value for name, value in changes.items()}
    status, output, errors = finish(start(home, home / "collapsed", runtime__checkpoint_every_minutes=1000, **changes))
    # The warm-up ends at step 6; the rows of 6 and 8 are looked at, and the step under way is finished.
    assert status == 1 and "warning: step 8: the teacher's [CLS] tokens lie on a line" in output
    assert "error: step 9: training has collapsed" in errors and errors.rstrip().endswith("checkpoints/9")
    assert int(last_state(home / "collapsed").step) == 9
