"""The linear probe: one linear layer on frozen features, for the classes of pixels and of images."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from rich.progress import Progress

from croc_jax.evaluation.features import MemoryBudget
from croc_jax.evaluation.mmap import release_pages
from croc_jax.evaluation.settings import ProbeConfig
from croc_jax.evaluation.whitening import fit_scale

PRECISION = jax.lax.Precision.HIGHEST


class LinearHead(NamedTuple):
    """Logits = features . kernel + bias."""

    kernel: Float[Array, "d k"]
    bias: Float[Array, " k"]


class ProbeFit(NamedTuple):
    """A layer for features as they come from the backbone, and its mean training loss of each epoch."""

    head: LinearHead
    losses: Float[np.ndarray, " epochs"]


def apply_head(head: LinearHead, features: Float[Array | np.ndarray, "*b d"]) -> Float[Array, "*b k"]:
    """Returns the logits in float32."""
    return jnp.einsum("...d,dk->...k", features.astype(jnp.float32), head.kernel, precision=PRECISION) + head.bias


def make_sgd(learning_rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Returns SGD with momentum 0.9 and coupled weight decay, as PyTorch's."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=0.9))


def fit_probe(
    features: Float[np.ndarray, "n ... d"],
    labels: Int[np.ndarray, "n ..."],
    loss_fn: Callable[[Array, Array], Float[Array, ""]],
    tx: optax.GradientTransformation,
    config: ProbeConfig,
    *,
    num_classes: int,
    device_gib: float = MemoryBudget.device_gib,
    progress: Progress | None = None,
) -> ProbeFit:
    """Trains a linear layer from zeros; the last incomplete batch of an epoch is dropped.

    Args:
        features: frozen features of all training images, in memory or memory-mapped.
        labels: their labels.
        loss_fn: loss of the logits `[b ... k]` and labels `[b ...]` of a batch.
        tx: optimizer of the layer.
        config: normalization, epochs, batch size and seed.
        num_classes: outputs of the layer.
        device_gib: larger features stay on the host and go to the device a few batches at a time.
        progress: shows the epochs.

    Raises:
        ValueError: if the loss or the layer becomes infinite or NaN.
    """
    mean, transform = fit_scale(features, config.normalization)
    train_fn = _make_train_fn(tx, loss_fn, mean, transform)
    feed = _make_feed(features, labels, round(device_gib * 2**30))
    head = LinearHead(jnp.zeros((features.shape[-1], num_classes)), jnp.zeros(num_classes))
    opt_state, losses, epochs = tx.init(head), [], range(config.epochs)
    batch_size = min(config.batch_size, len(features))
    steps = len(features) // batch_size
    for epoch in progress.track(epochs, description="linear layer") if progress else epochs:
        order = np.random.default_rng((config.seed, epoch)).permutation(len(features))
        epoch_losses = []
        for part, part_labels, indices in feed(order[: steps * batch_size].reshape(steps, batch_size)):
            head, opt_state, batch_losses = train_fn(head, opt_state, part, part_labels, indices)
            epoch_losses.append(batch_losses)
            # No more than one part ahead, or all of them would wait in memory.
            jax.block_until_ready(epoch_losses[-2:-1])
        losses.append(np.concatenate(epoch_losses).mean())
        if not np.isfinite(losses[-1]):
            raise ValueError(f"lr={config.lr}: the loss of the linear layer is {losses[-1]} in epoch {epoch}; lower lr")
    kernel = jnp.matmul(transform, head.kernel, precision=PRECISION)
    bias = head.bias - jnp.matmul(mean, kernel, precision=PRECISION)
    if not jnp.isfinite(kernel).all() or not jnp.isfinite(bias).all():
        raise ValueError(f"lr={config.lr}: the linear layer is not finite at the end; lower lr")
    return ProbeFit(LinearHead(kernel, bias), np.array(losses))


def _make_train_fn(
    tx: optax.GradientTransformation, loss_fn: Callable[[Array, Array], Array], mean: Array, transform: Array
) -> Callable:
    """Returns a jitted function that takes one step for each row of indices `[s b]`."""

    def batch_loss(head: LinearHead, features: Array, labels: Array) -> Array:
        # Normalizing the layer instead of the features saves a float32 copy of all of them.
        folded = LinearHead(jnp.matmul(transform, head.kernel, precision=PRECISION), head.bias)
        return loss_fn(apply_head(folded, features.astype(jnp.float32) - mean), labels)

    @jax.jit
    def train_fn(head: LinearHead, opt_state: optax.OptState, features: Array, labels: Array, indices: Array) -> tuple:
        def step(carry: tuple, index: Array) -> tuple[tuple, Array]:
            head, opt_state = carry
            loss, gradients = jax.value_and_grad(batch_loss)(head, features[index], labels[index])
            updates, opt_state = tx.update(gradients, opt_state, head)
            return (optax.apply_updates(head, updates), opt_state), loss

        (head, opt_state), losses = jax.lax.scan(step, (head, opt_state), indices)
        return head, opt_state, losses

    return train_fn


def _make_feed(
    features: np.ndarray, labels: np.ndarray, device_bytes: int
) -> Callable[[Int[np.ndarray, "s b"]], Iterator[tuple]]:
    """Returns a function from an order to (features, labels, indices into them)."""
    if features.nbytes <= device_bytes:
        resident = jnp.asarray(features), jnp.asarray(labels)
        return lambda order: iter([(*resident, order)])

    def stream(order: np.ndarray) -> Iterator[tuple]:
        # A quarter, because the next part is gathered on the host while the last ones are still in use.
        batches = max(device_bytes // 4 // (order.shape[1] * features[0].nbytes), 1)
        for rows in np.split(order, range(0, len(order), batches)[1:]):
            part = features[rows.ravel()]
            release_pages(features)
            yield part, labels[rows.ravel()], np.arange(rows.size).reshape(rows.shape)

    return stream
