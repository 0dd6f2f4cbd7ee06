"""Compiles the training step for accelerators that are not there and prints what it needs, or writes docs/scaling.md.

    make chips TARGET=tpu
    .venv-chips/bin/python benchmarks/chips.py --only=vit_small-v5e-4 --config.backbone.remat=True
    make chips OUTPUT=docs/scaling.md

A row takes 2 to 8 minutes of CPU. All of its figures are kept in --results: an interrupted run resumes, and a row is
compiled again when its recipe, the sources or the compiler have changed. Nothing is measured on an accelerator; tables
of benchmarks/accelerator.py that are pasted under the page's last heading stay there.
"""

import signal

from absl import flags
from ml_collections import config_flags
from programs.rows import ROWS, find_figures
from programs.scaling_page import MEASURED, Entry, make_page, measured_section

from croc_jax.runtime.program import UserError, define_path, run, writable
from croc_jax.training.config_dict import recipe_config

ONLY = flags.DEFINE_multi_enum("only", None, [row.name for row in ROWS], "Row to compile; repeatable.")
OUTPUT = define_path("output", None, "File for the page, instead of printing it; keeps its measurements.")
RESULTS = define_path("results", "runs/chips", "Folder for the figures of each row.")
DUMP = define_path("dump", None, "Folder for the text of each program.")
CONFIG = config_flags.DEFINE_config_dict("config", recipe_config(), "Fields of the recipe, for all rows.")


def main() -> None:
    """Compiles the rows without figures, and prints or writes the page."""
    # SIGTERM ends the process that compiles, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    changes = config_flags.get_override_values(flags.FLAGS["config"])
    if changes and OUTPUT.value:
        raise UserError("the page describes the configured recipes: --output takes no --config.FIELD")
    chosen = [row for row in ROWS if not ONLY.value or row.name in ONLY.value]
    rows = [row._replace(fields={**row.fields, **changes}) for row in chosen]
    path, name = (OUTPUT.value, "--output") if OUTPUT.value else (RESULTS.value, "--results")
    with writable(path, name=name, is_file=OUTPUT.value is not None):
        found = find_figures(rows, folder=RESULTS.value, dump=DUMP.value)
    entries = [Entry(row.title, row.topology, figures) for row, figures in zip(rows, found, strict=True)]
    if not OUTPUT.value:
        print(make_page(entries))
        return
    file = OUTPUT.value
    measured = measured_section(file.read_text(encoding="utf-8")) if file.exists() else MEASURED
    file.write_text(make_page(entries, measured), encoding="utf-8")


if __name__ == "__main__":
    run(main)
