"""Runs start from the weights of others."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from croc_jax.checkpoints.init_from import _load_backbone, check_architecture, check_source, init_from
from croc_jax.checkpoints.official import export_run, load_networks
from croc_jax.checkpoints.rgb_filters import spread_filters
from croc_jax.losses import MaskedConfig
from croc_jax.models import BackboneConfig
from croc_jax.models.position_embedding import resize_position_embedding
from croc_jax.training.config import InitConfig
from croc_jax.training.forward import make_networks
from croc_jax.training.sharding import make_mesh, replicated
from tests.checkpoints.tiny_weights import dinov3_weights, equal_trees, official_weights, save_run, write
from tests.training.tiny import first_state as first_numbers
from tests.training.tiny import tiny_recipe


def with_init(recipe, **settings):
    return dataclasses.replace(recipe, init_from=InitConfig(**{k: str(v) for k, v in settings.items()}))


def start(recipe):
    return init_from(recipe, fresh(dataclasses.replace(recipe, init_from=InitConfig())))


@functools.cache
def fresh(recipe):
    """Returns a state before the first step, on two devices."""
    return jax.device_put(first_numbers(recipe), replicated(make_mesh(jax.devices()[:2])))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run, and its state."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, save_run(workdir, tiny_recipe(), 9)


def test_without_a_source_a_run_starts_anew():
    assert start(tiny_recipe()) is fresh(tiny_recipe())


def test_both_networks_and_the_centers_are_restored(run):
    workdir, saved = run
    state = start(with_init(tiny_recipe(), source=workdir, parts="networks"))
    for name in ("student", "teacher", "center", "center_dense"):
        equal_trees(getattr(state, name), getattr(saved, name))
    assert int(state.step) == 0 and all(leaf.sharding.num_devices == 2 for leaf in jax.tree.leaves(state.student))
    equal_trees(state.opt_state, start(tiny_recipe()).opt_state)


def test_what_masked_patches_need_is_taken_over_or_made_or_left_out(run, tmp_path):
    plain = tiny_recipe()
    objective = dataclasses.replace(plain.objective, masked=MaskedConfig(weight=1.0, prototypes=6))
    masked = dataclasses.replace(plain, objective=objective)
    saved = save_run(tmp_path, masked, 9)
    state = start(with_init(masked, source=tmp_path, parts="networks"))
    for name in ("student", "center_masked"):
        equal_trees(getattr(state, name), getattr(saved, name))
    fewer = start(with_init(plain, source=tmp_path, parts="networks")).teacher
    equal_trees(fewer["backbone"], saved.teacher["backbone"])
    assert set(fewer) == {"backbone", "head"} and "last_layer_masked" not in fewer["head"]
    lines = []
    settings = with_init(masked, source=run[0], parts="networks")
    more = init_from(settings, fresh(masked), log=lines.append).student
    equal_trees(more["backbone"], run[1].student["backbone"])
    equal_trees(more["head"]["last_layer_masked"], fresh(masked).student["head"]["last_layer_masked"])
    assert lines == [
        f"{run[0]} has no head for masked patches: that layer, its center and the mask token are initialized"
    ]
    equal_trees(start(with_init(masked, source=run[0])).teacher["backbone"], run[1].teacher["backbone"])
    # The official code has no names for them.
    after = load_networks(export_run(tmp_path, tmp_path / "run.safetensors"), num_heads=2)
    equal_trees(after.teacher, fewer)
    assert after.arrays().keys() == load_networks(tmp_path).arrays().keys()


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_a_backbone_gets_new_heads(run, which):
    workdir, saved = run
    state, fresh = start(with_init(tiny_recipe(), source=workdir, which=which)), start(tiny_recipe())
    for network in (state.student, state.teacher):
        equal_trees(network["backbone"], getattr(saved, which)["backbone"])
        equal_trees(network["head"], fresh.student["head"])
    equal_trees(state.center, fresh.center)


def test_position_embeddings_fit_other_crops(run):
    workdir, saved = run
    recipe = tiny_recipe()
    views = dataclasses.replace(recipe.data.views, crop_size=40)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, views=views))
    state = start(with_init(recipe, source=workdir))
    theirs = saved.teacher["backbone"]["position_embedding"]
    expected = resize_position_embedding(theirs, (3, 3), (5, 5))
    np.testing.assert_allclose(state.student["backbone"]["position_embedding"], expected, atol=1e-6)


def test_another_architecture_is_answered_with_the_flags_that_fit(run):
    recipe = tiny_recipe()
    other = dataclasses.replace(recipe.backbone, depth=3, layer_scale=True)
    with pytest.raises(ValueError, match="add --config.backbone.depth=2 --config.backbone.layer_scale=False"):
        start(with_init(dataclasses.replace(recipe, backbone=other), source=run[0]))
    # The run would see other colors than the weights did.
    other = dataclasses.replace(recipe.backbone, image_mean=(0.5, 0.25, 0.5))
    with pytest.raises(ValueError, match="add --config.backbone.image_mean=0.485,0.456,0.406$"):
        start(with_init(dataclasses.replace(recipe, backbone=other), source=run[0]))
    # A lone file says nothing of colors: those of the run hold.
    check_architecture(recipe.backbone, other, run[0], guessed=("image_mean", "image_std"))
    head = dataclasses.replace(recipe.head, num_prototypes=13)
    with pytest.raises(ValueError, match=r"center is \(12,\), expected \(13,\).*config.head"):
        start(with_init(dataclasses.replace(recipe, head=head), source=run[0], parts="networks"))


def test_mistakes_are_named_before_weights_are_read(run, tmp_path):
    recipe = tiny_recipe()
    check_source(recipe)
    check_source(with_init(recipe, source=run[0]))
    with pytest.raises(FileNotFoundError, match=r"init_from.source=.*nowhere.pth: there is no such file or folder"):
        check_source(with_init(recipe, source=tmp_path / "nowhere.pth"))
    (tmp_path / "weights.ckpt").write_bytes(b"<!DOCTYPE html>")
    for source, message in (
        (tmp_path / "weights.ckpt", "is a web page"),
        (tmp_path, "is no checkpoint: .*name one of its files: weights.ckpt"),
        ("https://a/b.pth", "init_from.source=https://a/b.pth"),
    ):
        with pytest.raises(ValueError, match=message):
            check_source(with_init(recipe, source=source))
    for settings in ({"parts": "heads"}, {"which": "ema"}):
        with pytest.raises(ValueError, match=f"init_from.{next(iter(settings))}="):
            InitConfig(**settings)


def with_registers(folder, *, side):
    """Writes a backbone as DINOv2 with registers, whose position embedding is resized in a way of its own."""
    weights = official_weights() | {"register_tokens": np.ones((1, 4, 64), np.float32)}
    weights["pos_embed"] = np.random.default_rng(1).standard_normal((1, side**2 + 1, 64)).astype(np.float32)
    for block in range(2):
        weights |= {f"blocks.{block}.ls{n}.gamma": np.ones(64, np.float32) for n in (1, 2)}
    return write(folder / "dinov2.safetensors", weights), weights["pos_embed"]


def test_position_embeddings_are_resized_as_where_they_come_from(tmp_path):
    file, embedding = with_registers(tmp_path, side=5)
    backbone = BackboneConfig(
        width=64, depth=2, num_heads=1, patch_size=4, mlp_ratio=2.0, num_registers=4, layer_scale=True, dtype="float32"
    )
    with pytest.raises(ValueError, match="add --config.backbone.position_resizing=antialias$"):
        start(with_init(tiny_recipe(backbone=backbone), source=file))
    recipe = tiny_recipe(backbone=dataclasses.replace(backbone, position_resizing="antialias"))
    state = start(with_init(recipe, source=file))
    expected = resize_position_embedding(embedding, (5, 5), (6, 6), resizing="antialias")
    np.testing.assert_allclose(state.student["backbone"]["position_embedding"], expected, atol=1e-6)
    other = resize_position_embedding(embedding, (5, 5), (6, 6))
    assert np.abs(expected - other).max() > 0.1


def test_position_embeddings_keep_all_their_places_if_asked(tmp_path):
    file, embedding = with_registers(tmp_path, side=5)
    backbone = BackboneConfig(
        width=64, depth=2, num_heads=1, patch_size=4, mlp_ratio=2.0, num_registers=4, layer_scale=True,
        position_resizing="antialias", position_size=20, dtype="float32",
    )  # fmt: skip
    recipe = tiny_recipe(backbone=backbone)
    state = start(with_init(recipe, source=file))
    np.testing.assert_array_equal(state.student["backbone"]["position_embedding"], embedding)
    assert make_networks(recipe).backbone.grid_size == 5
    # From one run to the next.
    saved = save_run(tmp_path / "first", recipe, 1)
    state = start(with_init(recipe, source=tmp_path / "first"))
    equal_trees(state.student["backbone"], saved.teacher["backbone"])
    for changes, message in (
        ({"position_size": 22}, "position_size=22: whole patches of 4 pixels must tile it"),
        ({"positions": "rope"}, "position_size=20: rotations learn no places; leave it out"),
    ):
        with pytest.raises(ValueError, match=message):
            make_networks(tiny_recipe(backbone=dataclasses.replace(backbone, **changes)))


def test_what_is_no_whole_checkpoint_is_refused(tmp_path):
    weights = official_weights()
    file = write(tmp_path / "vit.safetensors", weights)
    with pytest.raises(ValueError, match="no whole checkpoint of CrOC or DINO: it lacks teacher, student, croc_"):
        start(with_init(tiny_recipe(), source=file, parts="networks"))
    del weights["blocks.1.norm1.weight"]
    with pytest.raises(ValueError, match="missing block_1/norm_1/scale$"):
        start(with_init(tiny_recipe(), source=write(tmp_path / "vit.safetensors", weights)))


# Heads of 32 features and an epsilon, which no file states.
NARROW = tiny_recipe(
    backbone=BackboneConfig(
        variant="vit_tiny", width=64, depth=2, num_heads=2, patch_size=8, norm_epsilon=1e-5, dtype="float32"
    )
)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A run with such heads as the official code would have it, its state, and its workdir."""
    workdir = tmp_path_factory.mktemp("narrow")
    state = save_run(workdir, NARROW, 1)
    return export_run(workdir, workdir / "run.safetensors"), state, workdir


def test_the_recipe_gives_what_a_file_does_not_state(narrow):
    file, saved, _ = narrow
    state = start(with_init(NARROW, source=file, parts="networks"))
    equal_trees(state.teacher, saved.teacher)
    equal_trees(_load_backbone(file, with_init(NARROW, which="student"), print), saved.student["backbone"])


def test_no_flags_are_made_from_guesses(narrow):
    file, _, workdir = narrow
    found = load_networks(file)
    assert found.config.num_heads == 1 and set(found.guessed) == {
        "num_heads",
        "norm_epsilon",
        "image_mean",
        "image_std",
    }
    assert load_networks(file, num_heads=4).config.num_heads == 4
    with pytest.raises(ValueError, match="num_heads=4: .* is a run, whose settings are known"):
        load_networks(workdir, num_heads=4)
    for width, heads in ((192, 3), (128, 4)):
        backbone = dataclasses.replace(NARROW.backbone, width=width, num_heads=heads)
        for parts in ("networks", "backbone"):
            recipe = with_init(tiny_recipe(backbone=backbone), source=file, parts=parts)
            with pytest.raises(
                ValueError, match="add --config.backbone.width=64; it does not state num_heads: set what it was"
            ):
                start(recipe)


def test_rotations_tell_heads_and_epsilon(tmp_path):
    weights = dinov3_weights(periods=8)
    file = write(tmp_path / "dinov3.safetensors", weights)
    backbone = BackboneConfig(
        width=256, depth=2, num_heads=4, patch_size=4, mlp_ratio=2.0, positions="rope", dtype="float32"
    )
    flags = "--config.backbone.num_heads=8 --config.backbone.norm_epsilon=1e-05$"
    with pytest.raises(ValueError, match=f"add {flags}"):
        start(with_init(tiny_recipe(backbone=backbone), source=file))


def many(channels=5, **init):
    """Returns the tiny recipe for images of other channels."""
    recipe = tiny_recipe()
    backbone = dataclasses.replace(recipe.backbone, image_mean=(0.5,) * channels, image_std=(0.25,) * channels)
    data = dataclasses.replace(recipe.data, channels=channels, dtype="uint16")
    return dataclasses.replace(recipe, backbone=backbone, data=data, init_from=InitConfig(**init))


@pytest.mark.parametrize("parts", ["backbone", "networks"])
def test_a_run_on_other_images_starts_from_a_run_on_rgb(run, parts):
    (workdir, saved), lines = run, []
    recipe = many(source=str(workdir), parts=parts, rgb_channels=(3, 2, 1))
    state = init_from(recipe, fresh(dataclasses.replace(recipe, init_from=InitConfig())), log=lines.append)
    for name in ("student", "teacher"):
        theirs = saved.teacher if parts == "backbone" else getattr(saved, name)
        expected = spread_filters(theirs["backbone"], channels=5, rgb_channels=(3, 2, 1))
        equal_trees(jax.device_get(getattr(state, name)["backbone"]), expected)
    assert lines == [
        f"{workdir} is for RGB images, and the run for 5 channels of uint16: channels 3,2,1 get the filters of red, "
        "green and blue, others start at 0"
    ]


def test_without_a_choice_all_channels_start_alike(run):
    lines, recipe = [], many(source=str(run[0]))
    state = init_from(recipe, fresh(dataclasses.replace(recipe, init_from=InitConfig())), log=lines.append)
    kernel = np.asarray(state.student["backbone"]["patch_embedding"]["projection"]["kernel"])
    kernel = kernel.reshape(-1, 5, kernel.shape[-1])
    np.testing.assert_array_equal(kernel, np.repeat(kernel[:, :1], 5, axis=1))
    assert lines[0].endswith("each gets the mean of the filters of red, green and blue, times 3 / channels")


def test_images_that_weights_cannot_start_with_are_named(tmp_path, run):
    file = write(tmp_path / "four.safetensors", official_weights(width=8, channels=4))
    bands = {"rgb_channels": (3, 2, 1)}
    for recipe, message in (
        (many(source=str(file)), r"four\S+ is for images of 4 channels, and data.channels=5: a run starts from"),
        (many(4, source=str(file), **bands), r"init_from.rgb_channels=\(3, 2, 1\): \S+four\S+ .* not RGB: leave"),
        # The same channels: what images are normalized by is compared.
        (many(3, source=str(run[0])), "another architecture than the run: add --config.backbone.image_mean=0.485"),
    ):
        with pytest.raises(ValueError, match=message):
            init_from(recipe, None)
    for channels in ((1, 2), (-1, 0, 1)):
        with pytest.raises(ValueError, match=r"init_from.rgb_channels=\(.*\): name three channels, counted from 0"):
            InitConfig(rgb_channels=channels)
    with pytest.raises(ValueError, match=r"init_from.rgb_channels=\(3, 2, 5\): the channels of images are 0 to 4"):
        many(rgb_channels=(3, 2, 5))
