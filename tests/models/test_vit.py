"""The vision transformer against NumPy in float64, and its variants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from croc_jax.models import BackboneConfig, Features, clustering_tokens, make_backbone
from croc_jax.models.vit import DropPath, resize_position_embedding
from tests.jaxprs import equations

SMALL = {"variant": "vit_tiny", "width": 8, "depth": 2, "num_heads": 2, "patch_size": 4, "dtype": "float32"}


def make(**changes):
    backbone, rng = make_backbone(BackboneConfig(**{**SMALL, **changes}), image_size=12), np.random.default_rng(1)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 12, 12, 3)))["params"]

    # Away from where training starts, so that a bias or scale that is left out shows.
    def draw(path, leaf):
        return (path[-1].key == "scale") + 0.1 * rng.normal(size=leaf.shape).astype(np.float32)

    return backbone, jax.tree_util.tree_map_with_path(draw, shapes)


def apply(backbone, params, images, **options):
    return jax.jit(functools.partial(backbone.apply, **options))({"params": params}, images)


def reference(params, images, *, patch_size, num_heads, depth):
    """Everything in float64, one loop a block."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    batch, height, width, _ = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = np.stack(
        [
            images[:, r * patch_size : (r + 1) * patch_size, c * patch_size : (c + 1) * patch_size].reshape(batch, -1)
            for r in range(rows)
            for c in range(columns)
        ],
        axis=1,
    )
    linear = lambda x, layer: x @ layer["kernel"] + layer["bias"]  # noqa: E731
    tokens = linear(patches, p["patch_embedding"]["projection"])
    tokens = np.concatenate([np.broadcast_to(p["cls_token"], (batch, 1, tokens.shape[-1])), tokens], axis=1)
    tokens = tokens + p["position_embedding"]

    def norm(x, layer):
        centered = x - x.mean(-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]

    for index in range(depth):
        block = p[f"block_{index}"]
        qkv = linear(norm(tokens, block["norm_1"]), block["attention"]["qkv"])
        q, k, v = np.split(qkv, 3, axis=-1)
        split = lambda x: x.reshape(batch, -1, num_heads, x.shape[-1] // num_heads).swapaxes(1, 2)  # noqa: E731
        q, k, v = split(q), split(k), split(v)
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ v).swapaxes(1, 2).reshape(batch, -1, tokens.shape[-1])
        tokens = tokens + linear(mixed, block["attention"]["projection"])
        hidden = linear(norm(tokens, block["norm_2"]), block["mlp_1"])
        tokens = tokens + linear(0.5 * hidden * (1 + erf(hidden / np.sqrt(2))), block["mlp_2"])
    tokens = norm(tokens, p["norm"])
    return {
        "cls": tokens[:, 0],
        "patches": tokens[:, 1:],
        "queries": q,
        "keys": k,
        "values": v,
        "cls_attention": weights[:, :, 0, 1:],
    }


def test_features_equal_reference():
    backbone, params = make()
    images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    features = apply(backbone, params, images)
    expected = reference(params, images, patch_size=4, num_heads=2, depth=2)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(features, name), value, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["keys", "queries", "values"])
def test_clustered_tokens_are_those_of_the_last_block_without_cls(kind):
    arrays = dict(
        zip(("queries", "keys", "values"), np.random.default_rng(0).normal(size=(3, 2, 2, 10, 4)), strict=True)
    )
    features = Features(jnp.zeros((2, 8)), jnp.zeros((2, 9, 8)), **arrays)
    tokens, cls_tokens = clustering_tokens(features, kind)
    np.testing.assert_array_equal(tokens, arrays[kind][:, :, 1:])
    np.testing.assert_array_equal(cls_tokens, arrays[kind][:, :, 0])


def test_remat_and_other_sizes():
    backbone, params = make()
    images = np.random.default_rng(0).normal(size=(1, 8, 20, 3)).astype(np.float32)
    features = apply(backbone, params, images)
    assert features.patches.shape == (1, 10, 8)
    assert features.cls_attention.shape == (1, 2, 10)
    remat, _ = make(remat=True)
    np.testing.assert_allclose(apply(remat, params, images).patches, features.patches, atol=1e-6)


def test_half_precision_computes_in_half_and_keeps_float32_outside():
    backbone, params = make(dtype="bfloat16")
    exact, _ = make()
    images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    features = apply(backbone, params, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((features, params))} == {jnp.dtype("float32")}
    reference = apply(exact, params, images)
    difference = np.abs(features.patches - reference.patches).max()
    assert 1e-4 < difference < 0.1


def test_mixed_multiplies_by_every_matrix_in_half_forward_and_backward_and_by_nothing_else():
    (backbone, params), (exact, _) = make(dtype="mixed"), make(dtype="float32")
    images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    features, reference = (apply(network, params, images).patches for network in (backbone, exact))
    assert features.dtype == jnp.float32 and 1e-4 < np.abs(features - reference).max() < 0.05

    def loss(params):
        return jnp.sum(apply(backbone, params, images, train=True).patches ** 2)

    found = {
        (any(operand.aval.ndim == 4 for operand in equation.invars), *(str(x.aval.dtype) for x in equation.invars))
        for equation in equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
        if equation.primitive.name == "dot_general"
    }
    # Products of queries, keys, values and their weights have four axes.
    assert found == {(True, "float32", "float32"), (False, "bfloat16", "bfloat16")}


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    update = jnp.ones((4000, 3, 2))
    dropped = np.asarray(DropPath(0.25, jax.random.key(0))(update, 0))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert (dropped == dropped[:, :1, :1]).all()
    np.testing.assert_allclose(dropped.mean(), 1.0, atol=0.05)
    assert (dropped != np.asarray(DropPath(0.25, jax.random.key(0))(update, 1))).any()


def test_a_slice_of_a_batch_drops_what_the_whole_one_does():
    backbone, params = make(drop_path_rate=0.5)
    images = np.random.default_rng(0).normal(size=(8, 12, 12, 3)).astype(np.float32)

    @jax.jit
    def dropped(images, rows=None):
        options = {"train": True, "rngs": {"drop_path": jax.random.key(0)}}
        return backbone.apply({"params": params}, images, **options, rows=rows).patches

    whole, rows = dropped(images), np.array([7, 0, 2, 5])
    np.testing.assert_allclose(dropped(images[rows], rows), whole[rows], atol=1e-5)
    assert np.abs(dropped(images[rows], rows[::-1].copy()) - whole[rows]).max() > 0.1


def test_drop_path_acts_in_training_only():
    backbone, params = make(drop_path_rate=0.9)
    images = np.random.default_rng(0).normal(size=(8, 12, 12, 3)).astype(np.float32)
    still = apply(backbone, params, images)
    train = apply(backbone, params, images, train=True, rngs={"drop_path": jax.random.key(0)})
    expected = reference(params, images, patch_size=4, num_heads=2, depth=2)["patches"]
    np.testing.assert_allclose(still.patches, expected, atol=2e-5)
    assert np.abs(train.patches - still.patches).max() > 0.1


def cubic_reference(grid, new_rows, new_columns):
    """PyTorch's bicubic formula with its scale for a size larger by 0.1, pixel by pixel."""

    def kernel(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    rows, columns, width = grid.shape
    result = np.zeros((new_rows, new_columns, width))
    for r in range(new_rows):
        for c in range(new_columns):
            y, x = (r + 0.5) * rows / (new_rows + 0.1) - 0.5, (c + 0.5) * columns / (new_columns + 0.1) - 0.5
            for i in range(-1, 3):
                for j in range(-1, 3):
                    yy, xx = int(np.floor(y)) + i, int(np.floor(x)) + j
                    value = grid[np.clip(yy, 0, rows - 1), np.clip(xx, 0, columns - 1)]
                    result[r, c] += kernel(y - yy) * kernel(x - xx) * value
    return result


def test_position_embedding_resizes_like_pytorch():
    embedding = np.random.default_rng(0).normal(size=(1, 17, 3)).astype(np.float32)
    resized = resize_position_embedding(jnp.asarray(embedding), (4, 4), (7, 3))
    np.testing.assert_array_equal(resized[:, 0], embedding[:, 0])
    expected = cubic_reference(embedding[0, 1:].reshape(4, 4, 3), 7, 3)
    np.testing.assert_allclose(resized[0, 1:].reshape(7, 3, 3), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "patch_size", "millions"),
    [
        ("vit_tiny", 16, 5.5),
        ("vit_small", 16, 21.7),
        ("vit_small", 8, 21.7),
        ("vit_base", 14, 85.7),
        ("vit_large", 16, 303.3),
        ("vit_giant", 14, 1134.8),
        ("resnet_50", 16, 23.5),
        ("convnext_tiny", 16, 27.8),
        ("convnext_small", 32, 49.5),
        ("convnext_base", 32, 87.6),
        ("convnext_large", 8, 196.2),
    ],
)
def test_variants_have_the_published_sizes(variant, patch_size, millions):
    backbone = make_backbone(BackboneConfig(variant=variant, patch_size=patch_size), image_size=224)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    np.testing.assert_allclose(count / 1e6, millions, rtol=0.01)


@pytest.mark.parametrize(
    ("changes", "image_size", "message"),
    [
        ({"variant": "vit_huge"}, 12, "vit_huge"),
        ({"num_heads": 3}, 12, "num_heads=3"),
        ({}, 13, "13 x 13"),
        ({"dtype": "float16"}, 12, "float16"),
        ({"attention": "flash"}, 12, "flash"),
        ({"attention": "cudnn"}, 12, "cudnn"),
    ],
)
def test_bad_settings_are_named(changes, image_size, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(BackboneConfig(**{**SMALL, **changes}), image_size=image_size)


def test_images_that_patches_do_not_tile_are_refused():
    backbone, params = make()
    with pytest.raises(ValueError, match="10 x 12"):
        backbone.apply({"params": params}, np.zeros((1, 10, 12, 3), np.float32))
