"""The lines of text files that people write or export: encodings, line ends and comments in one place."""

import codecs
import os
import re
from typing import NamedTuple

from croc_jax.machine_errors import is_machine_error
from croc_jax.regular_files import read_regular

# Of UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Of Linux; other systems allow less.
_LONGEST_PATH = 4096


class Line(NamedTuple):
    """One line of a file.

    Attributes:
        number: from 1, empty lines and comments included.
        text: without the space around it.
    """

    number: int
    text: str

    def error(self, file: str | os.PathLike, reason: str) -> ValueError:
        """Returns the error of a line that cannot be used; the message has file, number and text."""
        text = self.text if len(self.text) <= 100 else f"{self.text[:100]}..."
        return ValueError(f"{file}, line {self.number}, {text!r}: {reason}")


def read_lines(file: str | os.PathLike, *, what: str, comments: bool = True) -> list[Line]:
    """Returns the lines of a UTF-8 text, or of UTF-16 with its byte order mark, that are not empty.

    Bytes that are no UTF-8 stand for themselves, as in the names of files (`os.fsdecode`).

    Args:
        file: the text; lines end as on any system.
        what: name of the list in messages, such as "list of images".
        comments: whether lines that start with # are left out.

    Raises:
        ValueError: for a missing or unreadable file, or one that is no text.
        OSError: for a fault of the machine.
    """
    try:
        content = read_regular(file)
    except OSError as error:
        if is_machine_error(error):
            raise
        raise ValueError(f"cannot read the {what} {file}: {error.strerror or error} (now in {os.getcwd()})") from error
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(f"the {what} {file} is no text ({error}): save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"the {what} {file} is no text: it holds bytes of value 0; save it as UTF-8")
    # Not splitlines: names may hold other characters that it splits at. Ctrl-Z ended a text on DOS.
    lines = (line.strip() for line in re.split("\r\n|\r|\n", text.rstrip("\x1a")))
    found = [
        Line(number, line) for number, line in enumerate(lines, 1) if line and not (comments and line.startswith("#"))
    ]
    if long := next((line for line in found if len(line.text) > _LONGEST_PATH), None):
        raise long.error(file, f"{len(long.text)} characters are no path: write one a line")
    return found


def check_unique(file: str | os.PathLike, lines: list[Line]) -> None:
    """Raises ValueError at the first line whose text has occurred before."""
    first: dict[str, int] = {}
    for line in lines:
        if line.text in first:
            raise line.error(file, f"line {first[line.text]} names it already: remove one")
        first[line.text] = line.number
