"""Runs the programs of launch/ in this process: the same as from the command line, but for the time of imports."""

import contextlib
import importlib
import runpy
import sys
from pathlib import Path

import pytest
from absl import flags

ROOT = Path(__file__).resolve().parents[2]


def run_program(name, *argv):
    """Runs launch/NAME.py with these flags; a user's mistake raises ValueError."""
    with on_command_line(name, *argv):
        main = runpy.run_path(f"launch/{name}.py", run_name=name)["main"]
        flags.FLAGS([flag for flag in sys.argv if not flag.startswith("--config.")])
        main()


def end_program(path, *argv):
    """Runs a program of this repository to its end; returns the status, or the message that it ends with."""
    with on_command_line(path, *argv), pytest.raises(SystemExit) as end:
        runpy.run_path(path, run_name="__main__")
    return end.value.code


@contextlib.contextmanager
def on_command_line(name, *argv):
    """Puts flags on the command line; the flags of the program are gone afterwards, as others have the same names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "launch"))
        patch.setattr(sys, "argv", [name, *map(str, argv)])
        patch.chdir(ROOT)
        # These define flags that stay.
        for module in ("cli", "grain"):
            importlib.import_module(module)
        before, was_parsed = set(flags.FLAGS), flags.FLAGS.is_parsed()
        try:
            yield
        finally:
            for flag in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, flag)
            if not was_parsed:
                flags.FLAGS.unparse_flags()
