"""Writes generated scenes as a segmentation folder: `python examples/scenes --output=data/scenes`."""

import argparse
import sys
from pathlib import Path

# A folder that is run as a program is not a package by itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scenes.folder import write_scenes  # noqa: E402


def main() -> None:
    """Writes the folder, unless the same scenes are there already."""
    parser = argparse.ArgumentParser(prog="python examples/scenes", description=__doc__)
    parser.add_argument("--output", required=True, help="the folder for images/ and labels/")
    parser.add_argument("--num_train", type=int, default=400, help="training scenes")
    parser.add_argument("--num_val", type=int, default=100, help="validation scenes")
    parser.add_argument("--seed", type=int, default=0, help="seed of all scenes")
    arguments = vars(parser.parse_args())
    write_scenes(arguments.pop("output"), **arguments)


if __name__ == "__main__":
    main()
