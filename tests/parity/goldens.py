"""Finds the golden files: numbers computed with the official PyTorch code."""

import os
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(os.environ.get("CROC_GOLDENS") or Path(__file__).parent.parent / "goldens")


def golden_cases(pattern):
    """Returns one pytest parameter a file that matches; at least one must."""
    files = sorted(FOLDER.glob(pattern))
    if not files:
        raise FileNotFoundError(f"no {pattern} in {FOLDER}")
    return [pytest.param(LazyGolden(file), id=file.stem) for file in files]


class LazyGolden:
    """Reads arrays of one file on demand."""

    def __init__(self, file):
        self.file = file

    def __getitem__(self, name):
        with np.load(self.file) as arrays:
            return arrays[name]

    def names(self):
        """Returns the names of all arrays."""
        with np.load(self.file) as arrays:
            return list(arrays.files)
