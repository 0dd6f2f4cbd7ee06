"""Decoding and cropping equal Pillow; boxes follow torchvision's law."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from croc_jax.data.config import LocalViewsConfig, ViewsConfig
from croc_jax.data.crops import Box, crop_view, random_crops, sample_box, two_views
from croc_jax.data.decoding import DecodeError, Size, decode, decode_at_least


def _scene(height=60, width=80):
    """A smooth color image with an edge, so that lossy formats keep it recognizable."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([3 * x, 4 * y, 2 * (x + y)], axis=-1) % 256
    image[20:40, 30:50] = (250, 20, 130)
    return image.astype(np.uint8)


def _encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "YCbCr", "CMYK"])
def test_jpeg_equals_pillow(mode):
    encoded = _encode(Image.fromarray(_scene()).convert(mode), "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    decoded = decode(encoded)
    assert decoded.shape == (60, 80, 3) and decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded.astype(int), expected, rtol=0, atol=1 if mode == "CMYK" else 0)


def test_other_formats_become_rgb_bytes():
    scene = _scene()
    np.testing.assert_array_equal(decode(_encode(Image.fromarray(scene), "PNG")), scene)
    np.testing.assert_array_equal(decode(_encode(Image.fromarray(scene), "WEBP", lossless=True)), scene)
    palette, alpha = Image.fromarray(scene).quantize(64), np.concatenate([scene, scene[..., :1]], axis=-1)
    np.testing.assert_array_equal(decode(_encode(Image.fromarray(alpha), "PNG")), scene)
    encoded = _encode(palette, "PNG", transparency=b"\x00\x80")
    np.testing.assert_array_equal(decode(encoded), np.asarray(palette.convert("RGB")))
    for mode in ("L", "1"):
        image = Image.fromarray(scene).convert(mode)
        np.testing.assert_array_equal(decode(_encode(image, "PNG")), np.asarray(image.convert("RGB")))


def _fits(sample, distribution):
    return stats.kstest(sample, distribution).pvalue > 0.01  # pyright: ignore


def _reference_box(generator, height, width, scale, ratio):
    """RandomResizedCrop.get_params as torchvision documents it, with another generator's calls."""
    for _ in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * generator.random())
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * generator.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return (
                math.floor(generator.random() * (height - h + 1)),
                math.floor(generator.random() * (width - w + 1)),
                h,
                w,
            )
    raise AssertionError("these images always fit")


def test_boxes_follow_the_reference_law():
    config, height, width = ViewsConfig(), 240, 320
    ours = np.array([sample_box(np.random.default_rng(i), height, width, config) for i in range(3000)])
    generator = np.random.default_rng(1)
    reference = np.array([_reference_box(generator, height, width, config.scale, config.ratio) for _ in range(3000)])
    for column in range(4):
        assert _fits(ours[:, column], reference[:, column])
    area, expected_area = (boxes[:, 2] * boxes[:, 3] for boxes in (ours, reference))
    assert _fits(area, expected_area)
    assert np.all(ours[:, 0] + ours[:, 2] <= height) and np.all(ours[:, 1] + ours[:, 3] <= width)
    assert ours[:, :2].min() == 0
    assert stats.binomtest(int(ours[:, 4].sum()), 3000, 0.5).pvalue > 0.01


def test_area_and_log_ratio_are_uniform_where_nothing_is_rejected():
    config = ViewsConfig(scale=(0.05, 0.2), ratio=(0.5, 3.0), flip_probability=0.25)
    boxes = np.array([sample_box(np.random.default_rng(i), 2000, 2000, config) for i in range(3000)])
    top, left, height, width, flip = boxes.T
    assert _fits(height * width / 2000**2, stats.uniform(0.05, 0.15).cdf)
    log_ratio = stats.uniform(math.log(0.5), math.log(6))
    assert _fits(np.log(width / height), log_ratio.cdf)
    assert _fits((top + 0.5) / (2001 - height), stats.uniform.cdf)
    assert _fits((left + 0.5) / (2001 - width), stats.uniform.cdf)
    assert stats.binomtest(int(flip.sum()), 3000, 0.25).pvalue > 0.01


@pytest.mark.parametrize(
    "height, width, expected",
    [
        (10, 1000, (0, 493, 10, 13)),
        (1000, 10, (493, 0, 13, 10)),
        (1, 1, (0, 0, 1, 1)),
        (1, 50, (0, 24, 1, 1)),
    ],
)
def test_extreme_images_fall_back_to_the_center(height, width, expected):
    config = ViewsConfig(scale=(0.9, 1.0), flip_probability=0.0)
    assert sample_box(np.random.default_rng(0), height, width, config) == (*expected, False)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    "box, columns_first",
    [
        ((3, 5, 50, 41), False),
        ((0, 0, 60, 80), False),
        ((59, 79, 1, 1), False),
        ((10, 10, 32, 32), False),
        ((2, 3, 9, 70), False),
        ((0, 0, 60, 40), True),
        ((0, 0, 60, 3), True),
        ((0, 0, 60, 46), False),
    ],
)
def test_crop_equals_pillow_but_for_rounding(box, columns_first, flip):
    scene = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    top, left, height, width = box
    crop = Image.fromarray(scene).crop((left, top, left + width, top + height))
    # Older releases of Pillow always begin with the rows; in two calls, the order is certain.
    between = crop.resize((width, 32) if columns_first else (32, height), Image.Resampling.BICUBIC)
    expected = between.resize((32, 32), Image.Resampling.BICUBIC)
    if flip:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    difference = np.abs(crop_view(scene, Box(top, left, height, width, flip), 32).astype(int) - np.asarray(expected))
    assert difference.max() <= 1 and difference.mean() < 0.1


def test_pixels_beyond_the_box_do_not_matter():
    box = Box(20, 30, 20, 20, False)
    inside = np.zeros((60, 80, 3), np.uint8)
    inside[20:40, 30:50] = _scene()[20:40, 30:50]
    np.testing.assert_array_equal(crop_view(inside, box, 64), crop_view(_scene(), box, 64))


def test_two_views_are_different_crops_of_one_image():
    config = ViewsConfig(crop_size=24)
    views, boxes = two_views(_scene(), np.random.default_rng(3), config)
    assert views.shape == (2, 24, 24, 3) and views.dtype == np.uint8
    assert boxes.shape == (2, 5) and boxes.dtype == np.float32
    assert not np.array_equal(boxes[0], boxes[1])
    for view, box in zip(views, boxes.astype(int), strict=True):
        np.testing.assert_array_equal(view, crop_view(_scene(), Box._make(box), 24))
    again, boxes_again = two_views(_scene(), np.random.default_rng(3), config)
    np.testing.assert_array_equal(again, views)
    np.testing.assert_array_equal(boxes_again, boxes)


def _photo(height=300, width=400):
    """Large and smooth enough that resizing laws agree."""
    y, x = np.mgrid[:height, :width] / 40
    image = np.stack([np.sin(x) + np.cos(y), np.sin(x + y), np.cos(x - y)], axis=-1)
    return (127 + 60 * image).astype(np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_fast_decoding_moves_no_box_and_few_values(kind):
    encoded = _encode(Image.fromarray(_photo()), kind, **({"quality": 95} if kind == "JPEG" else {}))
    for seed in range(20):
        exact, fast = (
            random_crops(
                encoded,
                np.random.default_rng(seed),
                ViewsConfig(crop_size=48, decoding=decoding),
                LocalViewsConfig(count=2, crop_size=32),
            )
            for decoding in ("exact", "fast")
        )
        np.testing.assert_array_equal(fast["boxes"], exact["boxes"])
        np.testing.assert_array_equal(fast["local_boxes"], exact["local_boxes"])
        for ours, theirs in ((fast["views"], exact["views"]), (fast["local_views"], exact["local_views"])):
            assert ours.shape == theirs.shape and ours.dtype == np.uint8
            # Compression and one part in 255 of rounding; a shift by a pixel changes more where crops are small.
            difference = np.abs(ours.astype(int) - theirs).mean()
            assert difference < 2
            assert difference < 0.5 * np.abs(np.roll(theirs, 1, axis=2).astype(int) - theirs)[:, :, 1:].mean()


def test_fast_decoding_reads_no_more_pixels_than_crops_need():
    encoded, size = _encode(Image.fromarray(_photo()), "JPEG"), Size(300, 400)
    assert decode_at_least(encoded, size, share=3.0).shape == (300, 400, 3)
    assert decode_at_least(encoded, size, share=0.51).shape == (300, 400, 3)
    assert decode_at_least(encoded, size, share=0.5).shape == (150, 200, 3)
    assert decode_at_least(encoded, size, share=0.26).shape == (150, 200, 3)
    assert decode_at_least(encoded, size, share=0.01).shape == (38, 50, 3)
    lossless = _encode(Image.fromarray(_photo()), "PNG")
    np.testing.assert_array_equal(decode_at_least(lossless, size, share=0.1), _photo())


def test_local_crops_leave_the_views_alone():
    encoded = _encode(Image.fromarray(_photo()), "PNG")
    config, local = ViewsConfig(crop_size=32), LocalViewsConfig(count=3, crop_size=16, scale=(0.05, 0.1))
    with_local = random_crops(encoded, np.random.default_rng(1), config, local)
    without = random_crops(encoded, np.random.default_rng(1), config)
    np.testing.assert_array_equal(with_local["views"], without["views"])
    np.testing.assert_array_equal(with_local["boxes"], without["boxes"])
    assert "local_views" not in without and with_local["local_views"].shape == (3, 16, 16, 3)
    areas = with_local["local_boxes"][:, 2] * with_local["local_boxes"][:, 3] / (300 * 400)
    assert ((areas > 0.049) & (areas < 0.101)).all()
    for view, box in zip(with_local["local_views"], with_local["local_boxes"].astype(int), strict=True):
        np.testing.assert_array_equal(view, crop_view(_photo(), Box._make(box), 16))


def test_a_decompression_bomb_is_refused_by_its_header():
    for side in (11_000, 20_000):
        bomb = _encode(Image.new("1", (side, side)), "PNG")
        assert len(bomb) < 100_000
        with pytest.raises(DecodeError, match="more than 100 million pixels"):
            decode(bomb)
        with pytest.raises(DecodeError, match="more than 100 million pixels"):
            random_crops(bomb, np.random.default_rng(0), ViewsConfig())


@pytest.mark.parametrize("size", [(1, 1), (20_000, 50)])
@pytest.mark.parametrize("decoding", ["exact", "fast"])
def test_extreme_sizes_give_views(size, decoding):
    encoded = _encode(Image.new("RGB", size, (9, 8, 7)), "JPEG", quality=95)
    crops = random_crops(encoded, np.random.default_rng(0), ViewsConfig(crop_size=16, decoding=decoding))
    assert crops["views"].shape == (2, 16, 16, 3)
    np.testing.assert_allclose(crops["views"].astype(int), np.broadcast_to((9, 8, 7), crops["views"].shape), atol=2)
