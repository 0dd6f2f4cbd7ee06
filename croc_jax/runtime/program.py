"""What all programs share: flags that hold paths, folders to write to, and one line for whatever a user can mend."""

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from absl import app, flags, logging

from croc_jax.paths import file_in_the_way, local_path
from croc_jax.version import __version__

# Packages that not all installations have, and the extra that installs each.
EXTRAS = {
    "datasets": "hf", "flatbuffers": "export", "matplotlib": "report", "nbclient": "notebooks",
    "nbformat": "notebooks", "pyarrow": "embed", "tensorflow_datasets": "tfds", "torch": "torch",
}  # fmt: skip
# Modes of JAX that the environment can set, in which programs would compute something else, or nothing.
_MODES = {
    "jax_enable_x64": False, "jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow",
    "jax_disable_jit": False, "jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": True,
}  # fmt: skip
# What installs support for a platform.
_PLATFORMS = {"cuda": "pip install 'croc_jax[cuda]'", "tpu": "pip install 'croc_jax[tpu]'",
              "rocm": "install the plugins of JAX for ROCm"}  # fmt: skip
_INTERRUPTED = "stopped by an interrupt"

TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the traceback of an error.")
flags.DEFINE_bool("version", False, "Print the version and end.")
# Those defined by functions of this module belong to the program, whose help then shows them.
flags.disclaim_key_flags()


class UserError(ValueError):
    """A mistake on the command line; the message says what to do."""


class _PathParser(flags.ArgumentParser):
    """Reads a flag as a path on a mounted disk."""

    syntactic_help = "a path"

    def __init__(self, name: str, words: Sequence[str], *, may_be_empty: bool) -> None:
        self._name, self._words, self._may_be_empty = name, words, may_be_empty

    def parse(self, argument: str | Path) -> Any:
        if argument in self._words:
            return argument
        if argument == "" and self._may_be_empty:
            return None
        try:
            return local_path(argument, name=f"--{self._name}")
        except ValueError as error:
            raise flags.IllegalFlagValueError(str(error)) from error


def define_path(
    name: str,
    default: str | None,
    text: str,
    *,
    required: bool = False,
    must_exist: bool = False,
    words: Sequence[str] = (),
) -> flags.FlagHolder[Any]:
    """Defines a flag with a path: ~ is expanded, and a URL is an error before the program starts.

    Args:
        name: name of the flag.
        default: its default; None, or "" for a flag that may be given empty, which is None, too.
        text: its help.
        required: whether it must be given.
        must_exist: whether a path where nothing is is an error, too.
        words: values that are no paths and are kept as they are, such as "random".
    """
    parser = _PathParser(name, words, may_be_empty=default == "")
    holder = flags.DEFINE(parser, name, default, text, serializer=flags.ArgumentSerializer(), required=required)
    if must_exist:
        flags.register_validator(holder, lambda path: path is None or path in words or _check_exists(name, path))
    return holder


def define_paths(name: str, text: str, *, required: bool = False) -> flags.FlagHolder[Any]:
    """Defines a flag with a path that exists, and that may be repeated; see `define_path`."""
    parser = _PathParser(name, (), may_be_empty=False)
    flag = flags.MultiFlag(parser, flags.ArgumentSerializer(), name, None, text)
    holder = flags.DEFINE_flag(flag, required=required)
    flags.register_validator(holder, lambda paths: all(_check_exists(name, path) for path in paths or ()))
    return holder


def _check_exists(name: str, path: Path) -> bool:
    if not os.path.lexists(path):
        raise flags.IllegalFlagValueError(f"--{name}={path}: there is no such file or folder (now in {os.getcwd()})")
    return True


@contextlib.contextmanager
def writable(path: Path, *, name: str, is_file: bool = False) -> Iterator[Path]:
    """Makes a folder before any work, and removes what it has made and nothing was written to if the block raises.

    Args:
        path: the folder, or a file in it, that the block writes.
        name: the flag that names it, such as "--output".
        is_file: whether the path is that of a file.

    Raises:
        UserError: if the folder cannot be made, no file can be made in it, or the file is a folder.
    """
    if is_file and path.is_dir():
        raise UserError(f"{name}={path} is a folder: name a file")
    folder, made = path.parent if is_file else path, []
    try:
        try:
            made = [one for one in (folder, *folder.parents) if not one.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            file = file_in_the_way(folder)
            reason = f"{file} is a file, not a folder" if file else f"{folder}: {error.strerror}"
            raise UserError(f"{name}={path}: cannot write there: {reason}") from error
        yield path
    except BaseException:
        for one in made:
            with contextlib.suppress(OSError):
                one.rmdir()
        raise


def run(main: Callable[[], None], *, parse: Callable[[list[str]], list[str]] | None = None) -> None:
    """Parses flags and runs a program; what a user can mend ends it with one line and status 1.

    ValueError and OSError count as such: the library raises them for unusable settings and data. The flag --traceback
    shows more.

    Args:
        main: the program.
        parse: parses the command line; by default all of it is flags.
    """

    def parse_or_explain(argv: list[str]) -> list[str]:
        if any(re.fullmatch("--?version", argument) for argument in argv[1:]):
            print(f"croc_jax {__version__}")
            raise SystemExit(0)
        try:
            return (parse or flags.FLAGS)(argv)
        except (UserError, flags.Error) as error:
            # An error in a config file comes with its whole traceback, which ends in the reason.
            line = str(error).strip().splitlines()[-1].removeprefix("flag ")
            line = re.sub("^--(.*)=None: .* must have a value.*", r"--\1 is missing: add --\1=...", line)
            raise SystemExit(f"error: {line}") from None

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise SystemExit(f"error: unexpected argument {argv[1]!r}: flags look like --name=value")
        try:
            _leave_modes()
            main()
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            raise
        except Exception as error:
            line = explain(error)
            if line is None or TRACEBACK.value:
                raise
            raise SystemExit(f"error: {line}") from None

    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files may hold what no encoding has.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.set_verbosity(logging.WARNING)
    try:
        try:
            app.run(guarded, flags_parser=parse_or_explain)
        finally:
            # That of --help is in the buffer still.
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough, as in `| head`; what is left in the buffer must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(1) from None


def explain(error: BaseException) -> str | None:
    """Returns what a user can do about an error; None for an error of this package."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        remedy = f"{package} is not installed: pip install 'croc_jax[{EXTRAS.get(package)}]'"
        return remedy if package in EXTRAS else None
    if isinstance(error, OSError) and error.strerror:
        files = (str(file) for file in (error.filename, error.filename2) if file is not None)
        return ": ".join([" -> ".join(files), error.strerror]).removeprefix(": ")
    if isinstance(error, ValueError | OSError):
        return str(error)
    return _explain_platform() if isinstance(error, RuntimeError | AssertionError) else None


def _explain_platform() -> str | None:
    """Returns what to do if JAX has none of the platforms that it was told to use."""
    jax: Any = sys.modules.get("jax")
    platforms = jax and jax.config.jax_platforms
    if not platforms:
        return None
    try:
        jax.devices()
    except Exception as error:
        # Without its plugin, JAX fails for CUDA by an assertion that has no text.
        reason = str(error).splitlines()[0].partition(" (set JAX_PLATFORMS")[0] if str(error) else "not installed"
        known = [_PLATFORMS[name] for name in platforms.split(",") if name in _PLATFORMS]
        remedy = ", ".join(known) or f"choose among cpu, {', '.join(_PLATFORMS)}"
        return f"JAX_PLATFORMS={platforms}: {reason}; {remedy}, or unset JAX_PLATFORMS"
    return None


def _leave_modes() -> None:
    """Leaves the modes of JAX in which numbers would not be those of other runs, and says so."""
    jax: Any = sys.modules.get("jax")
    for name, plain in _MODES.items() if jax else ():
        if getattr(jax.config, name) != plain:
            logging.warning("%s is ignored: this program computes as without it", name.upper())
            jax.config.update(name, plain)


def show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints an error that `run` has not seen: a missing package, a bad variable, an interrupt; each in one line."""
    # Modules in C turn an interrupt of their import into an ImportError.
    causes = (error, error.__cause__, error.__context__)
    line = _INTERRUPTED if any(isinstance(cause, KeyboardInterrupt) for cause in causes) else None
    # Libraries read variables of the environment while they are imported.
    if isinstance(error, ModuleNotFoundError | ValueError) and (remedy := explain(error)):
        line = f"error: {remedy}"
    if line is None or "--traceback" in sys.argv:
        sys.__excepthook__(kind, error, trace)
    else:
        print(line, file=sys.stderr)


# Programs import packages before `run` could catch an error.
sys.excepthook = show_error
