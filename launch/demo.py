r"""Pre-trains a small ViT in minutes and writes a report about it; `make demo` runs it.

    python launch/demo.py [--images=path/to/photos] [--workdir=runs/demo]

Without --images it trains on scenes that it generates once into data/scenes, whose exact labels
also give a score before and after. A folder ROOT with images/train, images/val and labels beside
them is scored too.
"""

import json
import subprocess
import sys
from pathlib import Path

from absl import flags
from command_line import UserError, load_config_file, run
from rich.console import Console

from croc_jax.data.scenes import write_scenes
from croc_jax.report import Scores, build_report
from croc_jax.training.config import recipe_from_dict
from croc_jax.training.workdir import CONFIG_NAME, differing_fields, read_recipe

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "configs" / "demo.py"
IMAGES = flags.DEFINE_string("images", "", "A folder of photos, or of images/ and labels/.")
WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where the run goes; runs/demo by default, a folder beside it for your images."
)


def main() -> None:
    """Generates, scores, trains, scores again, reports."""
    console = Console(soft_wrap=True, highlight=False)
    folder = Path(IMAGES.value) if IMAGES.value else write_scenes(ROOT / "data" / "scenes")
    if not folder.is_dir():
        raise UserError(f"--images={IMAGES.value}: there is no such folder")
    labeled = (folder / "images" / "train").is_dir() and (folder / "labels" / "val").is_dir()
    photos = folder / "images" / "train" if labeled else folder
    workdir = Path(WORKDIR.value) if WORKDIR.value else ROOT / "runs" / ("demo-images" if IMAGES.value else "demo")
    check_same_run(workdir, photos)
    before = evaluate("random", folder, workdir / "before") if labeled else None
    console.rule("pre-training")
    call("pretrain.py", f"--config={RECIPE}", f"--workdir={workdir}", f"--config.data.folders={photos}")
    scores = Scores(before, evaluate(str(workdir), folder, workdir / "after")) if before else None
    console.rule("report")
    report = build_report(workdir, scores=scores)
    console.print(f"Open this page in a browser:\n  {report.resolve()}")


def check_same_run(workdir: Path, photos: Path) -> None:
    """Raises UserError if the workdir holds another run than the demo's on these images."""
    config = workdir / CONFIG_NAME
    if not config.is_file():
        return
    settings = load_config_file(str(RECIPE))
    settings.update_from_flattened_dict({"data.folders": (str(photos),)})
    changes = differing_fields(read_recipe(config), recipe_from_dict(settings.to_dict()))
    if changes:
        raise UserError(f"{workdir} holds a run with another {', '.join(changes)}: remove it, or add --workdir=DIR")


def evaluate(checkpoint: str, folder: Path, output: Path) -> dict:
    """Scores a checkpoint by linear segmentation, unless that very score is there; returns results.json."""
    file = output / "results.json"
    newest = output.parent / "metrics.jsonl"
    fresh = file.is_file() and (checkpoint == "random" or file.stat().st_mtime > newest.stat().st_mtime)
    if not fresh:
        call(
            "evaluate.py",
            f"--config={ROOT / 'configs' / 'eval' / 'linear.py'}:demo",
            f"--config.recipe={RECIPE}",
            f"--checkpoint={checkpoint}",
            f"--output={output}",
            f"--config.dataset.root={folder}",
        )
    return json.loads(file.read_text())


def call(program: str, *arguments: str) -> None:
    """Runs one of the programs beside this one; ends with its status if it fails."""
    status = subprocess.run([sys.executable, str(ROOT / "launch" / program), *arguments], check=False).returncode
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    run(main)
