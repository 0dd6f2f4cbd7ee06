"""Object discovery by LOST: one box an image from the keys of the last block, scored by CorLoc."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real
from scipy import ndimage

from croc_jax.data.labeled.boxes import BoxSplit, open_voc_boxes
from croc_jax.data.photometric import normalize
from croc_jax.data.sources.identity import digest_files
from croc_jax.evaluation.features import FrozenFeatures, Params, check_finite
from croc_jax.evaluation.registry import Protocol, Result, Timer
from croc_jax.evaluation.settings import check_choice, check_positive
from croc_jax.evaluation.visualize import draw_boxes
from croc_jax.models import Backbone, clustering_tokens
from croc_jax.models.features import TOKENS
from croc_jax.paths import local_path

# Least IoU with a true box for an image to count as found.
CORLOC_IOU = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscoveryConfig:
    """Every setting of object discovery that moves the score; the defaults are LOST's.

    Attributes:
        tokens: "keys" (official), "queries", "values", or "last", which every backbone has.
        centered: whether the image's mean token is subtracted first. Features that are never negative, as a
            ResNet's, would otherwise be similar to all others.
        num_patches: patches of the lowest degree that may extend the seed (official: k_patches).
    """

    tokens: str = "keys"
    centered: bool = False
    num_patches: int = 100

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        check_choice(self, "tokens", TOKENS)
        check_positive(self, "num_patches")


def evaluate(
    features: FrozenFeatures, dataset: BoxSplit, config: DiscoveryConfig, output: Path | None = None
) -> Result:
    """Finds one object in each image; see `Protocol` for the arguments."""
    timer = Timer()
    boxes, ious, num_boxes = find_boxes(features, dataset, config)
    scored = ~np.isnan(ious)
    if not scored.any():
        remedy = "choose another split" if dataset.hard else "set hard=True"
        raise ValueError(f"no image of {dataset.root}, split {dataset.name}, has a box that counts: {remedy}")
    if output is not None:
        draw_boxes(dataset, boxes, ious, features.module.pixels).save(output / "typical.png")
    timer.end("discovery")
    scores = {"corloc": 100 * float(np.mean(ious[scored] >= CORLOC_IOU)), "num_images": len(dataset)}
    scores |= {"num_scored": int(scored.sum()), "num_boxes": num_boxes}
    described = {"name": dataset.root.resolve().name, "split": dataset.name, "num_images": len(dataset)}
    files = [file for pair in dataset.pairs for file in pair]
    described |= {"hard": dataset.hard, "digest": digest_files(dataset.root, files)}
    return Result(scores, described, dataset.root, timer.seconds)


def find_boxes(
    features: FrozenFeatures, split: BoxSplit, config: DiscoveryConfig
) -> tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, " n"], int]:
    """Returns a box (left, top, right, bottom) for each image in pixels, its IoU, and the number of true boxes.

    The IoU is that with the best true box; NaN for an image without boxes.

    Raises:
        ValueError: for a file that cannot be used, or a feature that is not finite.
    """
    backbone, progress, num_boxes = features.module, features.progress, 0
    discover_fn, boxes, ious = make_discover_fn(backbone, config), [], []
    indices = range(len(split))
    for index in progress.track(indices, description="objects") if progress else indices:
        image, truth = split.load(index, backbone.pixels)
        padded, size = pad_image(image, backbone.patch_size), image.shape[:2]
        seed, mask, tokens = discover_fn(features.params, padded, np.array(size))
        check_finite(tokens, str(split.pairs[index].image))
        seed, mask = jax.device_get((seed, mask))
        mask = mask.reshape(padded.shape[0] // backbone.patch_size, -1)
        boxes.append(seed_box(int(seed), mask, backbone.patch_size, size))
        ious.append(box_iou(boxes[-1], truth).max() if len(truth) else np.nan)
        num_boxes += len(truth)
    split.turned.tell(f"{split.root}, {split.name}")
    return np.array(boxes), np.array(ious), num_boxes


def make_discover_fn(backbone: Backbone, config: DiscoveryConfig) -> Callable[..., tuple[Array, Array, Array]]:
    """Returns a jitted `lost`, and its tokens, of (params, padded image `[H W c]`, its true height and width).

    It compiles once for each number of patches, not for each size of image.
    """

    @jax.jit
    def discover(params: Params, image: Real[Array, "H W c"], size: Int[Array, "2"]) -> tuple[Array, Array, Array]:
        inside = (jnp.arange(image.shape[0]) < size[0])[:, None] & (jnp.arange(image.shape[1]) < size[1])
        pixels = (
            normalize(image[None], backbone.image_mean, backbone.image_std, backbone.pixels) * inside[None, ..., None]
        )
        heads, _ = clustering_tokens(backbone.apply({"params": params}, pixels), config.tokens)
        tokens = jnp.swapaxes(heads[0], 0, 1).reshape(heads.shape[2], -1)
        tokens -= config.centered * jnp.mean(tokens, axis=0)
        return *lost(tokens, num_patches=config.num_patches), tokens

    return discover


def lost(tokens: Float[Array, "n d"], *, num_patches: int) -> tuple[Int[Array, ""], Bool[Array, " n"]]:
    """Returns seed and mask of LOST (Siméoni et al., 2021, sections 3.2 and 3.3).

    The seed is the patch with the fewest positive products with others. Of the `num_patches` patches with the fewest,
    those with a positive product with the seed form the expanded seed set; the mask holds every patch whose products
    with all of that set have a positive sum.

    Args:
        tokens: tokens of the patches.
        num_patches: candidates for the expanded seed set; at most all patches.
    """
    affinity = jnp.matmul(tokens, tokens.T, precision=jax.lax.Precision.HIGHEST)
    count = len(affinity)
    # Each patch counts itself, too, which does not change the order.
    degrees = jnp.sum(affinity > 0, axis=1)
    order = jnp.argsort(degrees, stable=True)
    candidates = jnp.zeros(count, bool).at[order[:num_patches]].set(True)
    expanded = candidates & (affinity[order[0]] > 0)
    total = jnp.matmul(expanded.astype(jnp.float32), affinity, precision=jax.lax.Precision.HIGHEST)
    return order[0], total > 0


def pad_image(image: Real[np.ndarray, "h w c"], patch_size: int) -> Real[np.ndarray, "H W c"]:
    """Returns an image padded with zeros at its right and bottom to whole patches."""
    missing = [(0, -side % patch_size) for side in image.shape[:2]]
    return np.pad(image, (*missing, (0, 0)))


def seed_box(
    seed: int, mask: Bool[np.ndarray, "r c"], patch_size: int, size: tuple[int, int]
) -> Float[np.ndarray, "4"]:
    """Returns the box (left, top, right, bottom) around the seed's connected part of the mask, in pixels.

    The seed counts as part of the mask in any case; the box does not leave the image of this `size`.
    """
    mask = mask.copy()
    place = np.unravel_index(seed, mask.shape)
    mask[place] = True
    parts = ndimage.label(mask)[0]  # pyright: ignore[reportIndexIssue]
    rows, columns = ndimage.find_objects(parts)[parts[place] - 1]
    edges = np.array([columns.start, rows.start, columns.stop, rows.stop], float) * patch_size
    return np.minimum(edges, [size[1], size[0]] * 2)


def box_iou(box: Float[np.ndarray, "4"], others: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, " m"]:
    """Returns the intersection over union of one box with each of others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    intersection = np.prod(np.maximum(high - low, 0), axis=1)
    area = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1)
    return intersection / (area - intersection)


PROTOCOL = Protocol(
    name="discovery",
    title="Object discovery",
    description=(
        "One box an image, around the patches that are similar to the fewest others. It counts as found if it "
        "overlaps with the box of any object by half."
    ),
    config=DiscoveryConfig,
    open_dataset=lambda root, **settings: open_voc_boxes(local_path(root, name="dataset.root"), **settings),
    evaluate=evaluate,
    main_score="corloc",
    score_labels={"corloc": "CorLoc"},
    conventions={
        "images": "at their own size, filled up with zeros (after normalization) to whole patches",
        "tokens": "of the last block, all heads side by side, not normalized, float32",
        "ties": "the first patch in row-major order",
        "components": "4-connected",
        "corloc": f"percent of the images with boxes, IoU >= {CORLOC_IOU} with any box",
    },
)
