"""Pictures of evaluations: images beside labels and predictions, images with boxes, videos with objects."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from croc_jax.data.channels import show_pixels
from croc_jax.data.labeled.boxes import BoxSplit
from croc_jax.data.labeled.label_files import IGNORED
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.pixel_format import RGB8, PixelFormat

Ids = UInt8[np.ndarray, "H W"]

CELL_WIDTH, MARGIN, LINE = 260, 12, 26
WHITE, INK = (255, 255, 255), (30, 30, 35)
OPACITY = 0.7
HEADINGS = ("image", "labels", "prediction", "errors")
WRONG, RIGHT = (220, 50, 47), (30, 160, 80)
_VIDEO_OPACITY = 0.6
_STRIP_WIDTH, _STRIP_FRAMES = 280, 6
_GIF_WIDTH, _GIF_MILLISECONDS = 427, 80


class Example(NamedTuple):
    """One image of the validation split; labels and prediction have one size."""

    image: UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "h w"]
    prediction: UInt8[np.ndarray, "h w"]


class Examples(NamedTuple):
    """Images spread evenly over a split, and those with the largest and the smallest shares of right pixels."""

    typical: list[Example]
    best: list[Example]
    worst: list[Example]


class ExampleSelector:
    """Sees the predictions of all images of a split once, in order, and keeps a few."""

    def __init__(
        self, split: SegmentationSplit, image_size: tuple[int, int], pixels: PixelFormat = RGB8, *, count: int = 6
    ) -> None:
        """Keeps nothing yet; in the end, `count` images of each kind, loaded from the split at `image_size`.

        Args:
            split: labeled images.
            image_size: height and width that the examples are resized to.
            pixels: format of the images.
            count: images of each kind.
        """
        self._pixels, self._split, self._image_size, self._count, self._seen = pixels, split, image_size, count, 0
        self._places = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)
        # Of each: share of right pixels, index in the split, labels, prediction.
        self._typical: list[tuple[float, int, Ids, Ids]] = []
        self._best: list[tuple[float, int, Ids, Ids]] = []
        self._worst: list[tuple[float, int, Ids, Ids]] = []

    def add(self, labels: Ids, prediction: Ids) -> None:
        """Considers the next image; one without a pixel that counts is neither best nor worst."""
        counted = labels != IGNORED
        accuracy = float(np.mean((labels == prediction)[counted])) if counted.any() else float("nan")
        one = accuracy, self._seen, labels, prediction
        if self._seen in self._places:
            self._typical.append(one)
        if counted.any():
            self._best = sorted([*self._best, one], key=lambda other: -other[0])[: self._count]
            self._worst = sorted([*self._worst, one], key=lambda other: other[0])[: self._count]
        self._seen += 1

    def examples(self) -> Examples:
        """Returns the images that were kept; ValueError for one that cannot be read."""
        parts = self._typical, self._best, self._worst
        return Examples(*([Example(self._show(i), ids, found) for _, i, ids, found in part] for part in parts))

    def _show(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        image, _ = self._split.load(index, image_size=self._image_size, pixels=self._pixels)
        return show_pixels(image, self._pixels)


def save_examples(examples: Examples, class_names: Sequence[str], output: Path | None) -> None:
    """Writes typical.png, best.png and worst.png in a folder, if there is one."""
    for name, chosen in examples._asdict().items():
        if output and chosen:
            draw_examples(chosen, class_names).save(output / f"{name}.png")


def class_palette(num_classes: int) -> UInt8[np.ndarray, "256 3"]:
    """Returns a color for each class, far from those of its neighbors; black for other ids."""
    palette = np.zeros((256, 3), np.uint8)
    for index in range(num_classes):
        # Steps of the golden ratio never come close to an earlier hue.
        hue, ring = (0.58 + 0.618034 * index) % 1, index % 3
        rgb = colorsys.hsv_to_rgb(hue, (0.75, 0.55, 0.85)[ring], (0.9, 0.75, 0.6)[ring])
        palette[index] = np.round(255 * np.array(rgb))
    return palette


def draw_examples(examples: Sequence[Example], class_names: Sequence[str]) -> Image.Image:
    """Returns a sheet with a row for each example (image, labels, prediction, errors) and a legend below.

    Pixels that do not count are shown as in the image under labels, and darkened elsewhere. Errors are red.
    """
    palette = class_palette(len(class_names))
    rows = [_draw_row(example, palette) for example in examples]
    cell, width = CELL_WIDTH + MARGIN, len(HEADINGS) * (CELL_WIDTH + MARGIN) + MARGIN
    per_line = max(1, (width - MARGIN) // (12 * max(map(len, class_names)) + 3 * LINE // 2))
    legend = -(-len(class_names) // per_line) * LINE
    sheet = Image.new("RGB", (width, LINE + 2 * MARGIN + sum(row[0].height + MARGIN for row in rows) + legend), WHITE)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=17)
    for column, heading in enumerate(HEADINGS):
        draw.text((MARGIN + column * cell, MARGIN // 2), heading, INK, font)
    top = LINE + MARGIN
    for row in rows:
        for column, picture in enumerate(row):
            sheet.paste(picture, (MARGIN + column * cell, top))
        top += row[0].height + MARGIN
    for index, name in enumerate(class_names):
        x = MARGIN + index % per_line * ((width - MARGIN) // per_line)
        y = top + index // per_line * LINE
        draw.rounded_rectangle((x, y + 3, x + 17, y + 20), 4, tuple(palette[index].tolist()))
        draw.text((x + LINE, y), name, INK, font)
    return sheet


def _draw_row(example: Example, palette: np.ndarray) -> list[Image.Image]:
    height, width = example.image.shape[:2]
    size = (CELL_WIDTH, round(CELL_WIDTH * height / width))
    image = Image.fromarray(example.image).resize(size, Image.Resampling.BICUBIC)
    labels, prediction = (
        np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))
        for ids in (example.labels, example.prediction)
    )
    pixels, counted = np.asarray(image, np.float32), (labels != IGNORED)[..., None]
    wrong = (labels != prediction)[..., None]
    tinted = [(1 - OPACITY) * pixels + OPACITY * palette[ids] for ids in (labels, prediction)]
    tinted.append(np.where(wrong, (1 - OPACITY) * pixels + OPACITY * np.array(WRONG), pixels))
    cells = [np.where(counted, cell, share * pixels) for cell, share in zip(tinted, (1.0, 0.5, 0.5), strict=True)]
    return [image, *(Image.fromarray(cell.astype(np.uint8)) for cell in cells)]


def draw_boxes(
    split: BoxSplit,
    boxes: Float[np.ndarray, "n 4"],
    ious: Float[np.ndarray, " n"],
    pixels: PixelFormat = RGB8,
    *,
    count: int = 12,
) -> Image.Image:
    """Returns a sheet of `count` images, evenly spread over the split: the predicted box in red, true ones in green.

    Each has its IoU with the best true box above it; NaN for images without boxes.
    """
    columns, font, cell = len(HEADINGS), ImageFont.load_default(size=17), CELL_WIDTH + MARGIN
    places = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)
    sheet = Image.new("RGB", (columns * cell + MARGIN, -(-len(places) // columns) * (cell + LINE) + MARGIN), WHITE)
    for number, index in enumerate(places):
        values, truth = split.load(index, pixels)
        image = Image.fromarray(show_pixels(values, pixels))
        scale = CELL_WIDTH / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        for box, color in (*((box, RIGHT) for box in truth), (boxes[index], WRONG)):
            ImageDraw.Draw(image).rectangle([round(edge * scale) for edge in box], outline=color, width=3)
        left, top = MARGIN + number % columns * cell, MARGIN + number // columns * (cell + LINE)
        sheet.paste(image, (left, top + LINE))
        note = "no box" if np.isnan(ious[index]) else f"IoU {ious[index]:.2f}"
        ImageDraw.Draw(sheet).text((left, top), note, INK, font)
    return sheet


def davis_palette() -> UInt8[np.ndarray, "256 3"]:
    """Returns DAVIS's (and PASCAL VOC's) color of each id: its bits, distributed over the three channels in turn."""
    ids, palette = np.arange(256), np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> channel) & 1) << (7 - bit)).astype(np.uint8)
        ids >>= 3
    return palette


def save_indexed(ids: Ids, file: Path) -> None:
    """Writes ids as a PNG with DAVIS's palette, as the DAVIS benchmark reads it."""
    image = Image.fromarray(ids)
    image.putpalette(davis_palette().tobytes())
    image.save(file)


def tint_objects(frame: UInt8[np.ndarray, "H W 3"], ids: Ids) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a frame whose objects are tinted with DAVIS's palette and have a white outline."""
    gray = frame @ np.array((0.299, 0.587, 0.114))
    tinted = (1 - _VIDEO_OPACITY) * gray[..., None] + _VIDEO_OPACITY * davis_palette()[ids]
    result = np.where(ids[..., None] > 0, tinted, frame)
    across, down = ids[:, 1:] != ids[:, :-1], ids[1:] != ids[:-1]
    result[:, 1:][across] = result[:, :-1][across] = result[1:][down] = result[:-1][down] = 255
    return np.round(result).astype(np.uint8)


def _tint_small(frame: Image.Image, ids: Ids, width: int) -> Image.Image:
    size = (width, round(width * frame.height / frame.width))
    pixels = np.asarray(frame.resize(size, Image.Resampling.BICUBIC))
    small = np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))
    return Image.fromarray(tint_objects(pixels, small))


def draw_strip(frames: Sequence[Image.Image], ids: Sequence[Ids]) -> Image.Image:
    """Returns a few frames in a row, evenly spread over the video, with their objects."""
    places = np.unique(np.linspace(0, len(frames) - 1, _STRIP_FRAMES).round().astype(int))
    cells = [_tint_small(frames[place], ids[place], _STRIP_WIDTH) for place in places]
    strip = Image.new("RGB", (sum(cell.width for cell in cells), cells[0].height))
    for index, cell in enumerate(cells):
        strip.paste(cell, (index * _STRIP_WIDTH, 0))
    return strip


def save_gif(frames: Sequence[Image.Image], ids: Sequence[Ids], file: Path) -> None:
    """Writes all frames with their objects as an endless animation."""
    first, *others = [_tint_small(frame, labels, _GIF_WIDTH) for frame, labels in zip(frames, ids, strict=True)]
    first.save(file, save_all=True, append_images=others, duration=_GIF_MILLISECONDS, loop=0)
