"""What the programs share: flags, config files, and one line instead of a traceback for a user's mistake."""

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from.")


class UserError(ValueError):
    """A mistake on the command line; the message says what to do."""


def run(main: Callable[[], None]) -> None:
    """Parses flags and runs a program; mistakes of the user end it with one line and status 1.

    A ValueError or a missing file is taken for a mistake of the user: that is how the library
    reports unusable settings and data. The flag --traceback shows more.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            _check_config_exists(argv)
            return flags.FLAGS(argv)
        except (AttributeError, KeyError) as error:
            raise SystemExit(_say(_explain_override(error, argv))) from None
        except (UserError, flags.Error) as error:
            # What a config file raises comes with its whole traceback, ending in the reason.
            raise SystemExit(_say(str(error).strip().splitlines()[-1])) from None

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise SystemExit(_say(f"unexpected argument {argv[1]!r}: flags look like --name=value"))
        try:
            main()
        except (ValueError, FileNotFoundError) as error:
            if TRACEBACK.value:
                raise
            raise SystemExit(_say(error)) from None

    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=parse)


def load_config_file(source: str) -> ConfigDict:
    """Runs get_config of a file named as on the command line, FILE.py or FILE.py:VARIANT."""
    name, _, variant = source.partition(":")
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None and spec.loader is not None, name
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def _check_config_exists(argv: list[str]) -> None:
    """Raises UserError if a program that needs --config gets none, or no file."""
    if "config" not in flags.FLAGS or any(re.fullmatch("--?help(short|full)?", flag) for flag in argv):
        return
    given = re.search(r"(?:^|\n)--?config[=\n]([^\n]*)", "\n".join(argv))
    if given is None:
        raise UserError("no configuration: add --config=configs/NAME.py")
    if not Path(given[1].partition(":")[0]).is_file():
        raise UserError(f"--config={given[1]}: there is no such file")


def _explain_override(error: Exception, argv: list[str]) -> str:
    """Names the flag that overrides an unknown field of a config, and the nearest known one."""
    # ConfigDict says: 'epoch' Did you mean "epochs" instead of "epoch"? The second part is optional.
    words = re.findall(r"\w+", str(error).replace("\\n", " "))
    name = words[0] if words else ""
    near = re.search(r'Did you mean "(\w+)"', str(error))
    given = next((flag for flag in argv if name in flag.partition("=")[0].split(".")), "the flags")
    hint = f"did you mean {near.group(1)}?" if near else "see the config file for the fields that exist"
    return f"unknown field {name} in {given}; {hint}"


def _say(message: object) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1
