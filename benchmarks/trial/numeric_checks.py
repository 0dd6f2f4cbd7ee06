"""Whether an accelerator computes what the CPU does: steps from one start, their clusters, attention by itself."""

import concurrent.futures
import dataclasses
import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flops import transformer

from croc_jax.clustering import cluster_views, patch_positions
from croc_jax.data.config import DataConfig
from croc_jax.data.photometric import augment
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import open_data
from croc_jax.models import clustering_tokens, patch_grid
from croc_jax.models.attention import attend
from croc_jax.training.config import Recipe
from croc_jax.training.forward import encode_views, init_params, make_networks
from croc_jax.training.rng import StepKeys, run_keys, step_keys
from croc_jax.training.sharding import make_mesh
from croc_jax.training.state import state_from_params
from croc_jax.training.step import ViewPair, make_update
from trial.findings import OK, TOO_FAR, Report, attempt
from trial.sizes import TrialSize, with_batch

Batch = Mapping[str, jax.Array]
LOSSES = ("loss", "loss_dense", "loss_global")
STEPS_PER_EPOCH = 2


class Limits(NamedTuple):
    """How far numbers may be from the reference.

    Attributes:
        loss: relative difference of any loss of any step.
        gradient: norm of the difference of the first gradient, over that of the reference.
        same_k: least share of the heads with the same number of clusters.
        same_labels: least share of the tokens with the same cluster, in heads with the same number of clusters.
        attention: difference of outputs and gradients, as a share of the largest number.
    """

    loss: float
    gradient: float
    same_k: float
    same_labels: float
    attention: float


# Rounding, measured on a CPU: steps of four images with ViT-S/16 in bfloat16 differ from those in float32 by 6e-4 in
# the losses, 3e-2 in the gradients, one K in 24 heads, 0.2% of the labels of the others, and 5e-3 in attention. Kernels
# of accelerators add in other orders and may keep fewer bits: four times as much passes (eight times for losses). In
# float32 the order alone changes losses by 1e-5 and attention by 1e-6; but a tie can flip the K of a head, which moves
# the dense loss and the gradients by a thousand times as much. Fresh weights attend nearly uniformly, which hides
# errors of scale from the losses: hence attention by itself.
LIMITS = {
    "bfloat16": Limits(loss=5e-3, gradient=0.1, same_k=0.8, same_labels=0.95, attention=2e-2),
    "float32": Limits(loss=1e-3, gradient=0.02, same_k=0.95, same_labels=0.99, attention=1e-5),
}
# Share of the phase's time after which the second comparison, which only explains the first, is left out.
_SHARE_FOR_THE_FIRST = 0.6
# Kernels are chosen by length: odd and even, and those of 96, 224 and 256 pixels with [CLS].
ATTENTION_TOKENS = (37, 197, 201, 257)


class Inputs(NamedTuple):
    """What all runs have in common, on the host.

    Attributes:
        state: the state before the first step.
        batches: crops of images, one batch for each step.
        indices: initial centroids of each batch.
    """

    state: Any
    batches: Sequence[Mapping[str, np.ndarray]]
    indices: Sequence[np.ndarray]


class Programs(NamedTuple):
    """The parts of a step that are compiled one by one.

    Attributes:
        see: (step, batch) -> (augmented views, key).
        cluster: (teacher, views, initial centroids) -> (K, labels).
        update: (state, views, key, initial centroids) -> (state, metrics).
    """

    see: jax.stages.Wrapped
    cluster: jax.stages.Wrapped
    update: jax.stages.Wrapped


class Found(NamedTuple):
    """Results of one run.

    Attributes:
        losses: losses `[step loss]`, in the order of `LOSSES`.
        gradients: gradients of the first step, of backbone and head, as the optimizer's first moments.
        num_clusters: K of the first batch before the first step `[b h]`.
        labels: its labels `[v b h n]`.
    """

    losses: np.ndarray
    gradients: Mapping[str, Any]
    num_clusters: np.ndarray
    labels: np.ndarray


def check_numbers(size: TrialSize, images: str, report: Report) -> None:
    """Compares the devices' steps with those of the CPU in float32, and attention with a reference in NumPy.

    Args:
        size: sizes of the trial.
        images: folder of images.
        report: takes the rows.
    """
    attempt(report, lambda: check_attention(size, report), "attention")
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    recipe, exact = check_recipe(size), check_recipe(size, dtype="float32", attention="xla")
    inputs = make_inputs(size, exact, images, cpu)
    chosen = str(np.dtype(transformer(recipe).dtype))
    # The precision tells rounding from errors: by default, GPUs and TPUs round even the factors of float32 products.
    default: Any = jax.config.jax_default_matmul_precision  # pyright: ignore
    trials = [(f"as it trains ({chosen})", recipe, default, LIMITS[chosen])]
    if device != cpu:
        trials.append(("float32, exact products", exact, "highest", LIMITS["float32"]))
    elif chosen == "float32":
        # The reference itself, taken twice.
        trials = [(trials[0][0], exact, *trials[0][2:])]
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        report.say(f"  {size.check_steps} steps on the CPU, for comparison ...")
        reference = pool.submit(run_steps, exact, inputs, cpu)
        if device == cpu:
            reference.result()
        for name, *settings in trials:
            if time.monotonic() - begin > _SHARE_FOR_THE_FIRST * size.seconds["numbers"]:
                report(name, "left out, as the time was short")
                continue
            report.say(f"  {size.check_steps} steps on {device.device_kind}, {name} ...")

            def run(name: str, recipe: Recipe, precision: Any, limits: Limits) -> None:
                with jax.default_matmul_precision(precision):
                    found = run_steps(recipe, inputs, device)
                compare(name, found, reference.result(), limits, report)

            attempt(report, functools.partial(run, name, *settings), name)


def check_recipe(size: TrialSize, **backbone: str) -> Recipe:
    """Returns the recipe of the comparison: no stochastic depth, and the peak learning rate from the start."""
    recipe = with_batch(size.recipe, size.check_batch)
    # The learning rate of the usual batch of 256.
    base_lr = recipe.optimizer.base_lr * 256 / size.check_batch
    optimizer = dataclasses.replace(recipe.optimizer, base_lr=base_lr, warmup_epochs=1, freeze_last_layer_epochs=0)
    changed = dataclasses.replace(recipe.backbone, drop_path_rate=0.0, **backbone)
    return dataclasses.replace(recipe, backbone=changed, optimizer=optimizer)


def make_inputs(size: TrialSize, recipe: Recipe, images: str, cpu: Any) -> Inputs:
    """Returns a state and batches of crops, with the initial centroids drawn once for all runs."""
    dataset = make_dataset(
        open_data(DataConfig(folders=(images,))), views=recipe.data.views, batch_size=size.check_batch, seed=recipe.seed
    )
    with dataset.iterate(num_workers=0, num_threads=1) as stream:
        batches: list[Any] = [dict(next(stream)) for _ in range(size.check_steps)]
    backbone, rng = transformer(recipe), np.random.default_rng(0)
    shape = size.check_batch, backbone.num_heads, 2 * backbone.grid_size**2
    draws = [np.argsort(rng.random(shape))[..., : recipe.clustering.k_start] for _ in batches]
    networks = make_networks(recipe, mesh=make_mesh([cpu]))

    def init() -> Any:
        params = init_params(networks, jax.random.key(recipe.seed), crop_size=recipe.data.views.crop_size)
        return state_from_params(recipe, params, steps_per_epoch=STEPS_PER_EPOCH)

    with jax.default_device(cpu):
        state = jax.device_get(jax.jit(init)())
    return Inputs(state, batches, [draw.astype(np.int32) for draw in draws])


@functools.lru_cache
def make_programs(recipe: Recipe, device: Any) -> Programs:
    """Returns the programs of a comparison for one device; those of one recipe are compiled once."""
    mesh = make_mesh([device])
    update = make_update(recipe, steps_per_epoch=STEPS_PER_EPOCH, mesh=mesh)
    crop = recipe.data.views.crop_size
    grid = patch_grid((crop, crop), recipe.backbone.patch_size)
    networks = make_networks(recipe, mesh=mesh)

    def see(step: Any, batch: Batch) -> tuple[ViewPair, StepKeys]:
        keys = step_keys(run_keys(recipe.seed)[1], step)
        images = augment(keys.augment, batch["views"], recipe.data.photometric)
        return ViewPair(images, patch_positions(batch["boxes"], grid)), keys

    def cluster(teacher: Any, views: ViewPair, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
        features, _ = encode_views(networks.backbone, teacher["backbone"], views.images)
        features, positions = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (features, views.positions))
        tokens, cls = clustering_tokens(features, recipe.objective.tokens, groups=recipe.objective.token_groups)
        clustering = cluster_views(tokens, cls, positions, recipe.clustering, init_indices=indices)
        return clustering.num_clusters, clustering.labels

    return Programs(jax.jit(see), jax.jit(cluster), jax.jit(update, donate_argnums=0))


def run_steps(recipe: Recipe, inputs: Inputs, device: Any) -> Found:
    """Takes all steps on one device, and clusters the first batch before them."""
    programs = make_programs(recipe, device)
    state, losses = jax.device_put(inputs.state, device), []
    batches = [jax.device_put(pair, device) for pair in zip(inputs.batches, inputs.indices, strict=True)]
    clusters, gradients = None, None
    for batch, indices in batches:
        views, keys = programs.see(state.step, batch)
        clusters = clusters or jax.device_get(programs.cluster(state.teacher, views, indices))
        state, metrics = programs.update(state, views, keys, indices)
        gradients = gradients or jax.device_get(first_moments(state.opt_state))
        losses.append([float(metrics[name]) for name in LOSSES])
    assert clusters is not None and gradients is not None, "there is one step, at least"
    return Found(np.array(losses), gradients, *clusters)


def compare(name: str, found: Found, reference: Found, limits: Limits, report: Report) -> None:
    """Reports how far the losses, gradients and clusters of a run are from those of another one."""
    for index, loss in enumerate(LOSSES):
        ours, theirs = found.losses[:, index], reference.losses[:, index]
        apart = float(np.max(np.abs(ours - theirs) / np.abs(theirs)))
        pairs = ", ".join(f"{our:.5g}/{their:.5g}" for our, their in zip(ours, theirs, strict=True))
        figure = f"at most {apart:.1e} apart, of {limits.loss:.0e}: {pairs}"
        numbers = {"apart": apart, "limit": limits.loss, "found": ours.tolist(), "reference": theirs.tolist()}
        # A comparison with NaN is False.
        report(f"{loss}, {name}", figure, OK if apart <= limits.loss else TOO_FAR, **numbers)
    for part in reference.gradients:
        apart = difference(found.gradients[part], reference.gradients[part])
        verdict = OK if apart <= limits.gradient else TOO_FAR
        report(f"gradient of the {part}, {name}", f"{apart:.1e} apart, of {limits.gradient:.0e}", verdict, apart=apart)
    same_k = found.num_clusters == reference.num_clusters
    share, labels = float(same_k.mean()), found.labels == reference.labels
    # With another K, clusters have other numbers.
    same_labels = float(labels[:, same_k].mean()) if same_k.any() else 0.0
    good = share >= limits.same_k and same_labels >= limits.same_labels
    figure = (
        f"same K in {share:.1%} of the heads (least: {limits.same_k:.0%}), "
        f"there the same cluster for {same_labels:.1%} of the tokens (least: {limits.same_labels:.0%})"
    )
    report(f"clusters, {name}", figure, OK if good else TOO_FAR, same_k=share, same_labels=same_labels)


def first_moments(opt_state: Any) -> dict[str, list[Any]]:
    """Returns Adam's first moments of backbone and head, which after one step are a tenth of the gradients."""
    found = [moment for _, moment in optax.tree_utils.tree_get_all_with_path(opt_state, "mu")]
    return {part: [moment[part] for moment in found] for part in ("backbone", "head")}


def difference(found: Any, reference: Any) -> float:
    """Returns the norm of the difference of two trees of arrays over the norm of the second one."""
    squares = jax.tree.map(lambda our, their: (_square(our - their), _square(their)), found, reference)
    apart, whole = np.sum(np.reshape(jax.tree.leaves(squares), (-1, 2)), axis=0)
    return math.sqrt(apart / whole)


def _square(array: np.ndarray) -> float:
    return float(np.sum(np.square(array, dtype=np.float64)))


def check_attention(size: TrialSize, report: Report) -> None:
    """Compares outputs and gradients of the chosen attention with float64, at several numbers of tokens."""
    backbone = transformer(size.recipe)
    for tokens in ATTENTION_TOKENS:
        name = f"attention, {backbone.attention}, {np.dtype(backbone.dtype)}, {tokens} tokens"
        attempt(report, functools.partial(_compare_attention, name, tokens, backbone, report), name)


def _compare_attention(name: str, tokens: int, backbone: Any, report: Report) -> None:
    rng, limit = np.random.default_rng(tokens), LIMITS[str(np.dtype(backbone.dtype))].attention
    shape = 2, backbone.num_heads, tokens, backbone.width // backbone.num_heads
    # Both start from the same rounded numbers.
    draws = [jnp.asarray(rng.standard_normal(shape), backbone.dtype) for _ in range(4)]
    *inputs, weights = draws

    @jax.jit
    def run(inputs: list, weights: jax.Array) -> tuple:
        mixed, pull = jax.vjp(functools.partial(attend, implementation=backbone.attention), *inputs)
        return mixed, *pull(weights)

    # How accelerators round float32 by default is not tested here.
    with jax.default_matmul_precision("highest"):
        found = [np.asarray(array, np.float64) for array in run(inputs, weights)]
    expected = attention_in_numpy(*(np.asarray(array, np.float64) for array in draws))
    errors = {
        part: float(np.max(np.abs(our - their)) / np.max(np.abs(their)))
        for part, our, their in zip(("output", "queries", "keys", "values"), found, expected, strict=True)
    }
    figure = f"{', '.join(f'{part} {error:.1e}' for part, error in errors.items())} apart, of {limit:.0e}"
    report(name, figure, OK if all(error <= limit for error in errors.values()) else TOO_FAR, **errors)


def attention_in_numpy(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Returns attention `[b h n d]`, and the gradients of its sum with some weights, in the type of the arguments."""
    scale = 1 / math.sqrt(queries.shape[-1])
    scores = np.einsum("bhnd,bhmd->bhnm", queries, keys) * scale
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    to_shares = np.einsum("bhnd,bhmd->bhnm", weights, values)
    to_scores = shares * (to_shares - np.sum(to_shares * shares, axis=-1, keepdims=True)) * scale
    return (
        np.einsum("bhnm,bhmd->bhnd", shares, values),
        np.einsum("bhnm,bhmd->bhnd", to_scores, keys),
        np.einsum("bhnm,bhnd->bhmd", to_scores, queries),
        np.einsum("bhnm,bhnd->bhmd", shares, weights),
    )
