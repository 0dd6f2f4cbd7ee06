"""Object discovery: one box an image from the keys of the last block, by LOST, scored by CorLoc."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8
from scipy import ndimage

from croc_jax.data.labeled.boxes import BoxSplit
from croc_jax.data.photometric import normalize
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.models import Backbone, clustering_tokens
from croc_jax.models.features import TOKENS

# From this IoU on, an image counts as solved.
CORLOC_IOU = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscoveryProtocol:
    """Every setting of the protocol that moves the score; the defaults are LOST's.

    Attributes:
        tokens: "keys" (official), "queries", "values", or "last", which any backbone has.
        centered: subtract the image's mean token first. Features that are never negative, as a
            ResNet's, would resemble all others.
        num_patches: patches of the lowest degree that may extend the seed (official: k_patches).
    """

    tokens: str = "keys"
    centered: bool = False
    num_patches: int = 100

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        if self.tokens not in TOKENS:
            raise ValueError(f"tokens={self.tokens!r}: choose one of {', '.join(TOKENS)}")
        if self.num_patches < 1:
            raise ValueError(f"num_patches={self.num_patches}: must be positive")


class Discovery(NamedTuple):
    """What LOST makes of one image.

    Attributes:
        seed: index of the patch that resembles the fewest others.
        mask: patches that resemble the seed and its kin.
    """

    seed: Int[Array, ""]
    mask: Bool[Array, " n"]


class DiscoveryScore(NamedTuple):
    """The result of object discovery.

    Attributes:
        corloc: percent of the images with boxes whose prediction meets one of these.
        boxes: predicted (left, top, right, bottom) of each image, in pixels.
        ious: with the best box of each image; NaN for images without boxes.
        seconds: of all images.
    """

    corloc: float
    boxes: Float[np.ndarray, "n 4"]
    ious: Float[np.ndarray, " n"]
    seconds: float


def evaluate_discovery(features: FrozenFeatures, *, split: BoxSplit, protocol: DiscoveryProtocol) -> DiscoveryScore:
    """Finds one object in each image; needs no training.

    Args:
        features: of the backbone.
        split: images with boxes.
        protocol: every setting that moves the score.

    Raises:
        ValueError: for a file that cannot be read, or if no image has a box.
    """
    backbone, progress = features.module, features.progress
    start, discover_fn = time.perf_counter(), make_discover_fn(backbone, protocol)
    boxes, ious = [], []
    indices: Iterable[int] = range(len(split))
    for index in progress.track(indices, total=len(split), description="objects") if progress else indices:
        image, truth = split.load(index)
        padded, size = pad_image(image, backbone.patch_size), image.shape[:2]
        found = jax.device_get(discover_fn(features.params, padded, np.array(size)))
        grid = (padded.shape[0] // backbone.patch_size, padded.shape[1] // backbone.patch_size)
        boxes.append(seed_box(int(found.seed), found.mask.reshape(grid), backbone.patch_size, size))
        ious.append(box_iou(boxes[-1], truth).max(initial=-1))
    best = np.where(np.array(ious) < 0, np.nan, ious)
    if np.isnan(best).all():
        raise ValueError(f"no image of {split.root}, split {split.name}, has a box that counts: set hard=True")
    corloc = 100 * float(np.mean(best[~np.isnan(best)] >= CORLOC_IOU))
    return DiscoveryScore(corloc, np.array(boxes), best, time.perf_counter() - start)


def make_discover_fn(backbone: Backbone, protocol: DiscoveryProtocol) -> Callable[..., Discovery]:
    """Returns a jitted function of (params, padded image uint8 `[H W 3]`, its true height and width).

    It compiles once for each number of patches, not for each size of image.

    Args:
        backbone: the module; it sees an ImageNet-normalized image.
        protocol: the settings.
    """

    @jax.jit
    def discover(params: Any, image: UInt8[Array, "H W 3"], size: Int[Array, "2"]) -> Discovery:
        inside = (jnp.arange(image.shape[0]) < size[0])[:, None] & (jnp.arange(image.shape[1]) < size[1])
        pixels = normalize(image[None]) * inside[None, ..., None]
        features: Any = backbone.apply({"params": params}, pixels)
        heads, _ = clustering_tokens(features, protocol.tokens)
        tokens = jnp.swapaxes(heads[0], 0, 1).reshape(heads.shape[2], -1)
        tokens -= protocol.centered * jnp.mean(tokens, axis=0)
        return lost(tokens, num_patches=protocol.num_patches)

    return discover


def lost(tokens: Float[Array, "n d"], *, num_patches: int) -> Discovery:
    """Returns seed and mask of LOST (Siméoni et al., 2021, sections 3.2 and 3.3).

    The seed is the patch with the fewest positive products with others. Of the `num_patches`
    patches with the fewest, those with a positive product with the seed are its kin; the mask
    holds every patch whose products with all kin have a positive sum.

    Args:
        tokens: of the patches.
        num_patches: see above; at most all patches.
    """
    affinity = jnp.matmul(tokens, tokens.T, precision=jax.lax.Precision.HIGHEST)
    count = len(affinity)
    # Each patch resembles itself, too, which changes no order.
    degrees = jnp.sum(affinity > 0, axis=1)
    order = jnp.argsort(degrees, stable=True)
    candidates = jnp.zeros(count, bool).at[order[:num_patches]].set(True)
    kin = candidates & (affinity[order[0]] > 0)
    return Discovery(order[0], jnp.matmul(kin.astype(jnp.float32), affinity, precision=jax.lax.Precision.HIGHEST) > 0)


def pad_image(image: UInt8[np.ndarray, "h w 3"], patch_size: int) -> UInt8[np.ndarray, "H W 3"]:
    """Returns an image filled up at its right and bottom to whole patches."""
    missing = [(0, -side % patch_size) for side in image.shape[:2]]
    return np.pad(image, (*missing, (0, 0)))


def seed_box(
    seed: int, mask: Bool[np.ndarray, "r c"], patch_size: int, size: tuple[int, int]
) -> Float[np.ndarray, "4"]:
    """Returns the box (left, top, right, bottom) around the seed's connected part of the mask, in pixels.

    Args:
        seed: index of a patch.
        mask: patches of the object; the seed counts as one in any case.
        patch_size: side of a patch.
        size: height and width of the image, which the box does not leave.
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
