"""What is compared with the official numbers is compiled as it is for users."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def optimized():
    before = jax.config.read("jax_disable_most_optimizations")
    # Programs that other tests have compiled would serve here, too.
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", before)
