"""Every file becomes the same upright 8-bit RGB wherever it is read, or is refused in one line that says why."""

import errno
import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from croc_jax.data.config import ViewsConfig
from croc_jax.data.crops import random_crops
from croc_jax.data.decoding import DecodeError, decode, decode_at_least, decode_image, read_header, read_size
from croc_jax.data.orientation import turn, turn_boxes
from tests.data.image_bytes import encode, exif, png, png_chunk, smooth, tiff

DEEP = np.arange(60, dtype=np.uint16).reshape(6, 10) * 1100
DEEP_COLOR = np.stack([DEEP, DEEP[::-1], DEEP[:, ::-1]], axis=-1)
GRAY = (DEEP >> 8).astype(np.uint8)
ALPHA = np.full_like(GRAY, 7)


def refusal(encoded):
    with pytest.raises(DecodeError) as caught:
        decode(encoded)
    assert "\n" not in str(caught.value) and "object at 0x" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_pillow_turns_them(orientation):
    options, late = {"exif": exif(orientation)}, png_chunk(b"eXIf", exif(orientation).tobytes()[6:])
    plain = encode(smooth(), "PNG")
    files = {
        "JPEG": encode(smooth(), "JPEG", **options),
        "gray": encode(smooth().convert("L"), "JPEG", icc_profile=bytes(70_000), **options),
        "CMYK": encode(smooth().convert("CMYK"), "JPEG", **options),
        "PNG": encode(smooth(), "PNG", **options),
        "chunk after the pixels": plain[:-12] + late + plain[-12:],
        "WebP": encode(smooth(), "WEBP", **options),
        "TIFF": encode(smooth(), "TIFF", **options),
        "LZW": encode(smooth(), "TIFF", compression="tiff_lzw", **options),
    }
    for name, encoded in files.items():
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))
        decoded = decode(encoded)
        np.testing.assert_allclose(decoded.astype(int), expected, atol=name == "CMYK", err_msg=name)
        header = read_header(encoded)
        assert header.size == read_size(encoded) == expected.shape[:2], name
        assert (header.stored, header.orientation) == ((6, 10), orientation), name
        half = decode_at_least(encoded, header.size, share=0.5)
        if encoded.startswith(b"\xff\xd8"):
            assert half.shape == tuple(side // 2 for side in header.size) + (3,)
            coarse = Image.fromarray(expected).resize(half.shape[1::-1], Image.Resampling.BOX)
            assert np.abs(half.astype(int) - np.asarray(coarse)).mean() < 12, name
        else:
            np.testing.assert_array_equal(half, decoded)


def test_damaged_or_impossible_orientations_turn_nothing():
    whole = encode(smooth(), "JPEG", exif=exif(6))
    start = whole.index(b"Exif\0\0") + 6
    damaged = [whole[:start] + bytes(8) + whole[start + 8 :], whole[:start] + b"\xff" * 8 + whole[start + 8 :]]
    others = [encode(smooth(), kind, exif=exif(value)) for kind in ("JPEG", "PNG") for value in (0, 9)]
    for encoded in damaged + others:
        assert read_header(encoded) == ((6, 10), 1) and decode(encoded).shape == (6, 10, 3)
    # Bytes of padding may come before a segment.
    assert read_header(whole[:2] + b"\xff\xff" + whole[2:]).orientation == 6


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_crops_are_those_of_the_upright_image(mode):
    config = ViewsConfig(crop_size=16, decoding=mode)
    turned = encode(smooth(40, 64), "PNG", exif=exif(8))
    upright = encode(smooth(40, 64).transpose(Image.Transpose.ROTATE_90), "PNG")
    found, expected = (random_crops(one, np.random.default_rng(3), config) for one in (turned, upright))
    for name in ("views", "boxes"):
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_their_image(orientation):
    stored, box = np.zeros((6, 10), np.uint8), np.array([[1, 2, 8, 4]])
    stored[2:4, 1:8] = 1
    rows, columns = np.nonzero(image := turn(stored, orientation))
    height, width = image.shape
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert turn_boxes(box, orientation, height=height, width=width).tolist() == [expected]


def repeated(gray):
    return np.repeat(np.asarray(gray, np.uint8)[..., None], 3, axis=-1)


KNOWN = {
    "1 bit": (png(GRAY % 2, 1), repeated(GRAY % 2 * 255)),
    "2 bits": (png(GRAY % 4, 2), repeated(GRAY % 4 * 85)),
    "gray with alpha": (png(np.stack([GRAY, ALPHA], -1), 8, color=4), repeated(GRAY)),
    "premultiplied TIFF": (tiff(np.stack([GRAY, ALPHA | 255], -1), extra=(1,)), repeated(GRAY)),
    "palette": (png(GRAY % 2, 8, color=3, chunks=png_chunk(b"PLTE", b"\0\0\0\t\t\t")), repeated(GRAY % 2) * 9),
    "16-bit gray": (png(DEEP, 16), repeated(GRAY)),
    "16-bit gray TIFF": (tiff(DEEP), repeated(GRAY)),
    "16-bit gray JPEG 2000": (encode(Image.fromarray(DEEP), "JPEG2000"), repeated(GRAY)),
    "16-bit PGM": (encode(Image.fromarray(DEEP), "PPM"), repeated(GRAY)),
    "16-bit RGB": (png(DEEP_COLOR, 16, color=2), DEEP_COLOR >> 8),
    "16-bit RGB TIFF": (tiff(DEEP_COLOR, meaning=2), DEEP_COLOR >> 8),
    "16-bit black": (png(DEEP * 0, 16), repeated(GRAY * 0)),
    "16-bit black RGB": (png(DEEP_COLOR * 0, 16, color=2), repeated(GRAY * 0)),
    "RGB and another band": (
        tiff(np.dstack([DEEP_COLOR >> 8, GRAY]).astype(np.uint8), meaning=2, extra=(0,)), DEEP_COLOR >> 8
    ),
    "white is zero": (tiff(GRAY, meaning=0), repeated(255 - GRAY)),
    "TIFF with a preview": (tiff(GRAY, previews=1), repeated(GRAY)),
    "first frame of a GIF": (
        encode(Image.fromarray(GRAY), "GIF", save_all=True, append_images=[Image.fromarray(GRAY[::-1])]), repeated(GRAY)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_pixels_of_a_known_range_become_rgb(name):
    encoded, expected = KNOWN[name]
    decoded = decode(encoded)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, expected)


REFUSED = {
    "12 bits in 16": (png(DEEP >> 4, 16), "16-bit pixels hold no value above 4056, so use 12 bits or fewer"),
    "8 bits in 16": (tiff(DEEP >> 8), "no value above 253, so use 12 bits or fewer"),
    "12 bits in 16, RGB": (png(DEEP_COLOR >> 4, 16, color=2), "no value above 4095, so use 12 bits or fewer"),
    "8 bits in 16, RGB": (png(DEEP_COLOR >> 8, 16, color=2), "values below 256, and would be black"),
    "8 bits in 16, RGB TIFF": (tiff(DEEP_COLOR >> 8, meaning=2), "values below 256, and would be black"),
    "float": (tiff(DEEP.astype(np.float32)), "pixels of mode F have no known range (floating-point"),
    "float16": (tiff(DEEP.astype(np.float16)), "TIFF, or one whose bits or bands Pillow does not read"),
    "int32": (tiff(DEEP.astype(np.int32)), "pixels of mode I have no known range"),
    "uint32": (tiff(DEEP.astype(np.uint32)), "pixels of mode I have no known range"),
    "int16": (tiff(DEEP.astype(np.int16)), "pixels of mode I have no known range"),
    "int8": (tiff(GRAY.astype(np.int8)), "signed 8-bit integers"),
    "deep white is zero": (tiff(DEEP, meaning=0), "16 bits whose white is zero"),
    "two bands": (tiff(np.stack([GRAY, GRAY], -1), extra=(0,)), "2 bands without colors"),
    "five bands": (tiff(np.stack([GRAY] * 5, -1)), "bits or bands Pillow does not read"),
    "pages": (tiff(GRAY, pages=3), "a TIFF of 3 pages"),
    "preview first": (tiff(GRAY, t254=1), "begins with a preview"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_pixels_that_would_need_a_guess_are_refused_by_name(name):
    encoded, message = REFUSED[name]
    assert message in refusal(encoded)


UNREADABLE = {
    "empty": (b"", "it is empty"),
    "page": (b"<!DOCTYPE html><html>", "it begins with b'<!DOCTYPE html><'"),
    "letter": (b"Dear\nreader", r"it begins with b'Dear\nreader'"),
    "zeros": (bytes(900), r"it begins with b'\x00\x00"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pip install pillow-heif"),
    "no TIFF": (b"II*\0\x08\0\0\0\xff\xff", "a damaged TIFF"),
    "JPEG marker": (b"\xff\xd8\xff\xe0", r"it begins with b'\xff\xd8\xff\xe0'"),
    "PNG marker": (b"\x89PNG\r\n\x1a\n" + bytes(40), r"it begins with b'\x89PNG"),
    "broken chunk": (
        png(GRAY, 8)[:33] + png_chunk(b"IDAT", png(GRAY, 8)[41:60]) + png_chunk(b"\0\xf6\xf5^", b"rest"),
        "SyntaxError: broken PNG file",
    ),
    "truncated PNG": (png(GRAY, 8)[:80], "truncated"),
    "truncated WebP": (encode(smooth(60, 80), "WEBP")[:-20], "OSError: could not create decoder object"),
    "truncated JPEG": (encode(smooth(60, 80), "JPEG")[:800], "truncated"),
    "200 megapixels": (png(GRAY, 8, size=(20_000, 10_000)), "more than 100 million pixels"),
    "absurd PNG": (png(GRAY, 8, size=(2**31 - 1, 2**31 - 1)), "more than 100 million pixels"),
    "absurd TIFF": (tiff(GRAY, t256=2**31 - 1), "more than 100 million pixels"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS holds drawings, no pixels"),
    "no such BMP": (b"BM" + bytes(60), "OSError: Unsupported BMP header"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_image_is_refused_by_what_it_is(name):
    encoded, message = UNREADABLE[name]
    assert message in refusal(encoded)
    with pytest.raises(DecodeError):
        random_crops(encoded, np.random.default_rng(0), ViewsConfig(crop_size=8))


class Source:
    """A source whose only image is bytes, or cannot be read for a reason."""

    def __init__(self, content):
        self.content = content

    def __len__(self):
        return 1

    def __getitem__(self, index):
        if isinstance(self.content, OSError):
            raise self.content
        return self.content

    def name(self, index):
        return "photos/a.jpg"


def test_an_image_of_a_source_is_named_and_a_fault_of_the_machine_is_not_its_own():
    assert decode_image(Source(png(GRAY, 8)), 0).shape == (6, 10, 3)
    for content in (b"", b"Dear reader", OSError(errno.ENOENT, "No such file"), OSError(errno.EACCES, "denied")):
        with pytest.raises(DecodeError, match=r"cannot read photos/a\.jpg \("):
            decode_image(Source(content), 0)
    for number in (errno.EMFILE, errno.EIO, errno.ESTALE):
        with pytest.raises(OSError) as caught:
            decode_image(Source(OSError(number, "machine")), 0)
        assert caught.value.errno == number
