r"""Pre-trains a small ViT in minutes and writes a report about it; `make demo` runs it.

    python launch/demo.py [--images=path/to/photos] [--workdir=runs/demo]

Without --images it trains on scenes that it generates once into data/scenes, whose exact labels
also give a score before and after. A folder ROOT with images/train, images/val and labels beside
them is scored too. Run again, it reuses whatever is there.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from cli import UserError, load_config_file, run
from rich.console import Console

from croc_jax.data.scenes import write_scenes
from croc_jax.data.sources import FolderSource
from croc_jax.report import build_report, read_metrics
from croc_jax.runtime.workdir import CONFIG_NAME, WorkdirError, differing_fields, read_recipe
from croc_jax.training.config import flatten, recipe_from_dict

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "configs" / "demo.py"
NUM_SCENES = 400
# Numbers of epochs, all of which shrink when an epoch has more images.
EPOCHS = (
    "schedule.epochs",
    "optimizer.warmup_epochs",
    "optimizer.freeze_last_layer_epochs",
    "objective.warmup_teacher_temp_epochs",
)
IMAGES = flags.DEFINE_string("images", "", "A folder of photos, or of images/ and labels/.")
WORKDIR = flags.DEFINE_string(
    "workdir", "", "Where the run goes; runs/demo by default, a folder beside it for your images."
)


class Plan(NamedTuple):
    """What to train on, and where the run goes.

    Attributes:
        folder: of the images, or of images/ and labels/.
        labeled: whether there are labels to score with.
        workdir: of the run.
        changes: fields of the recipe by name, other than the config file has them.
    """

    folder: Path
    labeled: bool
    workdir: Path
    changes: dict[str, Any]


def main() -> None:
    """Generates, scores, trains, scores again, reports."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    plan = make_plan(IMAGES.value, WORKDIR.value)
    set_aside(plan, console)
    if plan.labeled:
        evaluate("random", plan, step=0)
    console.rule("pre-training")
    # In quotes: unquoted, a folder with a space or comma in its name reads as a broken list.
    changes = (f"--config.{name}={value!r}" for name, value in plan.changes.items())
    call("pretrain.py", f"--config={RECIPE}", f"--workdir={plan.workdir}", *changes)
    console.rule("report")
    if plan.labeled:
        evaluate(str(plan.workdir), plan, step=int(read_metrics(plan.workdir / "metrics.jsonl")[-1]["step"]))
    report = build_report(plan.workdir)
    console.print(f"Open this page in a browser:\n  {report.resolve()}")


def make_plan(images: str, workdir: str) -> Plan:
    """Returns what to do; generates the scenes if it is with them.

    Args:
        images: a folder, or nothing for the scenes.
        workdir: a folder, or nothing for one in runs/.
    """
    folder = Path(images).resolve() if images else write_scenes(ROOT / "data" / "scenes", num_train=NUM_SCENES)
    if not folder.is_dir():
        raise UserError(f"--images={images}: there is no such folder")
    labeled = (folder / "images" / "train").is_dir() and (folder / "labels" / "val").is_dir()
    photos = folder / "images" / "train" if labeled else folder
    changes = {"data.folders": str(photos)}
    if images:
        changes |= scaled_epochs(len(FolderSource(photos)))
    name = f"demo-{folder.name}" if images else "demo"
    return Plan(folder, labeled, Path(workdir) if workdir else ROOT / "runs" / name, changes)


def scaled_epochs(num_images: int) -> dict[str, int]:
    """Returns the settings with which so many images take as many steps as the scenes do, or one epoch."""
    settings, ratio = flatten(load_config_file(str(RECIPE)).to_dict()), NUM_SCENES / num_images
    scaled = {name: round(ratio * settings[name]) for name in EPOCHS}
    return scaled | {"schedule.epochs": max(1, scaled["schedule.epochs"])}


def set_aside(plan: Plan, console: Console) -> None:
    """Renames a workdir that holds a run with other settings, and says so; nothing is lost."""
    config = plan.workdir / CONFIG_NAME
    if not config.is_file():
        return
    settings = load_config_file(str(RECIPE))
    settings.update_from_flattened_dict(plan.changes | {"data.folders": (plan.changes["data.folders"],)})
    try:
        changed = ", ".join(differing_fields(read_recipe(config), recipe_from_dict(settings.to_dict())))
    except WorkdirError:
        changed = "the version"
    if changed:
        others = (plan.workdir.with_name(f"{plan.workdir.name}.{number}") for number in range(1, 10_000))
        other = next(other for other in others if not other.exists())
        plan.workdir.rename(other)
        console.print(f"the settings have changed ({changed}): the earlier run is now {other}, a new one starts")


def evaluate(checkpoint: str, plan: Plan, *, step: int) -> None:
    """Scores a checkpoint by linear segmentation, unless that very score is there."""
    output = plan.workdir / ("after" if step else "before")
    file = output / "results.json"
    if not file.is_file() or json.loads(file.read_text())["step"] != step:
        call(
            "evaluate.py",
            f"--config={ROOT / 'configs' / 'eval' / 'linear.py'}:demo",
            f"--config.recipe={RECIPE}",
            f"--checkpoint={checkpoint}",
            f"--output={output}",
            f"--config.dataset.root={plan.folder}",
        )


def call(program: str, *arguments: str) -> None:
    """Runs one of the programs beside this one; ends with its status if it fails."""
    status = subprocess.run([sys.executable, str(ROOT / "launch" / program), *arguments], check=False).returncode
    if status:
        raise SystemExit(status)


if __name__ == "__main__":
    run(main)
