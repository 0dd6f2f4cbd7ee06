"""Times the whole ViT-S/16 training step: `python benchmarks/step.py [--batch=8]`."""

import time

import jax
import numpy as np
from absl import flags
from flops import model_flops, transformer
from timing import median_seconds, peak_memory_gib, print_table, random_batch

from croc_jax.clustering import cluster_views, patch_positions
from croc_jax.losses import ObjectiveConfig
from croc_jax.models import BackboneConfig
from croc_jax.runtime.program import run
from croc_jax.training.config import Recipe, ScheduleConfig
from croc_jax.training.sharding import make_mesh, replicated, shard_batch
from croc_jax.training.state import init_state
from croc_jax.training.step import make_train_step

BATCH = flags.DEFINE_integer("batch", 8, "Images a step.")
VARIANT = flags.DEFINE_string("variant", "vit_small", "Backbone.")
DTYPE = flags.DEFINE_string("dtype", "auto", "float32, bfloat16, mixed or auto.")
REMAT = flags.DEFINE_bool("remat", False, "Recompute blocks in the backward pass.")
ALPHA = flags.DEFINE_float("alpha", 1.0, "Weight of the dense loss; 0 times plain DINO.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Steps that are timed.")
PEAK = flags.DEFINE_float("peak_tflops", 0.0, "The device's peak, to print the share of it that is used.")


def main() -> None:
    """Prints images/s, model FLOP/s, the share of the clustering, compile time and peak memory."""
    backbone = BackboneConfig(variant=VARIANT.value, dtype=DTYPE.value, remat=REMAT.value)
    recipe = Recipe(
        backbone=backbone, schedule=ScheduleConfig(batch_size=BATCH.value), objective=ObjectiveConfig(alpha=ALPHA.value)
    )
    mesh = make_mesh()
    init = jax.jit(lambda: init_state(recipe, steps_per_epoch=1000), out_shardings=replicated(mesh))
    state = init()
    batch = shard_batch(random_batch(BATCH.value, recipe.data.views.crop_size), mesh)
    step = make_train_step(recipe, steps_per_epoch=1000, mesh=mesh)
    start = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start

    def one_step() -> dict[str, jax.Array]:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics

    seconds = median_seconds(one_step, repeats=REPEATS.value)
    clustering = clustering_seconds(recipe) if ALPHA.value else 0.0
    metrics = one_step()
    clusters = float(metrics["num_clusters"] * metrics["valid_fraction"])
    flops = model_flops(recipe, clusters) * BATCH.value / seconds
    rows = {
        "median a step": f"{seconds:.3f} s",
        "median an image": f"{1e3 * seconds / BATCH.value:.1f} ms",
        "clusters": f"{clusters:.1f} a head in both views",
        "images/s": f"{BATCH.value / seconds:.1f}",
        "model FLOP/s": f"{flops / 1e12:.3f} T",
        "clustering": f"{1e3 * clustering:.1f} ms, {100 * clustering / seconds:.1f}% of the step",
        "compilation": f"{compile_seconds:.1f} s",
        "peak memory": f"{peak_memory_gib():.2f} GiB",
    }
    if PEAK.value:
        rows["share of the peak"] = f"{100 * flops / 1e12 / PEAK.value:.1f}%"
    backbone = transformer(recipe)
    types = f"{backbone.dtype}, products in {backbone.multiply}"
    print_table(f"{VARIANT.value}/16 step, batch {BATCH.value}, {types}", rows)


def clustering_seconds(recipe: Recipe) -> float:
    """Returns the median time of the step's clustering by itself, on one device's share of the batch."""
    backbone = transformer(recipe)
    images, count = recipe.schedule.batch_size // jax.device_count(), backbone.grid_size**2
    noise = np.random.default_rng(0)
    shape = (2, images, backbone.num_heads, count + 1, backbone.width // backbone.num_heads)
    tokens = jax.device_put(noise.normal(size=shape).astype(np.float32))
    boxes = np.moveaxis(random_batch(images, 1)["boxes"], 1, 0)
    positions = patch_positions(boxes, (backbone.grid_size, backbone.grid_size))
    patches, cls_tokens = jax.block_until_ready((tokens[..., 1:, :], tokens[..., 0, :]))
    rng = jax.random.key(0)
    return median_seconds(
        lambda: cluster_views(patches, cls_tokens, positions, recipe.clustering, rng=rng), repeats=REPEATS.value
    )


if __name__ == "__main__":
    run(main)
