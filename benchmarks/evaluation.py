r"""Measures processor time and peak memory of evaluation on synthetic images of 448 pixels.

    python benchmarks/evaluation.py --count=5000 -- --config.linear.epochs=1

What follows -- goes to launch/evaluate.py; with fewer epochs, or images to score, memory is the same.

The network is one block of a ViT-S/16: its tokens take as much memory as those of all twelve. Peak memory is that of
the whole process, and includes pages of temporary files, which the system reclaims when it needs them.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

COUNT = flags.DEFINE_integer("count", 500, "Images to learn from.")
NUM_SCORED = flags.DEFINE_integer("num_scored", None, "Images to score; by default those to learn from.")
PROTOCOLS = flags.DEFINE_list("protocols", ["linear:paper", "unsupervised", "retrieval"], "Configs of configs/eval.")

ROOT = Path(__file__).resolve().parents[1]
NUM_CLASSES, DISTINCT, SIDE = 21, 16, 448
RECIPE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({"backbone": {"width": 384, "depth": 1, "num_heads": 6, "patch_size": 16}})
"""


def write_images(root: Path, counts: dict[str, int]) -> None:
    """Writes a few images of colored squares with noise, linked under many names."""
    rng = np.random.default_rng(0)
    colors = rng.integers(40, 216, (NUM_CLASSES, 3))
    for split, count in counts.items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(min(count, DISTINCT)):
            labels = np.kron(rng.integers(0, NUM_CLASSES, (7, 7)), np.ones((SIDE // 7, SIDE // 7), int))
            image = np.clip(rng.normal(colors[labels], 30), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{index}.jpg", quality=90)
            Image.fromarray(labels.astype(np.uint8)).save(root / "labels" / split / f"{index}.png")
        for index in range(DISTINCT, count):
            for kind, suffix in (("images", "jpg"), ("labels", "png")):
                folder = root / kind / split
                os.link(folder / f"{index % DISTINCT}.{suffix}", folder / f"{index}.{suffix}")


def measure(command: list[str]) -> tuple[float, float]:
    """Runs a command; returns its seconds of processor time and its peak memory in GiB."""
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20


def main(argv: list[str]) -> None:
    """Measures each protocol alone, then all in one call."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        counts = {"train": COUNT.value, "val": NUM_SCORED.value or COUNT.value}
        write_images(root / "data", counts)
        (root / "recipe.py").write_text(RECIPE)
        lines = []
        runs = [[name] for name in PROTOCOLS.value]
        for names in runs + ([PROTOCOLS.value] if len(runs) > 1 else []):
            parts = (name.partition(":") for name in names)
            configs = [f"--config=configs/eval/{file}.py{colon}{variant}" for file, colon, variant in parts]
            seconds, gib = measure(
                [sys.executable, "launch/evaluate.py", *configs, "--checkpoint=random", f"--output={root / 'out'}"]
                + [
                    f"--config.dataset.root={root / 'data'}",
                    f"--config.recipe={root / 'recipe.py'}",
                    *_for(names, argv[1:]),
                ]
            )
            lines.append(f"{' + '.join(names)}: {seconds:.0f} s of processor time, peak {gib:.2f} GiB")
            print(lines[-1], flush=True)
    print("\n".join([f"images of {SIDE} x {SIDE}: {counts['train']} to learn from, {counts['val']} to score", *lines]))


def _for(names: list[str], overrides: list[str]) -> list[str]:
    """Returns the overrides without those that only other protocols have."""
    others = {name.partition(":")[0] for name in PROTOCOLS.value} - {name.partition(":")[0] for name in names}
    return [flag for flag in overrides if flag.split(".")[1] not in others]


if __name__ == "__main__":
    app.run(main)
