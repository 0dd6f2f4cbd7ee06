"""What a trial finds: rows that are kept as they come, failures among them, and a table of all at the end."""

import json
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

OK, TOO_FAR, FAILED, TOO_LARGE = "ok", "too far", "failed", "out of memory"
# Length of an error in the table; the log of its phase has the rest.
_MAX_CHARACTERS = 200


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        phase: name of the phase.
        name: what was measured or checked.
        figure: what was found, for readers.
        verdict: "ok", "too far", "failed", "out of memory", or empty.
        numbers: what was found, for programs.
    """

    phase: str
    name: str
    figure: str
    verdict: str = ""
    numbers: dict[str, Any] = {}

    @property
    def is_bad(self) -> bool:
        """Whether it needs attention; a batch that does not fit is no error."""
        return self.verdict in (TOO_FAR, FAILED)


class Report:
    """Prints each row of a phase at once and appends it to a file, so that a killed phase loses none."""

    def __init__(self, phase: str, file: Path, *, say: Callable[[str], None] = print) -> None:
        """Appends to a file with one JSON object a line; `say` prints a line."""
        self.phase, self._file, self.say = phase, file, say

    def __call__(self, name: str, figure: str, verdict: str = "", **numbers: Any) -> None:
        """Adds a row."""
        row = Row(self.phase, name, figure, verdict, numbers)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row._asdict()) + "\n")
        self.say(f"  {name}: {figure}{f' ({verdict})' if verdict else ''}")


def attempt(report: Report, function: Callable[[], Any], name: str = "the whole phase") -> bool:
    """Calls a function and returns whether it succeeded; an error becomes a row, so that later checks still run."""
    try:
        function()
    except Exception as error:
        traceback.print_exc()
        report(name, first_line(error), FAILED)
        return False
    return True


def first_line(error: BaseException | str) -> str:
    """Returns the first line of an error with its type."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")[:_MAX_CHARACTERS]


def read_rows(file: Path) -> list[Row]:
    """Returns the rows of a file, which may be missing or end in the middle of a row."""
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
        table.add_row(row.phase, row.name, row.figure, row.verdict, style="red" if row.is_bad else None)
    console.print(table)


def write_findings(folder: Path, title: str, rows: Sequence[Row]) -> list[Path]:
    """Writes accelerator.md, to be pasted into docs/scaling.md, and accelerator.json; returns both paths."""
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
