"""Dense and global self-distillation, and the centers of the teacher."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedConfig:
    """The loss of masked patches (iBOT, Zhou et al., 2022, as in DINOv2), for transformers.

    Attributes:
        weight: weight of the loss in the sum; 0 for none.
        min_share: least share of masked patches in the masked view of an image.
        max_share: largest share.
        prototypes: outputs of the head for patches.
    """

    weight: float = 0.0
    min_share: float = 0.1
    max_share: float = 0.5
    prototypes: int = 8192

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        if self.weight < 0:
            raise ValueError(f"weight={self.weight}: must be 0 or more")
        if not 0 < self.min_share <= self.max_share < 1:
            raise ValueError(
                f"min_share={self.min_share}, max_share={self.max_share}: two shares between 0 and 1, in order"
            )
        if self.prototypes < 1:
            raise ValueError(f"prototypes={self.prototypes}: must be 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss L = alpha * dense + global_weight * global (Eq. 7), and the tokens that are clustered.

    Attributes:
        alpha: weight of the dense loss; 0 gives plain DINO, without clustering.
        global_weight: weight of the global loss, 1 in the paper; 0 trains by the dense loss alone.
        tokens: "keys", "queries" or "values" of the teacher's last block, or "last" tokens, which any
            backbone has.
        token_groups: groups of consecutive features that "last" tokens are divided into; each one is
            clustered by itself, as a head is.
        student_temp: temperature of the student.
        teacher_temp: temperature of the teacher after its warm-up.
        warmup_teacher_temp: temperature of the teacher at the first epoch.
        warmup_teacher_temp_epochs: epochs of the linear warm-up between both.
        center_momentum: EMA momentum of the centers.
        masked: settings of the loss of masked patches.
    """

    alpha: float = 1.0
    global_weight: float = 1.0
    tokens: str = "values"
    token_groups: int = 1
    student_temp: float = 0.1
    teacher_temp: float = 0.07
    warmup_teacher_temp: float = 0.04
    warmup_teacher_temp_epochs: int = 30
    center_momentum: float = 0.9
    masked: MaskedConfig = MaskedConfig()

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        if self.tokens not in ("keys", "queries", "values", "last"):
            raise ValueError(f"tokens={self.tokens!r}: choose 'keys', 'queries', 'values' or 'last'")
        if not (self.alpha or self.global_weight or self.masked.weight):
            raise ValueError("alpha=0 and global_weight=0 leave no loss: raise one of them")
        if self.token_groups < 1 or (self.token_groups > 1 and self.tokens != "last"):
            raise ValueError(
                f"token_groups={self.token_groups} with tokens={self.tokens!r}: one group, or several of 'last' tokens"
            )


class DistillationSums(NamedTuple):
    """Sums over pairs of rows (one in each view), so that microbatches simply add up.

    Attributes:
        count: number of pairs.
        loss: cross-entropy, the mean over all pairs of a teacher's view and another view of the student.
        entropy: entropy of the teacher's probabilities in nats, the mean of both views.
        logits: logits of the teacher, the mean of both views `[p]`.
    """

    count: Float[Array, ""]
    loss: Float[Array, ""]
    entropy: Float[Array, ""]
    logits: Float[Array, " p"]

    def means(self) -> "DistillationSums":
        """Returns the means over all pairs, and their count; zeros if there are none."""
        return DistillationSums(self.count, *(total / jnp.maximum(self.count, 1) for total in self[1:]))


def distill(
    student_logits: Float[Array, "b u *rows p"],
    teacher_logits: Float[Array, "b v *rows p"],
    valid: Bool[Array, "b ..."],
    center: Float[Array, " p"],
    *,
    teacher_temp: float | Float[Array, ""],
    student_temp: float,
) -> DistillationSums:
    """Compares the student's view of each row with the teacher's other view, Eqs. 3 to 6.

    Views that the student alone sees (local crops, as in DINO) are compared with both of the teacher's.

    Rows are the [CLS] tokens of images (global loss) or the clusters of all images and heads
    (dense loss), whose mean is over the valid clusters of the whole batch.

    Examples:
        >>> logits, valid = jnp.zeros((1, 2, 4)), jnp.ones(1, bool)
        >>> sums = distill(logits, logits, valid, jnp.zeros(4), teacher_temp=0.07, student_temp=0.1)
        >>> round(float(sums.means().loss), 3)  # two uniform distributions: log(4)
        1.386

    Args:
        student_logits: logits of both views, then of those that the student alone sees.
        teacher_logits: logits of both views; no gradient flows through them.
        valid: rows that count.
        center: center of the teacher's logits.
        teacher_temp: temperature of the teacher.
        student_temp: temperature of the student.
    """
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    sharpened = (teacher_logits - center.reshape(*(1,) * (teacher_logits.ndim - 1), -1)) / teacher_temp
    targets = jax.nn.softmax(sharpened, axis=-1)
    batch, views = teacher_logits.shape[:2]
    extra = student_logits.shape[1] - views
    # The mean of cross-entropies with two targets is the cross-entropy with their mean.
    both = jnp.broadcast_to(jnp.mean(targets, axis=1, keepdims=True), (batch, extra, *targets.shape[2:]))
    pairs = np.repeat((1 / (views + views * extra), views / (views + views * extra)), (views, extra)).astype(np.float32)
    # Probabilities sum to 1, so a cross-entropy with logits is their log-sum-exp less their mean.
    student, targets_of_student = student_logits / student_temp, jnp.concatenate((targets[:, ::-1], both), axis=1)
    loss = jax.nn.logsumexp(student, axis=-1) - jnp.sum(targets_of_student * student, axis=-1)
    loss = jnp.einsum("u,bu...->b...", pairs, loss)
    entropy = jax.nn.logsumexp(sharpened, axis=-1) - jnp.sum(targets * sharpened, axis=-1)
    weights = valid.astype(jnp.float32) / 2
    return DistillationSums(
        count=jnp.sum(weights) * views,
        loss=jnp.sum(jnp.where(valid, loss, 0.0)),
        entropy=jnp.sum(jnp.where(valid[:, None], entropy, 0.0)) / views,
        logits=jnp.einsum("b...,bv...p->p", weights, teacher_logits),
    )


def cross_entropy(
    student_logits: Float[Array, "*rows p"],
    teacher_logits: Float[Array, "*rows p"],
    center: Float[Array, " p"],
    teacher_temp: float | Float[Array, ""],
    student_temp: float,
) -> Float[Array, "*rows"]:
    """Returns the cross-entropy of each row with the teacher's answer, as in Eq. 3.

    Examples:
        >>> float(cross_entropy(jnp.zeros(4), jnp.zeros(4), jnp.zeros(4), 0.07, 0.1).round(3))  # log(4)
        1.3860000371932983

    Args:
        student_logits: logits of the student.
        teacher_logits: logits of the teacher; no gradient flows through them.
        center: center of the teacher's logits.
        teacher_temp: temperature of the teacher.
        student_temp: temperature of the student.
    """
    targets = jax.nn.softmax((jax.lax.stop_gradient(teacher_logits) - center) / teacher_temp, axis=-1)
    student = student_logits / student_temp
    return jax.nn.logsumexp(student, axis=-1) - jnp.sum(targets * student, axis=-1)


def entropies(
    teacher_logits: Float[Array, "*rows p"], center: Float[Array, " p"], teacher_temp: float | Float[Array, ""]
) -> Float[Array, "*rows"]:
    """Returns the entropy of each of the teacher's answers in nats; arguments are those of `cross_entropy`."""
    sharpened = (teacher_logits - center) / teacher_temp
    return jax.nn.logsumexp(sharpened, axis=-1) - jnp.sum(jax.nn.softmax(sharpened, axis=-1) * sharpened, axis=-1)


def total_loss(
    config: ObjectiveConfig, global_loss: Float[Array, ""], dense_loss: Float[Array, ""] | None = None
) -> Float[Array, ""]:
    """Returns the weighted sum of both losses, Eq. 7; without a dense loss, of the global one alone.

    A weight of 1 leaves no operation in the compiled program, and one of 0 no gradient.

    Examples:
        >>> float(total_loss(ObjectiveConfig(alpha=0.5, global_weight=2.0), jnp.array(3.0), jnp.array(4.0)))
        8.0
    """
    weight = config.global_weight
    weighted = global_loss if weight == 1 else weight * global_loss
    if dense_loss is None:
        return weighted
    return config.alpha * dense_loss + weighted if weight else config.alpha * dense_loss


def update_center(center: Float[Array, " p"], mean: DistillationSums, momentum: float) -> Float[Array, " p"]:
    """Returns the moving average of the mean teacher logits; the center as it was if no row counts.

    Examples:
        >>> mean = DistillationSums(jnp.ones(()), jnp.zeros(()), jnp.zeros(()), logits=jnp.full(2, 3.0))
        >>> update_center(jnp.ones(2), mean, momentum=0.5).tolist()
        [2.0, 2.0]
    """
    return jnp.where(mean.count > 0, momentum * center + (1 - momentum) * mean.logits, center)
