"""States come back whole, on any number of devices; what is due is saved, and the right ones are kept."""

import dataclasses
import datetime
import errno
import functools
import json
import logging
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from croc_jax.checkpoints import Checkpointer, CheckpointError, manager
from croc_jax.checkpoints.best import Best
from croc_jax.checkpoints.restore import read_manifest
from croc_jax.losses import MaskedConfig, ObjectiveConfig
from croc_jax.training.run_config import EvaluationConfig, MeshConfig
from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import abstract_state
from tests.full_disk import no_file_beyond
from tests.training.tiny import STEPS_PER_EPOCH, tiny_recipe

# With all that a state can hold.
OBJECTIVE = ObjectiveConfig(masked=MaskedConfig(weight=1.0, prototypes=6))
RECIPE = tiny_recipe(backbone=dataclasses.replace(tiny_recipe().backbone, depth=1), objective=OBJECTIVE)


@functools.cache
def shapes(num_devices=1, recipe=RECIPE):
    if num_devices == "split":
        mesh = make_mesh(jax.devices(), MeshConfig(fsdp=4, model=2))
    else:
        mesh = make_mesh(jax.devices()[:num_devices])
        assert mesh.size == num_devices
    return abstract_state(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)


def state_at(step, num_devices=1):
    """Returns a state whose every number depends on the step, with a teacher unlike the student."""
    rng = np.random.default_rng(step)
    draw = lambda leaf: (10 * rng.normal(size=leaf.shape)).astype(leaf.dtype)  # noqa: E731
    arrays = jax.tree.map(draw, shapes(num_devices)).replace(step=np.int32(step))
    return jax.device_put(arrays, jax.tree.map(lambda leaf: leaf.sharding, shapes(num_devices)))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for leaf, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(leaf, expected)


def save(workdir, steps, *, num_devices=1, **options):
    saver = Checkpointer(workdir, RECIPE, **options)
    for step in steps:
        saver.save(step, state_at(step, num_devices))
    saver.close()


def restore(workdir, *, num_devices=1):
    saver = Checkpointer(workdir, RECIPE)
    state = saver.restore_latest(shapes(num_devices))
    saver.close()
    return state


def kept(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize(("before", "after"), [("split", 1), (1, "split")])
def test_restore_on_another_number_of_devices(tmp_path, before, after):
    save(tmp_path, [3], num_devices=before)
    state = restore(tmp_path, num_devices=after)
    assert_same(state, state_at(3))
    for leaf, target in zip(jax.tree.leaves(state), jax.tree.leaves(shapes(after)), strict=True):
        assert leaf.sharding == target.sharding
        assert len(leaf.sharding.device_set) == (8 if after == "split" else after)


def test_save_copies_the_state_at_the_call(tmp_path):
    saver = Checkpointer(tmp_path, RECIPE)
    state = state_at(1)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    saver.save(1, state)
    for _ in range(5):
        state = overwrite(state)
    saver.close()
    assert_same(restore(tmp_path), state_at(1))


def test_the_latest_two_and_every_nth_are_kept(tmp_path):
    save(tmp_path, range(1, 6), keep_every_steps=2)
    assert kept(tmp_path) == [2, 4, 5]
    assert int(restore(tmp_path).step) == 5


def test_a_step_is_saved_once(tmp_path):
    saver = Checkpointer(tmp_path, RECIPE)
    assert saver.restore_latest(shapes()) is None
    assert saver.latest_step() is None and saver.latest_path() is None
    saver.save(4, state_at(4))
    saver.save(4, state_at(5), wait=True)
    assert saver.latest_path() == tmp_path / "checkpoints" / "4" and saver.latest_step() == 4
    saver.close()
    assert_same(restore(tmp_path), state_at(4))


def test_an_interrupted_save_is_ignored_and_removed(tmp_path):
    save(tmp_path, [3])
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert_same(restore(tmp_path), state_at(3))
    save(tmp_path, [9])
    assert kept(tmp_path) == [3, 9]


def test_another_architecture_is_no_corruption(tmp_path):
    save(tmp_path, [3])
    wider = tiny_recipe(backbone=dataclasses.replace(RECIPE.backbone, width=12))
    saver = Checkpointer(tmp_path, wider)
    with pytest.raises(CheckpointError, match="another architecture: .* in the checkpoint, .* in this run and"):
        saver.restore_latest(shapes(recipe=wider))
    saver.close()
    assert kept(tmp_path) == [3]


def test_should_save_counts_steps_and_minutes(tmp_path, monkeypatch):
    now = manager._now()
    monkeypatch.setattr(manager, "_now", lambda: now)
    saver = Checkpointer(tmp_path, RECIPE, keep_every_steps=5, save_every_minutes=2)
    assert [step for step in range(1, 11) if saver.should_save(step)] == [5, 10]
    now += datetime.timedelta(minutes=1.9)
    assert not saver.should_save(11)
    now += datetime.timedelta(minutes=0.2)
    assert saver.should_save(11)
    saver.save(11, state_at(11), wait=True)
    assert not saver.should_save(12)
    now += datetime.timedelta(minutes=3)
    assert saver.should_save(12)
    monkeypatch.setattr(saver._manager, "is_saving_in_progress", lambda: True)
    assert not saver.should_save(12) and saver.should_save(15)
    saver.close()
    # Minutes count from the start of this process, not from a save before it.
    again = Checkpointer(tmp_path, RECIPE, save_every_minutes=2)
    assert not again.should_save(12)
    again.close()
    never = Checkpointer(tmp_path, RECIPE)
    now += datetime.timedelta(days=3)
    assert not never.should_save(12)
    never.close()


def test_too_little_space_raises_before_anything_is_written(tmp_path, monkeypatch):
    saver = Checkpointer(tmp_path, RECIPE)
    saver.save(3, state_at(3), wait=True)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**19))
        with pytest.raises(OSError, match=r"a checkpoint takes 1.1 MiB, and 0.5 MiB are free: .*checkpoints") as caught:
            saver.save(6, state_at(6))
    assert caught.value.errno == 28 and kept(tmp_path) == [3] and saver.latest_step() == 3
    saver.save(9, state_at(9), wait=True)
    saver.close()
    assert_same(restore(tmp_path), state_at(9))


@pytest.mark.parametrize(("wait", "step"), [(True, 20), (False, 6)])
def test_a_failed_save_raises_and_the_next_one_succeeds(tmp_path, wait, step):
    saver = Checkpointer(tmp_path, RECIPE)
    saver.save(3, state_at(3), wait=True)
    message = "the state of step 6 could not be saved: .*File too large"
    with no_file_beyond(1000), pytest.raises(OSError, match=message) as caught:
        saver.save(6, state_at(6), wait=wait)
        saver.save(8, state_at(8))
    assert caught.value.errno == errno.EFBIG
    assert saver.latest_step() == 3 and saver.latest_path() == tmp_path / "checkpoints" / "3"
    saver.save(step, state_at(step), wait=True)
    saver.close()
    assert kept(tmp_path) == [3, step]
    assert_same(restore(tmp_path), state_at(step))


def test_close_raises_what_failed_in_the_background(tmp_path):
    saver = Checkpointer(tmp_path, RECIPE)
    with no_file_beyond(1000):
        saver.save(6, state_at(6))
        with pytest.raises(OSError, match="step 6 could not be saved"):
            saver.close()
        saver.close()


def test_a_folder_that_cannot_be_written_is_an_error_at_once(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(FileExistsError):
        Checkpointer(tmp_path, RECIPE)
    (tmp_path / "checkpoints").unlink()
    saver = Checkpointer(tmp_path, RECIPE)
    monkeypatch.setattr(manager.os, "access", lambda *args: False)
    monkeypatch.setattr(saver._manager, "save", pytest.fail)
    with pytest.raises(PermissionError, match="cannot write checkpoints: .*checkpoints"):
        saver.save(6, state_at(6))
    saver.close()


def test_what_one_process_cannot_write_none_saves(tmp_path, monkeypatch):
    saver = Checkpointer(tmp_path, RECIPE)
    monkeypatch.setattr(manager.multihost_utils, "process_allgather", lambda number: np.array([number, 30]))
    monkeypatch.setattr(saver._manager, "save", pytest.fail)
    with pytest.raises(OSError, match="process 1 cannot write checkpoints; see its log") as caught:
        saver.save(6, state_at(6))
    assert caught.value.errno == 30
    saver.close()


def test_save_backbone_needs_a_new_folder(tmp_path):
    backbone = state_at(3).teacher["backbone"]
    assert manager.save_backbone(backbone, RECIPE, step=3, workdir=tmp_path).name == "3"
    with pytest.raises(CheckpointError, match="has checkpoints already"):
        manager.save_backbone(backbone, RECIPE, step=3, workdir=tmp_path)


def test_nothing_is_logged_where_all_is_well(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        save(tmp_path, [3, 6])
        restore(tmp_path)
    # Writers of failed saves in other tests may complain to asyncio at any time.
    assert [record.getMessage() for record in caplog.records if record.name != "asyncio"] == []


def test_the_best_is_kept_and_known_again_after_a_restart(tmp_path):
    recipe = dataclasses.replace(RECIPE, evaluation=EvaluationConfig(best="knn_top1"))

    def note(saver, step, **scores):
        saver.note_scores(step, scores)
        due = saver.should_save(step)
        saver.save(step, state_at(step), wait=True)
        return due

    def best():
        return json.loads((tmp_path / "best.json").read_text())

    saver = Checkpointer(tmp_path, recipe)
    assert saver.best() is None and not (tmp_path / "best.json").exists()
    assert note(saver, 1, knn_top1=40.5, other=9.0) and note(saver, 2, knn_top1=60.25)
    assert not note(saver, 3, knn_top1=50.0) and not note(saver, 4, other=99.0) and not note(saver, 5)
    saver.close()
    assert kept(tmp_path) == [2, 4, 5]
    assert best() == {"score": "knn_top1", "value": 60.25, "step": 2, "checkpoint": "checkpoints/2"}
    assert read_manifest(tmp_path / "checkpoints" / "2")["scores"] == {"knn_top1": 60.25}

    again = Checkpointer(tmp_path, recipe)
    assert again.best() == Best(**best())
    assert not note(again, 6, knn_top1=60.0) and not note(again, 7) and kept(tmp_path) == [2, 6, 7]
    # A save that fails is no best.
    again.note_scores(8, {"knn_top1": 80.0})
    with no_file_beyond(1000), pytest.raises(OSError, match="File too large"):
        again.save(8, state_at(8), wait=True)
    assert again.best() == Best(**best()) and note(again, 9, knn_top1=70.0)
    again.close()
    assert best()["step"] == 9 and kept(tmp_path) == [7, 9]

    # Another score decides: of what the checkpoints have, and nothing is said where none has it.
    for name in ("other", ""):
        other = Checkpointer(tmp_path, dataclasses.replace(RECIPE, evaluation=EvaluationConfig(best=name)))
        assert other.best() is None and not (tmp_path / "best.json").exists()
        other.close()
