"""What callers hand over is read whatever its library, and named if it does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.clustering import validation
from croc_jax.clustering.validation import check_magnitudes, read_grid, read_indices, read_key, read_numbers

NUMBERS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "value",
    [NUMBERS, jnp.asarray(NUMBERS), NUMBERS.tolist(), list(NUMBERS), (jnp.asarray(NUMBERS[0]), NUMBERS[1].tolist())],
    ids=["numpy", "jax", "lists", "list of arrays", "mixture"],
)
def test_numbers_come_in_many_forms(value):
    read = read_numbers("x", value)
    assert isinstance(read, jax.Array) and read.dtype == jnp.float32
    np.testing.assert_array_equal(read, NUMBERS)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float64", "int64", "bool"])
@pytest.mark.parametrize("layout", ["plain", "transposed", "strided", "with gradients"])
def test_tensors_of_pytorch_come_in_every_layout(kind, layout):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(NUMBERS).to(getattr(torch, kind))
    expected = np.asarray(tensor.float())
    if layout == "transposed":
        tensor, expected = tensor.T, expected.T
    elif layout == "strided":
        tensor, expected = tensor[:, ::2], expected[:, ::2]
    elif layout == "with gradients":
        if kind in ("int64", "bool"):
            pytest.skip("no gradients of whole numbers")
        tensor = tensor.requires_grad_()
    np.testing.assert_array_equal(read_numbers("x", tensor).astype(jnp.float32), expected)


class Tensor:
    """Exports like PyTorch's: not while gradients are needed, and to JAX not with gaps."""

    def __init__(self, array, *, needs_gradients=False):
        self.array, self.needs_gradients = array, needs_gradients

    def __dlpack__(self, **options):
        if self.needs_gradients:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def detach(self):
        return Tensor(self.array)

    def contiguous(self):
        return Tensor(np.ascontiguousarray(self.array))


@pytest.mark.parametrize("array", [NUMBERS, NUMBERS.T])
@pytest.mark.parametrize("needs_gradients", [True, False])
def test_arrays_of_other_libraries_are_copied(array, needs_gradients):
    expected = np.array(array)
    whole = np.empty((*array.shape, 2), np.float32)
    whole[..., 0] = array
    for theirs in (array.copy(order="K"), whole[..., 0]):
        read = read_numbers("x", Tensor(theirs, needs_gradients=needs_gradients))
        theirs[:] = 0
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "x: expected an array of numbers"),
        ("abc", "x: expected an array of numbers"),
        ([[1.0, 2.0], [3.0]], "x: expected an array of numbers"),
        ({"a": 1.0}, "x: expected an array of numbers"),
        (NUMBERS + 1j, "x of complex64: expected real numbers"),
        (jax.random.key(0), "x of key<fry>: expected real numbers"),
    ],
)
def test_what_is_no_array_of_numbers_is_named_in_one_line(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_numbers("x", value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "x: expected finite numbers, found NaN or infinity"),
        (-np.inf, "x: expected finite numbers"),
        (-11.0, "x: expected numbers of magnitude 10 at most, found 11"),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_value_is_looked_at(value, message, dtype):
    good, bad = jnp.asarray(NUMBERS, dtype), jnp.asarray(NUMBERS, dtype).at[1, 2].set(value)
    check_magnitudes({"x": (good, 10.0), "y": (good, jnp.inf)})
    with pytest.raises(ValueError, match=message):
        check_magnitudes({"y": (good, jnp.inf), "x": (bad, 10.0)})


def test_values_that_are_not_known_yet_pass_and_constants_of_compiled_functions_do_not():
    @jax.jit
    def double(x, constant):
        check_magnitudes({"x": (x, 1.0)})
        return 2 * x

    np.testing.assert_array_equal(double(jnp.array([np.inf]), 1.0), [np.inf])

    @jax.jit
    def add(x):
        constant = read_numbers("constant", np.array([np.nan]))
        check_magnitudes({"x": (x, 1.0), "constant": (constant, 1.0)})
        return x + constant

    with pytest.raises(ValueError, match="constant: expected finite"):
        add(jnp.zeros(1))


def test_values_are_looked_at_once_without_another_compilation():
    arrays = {"x": (jnp.ones((4, 7)), 2.0), "y": (jnp.ones(3), 2.0)}
    check_magnitudes(arrays)
    size = validation._magnitudes._cache_size()
    # Nothing else may leave the device.
    with jax.transfer_guard("disallow"):
        check_magnitudes(arrays)
    assert validation._magnitudes._cache_size() == size


def test_indices_keep_their_values():
    for value in ([3, 0], np.array([3, 0], np.uint8), jnp.array([3, 0])):
        read = read_indices(value, (2,), 4)
        assert read.dtype == jnp.int32
        np.testing.assert_array_equal(read, [3, 0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([4, 0], "expected numbers from 0 to 3, found 4"),
        ([-1, 0], "expected numbers from 0 to 3, found -1"),
        (jnp.array([-1, 0]), "expected numbers from 0 to 3, found -1"),
        (np.array([2**32, 1]), "expected numbers from 0 to 3, found 4294967296"),
        ([2, 2], "expected different tokens of each image and head, found 2 twice"),
        ([0.0, 1.0], r"\(2,\) float32: expected whole numbers of shape \(2,\)"),
        ([0, 1, 2], r"\(3,\) int32: expected whole numbers of shape \(2,\)"),
    ],
)
def test_indices_are_whole_different_and_in_range(value, message):
    with pytest.raises(ValueError, match="init_indices.*" + message):
        read_indices(value, (2,), 4)


def test_keys_and_seeds():
    expected = jax.random.key_data(jax.random.key(7))
    for rng in (7, np.int64(7), jax.random.key(7), jax.random.PRNGKey(7), np.asarray(jax.random.PRNGKey(7))):
        key = read_key(rng)
        data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
        np.testing.assert_array_equal(data, expected)


@pytest.mark.parametrize(
    ("rng", "message"),
    [
        (np.random.default_rng(0), r"rng=Generator"),
        (1.5, "rng=1.5"),
        (True, "rng=True"),
        (2**70, "rng=1180591620717411303424"),
        (jax.random.split(jax.random.key(0), 3), r"rng \(3,\) key<fry>"),
        (np.zeros(2), r"rng \(2,\) float64"),
    ],
)
def test_other_sources_of_chance_are_named(rng, message):
    with pytest.raises(ValueError, match=message + r".*: expected one key, such as jax.random.key\(0\), or a seed"):
        read_key(rng)


def test_grids():
    for grid in ((4, 5), [4, 5], np.array([4, 5])):
        assert read_grid(grid) == (4, 5)
    for grid in (20, (-4, -5), (4, 0), (4.0, 5.0), (4, 5, 1), "ab", None):
        with pytest.raises(ValueError, match="grid=.*: expected rows and columns of patches"):
            read_grid(grid)
