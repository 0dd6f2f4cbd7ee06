"""Writes generated scenes as a segmentation folder: `python examples/scenes --output=data/scenes`."""

import sys
from pathlib import Path

from absl import flags

# A folder that is run as a program is not a package by itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from croc_jax.runtime.program import define_path, run, writable  # noqa: E402
from scenes.folder import write_scenes  # noqa: E402

OUTPUT = define_path("output", None, "The folder for images/ and labels/.", required=True)
NUM_TRAIN = flags.DEFINE_integer("num_train", 400, "Training scenes.")
NUM_VAL = flags.DEFINE_integer("num_val", 100, "Validation scenes.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of all scenes.")


def main() -> None:
    """Writes the folder, unless the same scenes are there already."""
    with writable(OUTPUT.value, name="--output") as folder:
        write_scenes(folder, num_train=NUM_TRAIN.value, num_val=NUM_VAL.value, seed=SEED.value)


if __name__ == "__main__":
    run(main)
