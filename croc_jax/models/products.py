"""Matrix products that multiply in a chosen type, forward and backward, and give parameters float32 gradients."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float


def product(subscripts: str, x: Array, y: Array, dtype: Any, multiply: Any = None) -> Array:
    """Returns an einsum of two arrays that multiplies in the type of the first, or in another one.

    Gradients multiply in that type, too: those of JAX's own einsum multiply in the type of the result, so that
    float32 logits or scores of bfloat16 operands would have float32 products in the backward pass. The gradient
    of `y` has the type of `y`, unrounded: for float32 parameters, devices add it up in float32. There is no forward
    differentiation (`jax.jvp`).

    Args:
        subscripts: einsum such as "bnd,df->bnf", without an ellipsis; each index is in two of the three arrays.
        x: first operand, whose type is that of the computation.
        y: second operand, cast to that type.
        dtype: type of the result.
        multiply: type that both are rounded to for products, forward and backward; sums are of the type of the result.
    """
    return _product(subscripts, x, y, dtype, x.dtype if multiply is None else multiply)  # pyright: ignore


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def _product(subscripts: str, x: Array, y: Array, dtype: Any, multiply: Any) -> Array:
    return jnp.einsum(subscripts, x.astype(multiply), y.astype(multiply), preferred_element_type=dtype)


def _product_forward(
    subscripts: str, x: Array, y: Array, dtype: Any, multiply: Any
) -> tuple[Array, tuple[Array, Array]]:
    return product(subscripts, x, y, dtype, multiply), (x, y)


def _product_backward(
    subscripts: str, _: Any, multiply: Any, operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    (x, y), (operand_indices, result) = operands, subscripts.split("->")
    left, right = operand_indices.split(",")
    rows, cotangent = x.astype(multiply), cotangent.astype(multiply)
    to_x = jnp.einsum(f"{result},{right}->{left}", cotangent, y.astype(multiply), preferred_element_type=x.dtype)
    sum_rows = functools.partial(jnp.einsum, f"{left},{result}->{right}", preferred_element_type=y.dtype)
    # Rows in the same order, of which a matrix makes other rows.
    is_linear = left[:-1] == result[:-1] and set(right) == {left[-1], result[-1]}
    if multiply == x.dtype or not is_linear:
        return to_x, sum_rows(rows, cotangent)
    swapped = right[0] == result[-1]
    on_cpu = functools.partial(_sum_rows_on_cpu, swapped=swapped, dtype=y.dtype)
    return to_x, jax.lax.platform_dependent(rows, cotangent, cpu=on_cpu, default=sum_rows)


def _sum_rows_on_cpu(
    x: Float[Array, "*rows d"], cotangent: Float[Array, "*rows f"], *, swapped: bool, dtype: Any
) -> Array:
    """Returns x^T cotangent `[d f]`, or its transpose, as a product that XLA on CPU multiplies in bfloat16.

    With jaxlib 0.10 to 0.12, it has that for a left array that is not transposed alone. So the narrower of both is
    transposed in memory, and the result if need be.
    """
    left, right = (part.reshape(-1, part.shape[-1]) for part in ((cotangent, x) if swapped else (x, cotangent)))
    is_right = right.shape[1] < left.shape[1]
    narrow, wide = (right, left) if is_right else (left, right)
    result = jnp.einsum("dr,rf->df", _transpose(narrow), wide, preferred_element_type=dtype)
    return _transpose(result) if is_right else result


def _transpose(x: Float[Array, "a b"]) -> Float[Array, "b a"]:
    """Returns a transpose in two parts: XLA folds a plain one into the product, which is then one of float32."""
    half = x.shape[1] // 2
    return jnp.concatenate([x[:, :half].T, x[:, half:].T])


_product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """Returns x + bias in the type of x; the gradient of the bias is summed in the type of the bias."""
    return x + _aligned(bias, x).astype(x.dtype)


def _aligned(bias: Array, x: Array) -> Array:
    return bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return add_bias(x, bias), bias


def _add_bias_backward(bias: Array, cotangent: Array) -> tuple[Array, Array]:
    sizes = zip(_aligned(bias, cotangent).shape, cotangent.shape, strict=True)
    axes = tuple(axis for axis, (size, whole) in enumerate(sizes) if size != whole)
    return cotangent, jnp.sum(cotangent, axis=axes, dtype=bias.dtype).reshape(bias.shape)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


class Dense(nn.Module):
    """A linear layer with the parameters of `nn.Dense`, whose gradients are float32 whatever the computation is in.

    Attributes:
        features: features of the result.
        dtype: type of the computation.
        kernel_init: initializer of the matrix.
        bias_init: initializer of the bias.
        kept_as: name of the product, before the bias, for policies that keep values for the backward pass.
        multiply: type of the products, by default that of the computation.
    """

    features: int
    dtype: Any
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    kept_as: str = ""
    multiply: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch f"]:
        """Returns x W + b in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        batch = "abc"[: x.ndim - 1]
        result = product(f"{batch}d,df->{batch}f", x.astype(self.dtype), kernel, self.dtype, self.multiply)
        return add_bias(checkpoint_name(result, self.kept_as) if self.kept_as else result, bias)
