"""Chunks of rows through both heads against all valid rows at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.losses import distill
from croc_jax.models import HeadConfig, make_head
from croc_jax.training.dense_loss import TeacherTargets, dense_distillation, global_distillation

WIDTH, BATCH, HEADS, CLUSTERS = 6, 4, 3, 5
HEAD = make_head(
    HeadConfig(hidden_dim=8, bottleneck_dim=4, num_prototypes=9, num_prototypes_dense=7), dtype=jnp.float32
)
TEMPS = {"teacher_temp": jnp.asarray(0.07), "student_temp": 0.1}
METHODS = {"project_global": 9, "project_dense": 7}


def weights(seed):
    return HEAD.init(jax.random.key(seed), jnp.zeros((1, WIDTH)))["params"]


def targets(prototypes):
    return TeacherTargets(weights(1), jax.random.normal(jax.random.key(2), (prototypes,)), **TEMPS)


def tokens(*rest, seed=3):
    return jax.random.normal(jax.random.key(seed), (2, BATCH, 2, *rest, WIDTH))


def plain(method, params, student, teacher, valid, center):
    """Every row goes through both heads; the valid ones count."""
    logits = [HEAD.apply({"params": p}, rows, method=method) for p, rows in ((params, student), (weights(1), teacher))]
    return distill(*logits, valid, center, **TEMPS).means()


def derive(compare):
    """Compiles (params, rows) -> sums and the gradients of the loss."""
    run = lambda *args: (compare(*args).loss, compare(*args))  # noqa: E731
    return jax.jit(jax.grad(run, (0, 1), has_aux=True))


def check(compare, reference, *args):
    """Values, and gradients to the student's parameters and tokens, are those of the reference."""
    (gradients, ours), (expected, theirs) = derive(compare)(*args), derive(reference)(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)

    def compare(found, wanted):
        # Sums of large numbers that cancel out are as exact as the largest of their array.
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6 * max(1.0, np.abs(wanted).max()))

    jax.tree.map(compare, gradients, expected)
    return gradients


@pytest.mark.parametrize("microbatches", [1, 2])
def test_images(microbatches):
    student, teacher = tokens()
    center = targets(9).center
    gradients = check(
        lambda params, rows: global_distillation(
            HEAD, params, rows, teacher, targets(9), num_microbatches=microbatches
        ),
        lambda params, rows: plain("project_global", params, rows, teacher, jnp.ones(BATCH, bool), center),
        weights(0),
        student,
    )
    assert not jnp.any(gradients[0]["last_layer_dense"]["direction"])
    assert jnp.any(gradients[0]["last_layer"]["direction"])


@pytest.mark.parametrize(("microbatches", "share"), [(1, 0.1), (4, 0.5), (1, 1.0)])
def test_clusters(microbatches, share):
    student, teacher = tokens(HEADS, CLUSTERS)
    valid = jax.random.uniform(jax.random.key(5), (BATCH, HEADS, CLUSTERS)) < share
    assert valid.any()
    center = targets(7).center
    gradients = check(
        lambda params, rows: dense_distillation(
            HEAD, params, rows, teacher, valid, targets(7), num_microbatches=microbatches
        ),
        lambda params, rows: plain("project_dense", params, rows, teacher, valid, center),
        weights(0),
        student,
    )
    moved = np.abs(np.asarray(gradients[1])).max(axis=(1, -1)) > 0
    np.testing.assert_array_equal(moved, valid)
    assert not jnp.any(gradients[0]["last_layer"]["direction"])


def test_no_valid_cluster_is_a_loss_of_zero_without_gradient():
    student, teacher = tokens(HEADS, CLUSTERS)
    valid = jnp.zeros((BATCH, HEADS, CLUSTERS), bool)

    gradients, sums = derive(lambda *args: dense_distillation(HEAD, *args, teacher, valid, targets(7)))(
        weights(0), student
    )
    assert sums.loss == 0 and sums.count == 0
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_chunks_without_a_valid_cluster_are_skipped():
    """Rows that are not computed cannot change the sums, not even as NaN times zero."""
    student, teacher = tokens(HEADS, CLUSTERS)
    valid = jnp.zeros((BATCH, HEADS, CLUSTERS), bool).at[:, 1, 3].set(True)
    # Fifteen clusters an image in eight chunks: the valid one shares the first chunk with one more.
    spoiled = student.at[:, :, 2, 4].set(jnp.nan)
    gradients, sums = derive(lambda *args: dense_distillation(HEAD, *args, teacher, valid, targets(7)))(
        weights(0), spoiled
    )
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, sums)))
    assert sums.count == BATCH
