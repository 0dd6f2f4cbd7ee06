"""States come back whole, on any number of devices, or are refused."""

import dataclasses
import functools
import json
import logging
import random

import jax
import numpy as np
import pytest

from croc_jax.checkpoints import Checkpointer, CheckpointError, manager, manifest, restore_backbone
from croc_jax.checkpoints.restore import saved_recipe
from croc_jax.training.config import MeshConfig
from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import abstract_state, fresh_state
from tests.training.tiny import STEPS_PER_EPOCH, tiny_recipe

RECIPE = tiny_recipe(backbone=dataclasses.replace(tiny_recipe().backbone, depth=1))


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


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for our_leaf, their_leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert our_leaf.dtype == their_leaf.dtype
        np.testing.assert_array_equal(our_leaf, their_leaf)


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


@pytest.mark.parametrize(("before", "after"), [(1, 1), (8, 1), (1, 8), (8, 8), ("split", 1), (8, "split")])
def test_a_state_comes_back_on_any_number_of_devices(tmp_path, before, after):
    save(tmp_path, [3], num_devices=before)
    state = restore(tmp_path, num_devices=after)
    assert_same(state, state_at(3))
    for leaf, target in zip(jax.tree.leaves(state), jax.tree.leaves(shapes(after)), strict=True):
        assert leaf.sharding == target.sharding
        assert len(leaf.sharding.device_set) == (8 if after == "split" else after)


def test_a_fresh_state_has_the_shapes_that_are_restored_into():
    mesh = make_mesh(jax.devices()[:1])
    state = fresh_state(RECIPE, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    describe_leaf = lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding)  # noqa: E731
    assert jax.tree.map(describe_leaf, state) == jax.tree.map(describe_leaf, shapes())
    assert int(state.step) == 0


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    saver = Checkpointer(tmp_path, RECIPE)
    state = state_at(1)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    saver.save(1, state)
    for _ in range(5):
        state = overwrite(state)
    saver.close()
    assert_same(restore(tmp_path), state_at(1))


def test_nothing_saved_gives_nothing(tmp_path):
    saver = Checkpointer(tmp_path, RECIPE)
    assert saver.restore_latest(shapes()) is None
    assert saver.latest_step() is None and saver.latest_path() is None
    saver.close()


def test_the_latest_two_and_the_regular_ones_are_kept(tmp_path):
    save(tmp_path, range(1, 9), keep_every_steps=3)
    assert kept(tmp_path) == [3, 6, 7, 8]
    assert int(restore(tmp_path).step) == 8


def test_a_step_is_saved_once(tmp_path):
    saver = Checkpointer(tmp_path, RECIPE)
    saver.save(4, state_at(4))
    saver.save(4, state_at(5), wait=True)
    assert saver.latest_path() == tmp_path / "checkpoints" / "4"
    saver.close()
    assert_same(restore(tmp_path), state_at(4))


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_bits(path, seed=0):
    rng, octets = random.Random(seed), bytearray(path.read_bytes())
    for _ in range(3):
        octets[rng.randrange(len(octets))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(octets))


def empty(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


DAMAGE = {
    "bits of the arrays": lambda folder: flip_bits(largest_file(folder)),
    "bits of the metadata": lambda folder: flip_bits(folder / "metadata" / "metadata"),
    "half of the arrays": lambda folder: largest_file(folder).write_bytes(b"x" * 100),
    "no index": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
    "no metadata": lambda folder: (folder / "metadata" / "metadata").unlink(),
    "no files": empty,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, kind, caplog, capfd):
    save(tmp_path, [3, 6])
    bad = tmp_path / "checkpoints" / "6"
    DAMAGE[kind](bad)
    saver = Checkpointer(tmp_path, RECIPE)
    with caplog.at_level(logging.WARNING):
        state = saver.restore_latest(shapes())
    assert_same(state, state_at(3))
    warnings = [text for text in caplog.messages if "skipping the damaged" in text]
    assert len(warnings) == 1 and f"damaged checkpoint {bad}: " in warnings[0]
    assert "Traceback" not in capfd.readouterr().err
    # The run comes by the same step again.
    saver.save(6, state_at(6))
    saver.close()
    assert_same(restore(tmp_path), state_at(6))
    assert [path.name for path in (tmp_path / "damaged-checkpoints").iterdir()] == ["6"]


def test_if_all_are_damaged_the_run_does_not_silently_start_anew(tmp_path):
    save(tmp_path, [3, 6])
    for path in (tmp_path / "checkpoints").iterdir():
        empty(path)
    with pytest.raises(CheckpointError, match=r"checkpoints/6.*checkpoints/3.*no whole one is left"):
        restore(tmp_path)
    assert kept(tmp_path) == [3, 6]


def test_another_architecture_is_an_error_and_no_damage(tmp_path):
    save(tmp_path, [3])
    wider = tiny_recipe(backbone=dataclasses.replace(RECIPE.backbone, width=12))
    saver = Checkpointer(tmp_path, wider)
    with pytest.raises(CheckpointError, match="another architecture: .* there and .* here and"):
        saver.restore_latest(shapes(recipe=wider))
    saver.close()
    assert kept(tmp_path) == [3]


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/6"])
@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_backbone_comes_back_from_a_workdir_or_a_checkpoint(tmp_path, place, which):
    save(tmp_path, [3, 6])
    recipe, params, step = restore_backbone(tmp_path / place, which=which)
    assert (recipe, step) == (RECIPE, 6)
    assert_same(params, getattr(state_at(6), which)["backbone"])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_an_older_checkpoint_can_be_asked_for(tmp_path):
    save(tmp_path, [3, 6])
    _, params, step = restore_backbone(str(tmp_path / "checkpoints" / "3"))
    assert step == 3
    assert_same(params, state_at(3).teacher["backbone"])


def test_an_evaluation_passes_over_damage_but_moves_nothing(tmp_path):
    save(tmp_path, [3, 6])
    empty(tmp_path / "checkpoints" / "6")
    assert restore_backbone(tmp_path)[2] == 3
    assert kept(tmp_path) == [3, 6]
    with pytest.raises(CheckpointError, match="damaged: .*checkpoints/6"):
        restore_backbone(tmp_path / "checkpoints" / "6")


@pytest.mark.parametrize(
    ("folders", "place", "message"),
    [
        ([], "nowhere", "nowhere does not exist"),
        (["photos"], "photos", "photos is not a workdir: it has no folder checkpoints"),
        (["run/checkpoints"], "run", "no checkpoint in .*run/checkpoints"),
        (["run/checkpoints/9.orbax-checkpoint-tmp"], "run/checkpoints", "no checkpoint in"),
    ],
)
def test_a_wrong_path_is_explained_in_one_line(tmp_path, folders, place, message):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=message) as failure:
        restore_backbone(tmp_path / place)
    assert "\n" not in str(failure.value)


def test_neither_teacher_nor_student_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="which='both'"):
        restore_backbone(tmp_path, which="both")


def test_a_checkpoint_of_another_version_is_an_error_and_no_damage(tmp_path, monkeypatch):
    def describe_of_the_future(*args):
        content = manifest.describe(*args)
        content["recipe"]["backbone"]["registers"] = 4
        del content["digest"]
        return {**content, "digest": manifest._digest(content)}

    monkeypatch.setattr(manager, "describe", describe_of_the_future)
    save(tmp_path, [3])
    with pytest.raises(CheckpointError, match="of another version: unknown field backbone.registers"):
        restore_backbone(tmp_path)


def test_the_recipe_of_a_run_is_that_of_its_newest_readable_checkpoint(tmp_path):
    assert saved_recipe(tmp_path) is None
    save(tmp_path, [3])
    assert saved_recipe(tmp_path) == RECIPE
    (tmp_path / "checkpoints" / "6" / "metadata").mkdir(parents=True)
    assert saved_recipe(tmp_path) == RECIPE
    flip_bits(tmp_path / "checkpoints" / "3" / "metadata" / "metadata")
    assert saved_recipe(tmp_path) is None


def test_metadata_say_what_the_run_was(tmp_path):
    save(tmp_path, [3])
    content = json.loads((tmp_path / "checkpoints" / "3" / "metadata" / "metadata").read_text())
    assert content["step"] == 3 and content["recipe"]["schedule"]["batch_size"] == 8
    assert content["arrays"]["center"]["shape"] == [RECIPE.head.num_prototypes]
