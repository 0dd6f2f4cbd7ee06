"""Draws images beside their labels and predictions, or with boxes."""

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from croc_jax.data.labeled.boxes import BoxSplit
from croc_jax.data.labeled.segmentation import IGNORED
from croc_jax.evaluation.examples import Example

CELL_WIDTH = 260
MARGIN = 12
LINE = 26
PAPER, INK = (255, 255, 255), (30, 30, 35)
OPACITY = 0.7
HEADINGS = ("image", "labels", "prediction", "errors")
WRONG, RIGHT = (220, 50, 47), (30, 160, 80)


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
    """Returns a sheet with one row an example: image, labels, prediction, errors; and a legend below.

    Pixels that do not count are shown as in the image under labels, and darkened elsewhere. Errors
    are red.

    Args:
        examples: one or more.
        class_names: one a class.
    """
    palette = class_palette(len(class_names))
    rows = [_draw_row(example, palette) for example in examples]
    width = len(HEADINGS) * (CELL_WIDTH + MARGIN) + MARGIN
    per_line = max(1, (width - MARGIN) // (12 * max(map(len, class_names)) + 3 * LINE // 2))
    legend_lines = -(-len(class_names) // per_line)
    height = LINE + MARGIN + sum(row[0].height + MARGIN for row in rows) + legend_lines * LINE + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=17)
    for column, heading in enumerate(HEADINGS):
        draw.text((MARGIN + column * (CELL_WIDTH + MARGIN), MARGIN // 2), heading, INK, font)
    top = LINE + MARGIN
    for row in rows:
        for column, cell in enumerate(row):
            sheet.paste(cell, (MARGIN + column * (CELL_WIDTH + MARGIN), top))
        top += row[0].height + MARGIN
    for index, name in enumerate(class_names):
        x = MARGIN + index % per_line * ((width - MARGIN) // per_line)
        y = top + index // per_line * LINE
        draw.rounded_rectangle((x, y + 3, x + 17, y + 20), 4, tuple(palette[index].tolist()))
        draw.text((x + LINE, y), name, INK, font)
    return sheet


def draw_boxes(
    split: BoxSplit, boxes: Float[np.ndarray, "n 4"], ious: Float[np.ndarray, " n"], *, count: int = 12
) -> Image.Image:
    """Returns a sheet of images, evenly spread over the split: the box that was found in red, true ones in green.

    Args:
        split: images with boxes.
        boxes: that were found.
        ious: of these with the best true box; NaN for images without.
        count: of images.

    Raises:
        LabeledDataError: see `BoxSplit.load`.
    """
    columns, font = len(HEADINGS), ImageFont.load_default(size=17)
    places = np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(int)
    cell = CELL_WIDTH + MARGIN
    sheet = Image.new("RGB", (columns * cell + MARGIN, -(-len(places) // columns) * (cell + LINE) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, index in enumerate(places):
        pixels, truth = split.load(index)
        image = Image.fromarray(pixels)
        scale = CELL_WIDTH / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        for box, color in (*((box, RIGHT) for box in truth), (boxes[index], WRONG)):
            ImageDraw.Draw(image).rectangle([round(edge * scale) for edge in box], outline=color, width=3)
        left, top = MARGIN + number % columns * cell, MARGIN + number // columns * (cell + LINE)
        sheet.paste(image, (left, top + LINE))
        draw.text((left, top), "no box" if np.isnan(ious[index]) else f"IoU {ious[index]:.2f}", INK, font)
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
    cells = []
    for ids, elsewhere in ((labels, 1.0), (prediction, 0.5)):
        blended = (1 - OPACITY) * pixels + OPACITY * palette[ids]
        cells.append(Image.fromarray(np.where(counted, blended, elsewhere * pixels).astype(np.uint8)))
    wrong = (labels != prediction)[..., None]
    errors = np.where(wrong, (1 - OPACITY) * pixels + OPACITY * np.array(WRONG), pixels)
    cells.append(Image.fromarray(np.where(counted, errors, 0.5 * pixels).astype(np.uint8)))
    return [image, *cells]
