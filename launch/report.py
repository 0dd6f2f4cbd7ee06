r"""Writes one self-contained page about a run, or about the evaluations of several.

    python launch/report.py --folder=WORKDIR
    python launch/report.py --folder=DIR --folder=DIR --output=FILE.html

A workdir alone gets a page of its training, of clusters on its images, and of all evaluations in folders below it.
Several folders (workdirs, or what evaluate.py wrote) are compared: scores with their deviation over seeds, beside
the paper's tables; classes; best and worst images; and every setting that moves a score.
"""

from cli import UserError, define_path, define_paths, run, writable
from rich.console import Console

from croc_jax.report import build_comparison, build_report

FOLDERS = define_paths("folder", "A workdir, or what evaluate.py wrote; repeatable.", required=True)
OUTPUT = define_path("output", "", "The page; by default report.html in the first folder.")


def main() -> None:
    """Writes the page."""
    folders = FOLDERS.value
    if files := [str(path) for path in folders if not path.is_dir()]:
        raise UserError(f"--folder={files[0]} is a file: name a workdir, or a folder that evaluate.py wrote")
    file = OUTPUT.value or folders[0] / "report.html"
    if file.suffix not in (".html", ".htm"):
        raise UserError(f"--output={file}: name a file that ends in .html")
    alone = len(folders) == 1 and (folders[0] / "checkpoints").is_dir()
    with writable(file, name="--output", is_file=True):
        written = build_report(folders[0], file=file) if alone else build_comparison(folders, file)
    Console().print(f"Open this page in a browser:\n  {written.resolve()}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
