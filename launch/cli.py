"""Shared by the programs: flags, config files, progress bars, and one-line messages for a user's mistakes."""

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich import progress
from rich.console import Console
from rich.text import Text

# Packages that only some programs need, and the extra that installs each.
EXTRAS = {"matplotlib": "report"}
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the traceback of an error.")


class UserError(ValueError):
    """A mistake on the command line; the message says what to do."""


def run(main: Callable[[], None], *, config_flag: str = "config") -> None:
    """Parses flags and runs a program; a user's mistake ends it with one line and status 1.

    ValueError and FileNotFoundError count as such mistakes: the library raises them for unusable settings and data.
    The flag --traceback shows more.

    Args:
        main: the program.
        config_flag: flag that must name a config file, if the program has it.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            _check_config_exists(argv, config_flag)
            # Where --config may be repeated, `parse_configs` reads the overrides.
            is_repeated = "config" in flags.FLAGS and isinstance(flags.FLAGS["config"], flags.MultiFlag)
            return flags.FLAGS([flag for flag in argv if not (is_repeated and _is_override(flag))])
        except (AttributeError, KeyError) as error:
            raise SystemExit(f"error: {_explain_override(error, argv)}") from None
        except (UserError, flags.Error) as error:
            # An error in a config file comes with its whole traceback, which ends in the reason.
            raise SystemExit(f"error: {str(error).strip().splitlines()[-1]}") from None

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise SystemExit(f"error: unexpected argument {argv[1]!r}: flags look like --name=value")
        try:
            main()
        except (ValueError, FileNotFoundError) as error:
            if TRACEBACK.value:
                raise
            raise SystemExit(f"error: {error}") from None

    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=parse)


def explain_missing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Names the extra of croc_jax that installs a missing package, in one line; other errors keep their traceback."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if package not in EXTRAS or "--traceback" in sys.argv:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {package} is not installed: pip install 'croc_jax[{EXTRAS[package]}]'", file=sys.stderr)


# Programs import packages before `run` could catch an error.
sys.excepthook = explain_missing


def define_colors() -> Callable[[], dict[str, tuple[float, ...]]]:
    """Defines --image_mean and --image_std; returns a function to those that are given, by name."""
    text = "of red, green and blue, for weights whose files do not state it, such as 0.430,0.411,0.296."
    values = {
        name: flags.DEFINE_list(name, None, f"{what} {text}")
        for name, what in (("image_mean", "Mean"), ("image_std", "Standard deviation"))
    }

    def read() -> dict[str, tuple[float, ...]]:
        found = {}
        for name, flag in values.items():
            try:
                found |= {} if flag.value is None else {name: tuple(float(value) for value in flag.value)}
            except ValueError:
                raise UserError(f"--{name}={','.join(flag.value or ())}: expected three numbers from 0 to 1") from None
        return found

    return read


def load_config_file(source: str) -> ConfigDict:
    """Returns the config of a file named as on the command line, FILE.py or FILE.py:VARIANT."""
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
        files: values of --config, FILE.py or FILE.py:VARIANT.

    Returns:
        The configs by file name and variant, with a number where a name repeats.

    Raises:
        UserError: for an override that no config has a field for.
    """
    overrides, configs = [flag for flag in argv[1:] if _is_override(flag)], {}
    fields = [load_config_file(file).to_dict() for file in files]
    for flag in overrides:
        if not any(_has_field(config, flag) for config in fields):
            parse_config(files[0], [flag])
    for file, known in zip(files, fields, strict=True):
        stem = name = "-".join([Path(file.partition(":")[0]).stem, *file.split(":")[1:]])
        number = 1
        while name in configs:
            number += 1
            name = f"{stem}.{number}"
        configs[name] = parse_config(file, [flag for flag in overrides if _has_field(known, flag)])
    return configs


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


class SpeedColumn(progress.ProgressColumn):
    """Units per second."""

    def render(self, task: progress.Task) -> Text:
        """Returns the recent speed."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def make_progress(console: Console) -> progress.Progress:
    """Returns progress bars with speed and time left."""
    columns = ("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn(), SpeedColumn())
    return progress.Progress(*columns, progress.TextColumn("ETA"), progress.TimeRemainingColumn(), console=console)


def _is_override(flag: str) -> bool:
    return re.match(r"--?config\.", flag) is not None


def _has_field(config: Any, flag: str) -> bool:
    for part in flag.partition("=")[0].split(".")[1:]:
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


def _check_config_exists(argv: Sequence[str], required: str) -> None:
    """Raises UserError if a program lacks the config file that it needs, or there is no such file."""
    if required not in flags.FLAGS or any(re.fullmatch("--?help(short|full)?", flag) for flag in argv):
        return
    files = re.findall(rf"(?:^|\n)--?{required}[=\n]([^\n]*)", "\n".join(argv))
    if not files:
        raise UserError(f"no configuration: add --{required}=configs/NAME.py")
    for file in files:
        if not Path(file.partition(":")[0]).is_file():
            raise UserError(f"--{required}={file}: there is no such file")


def _explain_override(error: Exception, argv: Sequence[str]) -> str:
    """Names the flag that overrides an unknown field of a config, and the nearest known one."""
    # ConfigDict says: 'epoch' Did you mean "epochs" instead of "epoch"? The second part is optional.
    words = re.findall(r"\w+", str(error).replace("\\n", " "))
    name = words[0] if words else ""
    near = re.search(r'Did you mean "(\w+)"', str(error))
    given = next((flag for flag in argv if name in flag.partition("=")[0].split(".")), "the flags")
    hint = f"did you mean {near.group(1)}?" if near else "see the config file for the fields that exist"
    return f"unknown field {name} in {given}; {hint}"
