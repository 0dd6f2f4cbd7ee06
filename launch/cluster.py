r"""Clusters the patches of each image in a folder, and finds how many clusters there are; nothing is trained.

    python launch/cluster.py --images=FOLDER --checkpoint=CHECKPOINT --output=DIR

A checkpoint is all that evaluate.py takes, or 'random'. DIR gets labels/NAME.png (the cluster of each pixel, in color;
the colors repeat after 16 clusters, the ids do not), overview.png and clusters.json (the number of clusters of each
image). If two images differ by their suffix alone, labels are named after all of it: labels/NAME.jpg.png.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cli
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from cli import UserError, define_colors, define_path, make_progress, writable
from jaxtyping import Array, Int, Real, UInt8
from PIL import Image
from rich.console import Console

from croc_jax.atomic_write import atomic_write
from croc_jax.clustering import ClusteringConfig, cluster_features
from croc_jax.data.channels import load_pixels, show_pixels
from croc_jax.data.decoding import DecodeError
from croc_jax.data.photometric import normalize
from croc_jax.data.prefetch import load_ahead
from croc_jax.data.resizing import resize_with_pillow
from croc_jax.data.sources import FolderSource
from croc_jax.evaluation.backbones import RANDOM, FrozenBackbone, load_backbone, random_backbone, vit_recipe
from croc_jax.models import patch_grid
from croc_jax.pixel_format import PixelFormat
from croc_jax.report.overlay import SIDE, enlarge, overlay
from croc_jax.report.style import CLUSTER_COLORS

IMAGES = define_path("images", None, "A folder of images, at any depth.", required=True, must_exist=True)
CHECKPOINT = define_path(
    "checkpoint", None, "A workdir, a checkpoint, a file, or 'random'.", required=True, must_exist=True, words=[RANDOM]
)
OUTPUT = define_path("output", None, "Folder for labels and pictures.", required=True)
SIZE = flags.DEFINE_integer(
    "size", 448, "Side of the square that images are resized to, in whole patches.", lower_bound=1
)
K_START = flags.DEFINE_integer(
    "k_start", 12, "Clusters that merging starts from; 256 at most.", lower_bound=2, upper_bound=256
)
LAMBDA_POS = flags.DEFINE_float("lambda_pos", 4.0, "Weight of the positional cost.")
WHICH = flags.DEFINE_enum("which", "teacher", ("teacher", "student"), "Weights of a run.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images at a time.", lower_bound=1)

read_colors = define_colors()
# Images of overview.png.
NUM_SHOWN, COLUMNS = 24, 4


def main() -> None:
    """Clusters all images that can be read."""
    source = FolderSource(IMAGES.value)
    with writable(OUTPUT.value, name="--output") as output:
        cluster_all(source, output)


def cluster_all(source: FolderSource, output: Path) -> None:
    """Writes the labels of all images, and what they look like together."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    # Without a run, the start of a ViT-S/16.
    colors: Any = read_colors()
    if CHECKPOINT.value == RANDOM:
        backbone = random_backbone(vit_recipe(**colors))
    else:
        backbone = load_backbone(CHECKPOINT.value, which=WHICH.value, **colors)
    if backbone.note:
        console.print(f"{CHECKPOINT.value}: {backbone.note}")
    try:
        grid = patch_grid((SIZE.value, SIZE.value), backbone.module.patch_size)
    except ValueError as error:
        raise UserError(f"--size={SIZE.value}: {error}") from error
    cluster_fn, pixels = make_cluster_fn(backbone, grid), backbone.module.pixels
    images = [Path(source.name(index)).relative_to(IMAGES.value) for index in range(len(source))]
    names = [str(image.with_suffix(".png")) for image in images]
    if len(set(names)) < len(names):
        names = [f"{image}.png" for image in images]
    numbers, pictures, skipped = {}, [], []
    shown = set(np.linspace(0, len(source) - 1, min(NUM_SHOWN, len(source))).astype(int).tolist())
    with make_progress(console) as progress:
        task = progress.add_task("images", total=len(source))
        for indices, images in read_batches(source, pixels, skipped):
            squares = np.stack([resize_with_pillow(image, (SIZE.value, SIZE.value)) for image in images])
            padded = np.concatenate([squares, np.repeat(squares[-1:], BATCH_SIZE.value - len(squares), axis=0)])
            found = jax.device_get(cluster_fn(backbone.params, padded))
            for index, image, labels in zip(indices, images, found, strict=False):
                ids = np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.uint8)
                save_labels(ids.reshape(grid), image, output / "labels" / names[index])
                numbers[names[index]] = int(ids.max()) + 1
                if index in shown:
                    image = show_pixels(image, pixels)
                    pictures.append(np.concatenate([enlarge(image), overlay(image, ids, grid)], axis=1))
            progress.update(task, completed=indices[-1] + 1)
    if not numbers:
        raise UserError(f"none of the {len(source)} images in {IMAGES.value} can be read: {skipped[0]}")
    atomic_write(output / "clusters.json", f"{json.dumps(numbers, indent=1)}\n".encode())
    draw_sheet(pictures).save(output / "overview.png")
    for line in skipped[:5]:
        console.print(f"skipped: {line}")
    console.print(
        f"{len(numbers)} images, {len(skipped)} skipped, {np.mean(list(numbers.values())):.1f} clusters an image on "
        f"average; look at {output / 'overview.png'}"
    )


def make_cluster_fn(backbone: FrozenBackbone, grid: tuple[int, int]) -> Any:
    """Returns a jitted function of (params, images `[b H W c]`) to the cluster of each patch `[b n]`."""
    config = ClusteringConfig(
        k_start=K_START.value, k_max=K_START.value, lambda_pos=LAMBDA_POS.value, cost_scale="image"
    )

    module = backbone.module

    @jax.jit
    def cluster(params: Any, images: Real[Array, "b H W c"]) -> Int[Array, "b n"]:
        pixels = normalize(jnp.asarray(images), module.image_mean, module.image_std, module.pixels)
        features: Any = module.apply({"params": params}, pixels)
        return cluster_features(features.patches, cls_tokens=features.cls, grid=grid, config=config).labels

    return cluster


def read_batches(
    source: FolderSource, pixels: PixelFormat, skipped: list[str]
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Yields indices and images; what cannot be read is added to `skipped`."""

    def read(index: int) -> tuple[int, np.ndarray | str]:
        try:
            return index, load_pixels(source, index, pixels)
        except DecodeError as error:
            return index, str(error)

    for batch in load_ahead(read, len(source), BATCH_SIZE.value, num_threads=2):
        good = [(index, image) for index, image in batch if not isinstance(image, str)]
        skipped += [reason for _, reason in batch if isinstance(reason, str)]
        if good:
            yield [index for index, _ in good], [image for _, image in good]


def save_labels(ids: UInt8[np.ndarray, "r c"], image: Real[np.ndarray, "H W c"], file: Path) -> None:
    """Writes ids in color at the size of their image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = Image.fromarray(ids).resize((image.shape[1], image.shape[0]), Image.Resampling.NEAREST)
    # With fewer colors than 256, files would have 4 bits a pixel, for 16 clusters at most.
    colors = [CLUSTER_COLORS[index % len(CLUSTER_COLORS)] for index in range(256)]
    labels.putpalette([int(color[place : place + 2], 16) for color in colors for place in (1, 3, 5)])
    labels.save(file)


def draw_sheet(pictures: Sequence[UInt8[np.ndarray, "S T 3"]]) -> Image.Image:
    """Returns all pictures on one sheet, each in the middle of its cell."""
    columns = min(COLUMNS, len(pictures))
    width, height = 2 * SIDE + 8, SIDE + 8
    sheet = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for number, picture in enumerate(pictures):
        left, top = (2 * SIDE - picture.shape[1]) // 2, (SIDE - picture.shape[0]) // 2
        sheet.paste(Image.fromarray(picture), (number % columns * width + left, number // columns * height + top))
    return sheet


if __name__ == "__main__":
    cli.run(main)
