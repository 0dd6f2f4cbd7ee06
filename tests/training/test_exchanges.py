"""Devices all-reduce gradients once an update, not once a microbatch or a chunk."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from programs.program import read_program

from croc_jax.training.dense_loss import TeacherTargets, dense_distillation, global_distillation
from croc_jax.training.forward import encode_views, init_params, make_networks
from croc_jax.training.run_config import MeshConfig
from croc_jax.training.sharding import BATCH_AXES, make_mesh
from tests.training.tiny import tiny_recipe

NETWORKS = make_networks(tiny_recipe())
PARAMS = init_params(NETWORKS, jax.random.key(0), crop_size=24)
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 2, 24, 24, 3)).astype(np.float32)
CENTROIDS = RNG.normal(size=(32, 2, 2, 4, 8)).astype(np.float32)


def compiled(loss, mesh, params, *args):
    """Returns the program of a loss and its gradients, and both."""
    args = [jax.device_put(arg, NamedSharding(mesh, PartitionSpec(BATCH_AXES))) for arg in args]
    program = jax.jit(jax.value_and_grad(loss)).lower(params, *args).compile()
    return program, program(jax.device_put(params, NamedSharding(mesh, PartitionSpec())), *args)


def same(ours, theirs):
    for our_leaf, their_leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(our_leaf, their_leaf, rtol=1e-4, atol=1e-5)


def test_microbatches_of_the_backbone_exchange_what_the_whole_batch_does():
    mesh = make_mesh(jax.devices())

    def loss(microbatches, mesh, params, images):
        options = {"num_microbatches": microbatches, "reduce_mesh": mesh}
        options |= {"train": True, "drop_path_rng": jax.random.key(1)}
        features, _ = encode_views(NETWORKS.backbone, params, images, **options)
        return jnp.sum(features.cls[..., 0] ** 3)

    params = PARAMS["backbone"]
    whole, expected = compiled(lambda *args: loss(1, mesh, *args), mesh, params, IMAGES)
    slices, found = compiled(lambda *args: loss(4, mesh, *args), mesh, params, IMAGES)
    same(found, expected)
    once, often = (read_program(program.as_text()).exchanges["all-reduce"] for program in (whole, slices))
    # Biases and the like come together in other numbers of pieces.
    assert sum(often.sizes.values()) <= 1.05 * sum(once.sizes.values())


def test_chunks_of_clusters_exchange_nothing_until_their_end():
    mesh = make_mesh(jax.devices(), MeshConfig(fsdp=2, model=2))
    params, head = PARAMS["head"], NETWORKS.head
    valid = RNG.random((32, 2, 4)) < 0.7
    targets = TeacherTargets(PARAMS["head"], jnp.zeros(10), teacher_temp=jnp.float32(0.07), student_temp=0.1)

    def loss(mesh, params, student, teacher, valid):
        options = {"num_microbatches": 2, "reduce_mesh": mesh}
        clusters = dense_distillation(head, params, student, teacher, valid, targets, **options)
        of_cls = targets._replace(center=jnp.zeros(12))
        images = global_distillation(head, params, student[:, :, 0, 0], teacher[:, :, 0, 0], of_cls, **options)
        return clusters.loss + images.loss

    args = params, CENTROIDS, CENTROIDS[:, ::-1], valid
    text, found = compiled(lambda *args: loss(mesh, *args), mesh, *args)
    _, expected = compiled(lambda *args: loss(None, *args), make_mesh(jax.devices()[:1]), *args)
    same(found, expected)
    once, often = (read_program(text.as_text(), unknown_trips=trips) for trips in (1, 16))
    assert once.exchanges == often.exchanges and once.flops < often.flops
