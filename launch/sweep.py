r"""Trains and scores a model for each point of a grid of settings, and writes one page about all of them.

    python launch/sweep.py --sweep=configs/sweeps/ablations.py --workdir=DIR --where=local [--dry-run] \
        --config.data.sources=coco:path/to/coco --sweep.evaluations.linear_voc.dataset.root=voc:path/to/VOCdevkit

Each run has its folder DIR/NAME, named after the settings that differ from the center of the sweep, and is scored
by all evaluations of the sweep. --config.FIELD=VALUE holds for all runs. The same command again goes on: what is
finished stays, what was interrupted resumes, what is missing is scored. --where=slurm, lumi and k8s submit a job for
each by launch/WHERE/submit.sh, whose variables come from the environment.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from command_line import UserError, run
from jobs import CLUSTERS, preview, submit_due
from ml_collections import config_flags
from rich.console import Console
from sweeps import Failure, Sweep, name_damaged, read_sweep, run_here, run_program, write_report

from croc_jax.training.stopping import exit_status

SWEEP = config_flags.DEFINE_config_file("sweep", help_string="A sweep, such as configs/sweeps/ablations.py.")
CONFIG = flags.DEFINE_multi_string("config", [], "Another base config than that of the sweep.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the runs and the report go.", required=True)
WHERE = flags.DEFINE_enum("where", "local", ("local", *CLUSTERS), "Where the runs are.")
DRY_RUN = flags.DEFINE_bool("dry-run", False, "Print what would be run or submitted, and do nothing.")


def main() -> None:
    """Checks all runs, then does what is due."""
    console, workdir = Console(soft_wrap=True, highlight=False, markup=False), Path(WORKDIR.value)
    if len(CONFIG.value) > 1:
        raise UserError(f"--config={CONFIG.value[1]}: a sweep has one base")
    sweep = read_sweep(
        SWEEP.value,
        workdir,
        base="".join(CONFIG.value),
        overrides=[flag for flag in sys.argv[1:] if re.match(r"--?config\.", flag)],
        # A volume of Kubernetes need not be here.
        has_data=WHERE.value != "k8s" and not DRY_RUN.value,
    )
    if DRY_RUN.value:
        for line in preview(sweep, workdir, WHERE.value):
            print(line)
    elif WHERE.value == "local":
        run_all(sweep, workdir, console)
    else:
        for line in submit_due(sweep, workdir, WHERE.value):
            console.print(line)
        report(sweep, workdir, console)


def run_all(sweep: Sweep, workdir: Path, console: Console) -> None:
    """Runs a sweep on this machine; ends as a run does if a signal came, and with status 1 if something failed."""
    failures, signal_name = run_here(sweep, console, run_program)
    if signal_name:
        console.print(f"stopped by {signal_name}; the same command goes on")
        raise SystemExit(exit_status(signal_name))
    report(sweep, workdir, console, failures)
    for failure in failures:
        console.print(f"failed: {failure.what}, with status {failure.status}; see {failure.log}")
    if failures:
        console.print("the same command tries again what failed")
        raise SystemExit(1)


def report(sweep: Sweep, workdir: Path, console: Console, failures: Sequence[Failure] = ()) -> None:
    """Writes the page, once any run has been started, and names runs whose end is damaged."""
    page = write_report(sweep, workdir / "report.html", failures)
    if page:
        console.print(f"Open this page in a browser:\n  {page.resolve()}")
    for line in name_damaged(sweep):
        console.print(line)


if __name__ == "__main__":
    run(main, config_flag="sweep")
