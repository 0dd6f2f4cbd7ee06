"""Attention of each implementation against float64, for any number of tokens, and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from croc_jax.models.attention import attend, is_cudnn_attention
from tests.jaxprs import equations

# Of patches of 16 and of 14, with registers, of local crops.
COUNTS = (37, 196, 197, 257)


def inputs(count, batch=2, heads=2, width=8):
    rng = np.random.default_rng(count)
    return [rng.normal(size=(batch, heads, count, width)).astype(np.float32) for _ in range(4)]


def reference(queries, keys, values, cotangent):
    """Returns the result and the gradients of queries, keys and values, in float64."""
    q, k, v, g = (array.astype(np.float64) for array in (queries, keys, values, cotangent))
    scale = q.shape[-1] ** -0.5
    scores = np.einsum("bhnd,bhmd->bhnm", q, k) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    to_weights = np.einsum("bhnd,bhmd->bhnm", g, v)
    to_scores = weights * (to_weights - (weights * to_weights).sum(-1, keepdims=True)) * scale
    return (
        np.einsum("bhnm,bhmd->bhnd", weights, v),
        np.einsum("bhnm,bhmd->bhnd", to_scores, k),
        np.einsum("bhnm,bhnd->bhmd", to_scores, q),
        np.einsum("bhnm,bhnd->bhmd", weights, g),
    )


def result_and_gradients(implementation, queries, keys, values, cotangent):
    def attention(*parts):
        return attend(*parts, implementation=implementation)

    @jax.jit
    def run(parts, cotangent):
        result, backward = jax.vjp(attention, *parts)
        return result, *backward(cotangent.astype(result.dtype))

    return run((queries, keys, values), cotangent)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("implementation", ["xla", "xla_tpu"])
def test_attention_and_its_gradients_equal_float64(implementation, count):
    arrays = inputs(count)
    for found, expected in zip(result_and_gradients(implementation, *arrays), reference(*arrays), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_half_precision_stays_close():
    arrays = [array.astype(jnp.bfloat16) for array in inputs(197)]
    expected = reference(*(np.asarray(array, np.float32) for array in arrays))
    for ours, theirs in zip(result_and_gradients("xla", *arrays), expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(np.float32), theirs, atol=0.02 * np.abs(theirs).max())


@pytest.fixture
def cudnn_found(monkeypatch):
    """The checks of a device that is not there pass; programs can be traced, not compiled."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91500)


@pytest.mark.parametrize("count", COUNTS)
def test_cudnn_takes_any_number_of_tokens_forward_and_backward(cudnn_found, count):
    arrays = [jax.ShapeDtypeStruct((2, 6, count, 64), jnp.bfloat16)] * 4
    shapes = jax.eval_shape(lambda *parts: result_and_gradients("cudnn", *parts), *arrays)
    assert [(shape.shape, shape.dtype) for shape in shapes] == [((2, 6, count, 64), jnp.bfloat16)] * 4


@pytest.mark.parametrize("count", [37, 40, 197])
def test_padding_for_cudnn_changes_nothing(monkeypatch, count):
    arrays, general, seen = inputs(count), jax.nn.dot_product_attention, []

    def stand_in(queries, *rest, implementation, **lengths):
        seen.append((queries.shape[1], implementation))
        return general(queries, *rest, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    for found, expected in zip(result_and_gradients("cudnn", *arrays), reference(*arrays), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert seen == [(-(-count // 8) * 8, "cudnn")]
    arrays[0][1, 0, 0, 0] = np.nan
    mixed = attend(*arrays[:3], implementation="cudnn")
    assert np.isnan(mixed[1]).any() and np.isfinite(mixed[0]).all()


def test_what_cudnn_found_is_kept_for_the_backward_pass(cudnn_found):
    arrays = [jax.ShapeDtypeStruct((2, 6, 197, 64), jnp.bfloat16)] * 3

    def forward_passes(policy):
        attention = jax.checkpoint(lambda *parts: attend(*parts, implementation="cudnn"), policy=policy)
        loss = lambda *parts: jnp.sum(attention(*parts).astype(jnp.float32) ** 2)  # noqa: E731
        traced = jax.make_jaxpr(jax.grad(loss))(*arrays).jaxpr
        return sum(equation.primitive.name.startswith("dot_product_attention_fwd") for equation in equations(traced))

    assert forward_passes(None) == 2 and forward_passes(is_cudnn_attention) == 1
