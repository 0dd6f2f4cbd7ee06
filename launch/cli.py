"""What the programs share: flags, config files, and one line instead of a traceback for a user's mistake."""

import contextlib
import ctypes
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

# Flags that name a config file.
EXAMPLES = {"config": "configs/NAME.py"}

# Set, to its own process, by a program that starts another one, which is to end with it.
PARENT = "CROC_PARENT"
_PR_SET_PDEATHSIG = 1

TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where an error came from.")


# What programs need beyond the package itself, and the extra that brings it.
EXTRAS = {"matplotlib": "report"}


class UserError(ValueError):
    """A mistake on the command line; the message says what to do."""


def run(main: Callable[[], None], *, config_flag: str = "config") -> None:
    """Parses flags and runs a program; mistakes of the user end it with one line and status 1.

    A ValueError or a missing file is taken for a mistake of the user: that is how the library
    reports unusable settings and data. The flag --traceback shows more. A program that has the
    flag `config_flag` cannot do without a file for it.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            _check_config_exists(argv, config_flag)
            # Where --config may be repeated, `parse_configs` reads the overrides.
            several = "config" in flags.FLAGS and isinstance(flags.FLAGS["config"], flags.MultiFlag)
            return flags.FLAGS([a for a in argv if not (several and re.match(r"--?config\.", a))])
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

    end_with_parent()
    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=parse)


def explain_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Says in one line which extra is missing; all other errors look as ever.

    Programs import before they run: only the interpreter's own hook sees what is not there.
    """
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package not in EXTRAS or "--traceback" in sys.argv:
        sys.__excepthook__(kind, error, trace)
    else:
        _say(f"{package} is not installed: pip install 'croc_jax[{EXTRAS[package]}]'")


sys.excepthook = explain_missing


def end_with_parent() -> None:
    """Asks the kernel for a SIGTERM when the program that started this one is gone, if it wished so; on Linux alone."""
    parent = os.environ.pop(PARENT, "")
    if not parent or sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != int(parent):
        raise SystemExit("error: the program that started this one is gone")


def load_config_file(source: str) -> ConfigDict:
    """Runs get_config of a file named as on the command line, FILE.py or FILE.py:VARIANT."""
    name, _, variant = source.partition(":")
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None and spec.loader is not None, name
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant) if variant else module.get_config()


def parse_configs(argv: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
    """Returns several configs, each with the overrides --config.FIELD=VALUE that it has a field for.

    Args:
        argv: the command line.
        files: each FILE.py or FILE.py:VARIANT, as given by --config.

    Returns:
        The configs by name: the file's, with its variant, and a number where it comes twice.

    Raises:
        UserError: for an override that no config has a field for.
    """
    overrides, configs = [flag for flag in argv[1:] if re.match(r"--?config\.", flag)], {}
    known = [load_config_file(file).to_dict() for file in files]
    for flag in overrides:
        if not any(_has_field(config, flag) for config in known):
            parse_config(files[0], [flag])
    for file, fields in zip(files, known, strict=True):
        name = "-".join([Path(file.partition(":")[0]).stem, *file.split(":")[1:]])
        while name in configs:
            stem, _, number = name.partition(".")
            name = f"{stem}.{int(number or 1) + 1}"
        configs[name] = parse_config(file, [flag for flag in overrides if _has_field(fields, flag)])
    return configs


def _has_field(config: Any, flag: str) -> bool:
    for part in flag.partition("=")[0].split(".")[1:]:
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


def parse_config(file: str, overrides: Sequence[str]) -> Any:
    """Returns the config of a file with overrides --config.FIELD=VALUE; UserError names one that has no field."""
    argv, values = ["", f"--config={file}", *overrides], flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (AttributeError, KeyError) as error:
        raise UserError(_explain_override(error, argv)) from None
    except flags.Error as error:
        raise UserError(str(error).strip().splitlines()[-1]) from None
    return values["config"].value


class SpeedColumn(ProgressColumn):
    """What is done a second."""

    def render(self, task: Task) -> Text:
        """Returns the speed of the last seconds."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def make_progress(console: Console) -> Progress:
    """Returns bars with speed and time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        SpeedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
    )


def _check_config_exists(argv: list[str], required: str) -> None:
    """Raises UserError if a program gets no config file that it needs, or one that is not there."""
    if required not in flags.FLAGS or any(re.fullmatch("--?help(short|full)?", flag) for flag in argv):
        return
    given = {name: re.findall(rf"(?:^|\n)--?{name}[=\n]([^\n]*)", "\n".join(argv)) for name in EXAMPLES}
    if not given[required]:
        raise UserError(f"no configuration: add --{required}={EXAMPLES[required]}")
    for name, files in given.items():
        for file in files if name in flags.FLAGS else ():
            if not Path(file.partition(":")[0]).is_file():
                raise UserError(f"--{name}={file}: there is no such file")


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
