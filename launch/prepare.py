r"""Writes the images of any source to ArrayRecord shards.

    python launch/prepare.py --source=coco+:path/to/coco --output=data/coco_plus --short_side=320

Sources are given as KIND:VALUE, or as a folder of images; repeat the flag to write several one after
another. Train on the shards with --config.data.sources=arrayrecord:data/coco_plus. After an
interruption, the same command writes the shards that are missing.
"""

import time

from absl import flags
from cli import UserError, define_path, make_progress, run, writable
from rich.console import Console

from croc_jax.data.prepare import SKIPPED_NAME, PrepareConfig, prepare
from croc_jax.machine_errors import explain, is_machine_error

SOURCE = flags.DEFINE_multi_string("source", [], "Images: KIND:VALUE, or a folder; repeat it for several.")
OUTPUT = define_path("output", None, "Folder of the shards.", required=True)
SHORT_SIDE = flags.DEFINE_integer(
    "short_side", None, "Shrink images whose shorter side has more pixels; by default all keep their bytes."
)
SHARD_SIZE = flags.DEFINE_integer("shard_size", PrepareConfig.shard_size, "Images a shard.")
WORKERS = flags.DEFINE_integer("workers", None, "Processes; by default one a core.", lower_bound=1)

SECONDS_BETWEEN_LINES = 30.0


def main() -> None:
    """Writes the shards that are missing."""
    console, output = Console(soft_wrap=True, highlight=False, markup=False), OUTPUT.value
    if not SOURCE.value:
        raise UserError("no images: add --source=KIND:VALUE, or --source=FOLDER")
    config = PrepareConfig(sources=tuple(SOURCE.value), short_side=SHORT_SIDE.value, shard_size=SHARD_SIZE.value)
    begin = last_line = time.monotonic()
    try:
        with writable(output, name="--output"), make_progress(console) as progress:
            task = progress.add_task("preparing", total=None)

            def show(done: int, total: int) -> None:
                nonlocal last_line
                progress.update(task, completed=done, total=total)
                if not console.is_terminal and time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                    last_line = time.monotonic()
                    console.print(f"{done}/{total} images")

            num_skipped = prepare(config, output, num_workers=WORKERS.value, show=show)
    except KeyboardInterrupt:
        raise SystemExit("stopped; finished shards are kept: run the same command to resume") from None
    except OSError as error:
        raise UserError(explain(error) if is_machine_error(error) else f"cannot write to {output}: {error}") from error
    console.print(f"the shards are complete after {time.monotonic() - begin:.0f} s: {output}")
    if num_skipped:
        console.print(f"{num_skipped} images are left out: see {output / SKIPPED_NAME}")


if __name__ == "__main__":
    run(main)
