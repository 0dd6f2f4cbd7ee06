"""Config files on the command line, and progress bars, for the programs; `run` also explains mistakes in them."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from rich import progress
from rich.console import Console
from rich.text import Text

from croc_jax.pixel_format import DTYPES
from croc_jax.runtime import program
from croc_jax.runtime.program import UserError, define_path, define_paths, writable

__all__ = [
    "SpeedColumn", "UserError", "define_colors", "define_path", "define_paths", "load_config_file", "make_progress",
    "parse_config", "parse_configs", "run", "writable",
]  # fmt: skip

# Flags that functions of this module define belong to the program.
flags.disclaim_key_flags()


def run(main: Callable[[], None], *, config_flag: str = "config") -> None:
    """Runs a program, see `croc_jax.runtime.program.run`; mistakes in config files and overrides are one line, too.

    Args:
        main: the program.
        config_flag: flag that must name a config file, if the program has it.
    """

    def parse(argv: list[str]) -> list[str]:
        _check_config_files(argv, config_flag)
        # Where --config may be repeated, `parse_configs` reads the overrides.
        is_repeated = "config" in flags.FLAGS and isinstance(flags.FLAGS["config"], flags.MultiFlag)
        try:
            return flags.FLAGS([flag for flag in argv if not (is_repeated and _is_override(flag))])
        except (AttributeError, KeyError) as error:
            raise UserError(_explain_override(error, argv)) from None

    # Shells expand ~ at the start of a word alone.
    sys.argv[1:] = [re.sub(r"^(--?(?:eval_)?config=)(~.*)", _expand, flag) for flag in sys.argv[1:]]
    program.run(main, parse=parse)


def load_config_file(source: str, flag: str = "--config") -> ConfigDict:
    """Returns the config of a file named as on the command line, FILE.py or FILE.py:VARIANT.

    Args:
        source: the file.
        flag: the flag that names it, for messages.

    Raises:
        UserError: if it is no config file, with the place of the error in it.
    """
    file, _, variant = source.partition(":")
    if not Path(file).is_file():
        raise UserError(f"{flag}={source}: there is no such file")
    module: dict[str, Any] = {"__name__": "config", "__file__": file}
    try:
        exec(compile(Path(file).read_bytes(), file, "exec"), module)
        config = module["get_config"](variant) if variant else module["get_config"]()
    except Exception as error:  # whatever a file can do
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        text = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
        if isinstance(error, KeyError) and "get_config" not in module:
            text = "has no function get_config: name a file such as those in configs/"
        elif isinstance(error, TypeError) and variant and not lines:
            text = "this file has no variants: leave out what follows the colon"
        elif isinstance(error, ValueError) and lines:
            text = str(error)
        raise UserError(f"{flag}={source}: {text}{f' (line {line})' if line else ''}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{flag}={source}: get_config returns a {type(config).__name__}, not a ConfigDict")
    return config


def define_colors() -> Callable[[], dict[str, Any]]:
    """Defines --image_mean, --image_std, --image_range and --image_dtype; returns a function to those given."""
    text = "of each channel, from 0 to 1, for weights whose files do not state it, such as 0.430,0.411,0.296."
    values = {
        name: flags.DEFINE_list(name, None, what)
        for name, what in (
            ("image_mean", f"Mean {text}"),
            ("image_std", f"Standard deviation {text}"),
            ("image_range", "Values that become 0 and 1, such as 0,10000; or two for each channel."),
        )
    }
    dtype = flags.DEFINE_enum(
        "image_dtype", None, DTYPES, "Type of the values of images, for weights whose files do not state it."
    )

    def read() -> dict[str, Any]:
        found: dict[str, Any] = {} if dtype.value is None else {"image_dtype": dtype.value}
        for name, flag in values.items():
            try:
                found |= {} if flag.value is None else {name: tuple(float(value) for value in flag.value)}
            except ValueError:
                raise UserError(f"--{name}={','.join(flag.value or ())}: expected numbers, joined by commas") from None
        return found

    return read


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
    """Returns the config of a file with overrides --config.FIELD=VALUE; UserError names what is wrong with either."""
    load_config_file(file)
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


def _expand(flag: re.Match[str]) -> str:
    return flag[1] + os.path.expanduser(flag[2])


def _is_override(flag: str) -> bool:
    return re.match(r"--?config\.", flag) is not None


def _has_field(config: Any, flag: str) -> bool:
    for part in flag.partition("=")[0].split(".")[1:]:
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


def _check_config_files(argv: Sequence[str], required: str) -> None:
    """Raises UserError if a program lacks the config file that it needs, or a file that is given is none."""
    if any(re.fullmatch("--?help(short|full)?", flag) for flag in argv):
        return
    for name in (required, "eval_config"):
        files = re.findall(rf"(?:^|\n)--?{name}[=\n]([^\n]*)", "\n".join(argv)) if name in flags.FLAGS else ()
        if name == required and name in flags.FLAGS and not files:
            raise UserError(f"no configuration: add --{required}=configs/NAME.py")
        for file in files:
            load_config_file(file, f"--{name}")


def _explain_override(error: Exception, argv: Sequence[str]) -> str:
    """Names the flag that overrides an unknown field of a config, and the nearest known one."""
    # ConfigDict says: 'epoch' Did you mean "epochs" instead of "epoch"? The second part is optional.
    words = re.findall(r"\w+", str(error).replace("\\n", " "))
    name = words[0] if words else ""
    near = re.search(r'Did you mean "(\w+)"', str(error))
    given = next((flag for flag in argv if name in flag.partition("=")[0].split(".")), "the flags")
    hint = f"did you mean {near.group(1)}?" if near else "see the config file for the fields that exist"
    return f"unknown field {name} in {given}; {hint}"
