"""A pipeline of views in Pillow and NumPy alone, as torchvision makes them: what ours is measured against."""

import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

SIZE, PATCH = 224, 16
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


class View(NamedTuple):
    """One view, normalized, channels first, and the centers of its patches in the image."""

    pixels: np.ndarray
    positions: np.ndarray


def load_views(file: str) -> list[View]:
    """Decodes an image and makes two views of it."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    return [_view(image, blur=1.0, solarize=0.0), _view(image, blur=0.1, solarize=0.2)]


def _view(image: Image.Image, *, blur: float, solarize: float) -> View:
    left, top, width, height = _box(image.width, image.height)
    crop = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    centers = (np.arange(SIZE // PATCH) + 0.5) * PATCH / SIZE
    x, y = np.meshgrid(left + width * centers, top + height * centers)
    if random.random() < 0.5:
        crop, x = ImageOps.mirror(crop), x[:, ::-1]
    if random.random() < 0.8:
        crop = _jitter(crop)
    if random.random() < 0.2:
        crop = ImageOps.grayscale(crop).convert("RGB")
    if random.random() < blur:
        crop = crop.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    if random.random() < solarize:
        crop = ImageOps.solarize(crop)
    pixels = (np.asarray(crop, np.float32) / 255 - MEAN) / STD
    return View(np.ascontiguousarray(pixels.transpose(2, 0, 1)), np.stack([x, y], -1))


def _box(width: int, height: int) -> tuple[int, int, int, int]:
    for _ in range(10):
        area = width * height * random.uniform(0.25, 1.0)
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return random.randint(0, width - w), random.randint(0, height - h), w, h
    return 0, 0, width, height


def _jitter(image: Image.Image) -> Image.Image:
    enhancers = [(ImageEnhance.Brightness, 0.4), (ImageEnhance.Contrast, 0.4), (ImageEnhance.Color, 0.2), (None, 0.1)]
    random.shuffle(enhancers)
    for enhancer, strength in enhancers:
        if enhancer is None:
            image = _shift_hue(image, random.uniform(-strength, strength))
        else:
            image = enhancer(image).enhance(random.uniform(1 - strength, 1 + strength))
    return image


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shifted = np.asarray(hue) + np.uint8(int(turns * 255) % 256)
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")
