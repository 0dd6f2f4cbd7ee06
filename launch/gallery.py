r"""Draws four pictures of a checkpoint: merging, clusters of two crops, components of features, and a video.

    python launch/gallery.py --checkpoint=runs/demo
    python launch/gallery.py --checkpoint=WORKDIR --images=path/to/photos --video=path/to/DAVIS --output=gallery

A checkpoint is all that evaluate.py takes. Without --images, the pictures show two photographs that come with
scikit-learn, and generated scenes; without --video, a generated film. A video is DAVIS-2017, or a folder of
images/SEQUENCE/ and masks/SEQUENCE/.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
from absl import flags
from cli import UserError, run
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from rich.console import Console
from sklearn.datasets import load_sample_images

from croc_jax.data.decoding import DecodeError, decode
from croc_jax.data.labeled.davis import Video, open_videos
from croc_jax.data.labeled.label_files import open_image
from croc_jax.data.sources import FolderSource
from croc_jax.evaluation.backbones import FrozenBackbone, trained_backbone
from croc_jax.evaluation.features import make_extract_fn
from croc_jax.evaluation.video.evaluate import VideoProtocol, label_video, score_video
from croc_jax.report.figures import plot_clusters, plot_merging
from croc_jax.report.gallery import plot_components, plot_video, reduce_colors
from croc_jax.report.inspect import Exploration, explore, overlap

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from scenes import make_scene, write_film  # noqa: E402

CHECKPOINT = flags.DEFINE_string("checkpoint", "runs/demo", "A workdir, a checkpoint, a file or a folder.")
IMAGES = flags.DEFINE_string("images", "", "A folder of images.")
VIDEO = flags.DEFINE_string("video", "", "A folder of videos with masks; the first one is taken.")
OUTPUT = flags.DEFINE_string("output", "gallery", "Where the pictures go.")
CLUSTERS_OF = flags.DEFINE_string(
    "clusters_of", "", "Name of the image whose crops are clustered; the second by default."
)
MERGING_OF = flags.DEFINE_string("merging_of", "", "And of the one whose merging is drawn; the first by default.")
GRID = flags.DEFINE_integer("grid", 20, "Rows and columns of patches of a crop.", lower_bound=2)
VIDEO_ROWS = flags.DEFINE_integer(
    "video_rows", 45, "Rows of patches of a frame; DAVIS has 30 of 16 pixels.", lower_bound=2
)
SEED = flags.DEFINE_integer("seed", 0, "Of the crops.")

# Of the images above their components, in pixels; patches tile them at any size from 1 to 16 and 20.
SIZE = (240, 320)
NUM_COMPONENT_IMAGES = 6
# Pairs of crops that the best one is taken of; the two show this share in common.
NUM_PAIRS, BEST_OVERLAP = 12, 0.65
CROP_SCALE = (0.3, 0.7)
SCENES = ((0, 5), (0, 6), (3, 5), (0, 4))
DOTS_PER_INCH = 110
MOST_BYTES = 250_000


@dataclasses.dataclass(frozen=True)
class Repeated:
    """One image of a source, as often as crops of it are wanted."""

    source: FolderSource
    index: int

    def __len__(self) -> int:
        """Returns how often."""
        return NUM_PAIRS

    def __getitem__(self, index: int) -> bytes:
        """Returns the encoded image."""
        return self.source[self.index]

    def name(self, index: int) -> str:
        """Returns the path of the image."""
        return self.source.name(self.index)


def main() -> None:
    """Draws and writes the four pictures."""
    console, output = Console(soft_wrap=True, highlight=False, markup=False), Path(OUTPUT.value)
    source = FolderSource(IMAGES.value or write_samples(output / "samples"))
    chosen = [find(source, name, default=place) for place, name in enumerate((MERGING_OF.value, CLUSTERS_OF.value))]
    video = open_videos(VIDEO.value or write_film(output / "samples" / "film", seed=10))[0]
    backbone = trained_backbone(Path(CHECKPOINT.value).expanduser())
    save(draw_merging(look(backbone, source, chosen[0])), output / "merging.png")
    save(draw_pair(look(backbone, source, chosen[1]), source), output / "clusters.png")
    save(draw_components(backbone, source), output / "components.png")
    figure, score = draw_video(backbone, video)
    save(figure, output / "video.png")
    for name in ("merging", "clusters", "components", "video"):
        console.print(f"{output / name}.png")
    if score is not None:
        console.print(f"the objects of {video.name} overlap with the truth by J = {score:.1f}% in the mean")


def write_samples(folder: Path) -> Path:
    """Writes the images that anyone may show; returns the folder."""
    folder = folder / "images"
    folder.mkdir(parents=True, exist_ok=True)
    found = load_sample_images()
    for file, image in zip(found.filenames, found.images, strict=True):
        # Wider than high by a third, at the size that the features are drawn for.
        Image.fromarray(cover(image, SIZE)).save(folder / f"photo-{Path(file).stem}.png")
    for number, (seed, index) in enumerate(SCENES):
        Image.fromarray(make_scene(seed, "val", index, size=SIZE).image).save(folder / f"scene-{number}.png")
    return folder


def find(source: FolderSource, name: str, *, default: int) -> int:
    """Returns the place of an image by its name, with or without suffix."""
    names = [Path(source.name(index)) for index in range(len(source))]
    for index, file in enumerate(names):
        if name in (file.name, file.stem):
            return index
    if name:
        raise UserError(f"no image {name!r} among {', '.join(file.name for file in names[:12])}")
    return default % len(source)


def look(backbone: FrozenBackbone, source: FolderSource, index: int) -> Exploration:
    """Returns clusters of pairs of crops of one image, the best pair first: crops that share much, but not all."""
    views = dataclasses.replace(backbone.recipe.data.views, scale=CROP_SCALE)
    recipe = dataclasses.replace(backbone.recipe, data=dataclasses.replace(backbone.recipe.data, views=views))
    size = GRID.value * backbone.module.patch_size
    settings = {"num_images": NUM_PAIRS, "crop_size": size, "seed": SEED.value}
    found = explore(backbone.module, backbone.params, recipe, Repeated(source, index), **settings)
    best = int(np.abs(overlap(found.boxes) - BEST_OVERLAP).argmin())
    one = slice(best, best + 1)
    return Exploration(
        np.array([index]), found.views[one], found.boxes[one], found.grid, found.labels[:, one],
        found.valid[one], found.num_clusters[one], found.costs[one], found.merging[:, :, one],
    )  # fmt: skip


def draw_pair(pair: Exploration, source: FolderSource) -> Figure:
    """Returns an image, two crops of it, and their clusters."""
    scene = (decode(source[int(pair.indices[0])]), pair.boxes[0])
    return plot_clusters(pair.views[0], pair.labels[:, 0, :4], pair.valid[0, :4], pair.grid, scene=scene)


def draw_merging(pair: Exploration) -> Figure:
    """Returns the clusters of every round of the first head."""
    return plot_merging(
        pair.views[0], pair.merging[:, :, 0, :1], pair.costs[0, :1], pair.num_clusters[0, :1], pair.grid
    )


def draw_components(backbone: FrozenBackbone, source: FolderSource) -> Figure:
    """Returns images spread over the folder, above the components of their features."""
    patch = backbone.module.patch_size
    size = (SIZE[0] // patch * patch, SIZE[1] // patch * patch)
    images = []
    for index in np.linspace(0, len(source) - 1, min(NUM_COMPONENT_IMAGES, len(source))).astype(int).tolist():
        try:
            images.append(cover(decode(source[index]), size))
        except (DecodeError, OSError):
            continue
    features = backbone.encode(np.stack(images))
    return plot_components(np.stack(images), np.asarray(features.patches), (size[0] // patch, size[1] // patch))


def draw_video(backbone: FrozenBackbone, video: Video) -> tuple[Figure, float | None]:
    """Returns a strip of a video with the objects that features carry along, and the mean J of those with masks."""
    patch = backbone.module.patch_size
    protocol = VideoProtocol(short_side=VIDEO_ROWS.value * patch, multiple=patch)
    frames = [open_image(file).convert("RGB") for file in video.frames]
    extract_fn = make_extract_fn(backbone.module)
    ids = list(label_video(extract_fn, backbone.params, video, frames, protocol=protocol, patch_size=patch))
    scores = score_video(video, ids, score_ends=True)
    mean = 100 * float(np.mean([score.region.mean for score in scores])) if scores else None
    return plot_video([np.asarray(frame) for frame in frames], ids), mean


def cover(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the middle of an image, as much of it as fills a size."""
    return np.asarray(ImageOps.fit(Image.fromarray(image), (size[1], size[0]), Image.Resampling.BICUBIC))


def save(figure: Figure, file: Path) -> None:
    """Writes a picture without a background; with few colors, if it would take many bytes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=DOTS_PER_INCH, transparent=True)
    if file.stat().st_size > MOST_BYTES:
        with Image.open(file) as picture:
            few = reduce_colors(picture)
        few.save(file, optimize=True)


if __name__ == "__main__":
    run(main)
