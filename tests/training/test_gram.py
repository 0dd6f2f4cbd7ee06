"""The anchor of the patches' similarities against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from croc_jax.training.gram import gram_loss


@pytest.mark.parametrize("parts", [1, 3])
def test_gram_loss_is_that_of_cosines(parts):
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 3, 2, 5, 4))
    cosines = []
    for rows in (ours, theirs):
        rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        cosines.append(rows @ np.swapaxes(rows, -1, -2))
    found = gram_loss(jnp.asarray(ours, jnp.float32), jnp.asarray(theirs, jnp.float32), num_microbatches=parts)
    np.testing.assert_allclose(found, np.mean((cosines[0] - cosines[1]) ** 2), rtol=1e-5)
