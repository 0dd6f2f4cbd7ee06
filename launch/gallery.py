r"""Draws pictures of a checkpoint: merging, clusters of two crops, components of features, and a video.

    python launch/gallery.py --checkpoint=runs/demo
    python launch/gallery.py --checkpoint=WORKDIR --images=path/to/photos --video=path/to/DAVIS --output=gallery

A checkpoint is all that evaluate.py takes. Without --images, the pictures show two photographs that come with
scikit-learn. A video is DAVIS-2017, or a folder of images/SEQUENCE/ and masks/SEQUENCE/; the first sequence is taken.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging
from cli import UserError, define_colors, define_path, run, writable
from jaxtyping import Real
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from rich.console import Console
from sklearn.datasets import load_sample_images

from croc_jax.data.channels import load_pixels, show_pixels
from croc_jax.data.decoding import DecodeError
from croc_jax.data.labeled.davis import load_frames, open_videos, turn_with_frame
from croc_jax.data.labeled.object_masks import read_mask
from croc_jax.data.resizing import resize_image
from croc_jax.data.sources import FolderSource
from croc_jax.evaluation.backbones import FrozenBackbone, load_backbone
from croc_jax.evaluation.davis import DavisConfig, label_video, score_video
from croc_jax.report.figures import plot_clusters, plot_merging
from croc_jax.report.gallery import plot_components, plot_video
from croc_jax.report.inspect import Exploration, explore, overlap

CHECKPOINT = define_path("checkpoint", "runs/demo", "A workdir, a checkpoint, a file or a folder.", must_exist=True)
IMAGES = define_path("images", "", "A folder of images.", must_exist=True)
VIDEO = define_path("video", "", "A folder of videos with masks.", must_exist=True)
OUTPUT = define_path("output", "gallery", "Folder for the pictures.")
MERGING_OF = flags.DEFINE_string("merging_of", "", "Name of the image whose merging is drawn; the first by default.")
CLUSTERS_OF = flags.DEFINE_string("clusters_of", "", "Name of the image whose crops are drawn; the second by default.")
GRID = flags.DEFINE_integer("grid", 20, "Rows and columns of patches of a crop.", lower_bound=2)
VIDEO_ROWS = flags.DEFINE_integer(
    "video_rows", 45, "Rows of patches of a frame; DAVIS has 30 of 16 pixels.", lower_bound=2
)
read_colors = define_colors()

# Size of the images above their components, in pixels; patches tile them at any size from 1 to 16 and 20.
SIZE = (240, 320)
NUM_COMPONENT_IMAGES = 6
# Of several pairs of crops, the one whose overlap is nearest to this is drawn.
NUM_PAIRS, BEST_OVERLAP = 12, 0.65
CROP_SCALE = (0.3, 0.7)


@dataclasses.dataclass(frozen=True)
class Repeated:
    """One image of a source, repeated for each pair of crops."""

    source: FolderSource
    index: int

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return NUM_PAIRS

    def __getitem__(self, index: int) -> bytes:
        """Returns the encoded image."""
        return self.source[self.index]

    def name(self, index: int) -> str:
        """Returns the path of the image."""
        return self.source.name(self.index)

    def entries(self) -> Iterator[tuple[str, int]]:
        """Yields what identifies all images of the source."""
        return self.source.entries()


def main() -> None:
    """Draws the pictures of a checkpoint."""
    colors: Any = read_colors()
    backbone = load_backbone(CHECKPOINT.value, **colors)
    if not (backbone.module.pixels.is_rgb8 or IMAGES.value):
        raise UserError(
            f"--images: name a folder; the weights take {backbone.module.pixels.describe()}, not photographs"
        )
    with writable(OUTPUT.value, name="--output") as output:
        source = FolderSource(IMAGES.value or write_photographs(output / "images"))
        draw_all(backbone, source, output)


def draw_all(backbone: FrozenBackbone, source: FolderSource, output: Path) -> None:
    """Draws and writes the pictures."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if backbone.note:
        console.print(f"{CHECKPOINT.value}: {backbone.note}")
    merging, clusters = find(source, MERGING_OF.value, default=0), find(source, CLUSTERS_OF.value, default=1)
    pairs, best = find_pair(backbone, source, merging)
    heads = pairs.merging[:, :, best, :1], pairs.costs[best, :1], pairs.num_clusters[best, :1]
    figures = {"merging": plot_merging(pairs.views[best], *heads, pairs.grid)}
    pairs, best = find_pair(backbone, source, clusters)
    pixels = backbone.module.pixels
    labels, valid, scene = pairs.labels[:, best, :4], pairs.valid[best, :4], load_pixels(source, clusters, pixels)
    scene = show_pixels(scene, pixels)
    figures["clusters"] = plot_clusters(pairs.views[best], labels, valid, pairs.grid, scene=(scene, pairs.boxes[best]))
    figures["components"] = draw_components(backbone, source)
    if VIDEO.value:
        figures["video"], note = draw_video(backbone, VIDEO.value)
        console.print(note)
    for name, figure in figures.items():
        figure.savefig(output / f"{name}.png", dpi=110, transparent=True)
        console.print(f"{output / name}.png")


def write_photographs(folder: Path) -> Path:
    """Writes the photographs of scikit-learn, and returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = load_sample_images()
    for file, image in zip(found.filenames, found.images, strict=True):
        Image.fromarray(cover(image, SIZE)).save(folder / f"{Path(file).stem}.png")
    return folder


def find(source: FolderSource, name: str, *, default: int) -> int:
    """Returns the index of an image by its name, with or without suffix."""
    names = [Path(source.name(index)) for index in range(len(source))]
    for index, file in enumerate(names):
        if name in (file.name, file.stem):
            return index
    if name:
        raise UserError(f"no image {name!r} among {', '.join(file.name for file in names[:12])}")
    return default % len(source)


def find_pair(backbone: FrozenBackbone, source: FolderSource, index: int) -> tuple[Exploration, int]:
    """Returns the clusters of pairs of crops of one image, and the index of the pair that shares much, but not all."""
    data = backbone.recipe.data
    views = dataclasses.replace(data.views, scale=CROP_SCALE)
    recipe = dataclasses.replace(backbone.recipe, data=dataclasses.replace(data, views=views))
    crop_size = GRID.value * backbone.module.patch_size
    pairs = explore(
        backbone._replace(recipe=recipe), Repeated(source, index), num_images=NUM_PAIRS, crop_size=crop_size
    )
    return pairs, int(np.abs(overlap(pairs.boxes) - BEST_OVERLAP).argmin())


def draw_components(backbone: FrozenBackbone, source: FolderSource) -> Figure:
    """Returns images spread over the folder, above the components of their features."""
    patch, pixels = backbone.module.patch_size, backbone.module.pixels
    size, images = (SIZE[0] // patch * patch, SIZE[1] // patch * patch), []
    for index in np.linspace(0, len(source) - 1, min(NUM_COMPONENT_IMAGES, len(source))).astype(int).tolist():
        try:
            images.append(cover(load_pixels(source, index, pixels), size))
        except DecodeError as error:
            logging.warning("left out: %s", error)
    if not images:
        raise UserError("none of the images above the components can be read")
    features = backbone.encode(np.stack(images))
    shown = show_pixels(np.stack(images), pixels)
    return plot_components(shown, np.asarray(features.patches), (size[0] // patch, size[1] // patch))


def draw_video(backbone: FrozenBackbone, folder: Path) -> tuple[Figure, str]:
    """Returns a strip of a video with its propagated objects, and their mean overlap with the true masks."""
    video, patch = open_videos(folder)[0], backbone.module.patch_size
    config = DavisConfig(short_side=VIDEO_ROWS.value * patch, multiple=patch)
    frames, first = (
        load_frames(video, backbone.module.pixels),
        turn_with_frame(read_mask(video.masks[0]), video.frames[0], backbone.module.pixels),
    )
    ids = list(label_video(backbone.module, backbone.params, first, frames, config))
    score = score_video(video, ids, score_ends=True, pixels=backbone.module.pixels)
    note = f"{video.name} has no other masks with objects of the first one: no score"
    if score.objects:
        mean = np.mean([of["j_mean"] for of in score.objects.values()])
        note = f"the objects of {video.name} overlap with the true masks by J = {mean:.1f}% on average"
        note += f" ({len(score.objects)} objects, {score.num_frames} frames)"
    return plot_video([show_pixels(frame, backbone.module.pixels) for frame in frames], ids), note


def cover(image: Real[np.ndarray, "H W c"], size: tuple[int, int]) -> Real[np.ndarray, "h w c"]:
    """Returns the middle of an image, as much of it as fills a size."""
    if image.shape[-1] != 3 or image.dtype != np.uint8:
        (height, width), scale = image.shape[:2], min(image.shape[0] / size[0], image.shape[1] / size[1])
        rows, columns = (max(round(scale * side), 1) for side in size)
        top, left = (height - rows) // 2, (width - columns) // 2
        return resize_image(image[top : top + rows, left : left + columns], size)
    return np.asarray(ImageOps.fit(Image.fromarray(image), (size[1], size[0]), Image.Resampling.BICUBIC))


if __name__ == "__main__":
    run(main)
