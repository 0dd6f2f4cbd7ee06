"""The step of a backbone with batch statistics: which network follows which batch, over devices and in microbatches."""

import jax
import numpy as np
import pytest

from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import BackboneConfig
from croc_jax.training.forward import encode_views, make_networks
from tests.training.tiny import first_state, tiny_recipe, train

RESNET = tiny_recipe(
    backbone=BackboneConfig(variant="resnet_50", width=32, stages=(1, 1, 1, 1), patch_size=8, dtype="float32"),
    objective=ObjectiveConfig(tokens="last", token_groups=2, warmup_teacher_temp_epochs=2),
    data=DataConfig(views=ViewsConfig(crop_size=32)),
)


@pytest.fixture(scope="module")
def one_device():
    return train(RESNET, steps=3)


def statistics(state, which, name="norm_3"):
    return getattr(state, which)["backbone"]["stage_3_block_0"][name]


def test_both_networks_follow_their_own_batches(one_device):
    states, history = one_device
    for name in ("mean", "variance"):
        student, teacher = (statistics(states[1], which)[name] for which in ("student", "teacher"))
        # After one step both have seen the same images with the same weights, and no average of one another.
        np.testing.assert_allclose(student, teacher, rtol=1e-5, atol=1e-7)
        assert not np.allclose(student, statistics(states[0], "student")[name], atol=1e-4)
        student, teacher = (statistics(states[3], which)[name] for which in ("student", "teacher"))
        assert not np.allclose(student, teacher, rtol=1e-4, atol=0)
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    moments = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(states[3].opt_state) if "'mean'" in str(path)]
    assert moments and not any(np.any(leaf) for leaf in moments)


def test_statistics_are_those_of_all_devices(one_device):
    states, history = train(RESNET, steps=3, num_devices=4)
    for ours, theirs in zip(history, one_device[1], strict=True):
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=2e-5)
    for which in ("student", "teacher"):
        for name in ("mean", "variance"):
            ours, theirs = (statistics(run[3], which)[name] for run in (states, one_device[0]))
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_microbatches_are_normalized_each_by_itself():
    backbone, params = make_networks(RESNET).backbone, first_state(RESNET).student["backbone"]
    images = np.random.default_rng(0).standard_normal((4, 2, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def first_norms(images):
        parts = ((images, 2), (images[::2], 1), (images[1::2], 1))
        found = (encode_views(backbone, params, part, num_microbatches=n, train=True) for part, n in parts)
        return [statistics["norm"] for _, statistics in found]

    both, one, other = first_norms(images)
    for name in ("mean", "variance"):
        np.testing.assert_allclose(both[name], (one[name] + other[name]) / 2, rtol=1e-4, atol=1e-6)
