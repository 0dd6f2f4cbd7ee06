"""Arrays, indices, keys and grids are read whatever their library, and named if they do not fit."""

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
    np.testing.assert_array_equal(read_numbers("x", value), NUMBERS)
    assert read_numbers("x", jnp.asarray(NUMBERS)).dtype == np.float32


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float64", "int64", "bool"])
def test_tensors_of_pytorch_are_copied(kind):
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(NUMBERS).to(getattr(torch, kind))
    expected = np.array(tensor.float())
    found = [read_numbers("x", layout) for layout in (tensor, tensor.T, tensor[:, ::2])]
    if tensor.is_floating_point():
        found.append(read_numbers("x", tensor.clone().requires_grad_()))
    tensor.zero_()
    for array, values in zip(found, (expected, expected.T, expected[:, ::2], expected), strict=False):
        np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "x of object: expected an array of real numbers"),
        ("abc", "x of <U3: expected an array of real numbers"),
        ([[1.0, 2.0], [3.0]], "x: expected an array of numbers"),
        (NUMBERS + 1j, "x of complex64: expected an array of real numbers"),
        (jax.random.key(0), "x of key<fry>: expected an array of real numbers"),
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
        (-1e18, r"x: expected numbers of magnitude 1e\+17 at most, found 1e\+18"),
    ],
)
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_each_value_is_checked(value, message, convert):
    good, bad = convert(NUMBERS), NUMBERS.copy()
    bad[1, 2] = value
    check_magnitudes({"x": good, "y": good})
    with pytest.raises(ValueError, match=message):
        check_magnitudes({"y": good, "x": convert(bad)})


def test_values_that_are_traced_pass_and_constants_of_compiled_functions_do_not():
    @jax.jit
    def double(x, constant):
        check_magnitudes({"x": x})
        return 2 * x

    np.testing.assert_array_equal(double(jnp.array([np.inf]), 1.0), [np.inf])
    constants = jnp.array([np.nan]), np.array([np.nan])

    @jax.jit
    def add(x):
        for constant in constants:
            with pytest.raises(ValueError, match="constant: expected finite"):
                check_magnitudes({"x": x, "constant": constant})
        return x

    add(jnp.zeros(1))


def test_arrays_on_the_device_are_checked_by_one_program():
    arrays = {"x": jnp.ones((4, 7)), "y": jnp.ones(3)}
    check_magnitudes(arrays)
    size = validation._magnitudes._cache_size()
    # Nothing else may leave the device.
    with jax.transfer_guard("disallow"):
        check_magnitudes(arrays)
    assert validation._magnitudes._cache_size() == size


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([4, 0], "expected numbers from 0 to 3, found 4"),
        (jnp.array([-1, 0]), "expected numbers from 0 to 3, found -1"),
        (np.array([2**32, 1]), "expected numbers from 0 to 3, found 4294967296"),
        ([2, 2], "expected different tokens of each image and head, found 2 twice"),
        ([0.0, 1.0], r"\(2,\) float64: expected whole numbers of shape \(2,\)"),
        ([0, 1, 2], r"\(3,\) int64: expected whole numbers of shape \(2,\)"),
    ],
)
def test_indices_are_whole_different_and_in_range(value, message):
    for good in ([3, 0], np.array([3, 0], np.uint8), jnp.array([3, 0])):
        read = read_indices(good, (2,), 4)
        assert read.dtype == jnp.int32 and read.tolist() == [3, 0]
    with pytest.raises(ValueError, match="init_indices.*" + message):
        read_indices(value, (2,), 4)


def test_keys_and_seeds():
    expected = jax.random.key_data(jax.random.key(7))
    for rng in (7, np.int64(7), jax.random.key(7), jax.random.PRNGKey(7), np.asarray(jax.random.PRNGKey(7))):
        np.testing.assert_array_equal(jax.random.key_data(read_key(rng)), expected)
    for rng, given in (
        (np.random.default_rng(0), r"rng=Generator"),
        (1.5, "rng=1.5"),
        (True, "rng=True"),
        (2**70, "rng=1180591620717411303424"),
        (jax.random.split(jax.random.key(0), 3), r"rng \(3,\) key<fry>"),
        (np.zeros(2), r"rng \(2,\) float64"),
    ):
        with pytest.raises(ValueError, match=given + r".*: expected one key, such as jax.random.key\(0\), or a seed"):
            read_key(rng)


def test_grids():
    for grid in ((4, 5), [4, 5], np.array([4, 5])):
        assert read_grid(grid) == (4, 5)
    for grid in (20, (-4, -5), (4, 0), (4.0, 5.0), (4, 5, 1), "ab", None):
        with pytest.raises(ValueError, match="grid=.*: expected rows and columns of patches"):
            read_grid(grid)
