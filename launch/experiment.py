r"""Trains and scores all rows of an experiment, with a table that grows while it runs; `make experiment` runs it.

    python launch/experiment.py --config=configs/experiments/small.py --workdir=runs/experiment \
        --images=path/to/photos --data=path/to/labeled

The config file says what the rows are, and what data sets lie below --data. Each row and seed has a workdir in
WORKDIR, with what launch/pretrain.py and launch/evaluate.py print in log.txt. SIGTERM and Ctrl-C save what runs and end
with status 75 and 130; the same command goes on, and does nothing again. WORKDIR gets experiment.json, .md and .html;
with a --part other than the config file's, experiment-PART.json and so on.
"""

import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from cli import define_path, run, writable
from commands import on_signals
from experiment_jobs import Jobs, count_cores
from experiment_plan import Places, check_data, find_columns, make_runs, note_untrained, read_experiment
from experiment_progress import Display
from experiment_results import collect
from ml_collections import config_flags
from rich.console import Console

from croc_jax.atomic_write import atomic_write
from croc_jax.report.experiment import render_markdown
from croc_jax.runtime.preemption import EXIT_STATUS, EXIT_STATUS_OF_SIGINT

CONFIG = config_flags.DEFINE_config_file("config", help_string="The experiment, such as configs/experiments/small.py.")
WORKDIR = define_path("workdir", "runs/experiment", "Folder of all runs.")
IMAGES = define_path("images", "data/imagenette/train", "Folder of the images to train on.")
DATA = define_path("data", "data", "Folder that holds the labeled data sets.")
JOBS = flags.DEFINE_integer("jobs", None, "Runs at a time, which share the CPU cores; 0 for one a core.", lower_bound=0)
ROWS = flags.DEFINE_multi_string("row", [], "One row alone, by its name in the config file; may be repeated.")
PART = flags.DEFINE_enum("part", None, ("all", "tuning", "reporting"), "The validation images to score.")
EXPORT = define_path("export", None, "A copy of experiment.json in the end, with its figures beside it.")
PRINT = flags.DEFINE_bool("print", False, "Print the commands instead of running them.")
_SECONDS_BETWEEN_LOOKS = 1.0


def main() -> None:
    """Plans, trains, scores, and writes the tables after each score."""
    experiment = read_experiment(CONFIG.value.to_dict())
    part, workdir = PART.value or experiment.part, WORKDIR.value
    places = Places(workdir, IMAGES.value, DATA.value, part)
    columns = find_columns(experiment, places)
    runs = make_runs(experiment, places, rows=ROWS.value)
    if PRINT.value:
        with writable(workdir, name="--workdir"):
            note_untrained(runs)
        for one in runs:
            for command in filter(None, (one.training, *one.scorings.values())):
                print(shlex.join(["python", *command.arguments]))
        return
    check_data(runs, columns, places)
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]).stem
    # The rows that --row leaves out keep what they have.
    known = runs if not ROWS.value else make_runs(experiment, places)

    file = workdir / f"experiment{'' if part == experiment.part else f'-{part}'}.json"

    def write() -> dict[str, Any]:
        content = collect(experiment, known, columns, name=name, part=part)
        write_tables(content, file)
        return content

    with writable(workdir, name="--workdir"):
        note_untrained(runs)
        count = (experiment.jobs if JOBS.value is None else JOBS.value) or count_cores()
        if count > 1:
            # Programs that share an accelerator may not take its memory in advance.
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        # Runs differ in few settings: most programs of one are those of another, and need not be compiled again.
        with tempfile.TemporaryDirectory() as compiled:
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
            status = work(Jobs(runs, count), write)
    if status:
        raise SystemExit(status)
    content = write()
    write_page(content, file.with_suffix(".html"))
    if EXPORT.value is not None:
        export(content, EXPORT.value)


def work(jobs: Jobs, write) -> int:
    """Runs all jobs; returns 0, or the exit status after a signal or a failure, once all programs have ended.

    Args:
        jobs: what is to be done.
        write: writes the tables anew, and returns their content.
    """
    console, received = Console(soft_wrap=True, highlight=False, markup=False), []

    def stop(number: int) -> None:
        received.append(signal.Signals(number).name)
        jobs.stop()

    with Display(console, jobs, write()) as display, on_signals(stop, signal.SIGTERM, signal.SIGINT):
        try:
            while jobs.advance():
                for job in jobs.take_ended():
                    display.update(write(), job)
                display.refresh()
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            # After an error, such as a full disk, nothing goes on unseen.
            jobs.stop()
    if jobs.failed and not received:
        for job in jobs.failed:
            console.print(f"error: {job.explain()}")
        return jobs.failed[0].status or 1
    if received:
        console.print(f"stopped by {received[0]}; to go on, run the same command:\n  python {shlex.join(sys.argv)}")
        return EXIT_STATUS_OF_SIGINT if received[0] == "SIGINT" else EXIT_STATUS
    return 0


def write_tables(content: Mapping[str, Any], file: Path) -> None:
    """Writes the content of an experiment, and its tables in Markdown beside it, each whole or not at all."""
    atomic_write(file, f"{json.dumps(content, indent=1)}\n".encode())
    atomic_write(file.with_suffix(".md"), "\n".join(render_markdown(content)).encode())


def write_page(content: Mapping[str, Any], file: Path) -> None:
    """Writes tables and figures as one page."""
    # It imports matplotlib, which the rest works without.
    from croc_jax.report.experiment_page import write_experiment_page

    write_experiment_page(content, file)


def export(content: Mapping[str, Any], file: Path) -> None:
    """Writes the content to a file, and each figure beside it."""
    from croc_jax.report.experiment_page import make_figures

    with writable(file, name="--export", is_file=True):
        atomic_write(file, f"{json.dumps(content, indent=1)}\n".encode())
        for name, figure in make_figures(content).items():
            figure.savefig(file.with_name(f"{file.stem}-{name}.png"))


if __name__ == "__main__":
    run(main)
