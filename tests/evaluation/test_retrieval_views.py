"""Random crops of images and their labels, and filters that resize them."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.evaluation.retrieval_views import jitter, view_split
from tests.evaluation.conftest import COLORS


@pytest.fixture(scope="module")
def split(folder):
    return open_segmentation(folder, "train")


def test_labels_are_cropped_with_their_image(split):
    sizes = {"image_size": (48, 96), "label_size": (48, 96)}
    views = [view_split(split, interpolation="bilinear", augmentation="crop", draw=(seed,)) for seed in (0, 0, 1)]
    for index in range(4):
        (image, labels), (again, _), (other, _) = (view.load(index, **sizes) for view in views)
        nearest = np.linalg.norm(image[:, :, None].astype(float) - COLORS, axis=-1).argmin(axis=-1)
        counted = labels != 255
        assert (nearest == labels)[counted].mean() > 0.95
        np.testing.assert_array_equal(again, image)
        assert (other != image).any()
    names = {
        view_split(split, interpolation="bilinear", augmentation=kind, draw=(1,)).name for kind in ("none", "crop")
    }
    assert names == {"train, bilinear", "train, bilinear, crop (1,)"}
    assert view_split(split, interpolation="bicubic") is split


def test_images_are_resized_by_the_filter_of_a_view(split):
    image = split.load(0)[0]
    expected = np.asarray(Image.fromarray(image).resize((50, 11), Image.Resampling.BILINEAR))
    found, labels = view_split(split, interpolation="bilinear").load(0, image_size=(11, 50), label_size=(12, 18))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(labels, split.load(0, label_size=(12, 18))[1])


def test_jitter_is_that_of_torchvision():
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    seen = set()
    for seed in range(40):
        found, rng = jitter(image, np.random.default_rng(seed)), np.random.default_rng(seed)
        draws = [(rng.random() < 0.5, rng.uniform(-0.1, 0.1)) for _ in range(4)]
        seen.add(tuple(happens for happens, _ in draws))
        if draws[3][0]:
            continue
        picture = Image.fromarray(image)
        for kind, (happens, change) in zip(("Brightness", "Contrast", "Color"), draws, strict=False):
            picture = getattr(ImageEnhance, kind)(picture).enhance(1 + change) if happens else picture
        np.testing.assert_allclose(found, np.asarray(picture), atol=1)
    assert len(seen) > 10
    with pytest.raises(ValueError, match="4 channels of uint16; choose augmentation='crop'"):
        jitter(np.zeros((4, 4, 4), np.uint16), np.random.default_rng(0))


def test_a_turned_hue_keeps_value_and_saturation():
    image = np.full((2, 2, 3), (200, 40, 40), np.uint8)
    turned = [jitter(image, np.random.default_rng(seed))[0, 0] for seed in range(200)]
    hues = {tuple(Image.fromarray(color[None, None]).convert("HSV").getpixel((0, 0)))[0] for color in turned}
    # A tenth of a turn both ways, of 255 steps.
    assert hues <= {*range(27), *range(229, 256)} and len(hues) > 20
