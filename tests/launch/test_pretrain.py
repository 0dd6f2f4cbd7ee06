"""The pre-training program as one runs it: ends, kills, resumption, and errors."""

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from croc_jax.checkpoints import Checkpointer
from croc_jax.checkpoints.restore import read_manifest
from croc_jax.evaluation.inside import read_inside
from croc_jax.evaluation.interval import SECONDS
from croc_jax.runtime.preemption import EXIT_STATUS
from croc_jax.runtime.workdir import read_recipe
from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import abstract_state

ROOT = Path(__file__).resolve().parents[2]
STEPS_PER_EPOCH, EPOCHS = 3, 6
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
    # On a machine that is busy, the time for an evaluation might come.
    "evaluation.max_share": 1e-6,
    "evaluation.pictures": 0,
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


def start(home, workdir, *arguments, devices=1, patch="", photos="photos", **changes):
    """Starts the program; `changes` are settings, with __ for a dot, and `patch` is code that runs first."""
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
    program = ["launch/pretrain.py"]
    if patch:
        run = (
            "import runpy, sys; sys.path.insert(0, 'launch'); runpy.run_path('launch/pretrain.py', run_name='__main__')"
        )
        program = ["-c", f"{patch}; {run}"]
    program += ["--config=configs/demo.py", f"--workdir={workdir}"]
    command = [sys.executable, *program, f"--config.data.folders={home / photos}", *flags, *arguments]
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
    checkpointer = Checkpointer(Path(workdir), recipe)
    state = checkpointer.restore_latest(abstract_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh))
    checkpointer.close()
    return state


def assert_same_run(workdir, reference):
    """Asserts the same final state, bit for bit, and each logged step once with the same numbers but for scores."""
    ours, theirs = last_state(workdir), last_state(reference)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for our_leaf, their_leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(our_leaf, their_leaf)
    timing = {"images_per_sec", "data_wait_fraction", *TIMING}
    for our_row, their_row in zip(rows(workdir), rows(reference), strict=True):
        # The scores of an evaluation follow its seconds.
        pairs = [itertools.takewhile(lambda pair: pair[0] != SECONDS, row.items()) for row in (our_row, their_row)]
        ours, theirs = ({name: value for name, value in row if name not in timing} for row in pairs)
        assert ours == theirs


@pytest.fixture(scope="module")
def uninterrupted(home):
    """A run from start to end, with a single save."""
    workdir = home / "uninterrupted"
    process = start(home, workdir, "--profile_steps=4:6", runtime__checkpoint_every_minutes=1000)
    status, output, errors = finish(process)
    assert status == 0, errors
    assert f"the trace of steps 4 to 5 is in {workdir / 'profile'}" in output
    assert f"finished at step {LAST}" in output and "starts from scratch" in output
    assert "memory of a device: " in output and "no evaluation since the start, as the run was short" in output
    return workdir


def test_a_run_leaves_config_metrics_checkpoint_and_trace(home, uninterrupted):
    recipe, images = read_recipe(uninterrupted / "config.json"), json.loads((uninterrupted / "images.json").read_text())
    assert images["count"] == 24 and images["steps_per_epoch"] == 3
    saved = read_manifest(uninterrupted / "checkpoints" / str(LAST))
    assert saved["images"] == {"count": 24, "digest": images["digest"]} and saved["devices"] == "1 cpu"
    assert saved["versions"]["jax"] == jax.__version__
    assert recipe.data.folders == (str(home / "photos"),) and recipe.backbone.width == 16
    assert [row["step"] for row in rows(uninterrupted)] == LOGGED
    keys = "step epoch loss loss_dense loss_global lr images_per_sec num_clusters valid_fraction teacher_entropy"
    for row in rows(uninterrupted):
        assert {*keys.split(), "teacher_entropy_c"} <= set(row) and row["epoch"] == row["step"] / 3
        assert row["images_per_sec"] > 0 and 0 <= row["data_wait_fraction"] <= 1 and row["skipped"] == 0
    assert [path.name for path in (uninterrupted / "checkpoints").iterdir() if path.name.isdigit()] == [str(LAST)]
    assert any((uninterrupted / "tensorboard").iterdir()) and list((uninterrupted / "profile").rglob("*.xplane.pb"))
    assert re.fullmatch(r"process \d+ on .+\n", (uninterrupted / "lock").read_text())
    assert f'croc_step{{run="uninterrupted"}} {LAST}.0' in (uninterrupted / "metrics.prom").read_text().splitlines()


def test_scores_along_a_run_keep_its_best_checkpoint_and_change_none_of_its_numbers(home, uninterrupted):
    for split in ("train", "val"):
        for name in ("one", "other"):
            (home / "classes" / split / name).mkdir(parents=True)
            # Copies: a split that is scored on the very files of another one is refused.
            shutil.copy(home / "photos" / "0.png", home / "classes" / split / name)
    flags = ["--eval_config=configs/eval/knn.py", "--eval_every_epochs=2", f"--eval_config.dataset.root={home}/classes"]
    flags += ["--eval_config.knn.image_size=16", "--eval_config.knn.resize=16"]
    settings = {"runtime__checkpoint_every_minutes": 1000, "evaluation__best": "unlabeled_rank"}
    settings |= {"evaluation__pictures": 2, "evaluation__pictures_every_epochs": 4}
    workdir = home / "evaluated"
    status, output, errors = finish(start(home, workdir, *flags, **settings))
    assert status == 0, errors
    # The same image in both classes: one of two neighbors is right.
    scored = [row for row in rows(workdir) if "knn_top1" in row]
    assert [(row["step"], row["epoch"], row["knn_top1"]) for row in scored] == [
        (6, 2.0, 50.0), (12, 4.0, 50.0), (18, 6.0, 50.0)
    ]  # fmt: skip
    assert all(row[SECONDS] > 0 and 0 <= row["unlabeled_retrieval"] <= 100 for row in scored)
    assert_same_run(workdir, uninterrupted)
    rank, step = max((row["unlabeled_rank"], row["step"]) for row in scored)
    best = {"score": "unlabeled_rank", "value": rank, "step": step, "checkpoint": f"checkpoints/{step}"}
    assert json.loads((workdir / "best.json").read_text()) == best and rank > 1
    assert f"; the best by unlabeled_rank ({rank:.4g}) is {workdir}/checkpoints/{step}\n" in output
    assert read_manifest(workdir / "checkpoints" / str(step))["scores"]["unlabeled_rank"] == rank
    assert output.count("of the time since the start") == 3
    inside = read_inside(workdir / "inside")
    assert [(step, float(one.epoch)) for step, one in inside.moments.items()] == [(0, 0), (12, 4), (18, 6)]
    assert inside.crops.views.shape == (2, 2, 32, 32, 3) and not (uninterrupted / "inside").exists()
    first, _, last = inside.moments.values()
    assert (first.costs != last.costs).any()


def test_a_finished_run_says_so_and_compiles_nothing_wherever_its_images_lie(home, uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    shutil.copytree(home / "photos", home / "scratch")
    status, output, errors = finish(
        start(home, uninterrupted, photos="scratch", runtime__checkpoint_every_minutes=1000)
    )
    assert status == 0, errors
    assert output.startswith(f"data.folders was ('{home}/photos',), is ('{home}/scratch',); the same images\n")
    assert f"finished at step {LAST}; the last state is {uninterrupted}/checkpoints/{LAST}" in output
    assert "compiling" not in output and (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_kill_then_sigterm_then_the_end_equals_an_uninterrupted_run(home, uninterrupted):
    workdir = home / "interrupted"
    first = start(home, workdir)
    wait_for_rows(first, workdir, random.randint(1, 3))
    first.kill()
    assert finish(first)[0] == -signal.SIGKILL

    second = start(home, workdir)
    wait_for_rows(second, workdir, len(rows(workdir)) + 2)
    second.terminate()
    status, output, errors = finish(second)
    assert status == EXIT_STATUS, errors
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    assert f"stopped by SIGTERM at step {saved}" in output and "run the same command:\n  python " in output

    status, output, errors = finish(start(home, workdir))
    assert status == 0, errors
    assert f"resumes after step {saved}" in output
    assert_same_run(workdir, uninterrupted)


def contents(workdir):
    return {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file() and path.name != "lock"}


def test_an_error_of_the_file_system_asks_for_another_start_and_changes_nothing(home, uninterrupted):
    before = contents(uninterrupted / "checkpoints"), (uninterrupted / "metrics.jsonl").read_bytes()
    patch = (
        "import croc_jax.checkpoints.manager as m; stale = OSError(116, 'Stale file handle'); "
        "m.Checkpointer.restore_latest = lambda *_: (_ for _ in ()).throw(stale)"
    )
    status, _, errors = finish(start(home, uninterrupted, patch=patch, runtime__checkpoint_every_minutes=1000))
    assert status == EXIT_STATUS and "Traceback" not in errors
    assert errors.endswith("error: [Errno 116] Stale file handle: run the same command again once the disk answers\n")
    assert (contents(uninterrupted / "checkpoints"), (uninterrupted / "metrics.jsonl").read_bytes()) == before


def test_a_disk_that_is_full_at_the_last_save_ends_the_run_with_what_to_do(home):
    patch = (
        "import croc_jax.checkpoints.manager as m; full = OSError(28, 'No space left on device'); "
        "m.Checkpointer.save = lambda *_, **__: (_ for _ in ()).throw(full)"
    )
    status, _, errors = finish(start(home, home / "full", patch=patch))
    assert status == 1 and "step 1 is not saved: [Errno 28] No space left on device; training continues" in errors
    assert "free space on that disk, and run the same command again" in errors.splitlines()[-1]


def test_numbers_that_blow_up_end_the_run_with_advice(home):
    patch = "import croc_jax.training.loop as loop; loop._is_finite = lambda state: int(state.step) < 4"
    status, _, errors = finish(start(home, home / "blown-up", patch=patch, runtime__keep_every_epochs=1))
    assert status == 1 and "Traceback" not in errors and "try --config.optimizer.base_lr=0.005 (now 0.01)" in errors
    last_line = errors.splitlines()[-1]
    assert re.match("error: step [456]: the state has values that are not finite; the run stops.", last_line)
    assert last_line.endswith(f"; the last state is {home / 'blown-up' / 'checkpoints' / '3'}")
