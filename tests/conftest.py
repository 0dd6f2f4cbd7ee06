"""Eight CPU devices, quick compilation, a cache of compiled programs, and strict shapes for our own code alone."""

import importlib
import importlib.metadata
import os
import signal
from pathlib import Path

import pytest

from tests.checkpoints.torch_libraries import complete_torchvision

# The tests compile far more than they compute: code that is not optimized takes a third off their time, and the older
# generator of fused code, which later versions of XLA do not have, half of the rest. With
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 in the environment, everything is compiled as for users.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
flags = ["--xla_force_host_platform_device_count=8"]
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "0" and importlib.metadata.version("jaxlib").startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")
# Before the first import of jax: its backend reads them when it starts.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*os.environ.get("XLA_FLAGS", "").split(), *flags]))
# A second run of the tests compiles only what has changed; so do processes that the tests start.
CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# In the background of a shell, interrupts are ignored, also by programs that are started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    help_text = "libraries, joined by commas, that must be installed, so that no test is skipped for lack of them"
    parser.addoption("--installed", default="", help=help_text)


def pytest_configure(config):
    for name in filter(None, config.getoption("installed").split(",")):
        try:
            if name == "timm":
                complete_torchvision()
            importlib.import_module(name)
        except ImportError as error:
            raise pytest.UsageError(f"--installed={name}: tests that need it would be skipped: {error}") from None


def pytest_collection_modifyitems(items):
    # Files that take long come first, so that workers of pytest-xdist finish at about the same time.
    slowest = ["launch", "parity", "test_examples.py", "training", "evaluation", "report", "checkpoints"]
    items.sort(key=lambda item: [f"tests/{part}" not in item.path.as_posix() for part in slowest])


@pytest.fixture
def strict_ranks():
    """Makes broadcasting between shapes of different rank an error."""
    import jax

    # Not for every test: ott relies on such broadcasting.
    with jax.numpy_rank_promotion("raise"):
        yield
