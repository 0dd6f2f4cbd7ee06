"""Measured ranges, means and deviations against NumPy, and their file."""

import dataclasses
import json
import re

import numpy as np
import pytest
import tifffile

from croc_jax.data import measure as measure_module
from croc_jax.data.measure import MeasureConfig, default_percentiles, measure
from croc_jax.data.sources import open_sources
from croc_jax.data.sources.identity import identify
from croc_jax.data.statistics import Statistics, read_statistics, write_statistics
from croc_jax.version import __version__
from tests.data.tiny_images import encode
from tests.mutated_windows import STATISTICS

SIZES = [(12, 20), (17, 9), (30, 30)]
RNG = np.random.default_rng(0)
IMAGES = {
    "uint8": [RNG.integers(10, 90, (*size, 2)).astype(np.uint8) for size in SIZES],
    "uint16": [np.minimum(RNG.exponential(900, (*size, 2)), 65535).astype(np.uint16) for size in SIZES],
    "float32": [RNG.normal(280, 9, (*size, 2)).astype(np.float32) for size in SIZES],
}


def write(folder, images):
    for index, image in enumerate(images):
        options = {"planarconfig": "contig"} if image.shape[-1] > 1 else {}
        tifffile.imwrite(folder / f"{index}.tif", image, photometric="minisblack", **options)


def expect(images, percentiles=(), limits=None):
    """Returns range, mean and deviation of each channel by NumPy in float64."""
    flat = np.concatenate([image.reshape(-1, image.shape[-1]) for image in images])
    if percentiles:
        limits = np.percentile(flat, percentiles, axis=0, method="inverted_cdf").T
    low, high = np.transpose(limits)
    unit = np.clip((flat.astype(np.float64) - low) / (high - low), 0, 1)
    return np.ravel(limits), unit.mean(0), unit.std(0)


@pytest.mark.parametrize("dtype", IMAGES)
@pytest.mark.parametrize("percentiles", [(0.5, 99.5), (0.0, 100.0), (25.0, 50.0)])
def test_range_mean_and_deviation_are_those_of_numpy(tmp_path, dtype, percentiles):
    write(tmp_path, IMAGES[dtype])
    config = MeasureConfig(sources=(str(tmp_path),), channels=2, dtype=dtype, percentiles=percentiles)
    shown = []
    found, skipped = measure(config, num_workers=1, show=lambda *numbers: shown.append(numbers))
    limits, mean, std = expect(IMAGES[dtype], percentiles)
    np.testing.assert_allclose(found.range, limits, rtol=1e-7)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(found.std, std, rtol=1e-5)
    source = open_sources([str(tmp_path)])
    assert found == dataclasses.replace(
        found, channels=2, dtype=dtype, percentiles=percentiles, images=3, total=3, pixels=1293, window=0,
        sources=(str(tmp_path),), digest=identify(source).digest, version=__version__,
    )  # fmt: skip
    assert not skipped and shown == [(0, 3), (3, 3)]


@pytest.mark.parametrize(
    ("dtype", "range_", "limits"),
    [("uint8", (), (0, 255)), ("uint16", (100, 4000), (100, 4000)), ("float32", (250, 300, 270, 310), None)],
)
def test_a_given_range_is_kept(tmp_path, dtype, range_, limits):
    write(tmp_path, IMAGES[dtype])
    found, _ = measure(MeasureConfig(sources=(str(tmp_path),), channels=2, dtype=dtype, range=range_), num_workers=1)
    _, mean, std = expect(IMAGES[dtype], limits=[limits, limits] if limits else [(250, 300), (270, 310)])
    assert found.range == range_ and found.percentiles == ()
    np.testing.assert_allclose([found.mean, found.std], [mean, std], rtol=1e-5)


def test_images_of_8_bit_rgb_are_read_from_any_file(tmp_path):
    for index in range(1, 5):
        (tmp_path / f"{index}.png").write_bytes(encode(index))
    for index in range(3):
        (tmp_path / f"{index}.jpg").write_bytes(b"no image")
    (tmp_path / "9.png").write_bytes(encode(0, (16, 12)))
    with pytest.raises(ValueError, match=r"channel 1, counted from 0, is 0 in all images once 0 to 255 has become"):
        measure(MeasureConfig(sources=(str(tmp_path),)), num_workers=1)
    tally = []
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "noise.tif", noise, photometric="rgb")
    found, skipped = measure(
        MeasureConfig(sources=(str(tmp_path),)), num_workers=1, show=lambda *numbers: tally.append(numbers)
    )
    assert (
        found.images == 6
        and found.pixels == 4 * 48 + 192 + 64
        and sorted(skipped) == [str(tmp_path / f"{index}.jpg") for index in range(3)]
    )
    red = np.concatenate([*(np.full(48, 10 * i) for i in range(1, 5)), np.zeros(192), noise[..., 0].ravel()]) / 255
    np.testing.assert_allclose([found.mean[0], found.std[0]], [red.mean(), red.std()], rtol=1e-5)


def test_windows_are_measured_as_images(tmp_path):
    write(tmp_path, IMAGES["uint16"])
    config = MeasureConfig(sources=(str(tmp_path),), channels=2, dtype="uint16", percentiles=(1, 99), window=16)
    found, _ = measure(config, num_workers=1)
    assert (found.images, found.total, found.window) == (2 + 2 + 4, 8, 16)
    first, second, third = IMAGES["uint16"]
    parts = [first[:, :16], first[:, 4:], second[:16], second[1:]]
    parts += [third[top : top + 16, left : left + 16] for top in (0, 14) for left in (0, 14)]
    limits, mean, _ = expect(parts, (1, 99))
    np.testing.assert_allclose(found.range, limits)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-5)


def test_images_and_floating_point_values_are_drawn_evenly(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    images = [rng.normal(0, 1, (64, 64, 1)).astype(np.float32) for _ in range(8)]
    write(tmp_path, images)
    config = MeasureConfig(sources=(str(tmp_path),), channels=1, dtype="float32", percentiles=(5, 95))
    exact, _ = measure(config, num_workers=1)
    assert exact.pixels == 8 * 4096
    np.testing.assert_allclose(exact.range, expect(images, (5, 95))[0], rtol=1e-7)
    monkeypatch.setattr(measure_module, "_MAX_DRAWN", 8 * 1000)
    drawn, _ = measure(config, num_workers=1)
    assert drawn.pixels == 8000 and drawn == measure(config, num_workers=1).statistics
    # The rank of a percentile of n values deviates by sqrt(p (1 - p) / n): 0.0024, so 0.024 at this density.
    np.testing.assert_allclose(drawn.range, exact.range, atol=4 * 0.024)
    np.testing.assert_allclose([drawn.mean, drawn.std], [exact.mean, exact.std], atol=0.02)
    few, _ = measure(dataclasses.replace(config, max_images=3), num_workers=1)
    assert (few.images, few.total) == (3, 8)


def test_channels_of_one_value_and_images_that_cannot_be_measured_are_named(tmp_path):
    image = IMAGES["uint16"][2].copy()
    image[..., 1] = 7
    write(tmp_path, [image])
    config = MeasureConfig(sources=(str(tmp_path),), channels=2, dtype="uint16", percentiles=(0.5, 99.5))
    with pytest.raises(ValueError, match=r"0.5 and 99.5 of channel 1, counted from 0, are both 7: drop this band"):
        measure(config, num_workers=1)
    image[0, 0, 1] = 9
    write(tmp_path, [image])
    with pytest.raises(ValueError, match="are both 7: choose wider --percentiles, or give --range=LOW,HIGH"):
        measure(config, num_workers=1)
    with pytest.raises(ValueError, match="channel 1, counted from 0, is 0 in all images once 100 to 200 has"):
        measure(dataclasses.replace(config, percentiles=(), range=(0, 4000, 100, 200)), num_workers=1)
    with pytest.raises(ValueError, match=r"no image of \S+ could be read, such as \S+0.tif \(it holds .*3 channels"):
        measure(dataclasses.replace(config, channels=3), num_workers=1)
    write(tmp_path, [np.full((4, 4, 2), np.nan, np.float32)])
    with pytest.raises(ValueError, match=r"no image .*0.tif \(it holds "):
        measure(dataclasses.replace(config, dtype="float32"), num_workers=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"percentiles": (99.5, 0.5)}, "percentiles"),
        ({"percentiles": (0.5,)}, "percentiles"),
        ({"percentiles": (-1, 50)}, "percentiles"),
        ({"percentiles": (1, 99), "range": (0, 1)}, "give one of them"),
        ({"range": (1, 0)}, "range"),
        ({"dtype": "float32"}, "give low and high"),
        ({"dtype": "int16"}, "dtype"),
        ({"channels": 17}, "channels=17"),
        ({"window": -1}, "window=-1"),
        ({"max_images": 0}, "max_images=0"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        MeasureConfig(**{"sources": ("a",), **changes})


def test_types_with_an_unused_range_are_measured_by_percentiles():
    assert [default_percentiles(dtype) for dtype in ("uint8", "uint16", "float32")] == [(), (0.5, 99.5), (0.5, 99.5)]


def test_statistics_are_read_as_they_were_written(tmp_path, monkeypatch):
    write_statistics(tmp_path / "a.json", STATISTICS)
    assert read_statistics(tmp_path / "a.json") == STATISTICS
    lines = (tmp_path / "a.json").read_text().splitlines()
    assert len(lines) == 2 + len(dataclasses.fields(Statistics)) and lines[3] == ' "range": [1, 2.5, 3, 4],'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_statistics("a.json") == read_statistics("~/a.json") == STATISTICS


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "3", "{}", "[" * 100_000, "\udce9", {"mean": (0.5,)}, {"std": (0.0, 0.1)}, {"std": ("a", "b")},
        {"mean": (float("nan"), 0.5)}, {"range": (2, 1)}, {"range": 10**400}, {"channels": "2"}, {"dtype": []},
        {"more": 1}, {"percentiles": (3,)}, {"range": (10**400, 1)}, {"sources": 1},
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_named(tmp_path, content):
    if isinstance(content, dict):
        content = json.dumps(dataclasses.asdict(STATISTICS) | content)
    (tmp_path / "a.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=re.escape(f"data.statistics={tmp_path / 'a.json'} does not hold")) as caught:
        read_statistics(tmp_path / "a.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    with pytest.raises(
        FileNotFoundError, match=r"data.statistics=b.json: there is no such file \(now in .*--statistics=b"
    ):
        read_statistics("b.json")
    with pytest.raises(ValueError, match="does not hold .*Is a directory"):
        read_statistics(tmp_path)
