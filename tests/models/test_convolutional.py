"""ResNet and ConvNeXt against NumPy in float64, their dilation, and batch statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from croc_jax.models import BackboneConfig, clustering_tokens, make_backbone, update_batch_stats
from croc_jax.models.patches import plan_strides

RESNET = BackboneConfig(variant="resnet_50", width=64, stages=(1, 2, 1, 1), patch_size=16, dtype="float32")
CONVNEXT = BackboneConfig(
    variant="convnext_tiny", width=32, stages=(1, 2, 1, 1), patch_size=16, dtype="float32", drop_path_rate=0.0
)
CONFIGS = {"resnet": RESNET, "convnext": CONVNEXT}


def random_params(module, size=32):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 0.5 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1)) if leaf.ndim > 1 else 0.1
        positive = path[-1].key in ("scale", "variance")
        return (positive + 3 * scale * rng.standard_normal(leaf.shape) * (1 if not positive else 0.5)).astype(
            np.float32
        )

    return jax.tree_util.tree_map_with_path(draw, shapes)


def images(shape=(2, 64, 96, 3)):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def convolve(x, kernel, bias=0.0, *, stride=1, dilation=1, pad=(0, 0), depthwise=False):
    """Returns sums over windows; `pad` are zeros before and after, on both axes."""
    size = dilation * (len(kernel) - 1) + 1
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))
    windows = windows[:, ::stride, ::stride, :, ::dilation, ::dilation]
    if depthwise:
        return np.einsum("brcdij,ijd->brcd", windows, kernel[:, :, 0]) + bias
    return np.einsum("brcdij,ijde->brce", windows, kernel) + bias


def norm(x, weights, *, train=False):
    if "mean" not in weights:
        centered = x - x.mean(axis=-1, keepdims=True)
        x = centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6)
    else:
        mean, variance = (
            (x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))) if train else (weights["mean"], weights["variance"])
        )
        x = (x - mean) / np.sqrt(variance + 1e-5)
    return x * weights["scale"] + weights["bias"]


def reference_resnet(params, x, *, train=False):
    def layer(x, group, number, **options):
        return norm(convolve(x, group[f"conv_{number}"]["kernel"], **options), group[f"norm_{number}"], train=train)

    x = np.maximum(norm(convolve(x, params["stem"]["kernel"], stride=2, pad=(3, 3)), params["norm"], train=train), 0)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2].max(axis=(-2, -1))
    for name, stride, dilation in (
        ("stage_0_block_0", 1, 1), ("stage_1_block_0", 2, 1), ("stage_1_block_1", 1, 1), ("stage_2_block_0", 2, 1),
        # The stride that would give 32 pixels is left out; a single block still looks at its neighbors.
        ("stage_3_block_0", 1, 1),
    ):  # fmt: skip
        group = params[name]
        update = np.maximum(layer(x, group, 1), 0)
        update = np.maximum(layer(update, group, 2, stride=stride, dilation=dilation, pad=(dilation, dilation)), 0)
        update = layer(update, group, 3)
        if name.endswith("block_0"):
            x = norm(convolve(x, group["shortcut"]["kernel"], stride=stride), group["norm_shortcut"], train=train)
        x = np.maximum(x + update, 0)
    return x.mean(axis=(1, 2)), x


def reference_convnext(params, x):
    x = norm(convolve(x, **params["stem"], stride=4), params["stem_norm"])
    for stage, count in enumerate(CONVNEXT.stages or ()):
        if stage:
            x = norm(x, params[f"downsample_{stage}_norm"])
            # Before the last stage the grid stays: a zero behind it instead of the stride.
            x = convolve(x, **params[f"downsample_{stage}"], **({"pad": (0, 1)} if stage == 3 else {"stride": 2}))
        for index in range(count):
            group, dilation = params[f"stage_{stage}_block_{index}"], 2 if stage == 3 else 1
            pad = (3 * dilation, 3 * dilation)
            update = norm(convolve(x, **group["depthwise"], dilation=dilation, pad=pad, depthwise=True), group["norm"])
            hidden = update @ group["mlp_1"]["kernel"] + group["mlp_1"]["bias"]
            hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
            x = x + group["scale"] * (hidden @ group["mlp_2"]["kernel"] + group["mlp_2"]["bias"])
    return norm(x.mean(axis=(1, 2)), params["norm"]), norm(x, params["norm"])


@pytest.mark.parametrize("name", CONFIGS)
def test_float64_agrees(name):
    module = make_backbone(CONFIGS[name], image_size=32)
    params, batch = random_params(module), images()
    found = jax.jit(module.apply)({"params": params}, batch)
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    pooled, tokens = {"resnet": reference_resnet, "convnext": reference_convnext}[name](wide, batch.astype(np.float64))
    assert tokens.shape == (2, 4, 6, module.width) and tokens.std() > 0.1
    np.testing.assert_allclose(found.patches.reshape(tokens.shape), tokens, atol=2e-5 * np.abs(tokens).max())
    np.testing.assert_allclose(found.cls, pooled, atol=2e-5 * np.abs(pooled).max())
    assert found.keys is None and found.cls_attention is None


def test_a_training_pass_normalizes_by_its_batch_and_leaves_the_statistics():
    module = make_backbone(RESNET, image_size=32)
    params, batch = random_params(module), images()
    found, left = jax.jit(lambda p, x: module.apply({"params": p}, x, train=True, mutable=["statistics"]))(
        params, batch
    )
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    _, tokens = reference_resnet(wide, batch.astype(np.float64), train=True)
    np.testing.assert_allclose(found.patches.reshape(tokens.shape), tokens, atol=1e-4 * np.abs(tokens).max())

    stem = convolve(batch.astype(np.float64), wide["stem"]["kernel"], stride=2, pad=(3, 3)).reshape(-1, 2)
    first = left["statistics"]["norm"]
    np.testing.assert_allclose(first["mean"], stem.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(first["variance"], stem.var(axis=0, ddof=1), rtol=1e-4)
    moved = update_batch_stats(params, params, left["statistics"])
    assert jax.tree.structure(moved) == jax.tree.structure(params)
    np.testing.assert_allclose(moved["norm"]["mean"], 0.9 * params["norm"]["mean"] + 0.1 * first["mean"], rtol=1e-6)
    np.testing.assert_array_equal(moved["norm"]["scale"], params["norm"]["scale"])
    block = "stage_3_block_0"
    assert not np.array_equal(moved[block]["norm_shortcut"]["variance"], params[block]["norm_shortcut"]["variance"])


@pytest.mark.parametrize("name", CONFIGS)
def test_recomputing_blocks_changes_nothing_and_no_gradient_reaches_running_statistics(name):
    config = dataclasses.replace(CONFIGS[name], stages=(1, 1, 1, 1))
    plain, again = (make_backbone(dataclasses.replace(config, remat=remat), image_size=32) for remat in (0, 1))
    params, batch = random_params(plain), images((1, 32, 32, 3))

    def gradient(module):
        def loss(params):
            features, left = module.apply({"params": params}, batch, train=True, mutable=["statistics"])
            return jnp.sum(features.patches**2), left

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    (found, left), (expected, _) = gradient(again), gradient(plain)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert leaf.any() == (path[-1].key not in ("mean", "variance")), path
    assert len(jax.tree.leaves(left)) == (2 * 17 if name == "resnet" else 0)


def test_dropped_paths_leave_some_updates_out():
    config = dataclasses.replace(CONVNEXT, drop_path_rate=0.999)
    module = make_backbone(config, image_size=32)
    params, batch = random_params(module), images((2, 32, 32, 3))
    apply = jax.jit(module.apply, static_argnames="train")
    dropped = apply({"params": params}, batch, train=True, rngs={"drop_path": jax.random.key(0)})
    kept, frozen = (apply({"params": params}, batch, train=train) for train in (True, False))
    assert not np.allclose(dropped.patches, kept.patches, atol=1e-3)
    np.testing.assert_array_equal(kept.patches, frozen.patches)


@pytest.mark.parametrize(
    ("patch_size", "expected"),
    [
        (32, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        (16, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]),
        (8, [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]),
    ],
)
def test_dilation_takes_the_place_of_strides(patch_size, expected):
    assert [tuple(plan) for plan in plan_strides(patch_size, stem=4, strides=(1, 2, 2, 2))] == expected


def test_groups_of_features_are_clustered_as_heads():
    module = make_backbone(CONVNEXT, image_size=32)
    features = jax.jit(module.apply)({"params": random_params(module)}, images((2, 32, 48, 3)))
    tokens, cls = clustering_tokens(features, "last", groups=4)
    assert tokens.shape == (2, 4, 6, 8) and cls.shape == (2, 4, 8)
    np.testing.assert_array_equal(tokens[1, 2, 5], features.patches[1, 5, 16:24])
    np.testing.assert_array_equal(cls[1, 3], features.cls[1, 24:])
    with pytest.raises(ValueError, match="token_groups=5: must divide the 32 features"):
        clustering_tokens(features, "last", groups=5)
    with pytest.raises(ValueError, match="tokens='keys': this backbone has no attention; choose 'last'"):
        clustering_tokens(features, "keys")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 4}, "num_heads=4: convnext_tiny has no use for it; leave it at None"),
        ({"patch_size": 14}, "patch_size=14: the tokens of convnext_tiny lie 8, 16, 32 pixels apart"),
        ({"width": 36}, "width=36: must be a multiple of 8"),
        ({"stages": (1, 2, 0, 1)}, r"stages=\(1, 2, 0, 1\): four numbers of blocks"),
        ({"variant": "vit_small"}, r"stages=\(1, 2, 1, 1\): vit_small has none; set depth"),
        ({"variant": "resnet_51"}, "variant='resnet_51': choose one of .*convnext_large"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        make_backbone(dataclasses.replace(CONVNEXT, **changes), image_size=32)


def test_patches_must_tile():
    module = make_backbone(RESNET, image_size=32)
    with pytest.raises(ValueError, match="whole patches of 16 pixels"):
        module.apply({"params": random_params(module)}, images((1, 40, 32, 3)))
