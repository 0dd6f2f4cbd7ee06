"""The objective against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from croc_jax.losses import DistillationSums, ObjectiveConfig, distill, total_loss, update_center

TEMPS = {"teacher_temp": 0.07, "student_temp": 0.1}


def rows(seed=0, shape=(3, 2, 4)):
    rng = np.random.default_rng(seed)
    student, teacher = (rng.normal(size=(*shape, 6)).astype(np.float32) for _ in range(2))
    valid = rng.uniform(size=(shape[0], *shape[2:])) < 0.6
    # Teacher logits are small, so that its entropy is far from zero.
    return student, 0.1 * teacher, valid, rng.normal(size=6).astype(np.float32) * 0.1


def reference(student, teacher, valid, center):
    """One valid row at a time."""
    losses, entropies, logits = [], [], []
    for image, row in zip(*np.nonzero(valid), strict=True):
        for view in range(2):
            target = softmax((teacher[image, view, row].astype(np.float64) - center) / 0.07)
            losses.append(-(target * log_softmax(student[image, 1 - view, row].astype(np.float64) / 0.1)).sum())
            entropies.append(-(target * np.log(target)).sum())
            logits.append(teacher[image, view, row])
    return np.mean(losses), np.mean(entropies), np.mean(logits, axis=0)


def test_means_equal_reference():
    student, teacher, valid, center = rows()
    means = distill(student, teacher, valid, center, **TEMPS).means()
    loss, entropy, logits = reference(student, teacher, valid, center)
    assert means.count == valid.sum()
    np.testing.assert_allclose(means.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(means.entropy, entropy, rtol=1e-5)
    np.testing.assert_allclose(means.logits, logits, atol=1e-5)


def test_local_views_are_compared_with_both_views_of_the_teacher():
    student, teacher, valid, center = rows(4)
    local = np.random.default_rng(5).normal(size=(3, 3, *student.shape[2:])).astype(np.float32)
    means = distill(np.concatenate([student, local], axis=1), teacher, valid, center, **TEMPS).means()
    targets = softmax((teacher.astype(np.float64) - center) / 0.07, axis=-1)
    answers = log_softmax(np.concatenate([student, local], axis=1).astype(np.float64) / 0.1, axis=-1)
    pairs = [(t, s) for t in range(2) for s in range(5) if t != s]
    losses = [-(targets[:, t] * answers[:, s]).sum(-1)[valid].mean() for t, s in pairs]
    np.testing.assert_allclose(means.loss, np.mean(losses), rtol=1e-5)
    without = distill(student, teacher, valid, center, **TEMPS).means()
    np.testing.assert_array_equal(means.entropy, without.entropy)
    np.testing.assert_array_equal(means.logits, without.logits)


def test_microbatches_add_up():
    student, teacher, valid, center = rows(1)
    whole = distill(student, teacher, valid, center, **TEMPS)
    parts = [distill(*(x[i : i + 1] for x in (student, teacher, valid)), center, **TEMPS) for i in range(3)]
    total = jax.tree.map(lambda *sums: sum(sums), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, total)


def test_gradient_reaches_the_student_of_valid_rows_only():
    student, teacher, valid, center = rows(2)

    def loss(student, teacher):
        return distill(student, teacher, valid, center, **TEMPS).means().loss

    to_student, to_teacher = jax.grad(loss, argnums=(0, 1))(jnp.asarray(student), jnp.asarray(teacher))
    np.testing.assert_array_equal(to_teacher, 0)
    targets = softmax((teacher - center) / 0.07, axis=-1)[:, ::-1]
    expected = (softmax(student / 0.1, axis=-1) - targets) / 0.1 / (2 * valid.sum())
    found, expected = (np.swapaxes(gradient, 0, 1) for gradient in (to_student, expected))
    np.testing.assert_array_equal(found[:, ~valid], 0)
    assert (np.abs(found[:, valid]).max(-1) > 0).all()
    np.testing.assert_allclose(found[:, valid], expected[:, valid], atol=1e-5)


def test_nothing_valid_gives_zero_and_keeps_the_center():
    student, teacher, valid, center = rows(3)
    means = distill(student, teacher, np.zeros_like(valid), center, **TEMPS).means()
    assert means.loss == 0 and means.entropy == 0
    np.testing.assert_array_equal(update_center(center, means, 0.9), center)


def test_center_is_a_moving_average():
    mean = DistillationSums(jnp.ones(()), jnp.zeros(()), jnp.zeros(()), jnp.full(3, 2.0))
    np.testing.assert_allclose(update_center(jnp.ones(3), mean, 0.9), 1.1, rtol=1e-6)


def test_unknown_tokens_are_named():
    with pytest.raises(ValueError, match="tokens='attention'"):
        ObjectiveConfig(tokens="attention")


def test_the_total_is_the_weighted_sum_and_weights_of_1_and_0_cost_nothing():
    global_loss, dense_loss = jnp.array(3.0), jnp.array(4.0)

    def gradients(**weights):
        config = ObjectiveConfig(**weights)
        return [float(one) for one in jax.grad(lambda *losses: total_loss(config, *losses), (0, 1))(*losses)]

    losses = global_loss, dense_loss
    assert float(total_loss(ObjectiveConfig(alpha=2.0, global_weight=0.5), *losses)) == 9.5
    assert gradients(alpha=2.0, global_weight=0.5) == [0.5, 2.0] and gradients(global_weight=0.0) == [0.0, 1.0]
    assert float(total_loss(ObjectiveConfig(alpha=0.0, global_weight=2.0), global_loss)) == 6.0
    plain = jax.make_jaxpr(lambda a, b: 0.3 * b + a)(*losses)
    assert str(jax.make_jaxpr(lambda *of: total_loss(ObjectiveConfig(alpha=0.3), *of))(*losses)) == str(plain)
    with pytest.raises(ValueError, match="alpha=0 and global_weight=0 leave no loss"):
        ObjectiveConfig(alpha=0.0, global_weight=0.0)
