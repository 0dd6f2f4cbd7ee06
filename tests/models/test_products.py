"""Products against einsum in float64, and the types in which they and their gradients multiply."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.models.products import Dense, add_bias, product
from tests.jaxprs import equations

CASES = [
    ("bnd,df->bnf", (2, 5, 3), (3, 4)),
    ("bnd,dhe->bhne", (2, 5, 6), (6, 2, 3)),
    ("bhne,hed->bnd", (2, 3, 5, 4), (3, 4, 6)),
    ("bhnd,bhmd->bhnm", (2, 3, 5, 4), (2, 3, 6, 4)),
    ("bhnm,bhmd->bhnd", (2, 3, 5, 6), (2, 3, 6, 4)),
]


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize(("subscripts", "left", "right"), CASES)
def test_product_and_its_gradients_equal_float64(subscripts, left, right):
    x, y = draw(left, right)
    result = np.einsum(subscripts, *(array.astype(np.float64) for array in (x, y)))
    (cotangent,) = draw(result.shape, seed=1)
    found, backward = jax.vjp(lambda x, y: product(subscripts, x, y, jnp.float32), x, y)
    np.testing.assert_allclose(found, result, atol=1e-5)
    # The derivative of the sum of result * cotangent, which is linear in each: by unit steps.
    for array, gradient, other in zip((x, y), backward(cotangent), (y, x), strict=True):
        expected = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            unit = np.zeros(array.shape)
            unit[place] = 1.0
            pair = (unit, other) if array is x else (other, unit)
            expected[place] = np.sum(np.einsum(subscripts, *pair) * cotangent)
        np.testing.assert_allclose(gradient, expected, atol=1e-4)


def dots(function, *args):
    """Returns the types of all matrix products of a function: operands, and result."""
    return {
        tuple(str(value.aval.dtype) for value in (*equation.invars, *equation.outvars))
        for equation in equations(jax.make_jaxpr(function)(*args).jaxpr)
        if equation.primitive.name == "dot_general"
    }


def test_half_precision_multiplies_in_half_and_gives_parameters_float32_gradients():
    (x,), (weight,) = draw((4, 3)), draw((3, 5))
    x = x.astype(jnp.bfloat16)

    def loss(x, weight):
        return jnp.sum(product("nd,df->nf", x, weight, jnp.float32) ** 2)

    to_x, to_weight = jax.grad(loss, argnums=(0, 1))(x, weight)
    assert (to_x.dtype, to_weight.dtype) == (jnp.bfloat16, jnp.float32)
    # Not rounded to half precision on the way.
    assert np.any(to_weight != to_weight.astype(jnp.bfloat16))
    half = ("bfloat16", "bfloat16")
    assert dots(jax.grad(loss, argnums=(0, 1)), x, weight) == {(*half, "float32"), (*half, "bfloat16")}


@pytest.mark.parametrize("shape", [(4,), (3, 1, 4)])
def test_bias_is_added_and_its_gradient_summed_in_float32(shape):
    x, bias, cotangent = draw((2, 3, 500, 4), shape, (2, 3, 500, 4))
    result, backward = jax.vjp(add_bias, x.astype(jnp.bfloat16), bias)
    np.testing.assert_allclose(result.astype(np.float32), x + bias, rtol=2e-2, atol=2e-2)
    to_x, to_bias = backward(cotangent.astype(jnp.bfloat16))
    assert (to_x.dtype, to_bias.dtype, to_bias.shape) == (jnp.bfloat16, jnp.float32, shape)
    exact = np.asarray(cotangent.astype(jnp.bfloat16), np.float64)
    expected = exact.sum((0, 1, 2)) if len(shape) == 1 else exact.sum((0, 2))[:, None]
    # A sum in half precision would be off by whole units.
    np.testing.assert_allclose(to_bias, expected, atol=1e-3)


def test_dense_is_the_linear_layer_of_flax():
    x, init = draw((2, 3, 5))[0], nn.initializers.normal()
    ours, theirs = Dense(7, jnp.float32, init, init, name="a"), nn.Dense(7, kernel_init=init, bias_init=init, name="a")
    params = ours.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x))
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, params, theirs.init(jax.random.key(0), x))
