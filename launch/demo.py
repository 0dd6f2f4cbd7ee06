r"""Pre-trains a small ViT in minutes and writes a report about it; `make demo` runs it.

    python launch/demo.py [--images=path/to/photos] [--workdir=runs/demo]

Without --images it trains on scenes that it generates once into data/scenes, whose exact labels
also give a score before and after. A folder ROOT with images/train, images/val and labels beside
them is scored too. Run again, it reuses what is there.
"""

import json
import operator
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from cli import UserError, define_path, load_config_file, run
from rich.console import Console

from croc_jax.data.config import PhotometricConfig
from croc_jax.data.sources import FolderSource
from croc_jax.evaluation.reuse import is_done, make_request, mark_done
from croc_jax.report import build_report

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "demo.py"
NUM_SCENES = 400
# Fields that count epochs: more images make fewer epochs, and the same number of steps.
EPOCHS = (
    "schedule.epochs",
    "optimizer.warmup_epochs",
    "optimizer.freeze_last_layer_epochs",
    "objective.warmup_teacher_temp_epochs",
)
# The paper's, for photographs: the recipe has larger ones, as drawn scenes have any color.
COLORS = {f"data.photometric.{name}": getattr(PhotometricConfig, name) for name in ("hue", "saturation")}
IMAGES = define_path("images", "", "A folder of photos, or of images/ and labels/.")
WORKDIR = define_path("workdir", "", "Folder of the run; by default runs/demo, or runs/demo-NAME for --images.")


class Plan(NamedTuple):
    """What to train on, and where the run goes."""

    folder: Path  # of the images, or of images/ and labels/
    labeled: bool  # whether there are labels to score with
    workdir: Path
    changes: dict[str, str | float]  # config fields that differ from the config file


def main() -> None:
    """Generates, scores, trains, scores again, reports."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if not IMAGES.value:
        call("examples/scenes", f"--output={ROOT / 'data' / 'scenes'}", f"--num_train={NUM_SCENES}")
    plan = make_plan(IMAGES.value, WORKDIR.value)
    if batch_size := plan.changes.get("schedule.batch_size"):
        console.print(f"{batch_size} photos are less than a batch of {CONFIG.name}: batches hold {batch_size} images")
    if plan.labeled:
        evaluate("random", plan, step=0)
    console.rule("pre-training")
    # In quotes: unquoted, a folder with a space or comma in its name reads as a broken list.
    changes = (f"--config.{name}={value!r}" for name, value in plan.changes.items())
    call("launch/pretrain.py", f"--config={CONFIG}", f"--workdir={plan.workdir}", *changes)
    console.rule("report")
    if plan.labeled:
        last = (plan.workdir / "metrics.jsonl").read_text().splitlines()[-1]
        evaluate(str(plan.workdir), plan, step=int(json.loads(last)["step"]))
    console.print(f"Open this page in a browser:\n  {build_report(plan.workdir).resolve()}")


def make_plan(images: str | Path | None, workdir: str | Path | None) -> Plan:
    """Returns what to do with a folder of images, or with the scenes if `images` is empty; raises UserError."""
    folder = Path(images).resolve() if images else ROOT / "data" / "scenes"
    if not folder.is_dir():
        raise UserError(f"--images={images}: there is no such folder")
    labeled = (folder / "images" / "train").is_dir() and (folder / "labels" / "val").is_dir()
    photos = folder / "images" / "train" if labeled else folder
    changes: dict[str, str | float] = {"data.folders": str(photos)}
    if images:
        if (count := len(FolderSource(photos))) < 2:
            raise UserError(f"--images={images}: holds {count} photo: training needs at least 2")
        changes |= COLORS | scaled_schedule(count)
    name = f"demo-{folder.name}" if images else "demo"
    return Plan(folder, labeled, Path(workdir) if workdir else ROOT / "runs" / name, changes)


def scaled_schedule(num_images: int) -> dict[str, int]:
    """Returns the epochs with which so many images take as many steps as the scenes do, but at least one epoch.

    Fewer images than a batch make a smaller batch.
    """
    config = load_config_file(str(CONFIG))
    whole_batch = operator.attrgetter("schedule.batch_size")(config)
    batch_size = min(whole_batch, num_images)
    ratio = NUM_SCENES / whole_batch * batch_size / num_images
    scaled = {name: round(ratio * operator.attrgetter(name)(config)) for name in EPOCHS}
    scaled["schedule.epochs"] = max(1, scaled["schedule.epochs"])
    return scaled if batch_size == whole_batch else scaled | {"schedule.batch_size": batch_size}


def evaluate(checkpoint: str, plan: Plan, *, step: int) -> None:
    """Scores a checkpoint by linear segmentation, unless there is the score of the same weights on the same images."""
    output = plan.workdir / ("after" if step else "before")
    arguments = (
        f"--config={ROOT / 'configs' / 'eval' / 'linear.py'}:demo",
        f"--config.recipe={CONFIG}",
        f"--checkpoint={checkpoint}",
        f"--output={output}",
        f"--config.dataset.root={plan.folder}",
    )
    config = plan.workdir / "config.json" if step else CONFIG
    request = make_request(arguments, config=config, step=step, data=plan.folder)
    if not is_done(output, request):
        call("launch/evaluate.py", *arguments)
        mark_done(output, request)


def call(program: str, *arguments: str) -> None:
    """Runs a program of this repository; exits with its status if it fails."""
    status = subprocess.run([sys.executable, str(ROOT / program), *arguments], check=False).returncode
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    run(main)
