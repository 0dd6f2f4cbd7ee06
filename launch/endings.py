"""How a run ends: with its checkpoints written, a message, and an exit status."""

import contextlib
import errno
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from croc_jax import machine_errors
from croc_jax.checkpoints import Checkpointer
from croc_jax.checkpoints.best import BEST_NAME
from croc_jax.checkpoints.restore import CHECKPOINTS_NAME, list_checkpoints
from croc_jax.data.bad_records import ReadersLostError, UnreadableImagesError
from croc_jax.runtime import memory
from croc_jax.runtime.collapse import explain_divergence
from croc_jax.runtime.preemption import EXIT_STATUS
from croc_jax.training.config import Recipe

# At another start, a file system may answer again. Nothing that needs somebody's hands is here, but for permissions:
# those of a network file system come and go with its server.
_TRANSIENT = (*machine_errors.TRANSIENT, errno.EACCES, errno.EPERM, errno.EROFS)

# XLA on CPU plans some products in bfloat16, and only finds when it runs them that it has no program for them.
_LACKING = "Unsupported element type for DotThunk"


@contextlib.contextmanager
def closing(checkpointer: Checkpointer) -> Iterator[None]:
    """Waits for the save under way; after an error, only in a process that is alone: others may never come."""
    try:
        yield
    except BaseException:
        if jax.process_count() == 1:
            with contextlib.suppress(OSError):
                checkpointer.close()
        raise
    checkpointer.close()


@contextlib.contextmanager
def explaining_errors(recipe: Recipe, mesh: Mesh, workdir: Path) -> Iterator[None]:
    """Turns errors of numbers, memory, data and disks into a message and an exit status."""
    try:
        yield
    except FloatingPointError as error:
        raise SystemExit(f"error: {explain_divergence(error, recipe)}; {name_last(workdir)}") from None
    except (ReadersLostError, UnreadableImagesError) as error:
        raise SystemExit(f"error: {error}; {name_last(workdir)}") from None
    except OSError as error:
        if error.errno is None:
            raise  # A mistake of the user, found by this package.
        if error.errno in machine_errors.EXHAUSTED:
            raise SystemExit(f"error: {machine_errors.explain(error)}; {name_last(workdir)}") from None
        is_mount_lost = error.errno == errno.ENOENT and str(error.filename or "").startswith(str(workdir))
        if error.errno in _TRANSIENT or is_mount_lost:
            print(f"error: {error}: run the same command again once the disk answers", file=sys.stderr)
            raise SystemExit(EXIT_STATUS) from None
        raise SystemExit(f"error: {error}; {name_last(workdir)}") from None
    except jax.errors.JaxRuntimeError as error:
        if _LACKING in str(error):
            what = f"backbone.dtype={recipe.backbone.dtype!r}: XLA on this CPU lacks a product of this network"
            advice = "in a new workdir, set --config.backbone.dtype=float32"
        elif memory.is_exhausted(error):
            what, advice = "out of memory", memory.advise(recipe, mesh)
        else:
            raise
        reason = str(error).splitlines()[0][:300]
        raise SystemExit(f"error: {what}: {advice} ({reason}); {name_last(workdir)}") from None


def name_last(workdir: Path) -> str:
    """Returns where the last saved state is, and the best, if there is one."""
    try:
        found = list_checkpoints(workdir / CHECKPOINTS_NAME)
    except OSError:
        found = []
    text = f"the last state is {found[0]}" if found else "no state has been saved"
    with contextlib.suppress(OSError, ValueError):
        best = json.loads((workdir / BEST_NAME).read_bytes())
        text += f"; the best by {best['score']} ({best['value']:.4g}) is {workdir / best['checkpoint']}"
    return text
