"""Small images, labels and lists of all data sets, and the function that reads each; for tests/mutations.py."""

import contextlib
import dataclasses
import functools
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from croc_jax.data.channels import decode_pixels
from croc_jax.data.config import ViewsConfig
from croc_jax.data.crops import random_crops
from croc_jax.data.decoding import DecodeError, decode, naming
from croc_jax.data.labeled import open_labeled
from croc_jax.data.labeled.boxes import open_voc_boxes
from croc_jax.data.labeled.classes import open_classes
from croc_jax.data.labeled.davis import open_videos
from croc_jax.data.labeled.label_files import read_ids, read_image
from croc_jax.data.labeled.segmentation import open_segmentation
from tests.data import tiny_sets
from tests.data.test_channels import STORED, pixels_of

VIEWS = {name: ViewsConfig(crop_size=16, decoding=name) for name in ("exact", "fast")}


@dataclasses.dataclass(frozen=True)
class Subject:
    """Files that can be damaged, and what reads them.

    Attributes:
        write: writes files to a folder, and returns those to damage.
        read: reads them, given the folder and the damaged file; checks what it can of the value.
        repair: makes checksums fit damaged contents, so that readers see the damage behind these.
        opened: functions that return the part of a file that describes it, and that put a damaged one in its place.
        suffixes: others that a file may have.
        weight: how often it is drawn, compared with others.
    """

    write: Callable
    read: Callable
    repair: Callable = staticmethod(lambda data: data)
    opened: tuple[Callable, Callable] | None = None
    suffixes: tuple[str, ...] = ()
    weight: float = 1.0


def check(holds, text):
    if not holds:
        raise AssertionError(text)


# Images.


def write_images(root, kind):
    pixels = np.kron(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), np.ones((6, 6, 1), np.uint8))
    color = Image.fromarray(pixels)
    gray, palette, wide = (
        color.convert("L"),
        color.quantize(16),
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 250),
    )
    clear, turned = color.convert("RGBA"), Image.Exif()
    turned[0x0112] = 6
    saved = {
        "jpeg": [
            (color, {}), (gray, {}), (color.convert("CMYK"), {}), (color, {"progressive": True}),
            (color, {"exif": turned}),
        ],
        "png": [(image, {}) for image in (color, gray, palette, wide, clear, gray.convert("1"), gray.convert("LA"))],
        "gif": [(palette, {}), (palette, {"save_all": True, "append_images": [gray.quantize(4)]})],
        "bmp": [(color, {}), (palette, {})],
        "tiff": [
            (color, {}), (wide, {}), (color, {"compression": "tiff_lzw"}), (color, {"compression": "jpeg"}),
            (clear, {}), (gray, {"exif": turned}), (Image.fromarray(pixels[..., 0] / np.float32(255)), {}),
        ],
        "webp": [(color, {}), (clear, {"lossless": True}), (color, {"exif": turned.tobytes()})],
        "avif": [(color, {})],
        "jp2": [(color, {}), (gray, {})],
    }[kind]  # fmt: skip
    if kind == "png":
        saved.append((color, {"exif": turned.tobytes()}))
        saved.append((palette, {"transparency": 3}))
    for number, (image, options) in enumerate(saved):
        image.save(root / f"{number}.{kind}", {"jp2": "JPEG2000"}.get(kind, kind.upper()), **options)
    return sorted(root.iterdir())


def read_any_image(root, file):
    """Decodes an image in every way; all ways agree on whether it can be read."""
    encoded = file.read_bytes()
    crops = {}
    for name, views in VIEWS.items():
        with contextlib.suppress(DecodeError):
            crops[name] = random_crops(encoded, np.random.default_rng(0), views)["views"]
    try:
        pixels = decode(encoded)
    except DecodeError as error:
        check("\n" not in str(error) and " at 0x" not in str(error), f"the reason {error!r}")
        check("exact" not in crops, "crops of what cannot be decoded")
        with contextlib.suppress(ValueError):
            read_image(file)
            raise AssertionError("read_image reads what cannot be decoded") from None
        return read_image(file)
    check(pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[-1] == 3, f"pixels {pixels.shape}")
    check(np.array_equal(pixels, read_image(file)), "two decoders")
    return pixels


def repair_png(data):
    """Makes the checksum of each chunk fit."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        length = min(int.from_bytes(data[at : at + 4], "big"), len(data) - at - 12)
        content = data[at + 4 : at + 8 + length]
        out += length.to_bytes(4, "big") + content + zlib.crc32(content).to_bytes(4, "big")
        at += 12 + length
    return out


def write_bands(root):
    for number, (encoded, _) in enumerate(STORED.values()):
        (root / f"{number}.tif").write_bytes(encoded)
    return paths_below(root)


def read_bands(root, file):
    pixels = pixels_of([*STORED.values()][int(file.stem)][1])
    with naming(file):
        image = decode_pixels(file.read_bytes(), pixels)
    check(image.shape[2:] == (pixels.channels,) and image.dtype == pixels.dtype, f"{image.shape} {image.dtype}")


# Labels and lists of data sets.


def paths_below(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def write_folder(root):
    for split in ("train", "val"):
        for number in range(2):
            tiny_sets.save(root / "images" / split / f"{number}.jpg", tiny_sets.image(number))
            tiny_sets.save(
                root / "labels" / split / f"{number}.png", tiny_sets.fill([0, 1, 2, 255]), palette=bool(number)
            )
    (root / "classes.txt").write_text("sky\nsea\nland\n")
    return [root / "classes.txt", *paths_below(root / "labels")]


def read_folder(root, file):
    named, unnamed = (open_segmentation(root, split, num_classes=k) for split, k in (("train", None), ("val", 3)))
    for split in (named, unnamed):
        for index in range(len(split)):
            pixels, ids = split.load(index)
            check(pixels.shape[:2] == ids.shape and ids.dtype == np.uint8, f"ids {ids.shape} {ids.dtype}")
            check(set(np.unique(ids)) <= {*range(split.num_classes), 255}, "ids outside the classes")
    check(len({*named.class_names}) == named.num_classes, f"classes {named.class_names}")


def write_owned(root, kind):
    if kind == "voc":
        tiny_sets.write_voc(root)
    elif kind == "coco-things":
        tiny_sets.write_panoptic(root)
    elif kind == "coco-stuff":
        tiny_sets.write_pixelmaps(root, [0, 95, 183, 181])
    elif kind == "ade20k":
        tiny_sets.write_ade20k(root, [0, 1, 150])
    else:
        tiny_sets.write_cityscapes(root, [0, 7, 8])
    return paths_below(root)


def read_owned(root, file, kind):
    splits = ("trainaug", "val") if kind == "voc" else ("validation" if kind == "ade20k" else "val",)
    for name in splits:
        split = open_labeled(f"{kind}:{root}", name)
        for index in range(len(split)):
            _, ids = split.load(index)
            check(set(np.unique(ids)) <= {*range(split.num_classes), 255}, "ids outside the classes")


def write_boxes(root):
    tiny_sets.write_voc_boxes(root, [tiny_sets.image(1), tiny_sets.image(2)], [[(1, 1, 3, 4, 0)], [(2, 1, 6, 4, 1)]])
    return [path for path in paths_below(root) if path.suffix in (".xml", ".txt")] * 2 + paths_below(root)


def read_boxes(root, file):
    split = open_voc_boxes(root, "trainval")
    for index in range(len(split)):
        _, boxes = split.load(index)
        check(np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all(), f"boxes {boxes}")


def write_video(root):
    for number in range(3):
        tiny_sets.save(root / "images" / "cat" / f"{number}.jpg", tiny_sets.image(number))
        tiny_sets.save(root / "masks" / "cat" / f"{number}.png", tiny_sets.fill([0, 1, 2]), palette=True)
    return paths_below(root)


def read_video(root, file):
    for video in open_videos(root):
        for frame in video.frames:
            read_image(frame)
        for mask in video.masks.values():
            check(read_ids(mask).ndim == 2, "a mask in color")


def write_classes(root):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            tiny_sets.save(root / split / name / "0.png", tiny_sets.image(1))
    return paths_below(root)


def read_classes(root, file):
    for name in ("train", "val"):
        split = open_classes(root, name)
        for index in range(len(split)):
            check(split.load(index, resize=8, image_size=8).shape == (8, 8, 3), "a crop of another size")


IMAGES = {
    kind: Subject(
        functools.partial(write_images, kind=kind),
        read_any_image,
        repair_png if kind == "png" else Subject.repair,
        suffixes=(".jpg", ".png", ".tif", ".gif", ""),
    )
    for kind in ("jpeg", "png", "gif", "bmp", "tiff", "webp", "avif", "jp2")
}
OWNED = {
    kind: Subject(functools.partial(write_owned, kind=kind), functools.partial(read_owned, kind=kind), repair_png)
    for kind in ("voc", "coco-things", "coco-stuff", "ade20k", "cityscapes")
}
PIXELS = {
    **IMAGES,
    **OWNED,
    "bands": Subject(write_bands, read_bands, weight=3),
    "folder": Subject(write_folder, read_folder, repair_png, weight=2),
    "boxes": Subject(write_boxes, read_boxes),
    "video": Subject(write_video, read_video, repair_png),
    "classes": Subject(write_classes, read_classes, repair_png),
}
