"""Linear segmentation: how well one linear layer reads classes from frozen tokens."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8
from rich.progress import Progress

from croc_jax.data.labeled.segmentation import IGNORED
from croc_jax.evaluation.features import LabeledTokens, MemoryBudget
from croc_jax.evaluation.interpolation import bilinear_matrix, resize_with
from croc_jax.evaluation.normalization import NORMALIZATIONS, TokenScale, token_scale
from croc_jax.evaluation.paging import release_pages

PRECISION = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProtocol:
    """Every setting of the protocol that moves the score.

    Attributes:
        image_size: height and width that images are resized to, in whole patches.
        train_size: height and width of the labels, and of the upsampled logits, in training.
        score_size: alike for scoring; None scores at the size of each label file.
        normalization: of tokens, by the statistics of the training tokens: "none",
            "standardize" (each feature) or "whiten" (every direction). Without weight decay the
            optimum of the linear layer is the same; how soon it is reached, and how little that
            depends on the scale of the features, is not.
        optimizer: "sgd" (momentum 0.9, coupled decay) or "adamw" (decoupled decay).
        lr: at the start.
        weight_decay: of weights and bias.
        schedule: "step" multiplies lr by 0.1 at each of `drop_epochs`, "cosine" ends at 0.
        drop_epochs: see schedule.
        epochs: passes over the training images; the last incomplete batch is dropped.
        batch_size: images a step.
        seed: of the order of the images; the layer itself starts from zeros.
    """

    image_size: tuple[int, int] = (240, 320)
    train_size: tuple[int, int] = (60, 80)
    score_size: tuple[int, int] | None = None
    normalization: str = "whiten"
    optimizer: str = "adamw"
    lr: float = 0.05
    weight_decay: float = 0.0
    schedule: str = "cosine"
    drop_epochs: tuple[int, ...] = ()
    epochs: int = 30
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        choices = {
            "normalization": NORMALIZATIONS,
            "optimizer": ("sgd", "adamw"),
            "schedule": ("step", "cosine"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(known)}")
        for name in ("lr", "epochs", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")
        for name in ("image_size", "train_size", "score_size"):
            size = getattr(self, name)
            if size is not None and not (len(size) == 2 and min(size) > 0):
                raise ValueError(f"{name}={size}: give height and width in pixels")


class LinearHead(NamedTuple):
    """Logits = tokens . kernel + bias."""

    kernel: Float[Array, "d k"]
    bias: Float[Array, " k"]


class LinearFit(NamedTuple):
    """A trained layer.

    Attributes:
        head: for tokens as they come from the backbone.
        losses: mean cross-entropy of each epoch.
    """

    head: LinearHead
    losses: Float[np.ndarray, " epochs"]


def apply_head(head: LinearHead, tokens: Float[Array | np.ndarray, "*b d"]) -> Float[Array, "*b k"]:
    """Returns the logits in float32."""
    return jnp.einsum("...d,dk->...k", tokens.astype(jnp.float32), head.kernel, precision=PRECISION) + head.bias


def fit_linear(
    data: LabeledTokens,
    protocol: LinearProtocol,
    *,
    num_classes: int,
    device_gib: float = MemoryBudget.device_gib,
    progress: Progress | None = None,
) -> LinearFit:
    """Trains the layer with cross-entropy on bilinearly upsampled logits.

    Args:
        data: training tokens, and labels of the protocol's train_size.
        protocol: the settings.
        num_classes: outputs of the layer.
        device_gib: larger tokens stay on the host and go to the device a few batches at a time.
        progress: shows the epochs.
    """
    batch_size = min(protocol.batch_size, len(data.tokens))
    steps = len(data.tokens) // batch_size
    scale = token_scale(data.tokens, protocol.normalization)
    tx = make_optimizer(protocol, steps_per_epoch=steps)
    train_fn = make_train_fn(tx, scale=scale, train_size=protocol.train_size)
    feed = _make_feed(data, round(device_gib * 2**30))
    head = LinearHead(jnp.zeros((data.tokens.shape[-1], num_classes)), jnp.zeros(num_classes))
    opt_state, losses = tx.init(head), []
    epochs = range(protocol.epochs)
    for epoch in progress.track(epochs, description="linear layer") if progress else epochs:
        order = np.random.default_rng((protocol.seed, epoch)).permutation(len(data.tokens))
        epoch_losses = []
        for tokens, labels, indices in feed(order[: steps * batch_size].reshape(steps, batch_size)):
            head, opt_state, batch_losses = train_fn(head, opt_state, tokens, labels, indices)
            epoch_losses.append(batch_losses)
            # Not further ahead than one piece, or all of them would wait in memory.
            jax.block_until_ready(epoch_losses[-2:-1])
        losses.append(np.concatenate(epoch_losses).mean())
    kernel = jnp.matmul(scale.transform, head.kernel, precision=PRECISION)
    bias = head.bias - jnp.matmul(scale.mean, kernel, precision=PRECISION)
    return LinearFit(LinearHead(kernel, bias), np.array(losses))


def make_optimizer(protocol: LinearProtocol, *, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns the optimizer of a protocol."""
    if protocol.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(protocol.lr, protocol.epochs * steps_per_epoch)
    else:
        drops = {epoch * steps_per_epoch: 0.1 for epoch in protocol.drop_epochs}
        schedule = optax.piecewise_constant_schedule(protocol.lr, drops)
    if protocol.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=protocol.weight_decay)
    return optax.chain(optax.add_decayed_weights(protocol.weight_decay), optax.sgd(schedule, momentum=0.9))


def make_train_fn(tx: optax.GradientTransformation, *, scale: TokenScale, train_size: tuple[int, int]) -> Callable:
    """Returns a jitted function that takes one step for each row of indices.

    It maps (head, opt_state, tokens `[n r c d]`, labels `[n h w]`, indices `[s b]`) to
    (head, opt_state, losses `[s]`); its head works on normalized tokens.

    Args:
        tx: the optimizer.
        scale: normalization of the tokens.
        train_size: height and width of the labels.
    """

    def loss_fn(head: LinearHead, tokens: Array, labels: Array) -> Array:
        # Normalizing the layer instead of the tokens spares a float32 copy of all of them.
        folded = LinearHead(jnp.matmul(scale.transform, head.kernel, precision=PRECISION), head.bias)
        logits = apply_head(folded, tokens.astype(jnp.float32) - scale.mean)
        rows, columns = map(bilinear_matrix, logits.shape[1:3], train_size)
        return masked_cross_entropy(resize_with(rows, columns, logits), labels)

    @jax.jit
    def train_fn(head: LinearHead, opt_state: Any, tokens: Array, labels: Array, indices: Array) -> tuple:
        def step(carry: tuple, index: Array) -> tuple[tuple, Array]:
            head, opt_state = carry
            loss, gradients = jax.value_and_grad(loss_fn)(head, tokens[index], labels[index])
            updates, opt_state = tx.update(gradients, opt_state, head)
            return (optax.apply_updates(head, updates), opt_state), loss

        (head, opt_state), losses = jax.lax.scan(step, (head, opt_state), indices)
        return head, opt_state, losses

    return train_fn


def masked_cross_entropy(logits: Float[Array, "*b k"], labels: UInt8[Array, "*b"]) -> Float[Array, ""]:
    """Returns the mean over the labels that count; 0 if none does."""
    counted = labels != IGNORED
    targets = jnp.where(counted, labels, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * counted) / jnp.maximum(counted.sum(), 1)


def _make_feed(data: LabeledTokens, device_bytes: int) -> Callable[[Int[np.ndarray, "s b"]], Iterator[tuple]]:
    """Returns a function from an order to (tokens, labels, indices into them)."""
    if data.tokens.nbytes <= device_bytes:
        resident = jnp.asarray(data.tokens), jnp.asarray(data.labels)
        return lambda order: iter([(*resident, order)])

    def stream(order: np.ndarray) -> Iterator[tuple]:
        # A quarter, because the next piece is gathered on the host while the last ones are still in use.
        batches = max(device_bytes // 4 // (order.shape[1] * data.tokens[0].nbytes), 1)
        for rows in np.split(order, range(0, len(order), batches)[1:]):
            tokens = data.tokens[rows.ravel()]
            release_pages(data.tokens)
            yield tokens, data.labels[rows.ravel()], np.arange(rows.size).reshape(rows.shape)

    return stream
