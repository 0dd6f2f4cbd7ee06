r"""Writes the images of any source to ArrayRecord shards, or measures their statistics.

    python launch/prepare.py --source=coco+:path/to/coco --output=data/coco_plus --short_side=320

Sources are given as KIND:VALUE, or as a folder of images; repeat the flag to write several one after
another. Train on the shards with --config.data.sources=arrayrecord:data/coco_plus. After an
interruption, the same command writes the shards that are missing.

    python launch/prepare.py --source=path/to/tiffs --statistics=data/tiffs.json --channels=13 --dtype=uint16

Range, mean and standard deviation of each channel go to a file; train with
--config.data.statistics=data/tiffs.json.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from absl import flags
from cli import UserError, define_path, make_progress, run, writable
from rich.console import Console

from croc_jax.data.bad_records import printable
from croc_jax.data.measure import MeasureConfig, default_percentiles, measure
from croc_jax.data.prepare import SKIPPED_NAME, PrepareConfig, prepare
from croc_jax.data.statistics import write_statistics
from croc_jax.machine_errors import explain, is_machine_error
from croc_jax.pixel_format import DTYPES, MAX_CHANNELS

SOURCE = flags.DEFINE_multi_string("source", [], "Images: KIND:VALUE, or a folder; repeat it for several.")
OUTPUT = define_path("output", None, "Folder of the shards.")
STATISTICS = define_path("statistics", None, "File for the statistics of the images, such as data/tiffs.json.")
CHANNELS = flags.DEFINE_integer("channels", 3, "Channels of an image.", lower_bound=1, upper_bound=MAX_CHANNELS)
DTYPE = flags.DEFINE_enum("dtype", "uint8", DTYPES, "Type of the stored values.")
WINDOW = flags.DEFINE_integer(
    "window", 0, "Divide larger image files into windows of so many pixels a side; 0 for none.", lower_bound=0
)
SHORT_SIDE = flags.DEFINE_integer(
    "short_side", None, "Shrink images whose shorter side has more pixels; by default all keep their bytes."
)
SHARD_SIZE = flags.DEFINE_integer("shard_size", PrepareConfig.shard_size, "Images a shard.")
PERCENTILES = flags.DEFINE_list(
    "percentiles", None, "Those that become 0 and 1, such as 0.5,99.5, the default but for uint8."
)
RANGE = flags.DEFINE_list(
    "range", None, "The values that become 0 and 1, in place of percentiles: LOW,HIGH, or these of each channel."
)
MAX_IMAGES = flags.DEFINE_integer(
    "max_images", MeasureConfig.max_images, "Images to measure, drawn at random if there are more.", lower_bound=1
)
WORKERS = flags.DEFINE_integer("workers", None, "Processes; by default one a core.", lower_bound=1)

SECONDS_BETWEEN_LINES = 30.0


def main() -> None:
    """Writes the shards that are missing, or a file of statistics."""
    if not SOURCE.value:
        raise UserError("no images: add --source=KIND:VALUE, or --source=FOLDER")
    if (OUTPUT.value is None) == (STATISTICS.value is None):
        raise UserError("add one of --output=FOLDER, for shards, and --statistics=FILE.json")
    others = (PERCENTILES, RANGE, MAX_IMAGES) if OUTPUT.value else (SHORT_SIDE, SHARD_SIZE)
    for flag in others:
        if flag.present:
            raise UserError(f"--{flag.name} has no effect {'without' if OUTPUT.value else 'on'} --statistics")
    console, begin = Console(soft_wrap=True, highlight=False, markup=False), time.monotonic()
    if OUTPUT.value:
        write_shards(console, begin)
    else:
        measure_statistics(console, begin)


def write_shards(console: Console, begin: float) -> None:
    """Writes the shards that are missing."""
    output = OUTPUT.value
    config = PrepareConfig(
        sources=tuple(SOURCE.value),
        short_side=SHORT_SIDE.value,
        shard_size=SHARD_SIZE.value,
        channels=CHANNELS.value,
        dtype=DTYPE.value,
        window=WINDOW.value,
    )
    try:
        with writable(output, name="--output"), showing(console, "preparing") as show:
            num_skipped = prepare(config, output, num_workers=WORKERS.value, show=show)
    except KeyboardInterrupt:
        raise SystemExit("stopped; finished shards are kept: run the same command to resume") from None
    except OSError as error:
        raise UserError(explain(error) if is_machine_error(error) else f"cannot write to {output}: {error}") from error
    console.print(f"the shards are complete after {time.monotonic() - begin:.0f} s: {output}")
    if num_skipped:
        console.print(f"{num_skipped} images are left out: see {output / SKIPPED_NAME}")


def measure_statistics(console: Console, begin: float) -> None:
    """Writes a file of statistics."""
    file, chosen = STATISTICS.value, read_numbers(RANGE)
    percentiles = read_numbers(PERCENTILES) or (() if chosen else default_percentiles(DTYPE.value))
    config = MeasureConfig(
        sources=tuple(SOURCE.value),
        channels=CHANNELS.value,
        dtype=DTYPE.value,
        percentiles=percentiles,
        range=chosen,
        window=WINDOW.value,
        max_images=MAX_IMAGES.value,
    )
    try:
        with writable(file, name="--statistics", is_file=True), showing(console, "measuring") as show:
            statistics, skipped = measure(config, num_workers=WORKERS.value, show=show)
            write_statistics(file, statistics)
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; {file} is not written") from None
    except OSError as error:
        raise UserError(explain(error) if is_machine_error(error) else str(error)) from error
    took, of = time.monotonic() - begin, f" of {statistics.total}" if statistics.total > statistics.images else ""
    console.print(f"{statistics.images}{of} images are measured after {took:.0f} s: {file}")
    if skipped:
        name, reason = next(iter(skipped.items()))
        console.print(f"{len(skipped)} images are left out, such as {printable(name)} ({printable(reason)})")


def read_numbers(flag: flags.FlagHolder[list[str] | None]) -> tuple[float, ...]:
    """Returns the numbers of a flag; none if it is not given."""
    try:
        return tuple(map(float, flag.value or ()))
    except ValueError:
        raise UserError(f"--{flag.name}={','.join(flag.value or ())}: expected numbers, such as 0.5,99.5") from None


@contextmanager
def showing(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar on a terminal, and lines elsewhere; yields what is called with images done and in all."""
    last_line = time.monotonic()
    with make_progress(console) as progress:
        task = progress.add_task(what, total=None)

        def show(done: int, total: int) -> None:
            nonlocal last_line
            progress.update(task, completed=done, total=total)
            if not console.is_terminal and time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                console.print(f"{done}/{total} images")

        yield show


if __name__ == "__main__":
    run(main)
