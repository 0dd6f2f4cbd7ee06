"""Batch normalization and one linear layer on patch tokens, trained while the backbone encodes each crop anew."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Real, UInt8

from croc_jax.data.labeled.label_files import IGNORED
from croc_jax.data.photometric import normalize, to_unit
from croc_jax.evaluation.distortion import distort
from croc_jax.evaluation.interpolation import bilinear_matrix, resize_with
from croc_jax.evaluation.settings import DistortionConfig
from croc_jax.models import Backbone, patch_grid
from croc_jax.models.batch_norm import STATISTICS, BatchNorm, update_batch_stats

PRECISION = jax.lax.Precision.HIGHEST
# Standard deviation of the first weights of the layer, and the share of the learning rate that a warm-up starts from.
START_DEVIATION = 0.01
WARMUP_RATIO = 1e-6
EPSILON = 1e-8


class DenseHead(nn.Module):
    """Dropout of whole features, batch normalization and a linear layer on each patch token, in float32.

    Attributes:
        num_classes: outputs of the layer.
        dropout: share of the features of each image that training drops.
    """

    num_classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: Float[Array, "b r c d"], train: bool) -> Float[Array, "b r c k"]:
        """Returns the logits; statistics are those of the batch in training, else the running ones."""
        drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)
        normalized = BatchNorm(jnp.float32, name="norm")(drop(tokens.astype(jnp.float32)), train)
        start = nn.initializers.normal(START_DEVIATION)
        return nn.Dense(self.num_classes, kernel_init=start, precision=PRECISION, name="layer")(normalized)


class HeadState(NamedTuple):
    """Parameters of a head, with its running statistics, and the state of its optimizer."""

    params: Any
    opt_state: optax.OptState


class CropStep(NamedTuple):
    """What a step of training gets beside the state.

    Attributes:
        images: values as they are stored.
        labels: class ids of all pixels.
        sizes: height and width of the part of each crop that its image covers.
        number: number of the step, from 0.
    """

    images: Real[Array | np.ndarray, "b s s c"]
    labels: UInt8[Array | np.ndarray, "b s s"]
    sizes: Int[Array | np.ndarray, "b 2"]
    number: int


def make_schedule(*, lr: float, iterations: int, warmup_iterations: int, shape: str) -> optax.Schedule:
    """Returns the learning rate by step, from 0.

    Args:
        lr: learning rate that the schedule is a share of.
        iterations: steps until 0.
        warmup_iterations: steps of a linear warm-up, during which the rate also falls linearly toward 0.
        shape: "linear" falls linearly (MMSegmentation's "poly" of power 1, for DINOv2); "cosine" falls along a cosine
            once the warm-up is over, one step late throughout, as DINOv3's WarmupOneCycleLR is called.
    """

    def schedule(count: jax.typing.ArrayLike) -> Array:
        step = jnp.maximum(jnp.asarray(count) - (shape == "cosine"), 0)
        falling = 1 - step / iterations
        warm = falling * (1 - (1 - step / max(warmup_iterations, 1)) * (1 - WARMUP_RATIO))
        after = (1 + jnp.cos(jnp.pi * (step + 1) / iterations)) / 2 if shape == "cosine" else falling
        return lr * jnp.where(step < warmup_iterations, warm, after)

    return schedule


def init_head(head: DenseHead, tx: optax.GradientTransformation, *, width: int, seed: int) -> HeadState:
    """Returns the start: normal weights of deviation 0.01, zero biases, statistics of mean 0 and variance 1."""

    @jax.jit
    def start() -> HeadState:
        params = head.init(jax.random.key(seed), jnp.zeros((1, 1, 1, width)), train=False)["params"]
        return HeadState(params, tx.init(params))

    return start()


def make_step_fn(
    encode: Callable[[Any, CropStep, Array], Array],
    head: DenseHead,
    tx: optax.GradientTransformation,
    *,
    seed: int,
) -> Callable[[Any, HeadState, CropStep], tuple[HeadState, Float[Array, ""]]]:
    """Returns a jitted function of (parameters of the backbone, state, step) that trains the head.

    Args:
        encode: function of (parameters, step, key) to the tokens `[b r c d]` of changed crops.
        head: the head.
        tx: its optimizer.
        seed: seed of changed colors and dropped features.
    """

    def loss_fn(params: Any, tokens: Array, labels: Array, key: Array) -> tuple[Array, Any]:
        logits, left = head.apply({"params": params}, tokens, train=True, rngs={"dropout": key}, mutable=[STATISTICS])
        return pixel_loss(logits, labels), left[STATISTICS]

    @jax.jit
    def train_step(backbone_params: Any, state: HeadState, step: CropStep) -> tuple[HeadState, Float[Array, ""]]:
        colors, dropped = jax.random.split(jax.random.fold_in(jax.random.key(seed), step.number))
        tokens = encode(backbone_params, step, colors)
        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, statistics), gradients = gradient_fn(state.params, tokens, step.labels, dropped)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        # The decay of the optimizer reaches the running statistics, too: these follow from the ones before.
        params = update_batch_stats(optax.apply_updates(state.params, updates), state.params, statistics)
        return HeadState(params, opt_state), loss

    return train_step


def pixel_loss(logits: Float[Array, "b r c k"], labels: UInt8[Array, "b H W"]) -> Float[Array, ""]:
    """Returns the cross-entropy of bilinearly upsampled logits, summed over labeled pixels, divided by all pixels.

    That ignored pixels count in the mean is MMSegmentation's default (`avg_non_ignore=False`).
    """
    rows, columns = map(bilinear_matrix, logits.shape[1:3], labels.shape[1:])

    # The scores of all pixels of a batch are gigabytes: one image at a time, and computed again for the gradient.
    @jax.checkpoint
    def image_loss(grid: Array, ids: Array) -> Array:
        counted = ids != IGNORED
        targets = jnp.where(counted, ids, 0).astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(resize_with(rows, columns, grid), targets)
        return jnp.sum(losses * counted)

    return jnp.sum(jax.lax.map(lambda parts: image_loss(*parts), (logits, labels))) / labels.size


def encode_padded(backbone: Backbone, params: Any, images: Float[Array, "b H W c"]) -> Float[Array, "b r c d"]:
    """Returns patch tokens of normalized images, with zeros around images that whole patches do not tile.

    The image lies in the middle, as DINOv2's CenterPadding puts it.
    """
    pads = [divmod(-length % backbone.patch_size, 2) for length in images.shape[1:3]]
    padded = jnp.pad(images, [(0, 0), *((half, half + odd) for half, odd in pads), (0, 0)])
    grid = patch_grid((padded.shape[1], padded.shape[2]), backbone.patch_size)
    return backbone.apply({"params": params}, padded).patches.reshape(len(images), *grid, -1)


def make_crop_encoder(backbone: Backbone, config: DistortionConfig) -> Callable[[Any, CropStep, Array], Array]:
    """Returns a function of (parameters, step, key) to the tokens of crops with changed colors."""
    mean, std = (np.array(of, np.float32) for of in (backbone.image_mean, backbone.image_std))

    def encode(params: Any, step: CropStep, key: Array) -> Float[Array, "b r c d"]:
        images = distort(key, to_unit(jnp.asarray(step.images), backbone.pixels), config)
        place = jnp.stack(jnp.meshgrid(*map(jnp.arange, images.shape[1:3]), indexing="ij"), axis=-1)
        covered = jnp.all(place < step.sizes[:, None, None], axis=-1, keepdims=True)
        return encode_padded(backbone, params, jnp.where(covered, (images - mean) / std, 0))

    return encode


# Cached, so that an evaluation of later weights compiles nothing anew.
@functools.lru_cache(maxsize=4)
def make_logits_fn(backbone: Backbone, num_classes: int) -> Callable[[Any, Any, Array | np.ndarray], Array]:
    """Returns a jitted function of (parameters of the backbone, of the head, images as stored) to logits of patches."""
    mean, std, pixels, head = backbone.image_mean, backbone.image_std, backbone.pixels, DenseHead(num_classes)

    @jax.jit
    def predict(params: Any, head_params: Any, images: Real[Array | np.ndarray, "b H W c"]) -> Any:
        tokens = encode_padded(backbone, params, normalize(jnp.asarray(images), mean, std, pixels))
        return head.apply({"params": head_params}, tokens, train=False)

    return predict
