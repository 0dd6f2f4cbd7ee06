"""Records what the teacher makes of the same few images as a run goes on: clusters, their number, components."""

import hashlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, UInt8

from croc_jax.atomic_write import atomic_write
from croc_jax.data.channels import show_pixels
from croc_jax.data.sources import ImageSource
from croc_jax.evaluation.components import principal_components, unit_variance
from croc_jax.evaluation.crop_pairs import ClusterFn, load_pairs, make_cluster_fn, picture_size
from croc_jax.evaluation.features import Params
from croc_jax.float32 import in_float32
from croc_jax.machine_errors import is_machine_error
from croc_jax.models import make_backbone, patch_grid
from croc_jax.training.config import Recipe

FOLDER_NAME, CROPS_NAME = "inside", "crops.npz"
_SEED = 0


class Moment(NamedTuple):
    """The clusters and components of all pairs of crops after a step.

    Attributes:
        crops: digest of the crops, see `Crops`.
        epoch: passes over the images.
        labels: cluster of each token in the chosen round.
        valid: clusters that both views show.
        num_clusters: K of the chosen round.
        costs: transport cost of each round.
        components: scores on the first three principal components of the patches of all crops, of unit variance.
    """

    crops: np.ndarray
    epoch: Float[np.ndarray, ""]
    labels: Int[np.ndarray, "v b h n"]
    valid: Bool[np.ndarray, "b h k"]
    num_clusters: Int[np.ndarray, "b h"]
    costs: Float[np.ndarray, "b h rounds"]
    components: Float[np.ndarray, "v b n 3"]


class Crops(NamedTuple):
    """The crops that all moments of a run are of.

    Attributes:
        boxes: their boxes.
        views: their pixels, as pictures show them.
        names: name of each image.
    """

    boxes: Float[np.ndarray, "b v 5"]
    views: UInt8[np.ndarray, "b v H W 3"]
    names: np.ndarray

    def digest(self) -> np.ndarray:
        """Returns what tells these crops from others."""
        return np.array(hashlib.sha256(self.views.tobytes()).hexdigest()[:16])


class Inside(NamedTuple):
    """The record of a run: its crops, and what the teacher made of them, by step."""

    crops: Crops
    moments: dict[int, Moment]


class Program(NamedTuple):
    """What turns parameters into a moment: a compiled function, its other arguments, and the digest of the crops."""

    cluster_fn: ClusterFn
    arrays: tuple[Any, ...]
    digest: np.ndarray


class InsideRecorder:
    """Writes a small file about the same pairs of crops at each moment that it is called."""

    def __init__(self, folder: Path, recipe: Recipe, source: ImageSource) -> None:
        """Reads and writes nothing yet.

        Args:
            folder: where the files go.
            recipe: settings of the run; `evaluation.pictures` images are recorded.
            source: its images.
        """
        self._folder, self._recipe, self._source = folder, recipe, source
        self._program: Program | None = None

    def prepare(self, params: Params) -> Program:
        """Reads and writes the crops, and compiles, unless that is done.

        Args:
            params: parameters of the teacher's backbone, of any values.

        Raises:
            ValueError: if none of the images can be read.
            OSError: if the crops cannot be written.
        """
        self._program = self._program or self._prepare(params)
        return self._program

    @in_float32
    def _prepare(self, params: Params) -> Program:
        recipe, data, size = self._recipe, self._recipe.data, picture_size(self._recipe)
        pairs = load_pairs(self._source, data, num_images=recipe.evaluation.pictures, crop_size=size, seed=_SEED)
        names = np.array([self._source.name(int(index)) for index in pairs.indices])
        crops = Crops(pairs.boxes, show_pixels(pairs.views, data.pixels), names)
        save_arrays(self._folder / CROPS_NAME, crops)
        module = make_backbone(recipe.backbone, image_size=data.views.crop_size, pixels=data.pixels)
        grid = patch_grid((size, size), recipe.backbone.patch_size)
        cluster_fn = make_cluster_fn(module, recipe.clustering, recipe.objective, grid)
        arrays = pairs.views, pairs.boxes, jax.random.key(_SEED)
        jax.block_until_ready(cluster_fn(params, *arrays))
        return Program(cluster_fn, arrays, crops.digest())

    @in_float32
    def record(self, params: Params, *, step: int, epoch: float) -> None:
        """Writes FOLDER/STEP.npz, in the place of an earlier one.

        Args:
            params: parameters of the teacher's backbone.
            step: updates so far.
            epoch: the same in passes over the images.

        Raises:
            ValueError: as `prepare`, and for features that are not finite.
            OSError: if it cannot be written.
        """
        program = self.prepare(params)
        found, _, patches = program.cluster_fn(params, *program.arrays)
        found, patches = jax.device_get((found, patches))
        moment = Moment(
            program.digest,
            np.array(epoch),
            found.labels.astype(np.min_scalar_type(self._recipe.clustering.k_start)),
            found.valid,
            found.num_clusters.astype(np.uint16),
            found.costs,
            unit_variance(principal_components(patches)).astype(np.float16),
        )
        save_arrays(self._folder / f"{step}.npz", moment)


def read_inside(folder: Path) -> Inside | None:
    """Returns what a run has recorded so far, in the order of its steps; None if there is nothing.

    Moments of other crops, of a start with other images or another number of them, are left out, and counted in the
    log.

    Args:
        folder: folder `inside` of a workdir.

    Raises:
        ValueError: if a file is damaged.
        OSError: for a fault of the machine.
    """
    files = {int(file.stem): file for file in folder.glob("*.npz") if file.stem.isdecimal()}
    if not files or not (folder / CROPS_NAME).is_file():
        return None
    crops = Crops(**_load(folder / CROPS_NAME, Crops))
    found = {step: Moment(**_load(file, Moment)) for step, file in sorted(files.items())}
    moments = {step: one for step, one in found.items() if one.crops == crops.digest()}
    if len(moments) < len(found):
        logging.warning("%s: %d moments are of other crops, and left out", folder, len(found) - len(moments))
    return Inside(crops, moments) if moments else None


def save_arrays(file: Path, arrays: Crops | Moment) -> None:
    """Writes a file, whole or not at all."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays._asdict())
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, stream.getvalue())


def _load(file: Path, kind: type[Crops | Moment]) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in kind._fields}
    except Exception as error:
        # A damaged archive raises whatever its broken part leads to.
        if is_machine_error(error):
            raise
        raise ValueError(f"{file} is damaged ({str(error)[:200]}): delete it; the others remain usable") from error
