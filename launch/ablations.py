r"""The paper's ablations on COCO (Tables 4 to 6): prints the commands of all runs and their scores, or runs them.

    python launch/ablations.py --workdir=runs/ablations --config.data.sources=coco:path/to/coco
    python launch/ablations.py --workdir=runs/ablations --table=lambda_pos --coco=path/to/coco --run

Each run is pre-trained in WORKDIR/NAME and scored by linear and by unsupervised segmentation on three data sets; in
the end, WORKDIR/report.html compares them. The run that all tables share is trained once. --config.FIELD=VALUE changes
all runs. With --run, commands run one after another on this host; after a stop, the same command resumes, and a score
of the same run and images is kept. On a cluster, print the commands and give each to a launch template.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from absl import flags
from cli import define_path, parse_config, run
from commands import Command
from rich.console import Console

WORKDIR = define_path("workdir", None, "Folder of all runs.", required=True)
TABLE = flags.DEFINE_enum("table", "all", ("all", "lambda_pos", "k_start", "tokens"), "One table alone.")
RUN = flags.DEFINE_bool("run", False, "Run the commands instead of printing them.")
BASE = flags.DEFINE_multi_string("config", ["configs/croc_vits16_coco.py"], "The config that all runs start from.")
VOC = define_path("voc", "data/VOCdevkit", "Folder of VOC 2012 with the augmented training set.")
COCO = define_path("coco", "data/coco", "Folder of COCO with things and stuff annotations.")

# What an ablation does not vary.
CENTER = {"clustering.lambda_pos": 3.0, "clustering.k_start": 12, "clustering.k_max": 12, "objective.tokens": "keys"}
# By table: the fields that get each value, and the values.
TABLES = {
    # Table 4; infinity clusters by position alone.
    "lambda_pos": (("clustering.lambda_pos",), (0.0, 1.0, 2.0, 3.0, 4.0, float("inf"))),
    "k_start": (("clustering.k_start", "clustering.k_max"), (4, 8, 12, 16)),
    "tokens": (("objective.tokens",), ("last", "queries", "keys", "values")),
}


def main() -> None:
    """Prints or runs all commands."""
    overrides = [flag for flag in sys.argv[1:] if re.match(r"--?config\.", flag)]
    parse_config(BASE.value[0], overrides)  # an unknown field is an error before anything runs
    commands = make_commands(WORKDIR.value, ablation_runs(TABLE.value), [f"--config={BASE.value[0]}", *overrides])
    for command in commands:
        line = shlex.join(["python", *command.arguments])
        if not RUN.value:
            print(line)
            continue
        Console(stderr=True).rule(line, style="dim", align="left")
        if status := command.run():
            raise SystemExit(status)


def ablation_runs(table: str = "all") -> dict[str, dict[str, Any]]:
    """Returns {name: settings} of the runs of a table, or of all; the shared run is called "center"."""
    runs = {}
    for fields, values in (TABLES[name] for name in TABLES if table in ("all", name)):
        for value in values:
            settings = CENTER | dict.fromkeys(fields, value)
            value = f"{value:g}" if isinstance(value, float) else value
            runs["center" if settings == CENTER else f"{fields[0].partition('.')[2]}-{value}"] = settings
    return runs


def make_commands(workdir: Path, runs: dict[str, dict[str, Any]], shared: list[str]) -> list[Command]:
    """Returns the commands that pre-train and score each run, then compare all of them.

    Args:
        workdir: folder of all runs.
        runs: settings by name.
        shared: flags of launch/pretrain.py for all runs.
    """
    commands = []
    for name, settings in runs.items():
        folder, fields = workdir / name, [f"--config.{field}={value}" for field, value in settings.items()]
        commands.append(Command(["launch/pretrain.py", *shared, *fields, f"--workdir={folder}"]))
        for evaluation, flag in evaluations().items():
            output = folder / "eval" / evaluation
            arguments = ["launch/evaluate.py", *flag, f"--checkpoint={folder}", f"--output={output}"]
            data = next(one for one in flag if one.startswith("--config.dataset.root=")).rpartition(":")[2]
            commands.append(Command(arguments, output, folder, data))
    folders = [f"--folder={workdir / name}" for name in runs]
    commands.append(Command(["launch/report.py", *folders, f"--output={workdir / 'report.html'}"]))
    return commands


def evaluations() -> dict[str, list[str]]:
    """Returns {name: flags of launch/evaluate.py} for the six columns of the tables."""
    roots = {"voc": f"voc:{VOC.value}", "things": f"coco-things:{COCO.value}", "stuff": f"coco-stuff:{COCO.value}"}
    found = {}
    for name, root in roots.items():
        part = "--config.dataset.train_split=trainaug" if name == "voc" else "--config.dataset.train_fraction=0.1"
        root_flag = f"--config.dataset.root={root}"
        found[f"unsupervised_{name}"] = ["--config=configs/eval/unsupervised.py", root_flag]
        found[f"linear_{name}"] = ["--config=configs/eval/linear.py:paper", root_flag, part]
    return found


if __name__ == "__main__":
    run(main, config_flag="")
