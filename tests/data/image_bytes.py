"""Image files byte by byte: PNG and TIFF of any depth and number of bands, and a photograph turned by EXIF."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def encode(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def smooth(height=6, width=10):
    """An RGB image of few frequencies, which lossy formats keep, and no symmetry."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def exif(orientation):
    found = Image.Exif()
    found[0x010F], found[ORIENTATION] = "Maker", orientation
    return found


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(values, bits, *, color=0, size=None, chunks=b""):
    """A PNG of values `[H W]` or `[H W bands]`; color 0 is gray, 2 RGB, 3 a palette, 4 gray with alpha, 6 RGBA."""
    values = np.asarray(values)
    height, width = size or values.shape[:2]
    rows = values.reshape(len(values), -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        places = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        lines = [np.packbits(place.ravel()).tobytes() for place in places]
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + line for line in lines))
    parts = png_chunk(b"IHDR", header) + chunks + png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(values, *, meaning=1, extra=None, pages=1, previews=0, **tags):
    """A TIFF of values `[H W]` or `[H W bands]`, little-endian.

    Args:
        values: the pixels; their type gives bits and format of the samples.
        meaning: 0 white is zero, 1 black is zero, 2 RGB.
        extra: meanings of the bands beyond the colors.
        pages: how often the image is repeated.
        previews: how often it is repeated as a preview.
        tags: other values of tags, such as t254=1.
    """
    values = np.asarray(values)
    (height, width), bands = values.shape[:2], values.shape[2] if values.ndim == 3 else 1
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    file, link = bytearray(b"II*\0\0\0\0\0"), 4
    for page in range(pages + previews):
        start = len(file)
        file += data + b"\0" * (len(data) % 2)
        entries = {256: width, 257: height, 258: (8 * values.itemsize,) * bands, 259: 1, 262: meaning, 273: start}
        entries |= {277: bands, 278: height, 279: len(data), 339: (kind,) * bands}
        entries |= ({338: extra} if extra else {}) | ({254: 1} if page >= pages else {})
        entries |= {int(name[1:]): value for name, value in tags.items()}
        struct.pack_into("<I", file, link, len(file))
        beyond, content = len(file) + 2 + 12 * len(entries) + 4, b""
        file += struct.pack("<H", len(entries))
        for tag, value in sorted(entries.items()):
            several = isinstance(value, tuple)
            packed = struct.pack(f"<{len(value)}H", *value) if several else struct.pack("<I", value)
            if len(packed) > 4:
                packed, content = struct.pack("<I", beyond + len(content)), content + packed
            file += struct.pack("<HHI", tag, 3 if several else 4, len(value) if several else 1) + packed.ljust(4, b"\0")
        link = len(file)
        file += b"\0\0\0\0" + content
    return bytes(file)
