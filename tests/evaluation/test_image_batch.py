"""A backbone encodes a batch, or a list of images of one size."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from croc_jax.evaluation.image_batch import as_batch
from tests.data.image_bytes import encode, exif, smooth

PIXELS = np.asarray(smooth(8, 8))
BATCH = np.stack([PIXELS, PIXELS[::-1]])


def test_a_batch_is_left_alone_and_a_list_becomes_one():
    assert as_batch(BATCH) is BATCH and as_batch(on_device := jnp.asarray(BATCH)) is on_device
    for images in (
        [*BATCH],
        tuple(BATCH),
        [jnp.asarray(one) for one in BATCH],
        [Image.fromarray(one) for one in BATCH],
    ):
        np.testing.assert_array_equal(as_batch(images), BATCH)


def test_pillow_images_become_rgb_as_the_decoder_reads_them():
    deep = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)
    turned = Image.open(io.BytesIO(encode(smooth(8, 8), "PNG", exif=exif(6))))
    found = as_batch([deep, smooth(8, 8).convert("RGBA"), turned])
    np.testing.assert_array_equal(found[0], np.repeat((np.asarray(deep) >> 8)[..., None], 3, -1))
    np.testing.assert_array_equal(found[1:], [PIXELS, np.rot90(PIXELS, -1)])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is empty: give at least one"),
        (BATCH[:0], r"images \(0, 8, 8, 3\) is empty: give at least one"),
        (PIXELS, r"images \(8, 8, 3\) uint8: expected \[b H W 3\] uint8; give a list of one image, \[image\]"),
        (BATCH / 255, r"images \(2, 8, 8, 3\) float64: expected \[b H W 3\] uint8"),
        (BATCH[..., :1], r"images \(2, 8, 8, 1\) uint8: expected"),
        (smooth(), r"images is a single Pillow image: give a list, \[image\]"),
        ("photo.jpg", r"images\[0\] is str: give arrays"),
        (["photo.jpg"], r"images\[0\] is str: give arrays"),
        ([PIXELS, PIXELS[:4]], r"images\[1\] has 4 x 8 pixels, and images\[0\] 8 x 8: resize"),
        ([PIXELS, PIXELS[..., 0]], r"images\[1\] \(8, 8\) uint8: expected \[H W 3\] uint8"),
        ([PIXELS / 255], r"images\[0\] \(8, 8, 3\) float64: expected \[H W 3\] uint8"),
        ([Image.new("F", (8, 8))], r"images\[0\] cannot be used: pixels of mode F have no known range"),
        (
            [Image.open(io.BytesIO(encode(smooth(60, 60), "PNG")[:900]))],
            r"images\[0\] cannot be used: image file is tr",
        ),
        (None, "images None NoneType: expected"),
    ],
)
def test_what_is_no_batch_is_named(images, message):
    with pytest.raises(ValueError, match=message) as caught:
        as_batch(images)
    assert "\n" not in str(caught.value)
