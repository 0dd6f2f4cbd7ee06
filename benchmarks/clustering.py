"""Times the clustering: `python benchmarks/clustering.py [--images=32]`."""

import time

import jax
import numpy as np
from absl import flags
from timing import median_seconds, peak_memory_gib, print_table

from croc_jax.clustering import ClusteringConfig, cluster_views, patch_positions
from croc_jax.runtime.program import run

IMAGES = flags.DEFINE_integer("images", 32, "Images a call.")
HEADS = flags.DEFINE_integer("heads", 6, "Heads.")
GRID = flags.DEFINE_integer("grid", 14, "Patches along a side of a view.")
K_START = flags.DEFINE_integer("k_start", 12, "First centroids.")
REPEATS = flags.DEFINE_integer("repeats", 10, "Calls that are timed.")


def main() -> None:
    """Prints the median time an image, with the time to compile."""
    rng = np.random.default_rng(0)
    lead, count = (2, IMAGES.value, HEADS.value), GRID.value**2
    tokens = jax.device_put(rng.normal(size=(*lead, count, 64)).astype(np.float32))
    cls_tokens = jax.device_put(rng.normal(size=(*lead, 64)).astype(np.float32))
    corners, sizes = rng.uniform(0, 100, (*lead[:2], 2)), rng.uniform(100, 300, (*lead[:2], 2))
    boxes = np.concatenate([corners, sizes, rng.integers(0, 2, (*lead[:2], 1))], axis=-1)
    positions = patch_positions(boxes, (GRID.value, GRID.value))
    config = ClusteringConfig(k_start=K_START.value, k_max=K_START.value)

    def cluster() -> object:
        return cluster_views(tokens, cls_tokens, positions, config, rng=jax.random.key(0))

    start = time.perf_counter()
    jax.block_until_ready(cluster())
    compile_seconds = time.perf_counter() - start
    seconds = median_seconds(cluster, repeats=REPEATS.value)
    title = f"clustering of {IMAGES.value} images, {HEADS.value} heads, 2 x {count} tokens, K_start {K_START.value}"
    print_table(
        title,
        {
            "median a call": f"{1e3 * seconds:.1f} ms",
            "median an image": f"{1e3 * seconds / IMAGES.value:.2f} ms",
            "first call, with compilation": f"{compile_seconds:.1f} s",
            "peak memory": f"{peak_memory_gib():.2f} GiB",
        },
    )


if __name__ == "__main__":
    run(main)
