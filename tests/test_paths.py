"""Tests of paths as people write them, and of errors that are the machine's."""

import errno
from pathlib import Path

import pytest

from croc_jax.machine_errors import is_machine_error
from croc_jax.paths import is_remote, local_path


def test_a_local_path_is_expanded() -> None:
    assert local_path("~/runs", name="--workdir") == Path.home() / "runs"
    assert local_path("a:b/c", name="--workdir") == Path("a:b/c")
    assert local_path(Path("/x/y"), name="--workdir") == Path("/x/y")


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://b/x", "https://host/weights.pth", Path("gs://b/x")])
def test_a_url_is_refused_by_the_flag_that_holds_it(url: str | Path) -> None:
    assert is_remote(url)
    with pytest.raises(ValueError, match=f"^--workdir={url}: .*mounted disk"):
        local_path(url, name="--workdir")


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match="--output is empty"):
        local_path(" ", name="--output")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EMFILE, "too many"), True),
        (OSError(errno.ESTALE, "stale"), True),
        (OSError(errno.ENOSPC, "full"), True),
        (FileNotFoundError(errno.ENOENT, "missing"), False),
        (ValueError("no image"), False),
    ],
)
def test_faults_of_the_machine_are_told_from_those_of_a_file(error: Exception, expected: bool) -> None:
    assert is_machine_error(error) is expected
