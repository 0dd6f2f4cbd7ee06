"""What a run records of a few images, as small files, for tests/mutated_files.py."""

import numpy as np

from croc_jax.evaluation.inside import CROPS_NAME, Crops, Moment, read_inside, save_arrays
from tests.mutated_pixels import check, paths_below

CROPS = Crops(np.zeros((2, 2, 5)), np.arange(96, dtype=np.uint8).reshape(2, 2, 2, 4, 3), np.array(["a.png", "b.png"]))


def write_recorded(root):
    save_arrays(root / CROPS_NAME, CROPS)
    for step in (0, 3):
        labels, valid = np.full((2, 2, 1, 2), step, np.uint8), np.ones((2, 1, 4), bool)
        components = np.linspace(0, 1, 24, dtype=np.float16).reshape(2, 2, 2, 3)
        counts = np.full((2, 1), 4, np.uint16), np.zeros((2, 1, 3), np.float32)
        save_arrays(root / f"{step}.npz", Moment(CROPS.digest(), np.array(step), labels, valid, *counts, components))
    return paths_below(root)


def read_recorded(root, file):
    inside = read_inside(root)
    check(list(inside.moments) == [0, 3], f"moments {list(inside.moments)}")
    check(all((one.labels == step).all() for step, one in inside.moments.items()), "other labels")
