"""Eight CPU devices, quick compilation, nothing compiled earlier, and strict shapes where only our own code runs."""

import importlib
import os
import signal

import pytest

# Before the first import of jax: its backend reads them when it starts.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
# The tests compile far more than they compute: plain machine code takes a third off their time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# A cache from outside would hide what is compiled twice.
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
# In the background of a shell, interrupts are ignored, by all programs that are started from here, too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    help_text = "libraries, joined by commas, that must be there, so that no test is skipped for lack of them"
    parser.addoption("--installed", default="", help=help_text)


def pytest_configure(config):
    for name in filter(None, config.getoption("installed").split(",")):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise pytest.UsageError(f"--installed={name}: tests that need it would be skipped: {error}") from None


@pytest.fixture
def strict_ranks():
    """Shapes of different rank do not broadcast: what does so by accident is an error."""
    import jax

    # Not for every test: ott relies on such broadcasting.
    with jax.numpy_rank_promotion("raise"):
        yield
