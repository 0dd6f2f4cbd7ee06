"""Windows of large images: which there are, that they hold the right pixels, and that no others are read."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from croc_jax.data import tiff_regions
from croc_jax.data.channels import decode_pixels
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.data.crops import random_crops
from croc_jax.data.decoding import DecodeError, decode
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import open_data, open_sources
from croc_jax.data.sources.identity import identify
from croc_jax.pixel_format import RGB8, PixelFormat
from tests.data.image_bytes import exif, png, tiff

ROOT = Path(__file__).resolve().parents[2]
SIDE, HEIGHT, WIDTH, CHANNELS = 64, 150, 190, 5
BANDS = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, CHANNELS)).astype(np.uint16)
COLORS = (BANDS[..., :3] >> 8).astype(np.uint8)
PIXELS = PixelFormat(channels=CHANNELS, dtype="uint16")
# Where windows of 64 pixels of an image of 150 x 190 begin.
TOPS, LEFTS = (0, 64, 86), (0, 64, 126)
# How a TIFF can store the same bands.
LAYOUTS = {
    "tiled": {"tile": (32, 48), "compression": "zlib"},
    "predictor": {"tile": (32, 48), "compression": "lzw", "predictor": True},
    "BigTIFF, big-endian": {"tile": (32, 48), "compression": "zstd", "bigtiff": True, "byteorder": ">"},
    "strips": {"rowsperstrip": 7, "compression": "zlib"},
    "plain": {"byteorder": ">"},
    "plain strips": {"rowsperstrip": 7},
    "planar": {"tile": (32, 48), "compression": "zlib", "planarconfig": "separate"},
    "planar, plain": {"planarconfig": "separate"},
    "pages": {"tile": (32, 48), "compression": "zlib", "pages": True},
    "pages, plain": {"pages": True},
}


def write(file, image, *, pages=False, planarconfig="contig", photometric="minisblack", **options):
    image = np.moveaxis(image, -1, 0) if pages or planarconfig == "separate" else image
    options |= {} if pages else {"planarconfig": planarconfig}
    tifffile.imwrite(file, image, photometric=photometric, **options)


def open_windows(folder, pixels=PIXELS, side=SIDE):
    return open_sources([f"folder:{folder}"], window=side, pixels=pixels)


def regions(source):
    """Yields top, left, pixels and file of each window."""
    for index in range(len(source)):
        file, _, place = source.name(index).rpartition("[")
        top, left = map(int, place.rstrip("]").split(":"))
        yield top, left, np.load(io.BytesIO(source[index])), file


@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_cover_a_tiff_and_read_only_the_tiles_that_they_touch(tmp_path, monkeypatch, layout):
    write(tmp_path / "a.tif", BANDS, **LAYOUTS[layout])
    source, read, offsets = open_windows(tmp_path), [], tiff_regions._read_exactly

    def note(descriptor, offset, count):
        read.append((offset, count))
        return offsets(descriptor, offset, count)

    monkeypatch.setattr(tiff_regions, "_read_exactly", note)
    assert [source.name(index) for index in range(len(source))] == [
        f"{tmp_path / 'a.tif'}[{top}:{left}]" for top in TOPS for left in LEFTS
    ]
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        segments = [(page.dataoffsets, page.databytecounts) for page in file.series[0].pages]
    for top, left, window, _ in regions(source):
        np.testing.assert_array_equal(window, BANDS[top : top + SIDE, left : left + SIDE])
        assert window.dtype == np.uint16 and window.dtype.isnative
        if "tile" in LAYOUTS[layout]:
            touched = [
                row * 4 + column
                for row in range(top // 32, -(-(top + SIDE) // 32))
                for column in range(left // 48, -(-(left + SIDE) // 48))
            ]
            planes = 5 if "planar" in layout else 1
            expected = [
                (places[plane * 20 + tile], counts[plane * 20 + tile])
                for places, counts in segments
                for plane in range(planes)
                for tile in touched
            ]
            assert read == expected
        elif "plain" in layout:
            assert sum(count for _, count in read) == window.nbytes
        read.clear()


@pytest.mark.parametrize("options", [{}, {"tile": (32, 48), "compression": "zlib"}, {"rowsperstrip": 7}])
def test_windows_of_one_channel(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", BANDS[..., 0], photometric="minisblack", **options)
    source = open_windows(tmp_path, PixelFormat(channels=1, dtype="uint16"))
    assert len(source) == len(TOPS) * len(LEFTS)
    for top, left, window, _ in regions(source):
        np.testing.assert_array_equal(window, BANDS[top : top + SIDE, left : left + SIDE, :1])


def encode_jpeg(image, **options):
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def test_windows_of_8_bit_rgb_are_parts_of_the_decoded_image(tmp_path):
    gray, alpha = COLORS[..., 0], np.concatenate([COLORS, COLORS[..., :1]], axis=-1)
    write(tmp_path / "rgb.tif", COLORS, photometric="rgb", tile=(32, 48), compression="zlib")
    write(tmp_path / "rgba.tif", alpha, photometric="rgb", tile=(32, 48), extrasamples=("unassalpha",))
    tifffile.imwrite(tmp_path / "gray.tif", gray, photometric="minisblack", tile=(32, 48))
    tifffile.imwrite(tmp_path / "inverted.tif", gray, photometric="miniswhite", tile=(32, 48))
    tifffile.imwrite(tmp_path / "deep.tif", BANDS[..., 0], photometric="minisblack", tile=(32, 48))
    (tmp_path / "turned.tif").write_bytes(tiff(COLORS, meaning=2, t274=6))
    Image.fromarray(COLORS).convert("P").save(tmp_path / "palette.tif")
    (tmp_path / "turned.jpg").write_bytes(encode_jpeg(Image.fromarray(COLORS), exif=exif(6)))
    (tmp_path / "gray.png").write_bytes(png(gray, 8))
    with (tmp_path / "array.png").open("wb") as file:
        np.save(file, COLORS)
    source, sizes = open_windows(tmp_path, RGB8), {}
    for top, left, window, file in regions(source):
        whole = decode(Path(file).read_bytes())
        np.testing.assert_array_equal(window, whole[top : top + SIDE, left : left + SIDE], file)
        sizes[Path(file).name] = whole.shape[:2]
    assert len(source) == 9 * 10 and len(sizes) == 10
    assert {name for name, size in sizes.items() if size == (WIDTH, HEIGHT)} == {"turned.jpg", "turned.tif"}
    # Of the others, all is decoded.
    by_region = {file.stem for file in tmp_path.glob("*.tif") if not tiff_regions.open_tiff(file, RGB8).obstacle}
    assert by_region == {"rgb", "rgba", "gray"}


def test_small_images_keep_their_bytes_and_narrow_ones_their_width(tmp_path):
    write(tmp_path / "a.tif", BANDS[:SIDE, :SIDE])
    write(tmp_path / "b.tif", BANDS[:SIDE, :40])
    write(tmp_path / "c.tif", BANDS[:, :40], tile=(16, 16))
    source = open_windows(tmp_path)
    assert len(source) == 2 + 3
    assert [source.name(index) for index in range(3)] == [
        *(str(tmp_path / name) for name in ("a.tif", "b.tif")), f"{tmp_path / 'c.tif'}[0:0]",
    ]  # fmt: skip
    assert [source[index] for index in range(2)] == [(tmp_path / name).read_bytes() for name in ("a.tif", "b.tif")]
    np.testing.assert_array_equal(np.load(io.BytesIO(source[4])), BANDS[86:, :40])


def test_a_damaged_image_is_one_unreadable_window(tmp_path):
    write(tmp_path / "a.tif", BANDS, tile=(32, 48), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        offsets, counts = file.pages[0].dataoffsets, file.pages[0].databytecounts
    damaged = bytearray((tmp_path / "a.tif").read_bytes())
    damaged[offsets[0] : offsets[0] + 40] = bytes(40)
    (tmp_path / "a.tif").write_bytes(damaged)
    (tmp_path / "b.tif").write_bytes(b"II*\0" + b"\xff" * 60)
    (tmp_path / "c.png").write_bytes(png(COLORS[..., 0], 8, size=(20_000, 10_000)))
    (tmp_path / "d.tif").write_bytes(tiff(BANDS, t257=30_000, t256=10_000, t278=30_000, t259=8))
    (tmp_path / "e.tif").symlink_to("gone")
    source = open_windows(tmp_path)
    assert len(source) == 9 + 4
    reasons = {
        0: "tile 0: ",
        9: "a damaged TIFF",
        10: "more than 100 million pixels, and no part of it can be read in this format: convert it to a tiled TIFF",
        11: "more than 100 million pixels, and no part of it can be read, since its strips have more than 100 million",
    }
    for index, reason in reasons.items():
        with pytest.raises(OSError, match=reason) as caught:
            source[index]
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        source[12]
    np.testing.assert_array_equal(np.load(io.BytesIO(source[8])), BANDS[86:, 126:])
    # What is cut off after the header was read.
    os.truncate(tmp_path / "a.tif", offsets[-1] + counts[-1] - 1)
    with pytest.raises(OSError, match="a truncated TIFF"):
        source[8]
    # Repaired since.
    write(tmp_path / "b.tif", BANDS)
    with pytest.raises(OSError, match="can be now"):
        source[9]
    (tmp_path / "a.tif").unlink()
    (tmp_path / "b.tif").unlink()
    with pytest.raises(ValueError, match=r"no image of folder:\S+ has a readable header, such as "):
        open_windows(tmp_path)
    write(tmp_path / "a.tif", COLORS, photometric="rgb")
    os.truncate(tmp_path / "a.tif", (tmp_path / "a.tif").stat().st_size - 1)
    with pytest.raises(DecodeError, match="a truncated TIFF"):
        tiff_regions.open_tiff(tmp_path / "a.tif", RGB8)


def test_channels_are_those_that_the_whole_image_has(tmp_path):
    """Whatever form they have in the file; of those in the second row, all is decoded."""
    planes, options = np.moveaxis(BANDS, -1, 0), {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "in_a_row.tif", planes)
    tifffile.imwrite(tmp_path / "imagej.tif", planes, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(tmp_path / "rows.tif", BANDS)
    write(tmp_path / "preview.tif", BANDS, tile=(32, 48), compression="zlib")
    tifffile.imwrite(tmp_path / "preview.tif", BANDS[::4, ::4, 0], subfiletype=1, append=True, **options)
    tifffile.imwrite(tmp_path / "white.tif", 65535 - planes, photometric="miniswhite", planarconfig="separate")
    tifffile.imwrite(tmp_path / "compressed_rows.tif", BANDS, compression="zlib")
    write(tmp_path / "turned.tif", BANDS, tile=(32, 48), extratags=[(274, 3, 1, 6, True)])
    source = open_windows(tmp_path)
    assert len(source) == 9 * 7
    for top, left, window, name in regions(source):
        whole = np.rot90(BANDS, -1) if "turned" in name else BANDS
        np.testing.assert_array_equal(window, whole[top : top + SIDE, left : left + SIDE], name)
    by_region = {file.stem for file in tmp_path.glob("*.tif") if not tiff_regions.open_tiff(file, PIXELS).obstacle}
    assert by_region == {"in_a_row", "imagej", "rows", "preview"}
    # Floating point takes all of them.
    pixels = PixelFormat(channels=CHANNELS, dtype="float32", range=(0, 1))
    window = decode_pixels(open_windows(tmp_path, pixels)[0], pixels)
    np.testing.assert_array_equal(window, BANDS[:SIDE, :SIDE].astype(np.float32))
    with pytest.raises(ValueError, match=r"no image of .* 5 channels of uint16 instead of 4 channels of uint16"):
        open_windows(tmp_path, PixelFormat(channels=4, dtype="uint16"))


@pytest.mark.parametrize("axis", [0, 2])
def test_windows_of_an_array_are_parts_of_it(tmp_path, axis):
    np.save(tmp_path / "a.npy", np.moveaxis(BANDS, -1, axis).astype(">u2"))
    source = open_windows(tmp_path)
    assert len(source) == 9
    for top, left, window, _ in regions(source):
        np.testing.assert_array_equal(window, BANDS[top : top + SIDE, left : left + SIDE])
        assert window.dtype.isnative
    np.save(tmp_path / "a.npy", BANDS[..., 0])
    assert np.load(io.BytesIO(open_windows(tmp_path, PixelFormat(channels=1, dtype="uint16"))[3])).shape == (64, 64, 1)
    os.truncate(tmp_path / "a.npy", 5000)
    with pytest.raises(ValueError, match="has a readable header.*a damaged .npy file"):
        open_windows(tmp_path, PixelFormat(channels=1, dtype="uint16"))


def test_only_files_can_be_divided(tmp_path):
    np.save(tmp_path / "a.npy", COLORS[:8, :8])
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "a.npy", "a.png")
    with pytest.raises(ValueError, match=r"window=64: tar:\S+ holds no files on disk.*window=0"):
        open_sources([f"tar:{tmp_path / 'a.tar'}"], window=SIDE)


def test_windows_count_as_images_of_a_mixture_and_identify_it(tmp_path):
    for name, count in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        for index in range(count):
            write(tmp_path / name / f"{index}.tif", BANDS)
    folders = tuple(str(tmp_path / name) for name in ("a", "b"))
    options = {"folders": folders, "channels": CHANNELS, "dtype": "uint16"}
    source = open_data(DataConfig(**options, window=SIDE))
    assert len(source) == 27
    mixed = open_data(DataConfig(**options, window=SIDE, weights=(1.0, 1.0)))
    assert len(mixed) == 36 and mixed[9] == source[0] and mixed[18] == source[9]
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 4000 and copy[5] == source[5] and copy.name(5) == source.name(5)
    digests = {identify(source).digest, identify(open_data(DataConfig(**options))).digest}
    assert identify(copy).digest in digests and len(digests) == 2
    write(tmp_path / "b" / "1.tif", BANDS[:, :100])
    assert identify(open_data(DataConfig(**options, window=SIDE))).digest not in digests


def test_crops_come_from_windows_and_boxes_are_relative_to_them(tmp_path):
    write(tmp_path / "0.tif", BANDS, tile=(32, 48))
    source, views = open_windows(tmp_path), ViewsConfig(crop_size=SIDE, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    dataset = make_dataset(source, views=views, pixels=PIXELS, batch_size=9, seed=0)
    with dataset.iterate(num_workers=0, num_threads=0) as stream:
        batch = next(stream)
    # Crops of the full window are the window, mirrored or not.
    assert (batch["boxes"][..., :4] == (0, 0, SIDE, SIDE)).all()
    expected = {BANDS[top : top + SIDE, left : left + SIDE].tobytes() for top in TOPS for left in LEFTS}
    for pair, boxes in zip(batch["views"], batch["boxes"], strict=True):
        for view, box in zip(pair, boxes, strict=True):
            assert np.ascontiguousarray(view[:, ::-1] if box[4] else view).tobytes() in expected
    # Colors, too, and coarsely decoded.
    write(tmp_path / "0.tif", COLORS, photometric="rgb", tile=(32, 48))
    encoded = open_windows(tmp_path, RGB8)[4]
    for decoding in ("exact", "fast"):
        config = ViewsConfig(crop_size=SIDE, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_probability=0, decoding=decoding)
        found = random_crops(encoded, np.random.default_rng(0), config)["views"][0]
        np.testing.assert_array_equal(found, COLORS[64:128, 64:128])


def test_an_image_that_is_too_large_names_the_setting():
    with pytest.raises(DecodeError, match=r"100 million pixels \(data.window"):
        decode(png(COLORS[..., 0], 8, size=(10_000, 20_000)))


# Reads windows of a TIFF; prints by how much memory grew, in KiB.
READ = """
import resource, sys
from croc_jax.data.crops import random_crops
from croc_jax.data.config import ViewsConfig
from croc_jax.data.decoding import decode
from croc_jax.data.sources import open_sources
import numpy as np
import tifffile
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = open_sources(["folder:" + sys.argv[1]], window=1024)
assert len(source) == 400
for index in (0, 19, 380, 399, 210):
    image = decode(source[index])
    top, left = (int(part) for part in source.name(index).rpartition("[")[2][:-1].split(":"))
    rows, columns = np.mgrid[top : top + 1024, left : left + 1024]
    assert (image == np.stack([rows // 256, columns // 256, rows % 256], axis=-1)).all()
    random_crops(source[index], np.random.default_rng(0), ViewsConfig())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_stays_bounded_on_a_very_large_image(tmp_path):
    side, tile = 20_000, 256

    def tiles():
        column = np.arange(tile, dtype=np.uint8)[:, None]
        for top in range(-(-side // tile)):
            for left in range(-(-side // tile)):
                yield np.stack(
                    np.broadcast_arrays(np.uint8(top), np.uint8(left), column + np.zeros(tile, np.uint8)), -1
                )

    options = {"shape": (side, side, 3), "dtype": "uint8", "tile": (tile, tile), "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "a.tif", tiles(), compression="zlib", bigtiff=True, **options)
    command = [sys.executable, "-c", READ, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 300 * 1024
    with pytest.raises(DecodeError, match="data.window"):
        decode_pixels((tmp_path / "a.tif").read_bytes(), RGB8)
