"""Images of other formats than 8-bit RGB: what is read equals what was written, what would need a guess is refused."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from croc_jax.data.channels import decode_pixels
from croc_jax.data.config import LocalViewsConfig, ViewsConfig
from croc_jax.data.crops import random_crops
from croc_jax.data.decoding import DecodeError, decode, read_size
from croc_jax.data.orientation import turn
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.resizing import resize_image
from croc_jax.data.sources import FolderSource
from croc_jax.pixel_format import PixelFormat
from tests.data.image_bytes import ORIENTATION, encode, exif, png, png_chunk

BANDS = np.random.default_rng(0).integers(0, 2**16, (10, 14, 5)).astype(np.uint16)
BYTES = (BANDS >> 8).astype(np.uint8)
FLOATS = (BANDS - 30_000.0).astype(np.float32) / 7
PLANES = BANDS.transpose(2, 0, 1)
CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}
PLANAR = {"photometric": "minisblack", "planarconfig": "separate"}


def tif(values, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def tif_pages(*pages):
    """A TIFF of pages, each its values and the options that it is written with."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for values, options in pages:
            writer.write(values, metadata=None, **options)
    return stream.getvalue()


def npy(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def pixels_of(values):
    channels = values.shape[2] if values.ndim == 3 else 1
    low_and_high = (0.0, 1.0) if values.dtype == np.float32 else (0.0, 200.0) if values.dtype == np.uint8 else ()
    return PixelFormat(channels=channels, dtype=values.dtype.name, range=low_and_high)


def refusal(encoded, pixels):
    with pytest.raises(DecodeError) as caught:
        decode_pixels(encoded, pixels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


GRAY_JPEG = encode(Image.fromarray(BYTES[..., 0]), "JPEG")
PYRAMID = tif_pages(
    (BANDS, CONTIGUOUS | {"subifds": 1}),
    (BANDS[::2, ::2], CONTIGUOUS | {"subfiletype": 1}),
    (BANDS[::4, ::4], CONTIGUOUS | {"subfiletype": 1}),
    (np.ones((10, 14), bool), {"photometric": "mask", "subfiletype": 4}),
)
STORED = {
    "strips": (tif(BANDS, rowsperstrip=3, **CONTIGUOUS), BANDS),
    "big-endian BigTIFF": (tif(BANDS, byteorder=">", bigtiff=True, **CONTIGUOUS), BANDS),
    "tiles": (tif(BANDS, tile=(16, 32), compression="deflate", predictor=True, **CONTIGUOUS), BANDS),
    "planar": (tif(PLANES, **PLANAR), BANDS),
    "planar tiles": (tif(PLANES, tile=(16, 16), compression="lzw", **PLANAR), BANDS),
    "Zstandard": (tif(BANDS, compression="zstd", **CONTIGUOUS), BANDS),
    "floating-point predictor": (tif(FLOATS, compression="deflate", predictor=True, **CONTIGUOUS), FLOATS),
    "pages": (tif(PLANES, compression="lzw", metadata=None, photometric="minisblack"), BANDS),
    "pages in a row": (tif(PLANES, photometric="minisblack"), BANDS),
    "listed as one page": (tif(PLANES, truncate=True, photometric="minisblack"), BANDS),
    "ImageJ": (tif(PLANES, imagej=True, metadata={"axes": "CYX"}), BANDS),
    "OME": (tif(PLANES, ome=True, metadata={"axes": "CYX"}, photometric="minisblack"), BANDS),
    "rows as pages": (tif(BANDS, photometric="minisblack"), BANDS),
    "rows as compressed pages": (tif(BANDS, compression="deflate", photometric="minisblack"), BANDS),
    "pyramid and mask": (PYRAMID, BANDS),
    "preview first": (
        tif_pages((BANDS[::2, ::2], CONTIGUOUS | {"subfiletype": 1}), *((page, {}) for page in PLANES)), BANDS
    ),
    "RGB and another": (tif(BANDS[..., :4], photometric="rgb", extrasamples=["unspecified"]), BANDS[..., :4]),
    "one band": (tif(BANDS[..., 0], photometric="minisblack"), BANDS[..., 0]),
    "white is zero": (tif(BANDS[..., 0], photometric="miniswhite"), 65535 - BANDS[..., 0]),
    "12 bits": (tif(BANDS[..., 0] >> 4, photometric="minisblack", bitspersample=12), BANDS[..., 0] >> 4),
    "16-bit PNG": (png(BANDS[..., 0], 16), BANDS[..., 0]),
    "16-bit PNG with alpha": (png(BANDS[..., :2], 16, color=4), BANDS[..., :2]),
    "16-bit RGB PNG": (png(BANDS[..., :3], 16, color=2), BANDS[..., :3]),
    "16-bit RGBA PNG": (png(BANDS[..., :4], 16, color=6), BANDS[..., :4]),
    "turned 16-bit RGB PNG": (
        png(BANDS[..., :3], 16, color=2, chunks=png_chunk(b"eXIf", exif(6).tobytes()[6:])), turn(BANDS[..., :3], 6)
    ),
    "PNG": (png(BYTES[..., 0], 8), BYTES[..., 0]),
    "PNG with alpha": (png(BYTES[..., :2], 8, color=4), BYTES[..., :2]),
    "1 bit": (png(BYTES[..., 0] % 2, 1), BYTES[..., 0] % 2 * 255),
    "RGB of a range": (encode(Image.fromarray(BYTES[..., :3]), "BMP"), BYTES[..., :3]),
    "palette": (
        encode(Image.fromarray(BYTES[..., :3]).quantize(9), "PNG"),
        np.asarray(Image.fromarray(BYTES[..., :3]).quantize(9).convert("RGB")),
    ),
    "WebP": (encode(Image.fromarray(BYTES[..., :4]), "WEBP", lossless=True, exact=True), BYTES[..., :4]),
    "gray JPEG": (GRAY_JPEG, np.asarray(Image.open(io.BytesIO(GRAY_JPEG)))),
    "array": (npy(BANDS), BANDS),
    "array, channels first": (npy(PLANES.copy()), BANDS),
    "array as high as it has channels": (npy(BANDS[:5]), BANDS[:5]),
    "array in the order of Fortran": (npy(np.asfortranarray(BANDS)), BANDS),
    "big-endian array": (npy(BANDS.astype(">u2")), BANDS),
    "array of one channel": (npy(BYTES[..., 0]), BYTES[..., 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", STORED)
def test_values_are_read_as_they_are_stored(name):
    encoded, expected = STORED[name]
    image = decode_pixels(encoded, pixels_of(expected))
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image, expected if expected.ndim == 3 else expected[..., None])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_any_number_of_channels_is_turned_upright(orientation):
    encoded = tif(BANDS, extratags=[(ORIENTATION, "H", 1, orientation, True)], **CONTIGUOUS)
    np.testing.assert_array_equal(decode_pixels(encoded, pixels_of(BANDS)), turn(BANDS, orientation))


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "u4", "i8", "f2", "f4", "f8"])
def test_floating_point_takes_every_type_that_it_holds(dtype):
    values = (BANDS % 100).astype(dtype)
    for encoded in (tif(values, **CONTIGUOUS), npy(values)):
        image = decode_pixels(encoded, pixels_of(FLOATS))
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, values)


DEEP, FLOAT = pixels_of(BANDS), pixels_of(FLOATS)
GRAY8, RGBA8 = PixelFormat(channels=1), PixelFormat(channels=4)
MISSING = "NaN, infinity or numbers beyond 1e+30"
REFUSED = {
    "fewer channels": (tif(BYTES[..., :4], photometric="rgb"), DEEP,
                       "it holds 4 channels of uint8 instead of 5 channels of uint16"),
    "8 bits for 16": (npy(BYTES), DEEP, "5 channels of uint8 instead of 5 channels of uint16"),
    "16 bits for 8": (png(BANDS[..., 0], 16), GRAY8, "it holds 1 channel of uint16"),
    "signed": (npy(BANDS.astype(np.int16)), DEEP, "5 channels of int16"),
    "RGB for gray": (encode(Image.fromarray(BYTES[..., :3]), "JPEG"), GRAY8, "it holds 3 channels of uint8"),
    "ink": (encode(Image.fromarray(BYTES[..., :4], "CMYK"), "JPEG"), RGBA8, "mode CMYK, whose values are no channels"),
    "ink in TIFF": (tif(BYTES[..., :4], photometric="separated"), RGBA8, "of the kind SEPARATED"),
    "palette TIFF": (tif(BYTES[..., 0], photometric="palette", colormap=np.zeros((3, 256), np.uint16)), GRAY8,
                     "of the kind PALETTE"),
    "GIF": (encode(Image.fromarray(BYTES[..., 0]), "GIF"), GRAY8, "GIF files are read as 8-bit RGB only"),
    "pages of two sizes": (tif_pages((BANDS[..., 0], {}), (BANDS[:5, :, 0], {})), DEEP, "2 pages of several kinds"),
    "pages of colors": (tif_pages((BANDS, CONTIGUOUS), (BANDS, CONTIGUOUS)), DEEP, "2 pages of 5 samples"),
    "previews only": (tif_pages((BANDS, CONTIGUOUS | {"subfiletype": 1})), DEEP, "its pages are previews or masks"),
    "bits": (tif(BANDS[..., 0] > 9, photometric="minisblack"), GRAY8, "a TIFF of 1 bits a value"),
    "white floats": (tif(FLOATS[..., 0], photometric="miniswhite"), FLOAT, "a TIFF of float32 whose white is zero"),
    "JPEG 2000 in TIFF": (tif(BANDS[..., 0], compression="jpeg2000", photometric="minisblack"), DEEP,
                          "a TIFF compressed by JPEG2000"),
    "NaN": (npy(np.where(FLOATS > 0, FLOATS, np.nan)), FLOAT, MISSING),
    "infinity": (tif(np.where(FLOATS > 0, FLOATS, np.inf), **CONTIGUOUS), FLOAT, MISSING),
    "number for missing pixels": (npy(np.where(FLOATS > 0, FLOATS, -3.4e38)), FLOAT, MISSING),
    "too large for float": (npy(np.where(FLOATS > 0, FLOATS.astype(float), 1e300)), FLOAT, MISSING),
    "large integers": (npy(BANDS.astype(np.int32) * 1000 + 1), FLOAT, "int32 values above 16777216"),
    "four axes": (npy(BANDS[None]), DEEP, "it holds an array [1, 10, 14, 5]"),
    "objects": (npy(np.array([{}], object)), DEEP, "Python objects, which would run code"),
    "fields": (npy(np.zeros((3, 3), [("a", "<f4")])), DEEP, "1 channel of [('a', '<f4')]"),
    "nothing": (npy(BANDS[:0]), DEEP, "it holds an array [0, 14, 5]"),
    "no image": (b"Dear reader", DEEP, "it begins with b'Dear reader'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_of_another_format_or_would_need_a_guess_is_refused_by_name(name):
    encoded, pixels, message = REFUSED[name]
    assert message in refusal(encoded, pixels)


def directory(**tags):
    """A TIFF whose only page states a gray image of 8 x 8 pixels of 16 bits, but for tags such as t256=9."""
    entries = {256: 8, 257: 8, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 128}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    entries = {tag: value for tag, value in entries.items() if value is not None}
    page = struct.pack("<H", len(entries))
    page += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<I", 136) + bytes(128) + page


def header(shape):
    """A .npy file of one value that states another shape."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<u2", "fortran_order": False, "shape": shape})
    return stream.getvalue() + b"\0\0"


TILED = {"t273": None, "t278": None, "t279": None, "t324": 8, "t325": 128}
CLAIMS = {
    "many pixels": (directory(t256=2**31, t257=2**31) + bytes(4), "more than 100 million pixels"),
    "a large image": (directory(t256=9000, t257=9000, t278=9000, t279=2 * 9000**2) + bytes(4), "a truncated TIFF"),
    "few strips": (directory(t257=80_000) + bytes(4), "lists 1 of 10000 strips or tiles"),
    "strips of no rows": (directory(t278=0) + bytes(4), "rowsperstrip"),
    "a large tile": (directory(t322=2**20, t323=2**20, **TILED) + bytes(4), "tiles of 1048576 x 1048576"),
    "a circle of pages": (directory() + struct.pack("<I", 136), "more than 10000 pages"),
    "a large array": (header((9000, 9000)), "2 bytes of values where its header states 162000000"),
    "a huge array": (header((2**40, 2**40)), "more than 100 million pixels"),
    "a negative array": (header((-4, 4)), "it holds an array [-4, 4]"),
    "a huge PNG": (png(BANDS[..., 0], 16, size=(2**31 - 1, 2**31 - 1)), "more than 100 million pixels"),
    "a huge RGB PNG": (png(BANDS[..., :3], 16, color=2, size=(20_000, 20_000)), "more than 100 million pixels"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_headers_that_claim_too_much_are_refused_before_anything_is_allocated(name):
    encoded, message = CLAIMS[name]
    pixels = PixelFormat(channels=3 if "RGB" in name else 1, dtype="uint16")
    assert message in refusal(encoded, pixels)
    assert decode_pixels(directory() + bytes(4), PixelFormat(channels=1, dtype="uint16")).shape == (8, 8, 1)


def test_a_compressed_bomb_yields_what_the_image_needs():
    packed = zlib.compress(bytes(2**23))
    encoded = bytearray(directory(t259=8, t273=400, t279=len(packed)) + bytes(4))
    encoded += bytes(400 - len(encoded)) + packed
    assert not decode_pixels(bytes(encoded), PixelFormat(channels=1, dtype="uint16")).any()


@pytest.mark.parametrize("name", ["tiles", "pages", "16-bit RGBA PNG", "array", "gray JPEG"])
def test_damaged_files_are_errors_of_one_line(name):
    encoded, expected = STORED[name]
    generator = np.random.default_rng(0)
    for length in generator.integers(0, len(encoded) - 20, 40):
        refusal(encoded[:length], pixels_of(expected))
    for _ in range(60):
        damaged = bytearray(encoded)
        for place in generator.integers(0, min(len(damaged), 400), 3):
            damaged[place] = generator.integers(256)
        try:
            assert decode_pixels(bytes(damaged), pixels_of(expected)).shape[2] == pixels_of(expected).channels
        except DecodeError as error:
            assert "\n" not in str(error)


def test_8_bit_rgb_is_read_from_arrays_too():
    colors = BYTES[..., :3]
    for encoded in (npy(colors), npy(colors.transpose(2, 0, 1).copy())):
        np.testing.assert_array_equal(decode(encoded), colors)
        assert read_size(encoded) == (10, 14)
    views = random_crops(npy(colors), np.random.default_rng(0), ViewsConfig(crop_size=8))
    expected = random_crops(png(colors, 8, color=2), np.random.default_rng(0), ViewsConfig(crop_size=8))
    np.testing.assert_array_equal(views["views"], expected["views"])
    for values, found in ((BYTES, "5 channels of uint8"), (BYTES[..., 0], "1 channel of uint8"), (FLOATS, "float32")):
        with pytest.raises(DecodeError, match=found):
            decode(npy(values))


def reference(image, size):
    """Pillow's resizing of each channel in floating point."""
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(image, -1, 0)]
    resized = [np.asarray(plane.resize(size[::-1], Image.Resampling.BICUBIC), np.float64) for plane in planes]
    return np.stack(resized, axis=-1)


@pytest.mark.parametrize("size", [(7, 9), (96, 40), (1, 1), (60, 80), (200, 31)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_resizing_equals_that_of_floating_point_without_rounding_between(size, dtype):
    image = np.random.default_rng(0).random((60, 80, 5))
    # Overshoots at such edges go beyond the range of integers.
    image[20:40, 30:50] = np.random.default_rng(1).integers(0, 2, (20, 20, 1))
    top = {"uint8": 255, "uint16": 65535, "float32": 1.0}[dtype]
    image = (image * top).astype(dtype)
    expected = reference(image, size)
    resized = resize_image(image, size)
    assert resized.dtype == dtype and resized.shape == (*size, 5)
    if dtype == "float32":
        np.testing.assert_allclose(resized, expected, rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_allclose(resized.astype(float), np.clip(np.rint(expected), 0, top), rtol=0, atol=1)


def test_areas_are_averaged():
    image = BANDS[:9, :12]
    blocks = image.reshape(3, 3, 4, 3, 5).mean(axis=(1, 3))
    np.testing.assert_array_equal(resize_image(image, (3, 4), by_area=True), np.rint(blocks))
    # Three pixels of 4/3 each.
    thirds = resize_image(np.arange(4, dtype=np.float32)[None, :, None], (1, 3), by_area=True)
    np.testing.assert_allclose(thirds[0, :, 0], [0.25, 1.5, 2.75], rtol=1e-6)


@pytest.mark.parametrize("decoding", ["exact", "fast"])
def test_boxes_are_those_of_8_bit_rgb_and_views_keep_the_type(decoding):
    smooth = np.add.outer(np.arange(40), np.arange(60))[..., None] * np.arange(1, 6) * 100
    config, local = ViewsConfig(crop_size=8, decoding=decoding), LocalViewsConfig(count=3, crop_size=4)
    rgb = random_crops(png(smooth[..., :3] % 256, 8, color=2), np.random.default_rng(3), config, local)
    for values in (smooth.astype(np.uint16), smooth.astype(np.float32)):
        crops = random_crops(tif(values, **CONTIGUOUS), np.random.default_rng(3), config, local, pixels_of(values))
        for name in ("boxes", "local_boxes"):
            np.testing.assert_array_equal(crops[name], rgb[name])
        for view, (top, left, height, width, flip) in zip(crops["views"], crops["boxes"].astype(int), strict=True):
            assert view.dtype == values.dtype and view.shape == (8, 8, 5)
            expected = resize_image(values[top : top + height, left : left + width], (8, 8), by_area=decoding == "fast")
            np.testing.assert_array_equal(view, expected[:, ::-1] if flip else expected)


def test_a_missing_library_is_told_at_the_start_and_is_no_fault_of_the_image(tmp_path, monkeypatch):
    for number in range(2):
        (tmp_path / f"{number}.tif").write_bytes(STORED["strips"][0])
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for encoded in (STORED["strips"][0], STORED["16-bit RGB PNG"][0]):
        with pytest.raises(ValueError, match=r"pip install 'croc_jax\[tiff\]'") as caught:
            decode_pixels(encoded, pixels_of(BANDS))
        assert not isinstance(caught.value, DecodeError)
    with pytest.raises(ValueError, match=r"pip install 'croc_jax\[tiff\]'"):
        make_dataset(FolderSource(tmp_path), views=ViewsConfig(), pixels=DEEP, batch_size=2, seed=0)
    encoded, expected = STORED["16-bit PNG"]
    np.testing.assert_array_equal(decode_pixels(encoded, pixels_of(expected))[..., 0], expected)
