r"""Writes one self-contained page about a run, or about the evaluations of several.

    python launch/report.py --folder=WORKDIR
    python launch/report.py --folder=DIR --folder=DIR --output=FILE.html

A workdir alone gets a page of its training, of clusters on its images, and of all evaluations in folders below it.
Several folders (workdirs, or what evaluate.py wrote) are compared: scores with their deviation over seeds, beside
the paper's tables; classes; best and worst images; and every setting that moves a score.
"""

from pathlib import Path

from absl import flags
from cli import run
from rich.console import Console

from croc_jax.report import build_comparison, build_report

FOLDERS = flags.DEFINE_multi_string("folder", None, "A workdir, or what evaluate.py wrote; repeatable.", required=True)
OUTPUT = flags.DEFINE_string("output", "", "The page; by default report.html in the first folder.")


def main() -> None:
    """Writes the page."""
    folders = [Path(folder).expanduser() for folder in FOLDERS.value]
    file = Path(OUTPUT.value) if OUTPUT.value else folders[0] / "report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    alone = len(folders) == 1 and (folders[0] / "checkpoints").is_dir()
    written = build_report(folders[0], file=file) if alone else build_comparison(folders, file)
    Console().print(f"Open this page in a browser:\n  {written.resolve()}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
