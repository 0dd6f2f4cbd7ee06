"""Images of a split as dense retrieval sees them: resized by a chosen filter, perhaps cropped and jittered."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Real
from PIL import Image, ImageEnhance

from croc_jax.data.crops import sample_region
from croc_jax.data.labeled.label_files import Ids
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.data.resizing import resize_with_pillow
from croc_jax.pixel_format import RGB8, PixelFormat

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
AUGMENTATIONS = ("none", "crop", "crop_jitter")

# Of open-hummingbird-eval (hbird/utils/transforms.py): areas over that of the image, aspect ratios, and the largest
# change of brightness, contrast, saturation and hue (in turns), each of which happens with the same probability.
SCALE, RATIO = (0.5, 2.0), (3 / 4, 4 / 3)
JITTER, JITTER_PROBABILITY = 0.1, 0.5


@dataclasses.dataclass(frozen=True)
class ViewedSplit(SegmentationSplit):
    """A split that resizes its images by another filter, and shows random crops of them.

    Attributes:
        interpolation: a key of `INTERPOLATIONS`, antialiased; labels are resized to the nearest pixel.
        augmentation: "none", "crop" (RandomResizedCrop), or "crop_jitter", which also jitters colors.
        draw: seed of the crops, with the index of the image; another pass needs another one.
    """

    interpolation: str = "bicubic"
    augmentation: str = "none"
    draw: tuple[int, ...] = ()

    def load(
        self,
        index: int,
        *,
        image_size: tuple[int, int] | None = None,
        label_size: tuple[int, int] | None = None,
        pixels: PixelFormat = RGB8,
    ) -> tuple[Real[np.ndarray, "H W c"], Ids]:
        """Returns a view of an image, and of its labels; arguments and errors as in `SegmentationSplit`."""
        image, labels = super().load(index, pixels=pixels)
        if self.augmentation != "none":
            rng = np.random.default_rng((*self.draw, index))
            box = sample_region(rng, *labels.shape, scale=SCALE, ratio=RATIO)
            if self.augmentation == "crop_jitter":
                image = jitter(image, rng)
            region = np.s_[box.top : box.top + box.height, box.left : box.left + box.width]
            image, labels = image[region], labels[region]
        if image_size and image.shape[:2] != image_size:
            image = resize_with_pillow(np.ascontiguousarray(image), image_size, INTERPOLATIONS[self.interpolation])
        if label_size and labels.shape != label_size:
            height, width = label_size
            labels = np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))
        return image, labels


def view_split(
    split: SegmentationSplit, *, interpolation: str, augmentation: str = "none", draw: tuple[int, ...] = ()
) -> SegmentationSplit:
    """Returns a view of a split; its name says what it is a view of, for features that protocols share."""
    if (interpolation, augmentation) == ("bicubic", "none"):
        return split
    known: dict[str, Any] = {field.name: getattr(split, field.name) for field in dataclasses.fields(split)}
    known["name"] = ", ".join(
        [split.name, interpolation, *([f"{augmentation} {draw}"] if augmentation != "none" else [])]
    )
    return ViewedSplit(**known, interpolation=interpolation, augmentation=augmentation, draw=draw)


def jitter(image: Real[np.ndarray, "H W 3"], rng: np.random.Generator) -> Real[np.ndarray, "H W 3"]:
    """Changes brightness, contrast, saturation and hue of an 8-bit RGB image as torchvision does, each at random.

    Raises:
        ValueError: for images of another format.
    """
    if image.dtype != np.uint8 or image.shape[-1] != 3:
        raise ValueError(
            f"augmentation='crop_jitter': hue and saturation need 8-bit RGB, and these images have {image.shape[-1]} "
            f"channels of {image.dtype}; choose augmentation='crop'"
        )
    picture = Image.fromarray(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        happens, factor = rng.random() < JITTER_PROBABILITY, rng.uniform(1 - JITTER, 1 + JITTER)
        picture = enhance(picture).enhance(factor) if happens else picture
    happens, turn = rng.random() < JITTER_PROBABILITY, rng.uniform(-JITTER, JITTER)
    if happens:
        hue, *others = picture.convert("HSV").split()
        turned = Image.fromarray((np.asarray(hue, np.int16) + int(255 * turn)).astype(np.uint8))
        picture = Image.merge("HSV", (turned, *others)).convert("RGB")
    return np.asarray(picture)
