"""What all programs share: paths in flags, folders to write to, and one line for what a user can mend."""

import errno
import os
import sys
from pathlib import Path

import jax
import pytest
from absl import app, flags

from croc_jax.runtime import program


@pytest.fixture
def values(monkeypatch):
    """Flags of a program of its own."""
    values = flags.FlagValues()
    define = flags.DEFINE
    monkeypatch.setattr(program.flags, "DEFINE", lambda *args, **kwargs: define(*args, **kwargs, flag_values=values))
    register = flags.register_validator
    monkeypatch.setattr(
        program.flags, "register_validator", lambda *args: register(args[0].name, *args[1:], flag_values=values)
    )
    return values


def test_a_path_is_expanded_and_a_word_or_nothing_is_kept(values):
    home = program.define_path("home", None, "")
    word = program.define_path("word", None, "", words=["random"])
    empty = program.define_path("empty", "", "")
    values(["", "--home=~/x", "--word=random", "--empty="])
    assert (home.value, word.value, empty.value) == (Path.home() / "x", "random", None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gs://bucket/x", "--output=gs://bucket/x: gs:// is not read or written here: name a path on a mounted disk"),
        ("https://host/x.pth", "--output=https://host/x.pth: https:// is not read or written here"),
        ("", "--output is empty: name a path"),
        ("~no_such_user/x", "--output=~no_such_user/x: there is no such home folder: write the path without ~"),
        ("no_such_file", "--output=no_such_file: there is no such file or folder (now in "),
    ],
)
def test_what_is_no_path_on_this_machine_is_refused_by_its_flag(values, value, message):
    program.define_path("output", None, "", must_exist=True)
    with pytest.raises(flags.Error) as caught:
        values(["", f"--output={value}"])
    assert str(caught.value).startswith(message)


def test_what_a_failed_program_has_made_is_removed_unless_something_is_in_it(tmp_path):
    for name, kept in (("a", []), ("b", ["b", "b/c", "b/c/result"])):
        folder = tmp_path / name / "c"
        with pytest.raises(KeyboardInterrupt), program.writable(folder, name="--output") as output:
            assert output == folder and folder.is_dir()
            if kept:
                (folder / "result").touch()
            raise KeyboardInterrupt
        assert [str(one.relative_to(tmp_path)) for one in sorted(tmp_path.rglob("*"))] == kept


@pytest.mark.parametrize(
    ("path", "is_file", "reason"),
    [
        ("file", False, "file is a file, not a folder"),
        ("file/x/y", False, "file is a file, not a folder"),
        ("file/x", True, "file is a file, not a folder"),
        ("/proc/x", False, "/proc/x: No such file or directory"),
        ("folder", True, "folder is a folder: name a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_block(tmp_path, path, is_file, reason):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    writing = program.writable(tmp_path / path, name="--output", is_file=is_file)
    with pytest.raises(program.UserError) as caught, writing:
        raise AssertionError("too late")
    assert str(caught.value).startswith(f"--output={tmp_path / path}") and str(caught.value).endswith(reason)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (FileNotFoundError("no file x"), "no file x"),
        (ValueError("size=0: must be positive"), "size=0: must be positive"),
        (ModuleNotFoundError("", name="torch.nn"), "torch is not installed: pip install 'croc_jax[torch]'"),
        (ModuleNotFoundError("", name="datasets"), "datasets is not installed: pip install 'croc_jax[hf]'"),
        (ModuleNotFoundError("", name="rich"), None),
        (TypeError("a defect"), None),
        (AssertionError(), None),
    ],
)  # fmt: skip
def test_what_a_user_can_mend_is_explained_in_one_line(error, line):
    assert program.explain(error) == line


@pytest.mark.parametrize(
    ("platforms", "error", "line"),
    [
        ("cuda", AssertionError(), "not installed; pip install 'croc_jax[cuda]', or unset JAX_PLATFORMS"),
        ("cdua", RuntimeError("no\nmore"), "no; choose among cpu, cuda, tpu, rocm, or unset JAX_PLATFORMS"),
        ("tpu,cpu", RuntimeError("no libtpu (set JAX_PLATFORMS='')"),
         "no libtpu; pip install 'croc_jax[tpu]', or unset JAX_PLATFORMS"),
    ],
)  # fmt: skip
def test_a_platform_that_jax_lacks_is_named_with_its_remedy(monkeypatch, platforms, error, line):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        assert program.explain(error) == f"JAX_PLATFORMS={platforms}: {line}"
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_enable_x64", True), ("jax_numpy_dtype_promotion", "strict"), ("jax_disable_jit", True)],
)
def test_modes_in_which_numbers_would_differ_are_left_and_named(monkeypatch, name, value):
    said, before = [], getattr(jax.config, name)
    monkeypatch.setattr(program.logging, "warning", lambda text, *values: said.append(text % values))
    jax.config.update(name, value)
    try:
        program._leave_modes()
        assert getattr(jax.config, name) == before
    finally:
        jax.config.update(name, before)
    assert said == [f"{name.upper()} is ignored: this program computes as without it"]


def test_errors_that_come_before_a_program_starts(capsys, monkeypatch):
    def show(error):
        program.show_error(type(error), error, None)
        return capsys.readouterr().err

    missing = ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
    assert sys.excepthook is program.show_error
    assert show(missing) == "error: matplotlib is not installed: pip install 'croc_jax[report]'\n"
    assert show(KeyboardInterrupt()) == "stopped by an interrupt\n"
    torn = ImportError("Encountered an error while initializing the extension.")
    torn.__cause__ = KeyboardInterrupt()
    assert show(torn) == "stopped by an interrupt\n"
    assert "No module named 'rich'" in show(ModuleNotFoundError("No module named 'rich'", name="rich"))
    monkeypatch.setattr(sys, "argv", ["report.py", "--traceback"])
    assert "ModuleNotFoundError" in show(missing)


def test_a_reader_that_leaves_ends_a_program_without_a_word(monkeypatch):
    def main():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    moved = []
    monkeypatch.setattr(app, "run", lambda main, flags_parser: main([""]))
    monkeypatch.setattr(os, "dup2", lambda *numbers: moved.append(numbers[1]))
    with pytest.raises(SystemExit) as end:
        program.run(main)
    assert end.value.code == 1 and moved == [1]
