"""Scores during a run equal those of launch/evaluate.py, with parameters sharded over all devices, too."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from croc_jax.evaluation import FrozenFeatures
from croc_jax.evaluation.features import make_pool_fn
from croc_jax.evaluation.online import make_evaluator, make_online_evaluator
from tests.evaluation.conftest import read_config, score

SETTINGS = {"knn__resize": 18, "knn__image_size": 16, "knn__neighbors": (5, 1), "knn__feature": "cls_mean"}


def test_k_nn_along_a_run(backbone, params, classes):
    config = read_config("knn", dataset__root=classes, **SETTINGS)
    evaluate = make_online_evaluator(config, backbone_module=backbone)
    expected = score("knn", FrozenFeatures(backbone, params), dataset__root=classes, **SETTINGS)[0].scores
    with jax.transfer_guard("disallow"):
        first = evaluate(0, params)
    assert first == {"knn_top1": expected["top1"], "knn_top5": expected["top5"]} and first["knn_top1"] > 60
    mesh = Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8

    def shard(leaf):
        axes = ["data" if size % 8 == 0 else None for size in leaf.shape[:1]]
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    sharded = jax.tree.map(shard, params)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(sharded))
    assert evaluate(1, sharded) == first
    pool_fn = make_pool_fn(backbone, "cls_mean")
    compiled = pool_fn._cache_size()
    other = jax.tree.map(lambda leaf: leaf + 0.1 * np.abs(leaf).mean(), sharded)
    assert set(evaluate(2, other)) == set(first) and pool_fn._cache_size() == compiled


def test_images_that_patches_do_not_tile_are_found_before_the_run(backbone, classes):
    config = read_config("knn", dataset__root=classes, **SETTINGS | {"knn__image_size": 17})
    with pytest.raises(ValueError, match=r"image_size=\(17, 17\): "):
        make_online_evaluator(config, backbone_module=backbone)


def test_protocols_share_features_and_each_kind_has_its_own_names(backbone, params, classes):
    configs = {
        "knn": read_config("knn", dataset__root=classes, **SETTINGS),
        "knn.2": read_config("knn", dataset__root=classes, **SETTINGS | {"knn__neighbors": (1,)}),
    }
    evaluator = make_evaluator(configs, backbone_module=backbone)
    assert evaluator.scores == ("knn_top1", "knn_top5", "knn.2_top1", "knn.2_top5")
    encoded, original = [], FrozenFeatures._fill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenFeatures, "_fill", lambda *args, **sizes: encoded.append(1) or original(*args, **sizes))
        found = evaluator.evaluate(params)
    assert len(encoded) == 2 and list(found) == list(evaluator.scores)
    evaluator.check_best("knn.2_top1")
    with pytest.raises(ValueError, match="evaluation.best='knn_miou': choose one of knn_top1, knn_top5, knn.2_top1, "):
        evaluator.check_best("knn_miou")


def test_a_deviation_is_no_best_score(backbone, folder):
    evaluator = make_evaluator(
        {"x": read_config("unsupervised", dataset__root=folder, unsupervised__image_size=(16, 16))},
        backbone_module=backbone,
    )
    assert evaluator.scores == ("unsupervised_miou",)
