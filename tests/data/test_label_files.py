"""Label files give their ids exactly, or one line that names the file."""

import errno

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled import label_files
from croc_jax.data.labeled.label_files import image_header, read_colors, read_ids, read_image
from tests.data.image_bytes import encode, exif, png, png_chunk, smooth, tiff

IDS = np.arange(60).reshape(6, 10)
COLORS = np.stack([IDS, IDS[::-1], IDS[:, ::-1]], axis=-1)
PALETTE = png_chunk(b"PLTE", bytes(range(255, -1, -1)) * 3)
TWO_BITS, TURNED = png(IDS % 4, 2), png_chunk(b"eXIf", exif(6).tobytes()[6:])

EXACT = {
    "1 bit": (png(IDS % 2, 1), IDS % 2),
    "2 bits": (TWO_BITS, IDS % 4),
    "2 bits, turned": (TWO_BITS[:-12] + TURNED + TWO_BITS[-12:], np.rot90(IDS % 4, -1)),
    "4 bits": (png(IDS % 16, 4), IDS % 16),
    "8 bits": (png(IDS, 8), IDS),
    "palette": (png(IDS, 8, color=3, chunks=PALETTE), IDS),
    "palette of 4 bits": (png(IDS % 16, 4, color=3, chunks=png_chunk(b"PLTE", bytes(48))), IDS % 16),
    "16 bits": (png(IDS + 196, 16), IDS + 196),
    "BMP": (encode(Image.fromarray(IDS.astype(np.uint8)), "BMP"), IDS),
    "TIFF": (tiff(IDS.astype(np.uint8)), IDS),
    "16-bit TIFF": (tiff(IDS.astype(np.uint16)), IDS),
    "32-bit TIFF": (tiff(IDS.astype(np.int32)), IDS),
    "turned": (encode(Image.fromarray(IDS.astype(np.uint8)), "PNG", exif=exif(6)), np.rot90(IDS, -1)),
}


@pytest.mark.parametrize("name", EXACT)
def test_ids_are_read_as_they_are_stored(name, tmp_path):
    encoded, expected = EXACT[name]
    (file := tmp_path / "label.png").write_bytes(encoded)
    found = read_ids(file)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


REFUSED = {
    "RGB": (png(COLORS, 8, color=2), "has pixels of mode RGB: save 8-bit class ids"),
    "gray with alpha": (png(COLORS[..., :2], 8, color=4), "has pixels of mode LA: save 8-bit class ids"),
    "float": (tiff(IDS.astype(np.float32)), "has pixels of mode F: save 8-bit class ids"),
    "instances": (png(IDS * 1000, 16), "holds 59000, and class ids are 0 to 255"),
    "negative": (tiff(IDS.astype(np.int32) - 1), "holds -1, and class ids are 0 to 255"),
    "JPEG": (encode(smooth().convert("L"), "JPEG"), "is a JPEG file, which may change ids: save labels as PNG"),
    "WebP": (encode(smooth(), "WEBP"), "is a WEBP file, which may change ids"),
    "white is zero": (tiff(IDS.astype(np.uint8), meaning=0), "whose white is zero, which inverts ids"),
    "huge": (png(IDS, 8, size=(20_000, 10_000)), "more than 100 million pixels"),
    "broken chunk": (
        png(IDS, 8)[:33] + png_chunk(b"IDAT", png(IDS, 8)[41:60]) + png_chunk(b"\0\xf6\xf5^", b""), "broken PNG file"
    ),
    "truncated": (png(IDS, 8)[:70], "truncated"),
    "empty": (b"", "it is empty"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "it begins with b'version https://'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_are_no_exact_ids_are_refused_by_name(name, tmp_path):
    encoded, message = REFUSED[name]
    (file := tmp_path / "label.png").write_bytes(encoded)
    with pytest.raises(ValueError) as caught:
        read_ids(file)
    text = str(caught.value)
    assert str(file) in text and message in text and "\n" not in text and "object at 0x" not in text


def test_colors_are_exact_or_refused(tmp_path):
    file = tmp_path / "panoptic.png"
    file.write_bytes(png(COLORS, 8, color=2))
    np.testing.assert_array_equal(read_colors(file), COLORS)
    file.write_bytes(png(IDS % 2, 8, color=3, chunks=png_chunk(b"PLTE", b"\0\0\0\1\2\3")))
    np.testing.assert_array_equal(read_colors(file), (IDS % 2)[..., None] * [1, 2, 3])
    refused = {
        "mode RGB of 16 bits": png(COLORS, 16, color=2),
        "mode I;16": png(IDS, 16),
        "is a JPEG file": encode(smooth(), "JPEG"),
        "cannot read": b"",
    }
    for message, encoded in refused.items():
        file.write_bytes(encoded)
        with pytest.raises(ValueError, match=rf"panoptic\.png.*{message}|{message}.*panoptic\.png"):
            read_colors(file)


@pytest.mark.parametrize("read", [read_image, image_header, read_ids])
def test_a_missing_file_is_named_and_a_fault_of_the_machine_is_no_fault_of_the_file(read, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"cannot read \S+gone\.png"):
        read(tmp_path / "gone.png")
    for number in (errno.EMFILE, errno.EIO, errno.ENOMEM):

        def fail(file, number=number):
            raise OSError(number, "machine", str(file))

        monkeypatch.setattr(label_files, "read_regular", fail)
        with pytest.raises(OSError) as caught:
            read(tmp_path / "a.png")
        assert caught.value.errno == number
