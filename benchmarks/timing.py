"""Median times of compiled functions, and what the benchmarks print of them."""

import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table


def median_seconds(function: Callable[[], Any], *, repeats: int) -> float:
    """Returns the median time of calls until their results are there, after one that warms up."""
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def peak_memory_gib() -> float:
    """Returns the most memory used so far: of the first device, or of the process on CPU."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def random_batch(size: int, crop_size: int) -> dict[str, np.ndarray]:
    """Returns a host batch of noise: views `[b v H W c]` and their boxes `[b v 5]`."""
    rng = np.random.default_rng(0)
    corners, sizes = rng.uniform(0, 100, (size, 2, 2)), rng.uniform(100, 300, (size, 2, 2))
    boxes = np.concatenate([corners, sizes, np.zeros((size, 2, 1))], axis=-1)
    views = rng.integers(0, 256, (size, 2, crop_size, crop_size, 3), dtype=np.uint8)
    return {"views": views, "boxes": boxes.astype(np.float32)}


def print_table(title: str, rows: dict[str, str]) -> None:
    """Prints figures with their names."""
    device = jax.devices()[0]
    devices = f"{jax.device_count()} x {device.device_kind}"
    table = Table(title=f"{title}, {devices}, jax {jax.__version__}", show_header=False)
    for name, figure in rows.items():
        table.add_row(name, figure)
    Console().print(table)
