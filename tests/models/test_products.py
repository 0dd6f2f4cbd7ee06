"""Products against einsum in float64, and the types in which they and their gradients multiply."""

import functools
import pathlib
import re

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
    # A matrix that widens rows, or narrows them, from either side.
    ("ad,df->af", (10, 3), (3, 4)),
    ("ad,df->af", (10, 5), (5, 3)),
    ("ad,df->af", (1, 1), (1, 2)),
    ("ae,pe->ap", (10, 3), (5, 3)),
    ("ae,pe->ap", (10, 5), (3, 5)),
    # No rows in the same order.
    ("abd,df->baf", (2, 5, 3), (3, 4)),
    ("bdn,df->bnf", (2, 3, 3), (3, 4)),
]


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def both_passes(subscripts, multiply, x, y, cotangent):
    """In one program: XLA on CPU chooses how to multiply by what surrounds a product."""
    found, backward = jax.vjp(functools.partial(product, subscripts, dtype=jnp.float32, multiply=multiply), x, y)
    return found, backward(cotangent)


def rounded(*arrays):
    return [array.astype(jnp.bfloat16).astype(np.float64) for array in arrays]


@pytest.mark.parametrize(("subscripts", "left", "right"), CASES)
@pytest.mark.parametrize("multiply", [None, jnp.bfloat16], ids=["", "bfloat16"])
def test_product_and_its_gradients_equal_float64(subscripts, left, right, multiply):
    x, y = draw(left, right)
    (cotangent,) = draw(np.einsum(subscripts, x, y).shape, seed=1)
    found, gradients = jax.jit(functools.partial(both_passes, subscripts, multiply))(x, y, cotangent)
    assert {array.dtype for array in (found, *gradients)} == {jnp.dtype("float32")}
    # Operands are rounded, and sums are not.
    x, y, cotangent = (x, y, cotangent) if multiply is None else rounded(x, y, cotangent)
    np.testing.assert_allclose(found, np.einsum(subscripts, x, y, dtype=np.float64), atol=1e-5)
    # The derivative of the sum of result * cotangent, which is linear in each: by unit steps.
    for array, gradient, other in zip((x, y), gradients, (y, x), strict=True):
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


def multiplied_types(program):
    """Returns the types of the operands of each product in a compiled program."""
    found = []
    for computation in re.split(r"\n(?=\S)", program):
        types = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", computation))
        for operands in re.findall(r" dot\((%[\w.-]+), (%[\w.-]+)\)", computation):
            found.append(tuple(types[operand] for operand in operands))
    return found


def flags_of_cpu():
    described = pathlib.Path("/proc/cpuinfo")
    return set(described.read_text().split()) if described.exists() else set()


@pytest.mark.skipif(not {"avx512_bf16", "amx_bf16"} & flags_of_cpu(), reason="this CPU has no products of bfloat16")
@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("bnd,df->bnf", [(8, 65, 192), (192, 768), (8, 65, 768)]),
        ("bnd,df->bnf", [(8, 65, 768), (768, 192), (8, 65, 192)]),
        ("bnd,fd->bnf", [(8, 65, 192), (768, 192), (8, 65, 768)]),
        ("bnd,fd->bnf", [(8, 65, 768), (192, 768), (8, 65, 192)]),
    ],
)
@pytest.mark.parametrize(("multiply", "type_"), [(None, "f32"), (jnp.bfloat16, "bf16")], ids=["float32", "bfloat16"])
def test_forward_and_backward_products_run_in_their_type_on_a_cpu_that_has_it(subscripts, shapes, multiply, type_):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.jit(functools.partial(both_passes, subscripts, multiply)).lower(*arrays).compile()
    assert multiplied_types(program.as_text()) == [(type_, type_)] * 3


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
