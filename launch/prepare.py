r"""Turns images of any source into ArrayRecord shards, or goes on where the same command stopped.

    python launch/prepare.py --source=coco+:path/to/coco --output=data/coco_plus --short_side=320

Sources are given as KIND:VALUE, or as a folder of images; several, by repeating the flag, are
joined. Train on the shards with --config.data.sources=arrayrecord:data/coco_plus. With --verify,
the checksums of shards are compared and nothing is written.
"""

import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import rich.filesize
import rich.progress
from absl import flags
from cli import UserError, run
from rich.console import Console

from croc_jax.data.prepare import SKIPPED_NAME, PrepareConfig, Prepared, prepare, verify
from croc_jax.data.workers import count_cores

SOURCE = flags.DEFINE_multi_string("source", [], "Images: KIND:VALUE, or a folder; repeat it to join several.")
OUTPUT = flags.DEFINE_string("output", None, "Where the shards and manifest.json go.", required=True)
SHORT_SIDE = flags.DEFINE_integer(
    "short_side", None, "Make images whose shorter side has more pixels so small; by default all keep their bytes."
)
SHARD_SIZE = flags.DEFINE_integer("shard_size", PrepareConfig.shard_size, "Images a shard.")
WORKERS = flags.DEFINE_integer("workers", None, "Processes; by default one a core.", lower_bound=1)
VERIFY = flags.DEFINE_bool("verify", False, "Compare the checksums of the shards, and write nothing.")

NUM_EXAMPLES = 10
SECONDS_BETWEEN_LINES = 30.0


def main() -> None:
    """Writes shards, or verifies them."""
    console, output = Console(soft_wrap=True, highlight=False), Path(OUTPUT.value)
    if VERIFY.value:
        manifest = verify(output, num_workers=WORKERS.value)
        images = sum(shard.count for shard in manifest.shards)
        console.print(f"{images:,} images in {len(manifest.shards)} shards: all checksums are right", markup=False)
        return
    if not SOURCE.value:
        raise UserError("no images: add --source=KIND:VALUE, or --source=FOLDER")
    workers = WORKERS.value or count_cores()
    config = PrepareConfig(sources=tuple(SOURCE.value), short_side=SHORT_SIDE.value, shard_size=SHARD_SIZE.value)
    try:
        with Display(console) as display:
            result = prepare(config, output, num_workers=workers, show=display.show)
    except KeyboardInterrupt:
        raise SystemExit("stopped; finished shards are kept: run the same command to go on") from None
    console.print(describe(result, output), markup=False)


class Display:
    """Shows images, speed and the time that is left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        """Prepares a display; nothing shows before the block is entered."""
        self._console, self._last_line = console, time.monotonic()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[speed]}"),
            rich.progress.TextColumn("ETA"),
            rich.progress.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("preparing", total=None, speed="")

    def __enter__(self) -> Self:
        """Shows the bar, on a terminal."""
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the bar as it is."""
        self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Shows how many images are done."""
        task = self._bar.tasks[0]
        self._bar.update(self._task, completed=done, total=total)
        speed = f"{task.speed:.0f} images/s" if task.speed else ""
        self._bar.update(self._task, speed=speed)
        if not self._console.is_terminal and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            left = "" if task.time_remaining is None else f"  ETA {datetime.timedelta(seconds=task.time_remaining)}"
            self._console.print(f"{done}/{total} images ({100 * done / total:.1f}%)  {speed}{left}")


def describe(result: Prepared, output: Path) -> str:
    """Says what is there now, how fast it came, and which images are left out and why."""
    shards, took = result.manifest.shards, datetime.timedelta(seconds=round(result.seconds))
    size = rich.filesize.decimal(sum(shard.bytes for shard in shards))
    lines = [f"{result.num_images:,} images in {len(shards)} shards, {size}: {output}"]
    if result.num_processed:
        speed = result.num_processed / result.seconds
        lines.append(f"{result.num_processed:,} images read in {took}, {speed:.0f} images/s")
    if result.num_kept:
        lines.append(f"{result.num_kept} shards were there already, with the right checksums")
    if result.skipped:
        lines.append(f"{len(result.skipped)} images are left out; {output / SKIPPED_NAME} lists them all:")
        lines.extend(list_skipped(list(result.skipped.items())))
    return "\n".join(lines)


def list_skipped(skipped: Sequence[tuple[str, str]]) -> list[str]:
    """Returns a line for each of the first skipped images."""
    lines = [f"  {name}: {reason}" for name, reason in skipped[:NUM_EXAMPLES]]
    return lines + (["  ..."] if len(skipped) > NUM_EXAMPLES else [])


if __name__ == "__main__":
    run(main)
