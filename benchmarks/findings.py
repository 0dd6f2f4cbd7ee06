"""What the phases of a trial find: rows as they come, failures among them, a table at the end and two files."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

OK, TOO_FAR, FAILED, TOO_LARGE = "ok", "too far", "failed", "out of memory"
# Of an error: the rest is in the log of its phase.
_MOST_CHARACTERS = 200


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        phase: that found it.
        name: what was looked at.
        figure: what was found, to be read.
        verdict: "ok", "too far", "failed", "out of memory", or nothing.
        numbers: the same for programs.
    """

    phase: str
    name: str
    figure: str
    verdict: str = ""
    numbers: dict[str, Any] = {}

    @property
    def is_bad(self) -> bool:
        """Whether someone has to look at it; a batch that does not fit is no error."""
        return self.verdict in (TOO_FAR, FAILED)


class Report:
    """Takes the rows of a phase, says each at once, and keeps it in a file: a killed phase loses none."""

    def __init__(self, phase: str, file: Path, *, say: Callable[[str], None] = print) -> None:
        """Adds to what the file holds.

        Args:
            phase: whose rows these are.
            file: one JSON object a line.
            say: shows a line.
        """
        self.phase, self._file, self.say = phase, file, say

    def __call__(self, name: str, figure: str, verdict: str = "", **numbers: Any) -> None:
        """Takes a row."""
        row = Row(self.phase, name, figure, verdict, numbers)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row._asdict()) + "\n")
        self.say(f"  {name}: {figure}{f' ({verdict})' if verdict else ''}")


def attempt(report: Report, function: Callable[[], Any], name: str = "the whole phase") -> bool:
    """Calls a function; an error becomes a row, so that what comes later still runs. Returns whether it went well."""
    try:
        function()
    except Exception as error:
        import traceback

        traceback.print_exc()
        report(name, first_line(error), FAILED)
        return False
    return True


def first_line(error: BaseException | str) -> str:
    """Returns the first line of an error with its type."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")[:_MOST_CHARACTERS]


def read_rows(file: Path) -> list[Row]:
    """Returns the rows of a file, which may be missing or end in the middle of one."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        try:
            rows.append(Row(**json.loads(line)))
        except ValueError:
            break
    return rows


def print_rows(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Prints the table."""
    table = Table("phase", "what", "found", "verdict", title=title)
    for row in rows:
        style = "red" if row.is_bad else None
        table.add_row(row.phase, row.name, row.figure, row.verdict, style=style)
    console.print(table)


def write_findings(folder: Path, title: str, rows: Sequence[Row]) -> list[Path]:
    """Writes accelerator.md, to be pasted into a page, and accelerator.json; returns both paths."""
    date = time.strftime("%Y-%m-%d")
    cells = [(row.phase, row.name, row.figure, row.verdict) for row in rows]
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) for line in cells]
    page = [f"### {title}, {date}", "", "Measured by `python benchmarks/accelerator.py`.", ""]
    page += ["| phase | what | found | verdict |", "|---|---|---|---|", *(f"| {line} |" for line in lines), ""]
    markdown, data = folder / "accelerator.md", folder / "accelerator.json"
    markdown.write_text("\n".join(page), encoding="utf-8")
    found = {"title": title, "date": date, "rows": [row._asdict() for row in rows]}
    data.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return [markdown, data]
