r"""Evaluates the frozen features of a checkpoint by one protocol of configs/eval, or by several.

    python launch/evaluate.py --config=configs/eval/linear.py --checkpoint=WORKDIR --output=DIR \
        --config.dataset.root=ROOT

A checkpoint is a workdir, a folder WORKDIR/checkpoints/STEP, a .pth or .safetensors file with
weights of CrOC, DINO, timm and others, or 'random'. DIR gets results.json and pictures.

Several --config=FILE share what they can of the features, and write to DIR/NAME, named after their files; a
--config.FIELD=VALUE applies to each that has the field.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags
from cli import (
    UserError,
    define_colors,
    define_path,
    load_config_file,
    make_progress,
    parse_configs,
    run,
    writable,
)  # fmt: skip
from rich.console import Console
from rich.table import Table

from croc_jax.evaluation import FrozenFeatures, MemoryBudget, get_protocol
from croc_jax.evaluation.backbones import RANDOM, FrozenBackbone, load_backbone, random_backbone
from croc_jax.evaluation.registry import Result
from croc_jax.evaluation.results import describe_counts, make_results, write_results
from croc_jax.paths import local_path
from croc_jax.runtime.workdir import CONFIG_NAME, read_recipe
from croc_jax.training.config import Recipe
from croc_jax.training.resolve import recipe_from_config

CONFIGS = flags.DEFINE_multi_string("config", [], "A protocol, such as configs/eval/linear.py; may be repeated.")
CHECKPOINT = define_path(
    "checkpoint",
    None,
    "A workdir, a checkpoint, weights of others, or 'random'.",
    required=True,
    must_exist=True,
    words=[RANDOM],
)
OUTPUT = define_path("output", None, "Folder for results.json and pictures.", required=True)
PATCH_SIZE = flags.DEFINE_enum(
    "patch_size", None, ("8", "16", "32"), "Pixels between the tokens of a convolutional network, if not its own."
)
read_colors = define_colors()


def main() -> None:
    """Runs all protocols on one checkpoint."""
    configs = {name: config.to_dict() for name, config in parse_configs(sys.argv, CONFIGS.value).items()}
    # All mistakes show before the first hour of work.
    scorers = {name: get_protocol(config["protocol"]).prepare(config) for name, config in configs.items()}
    with writable(OUTPUT.value, name="--output"):
        evaluate(configs, scorers)


def evaluate(configs: Mapping[str, Mapping[str, Any]], scorers: Mapping[str, Callable[..., Result]]) -> None:
    """Writes and prints the scores of all protocols.

    Args:
        configs: contents of files in configs/eval, by name.
        scorers: what `Protocol.prepare` returns for each.
    """
    console, output = Console(), OUTPUT.value
    # Each backbone is loaded once, with features that protocols share, within the budget of the first of them.
    known: dict[str, tuple[FrozenBackbone, FrozenFeatures]] = {}
    for name, config in configs.items():
        folder = output / name if len(configs) > 1 else output
        key = str(config["recipe" if CHECKPOINT.value == RANDOM else "which"])
        with make_progress(console) as progress:
            if key not in known:
                backbone, budget = open_backbone(config), MemoryBudget(**config["budget"])
                settings = {"budget": budget, "folder": output, "remember": len(configs) > 1}
                if backbone.note:
                    console.print(f"{CHECKPOINT.value}: {backbone.note}", markup=False, soft_wrap=True)
                known[key] = backbone, FrozenFeatures(backbone.module, backbone.params, **settings)
            backbone, features = known[key]
            features.progress = progress
            folder.mkdir(parents=True, exist_ok=True)
            result = scorers[name](features, folder)
        protocol = get_protocol(config["protocol"])
        results = make_results(protocol, config, result, backbone=backbone, checkpoint=str(CHECKPOINT.value))
        file = write_results(results, folder)
        console.print(make_table(results))
        console.print(f"scored: {describe_counts(results)}", highlight=False, soft_wrap=True)
        console.print(f"{file}, and pictures beside it", markup=False, soft_wrap=True)


def open_backbone(config: Mapping[str, Any]) -> FrozenBackbone:
    """Returns the weights to evaluate."""
    colors: Any = read_colors()
    if CHECKPOINT.value == RANDOM:
        if colors:
            raise UserError(f"--{next(iter(colors))}: random weights have the config of their recipe; leave it out")
        backbone = random_backbone(find_recipe(str(config["recipe"])))
    else:
        backbone = load_backbone(CHECKPOINT.value, which=str(config["which"]), **colors)
    return backbone if PATCH_SIZE.value is None else backbone.with_patch_size(int(PATCH_SIZE.value))


def find_recipe(source: str) -> Recipe:
    """Returns the settings of a workdir or of a config file."""
    path = local_path(source, name="--config.recipe")
    saved = path / CONFIG_NAME
    if saved.is_file():
        return read_recipe(saved)
    if not path.with_name(path.name.partition(":")[0]).is_file():
        raise UserError(f"--config.recipe={source}: name a workdir or a configs/*.py file")
    return recipe_from_config(load_config_file(str(path)).to_dict())


def make_table(results: Mapping[str, Any]) -> Table:
    """Returns the scores, and each class's, for the terminal."""
    protocol = get_protocol(results["protocol"])
    table = Table(title=f"{results['protocol']}: {results['checkpoint']} at step {results['step']}")
    table.add_column("score")
    table.add_column("%", justify="right")
    for name, label in protocol.score_labels.items():
        if results[name] is not None:
            table.add_row(label, f"{results[name]:.2f}")
    table.add_section()
    for name, value in results.get(protocol.class_scores, {}).items():
        if not isinstance(value, dict):
            table.add_row(name, "absent" if value is None else f"{value:.1f}")
    return table


if __name__ == "__main__":
    run(main)
