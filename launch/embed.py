r"""Writes the features of all images of a source to Parquet files, or to NumPy arrays.

    python launch/embed.py --source=path/to/photos --checkpoint=WORKDIR --output=features

A source is a folder of images, or KIND:VALUE as for training; repeat the flag for several. A checkpoint is all that
evaluate.py takes, or 'random', the start of a ViT-S/16. Each image gives its [CLS] token and the mean of its patch
tokens, and with --patches the tokens of all patches, in half precision.

By default the shorter side is resized to 256 pixels, and the 224 x 224 in the middle are seen; --image_size=518 keeps
this ratio, --resize sets it, and --square=518 squeezes whole images to a square instead. --window=1024 divides larger
images, such as a TIFF of gigabytes, into windows, each of which gets a row.

The same command goes on after a stop, whatever stopped it. Started several times, on one host or on several that share
the disk, each program takes Parquet files that no other writes.
"""

import contextlib
import datetime
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import flags
from cli import UserError, define_colors, define_path, make_progress, run, writable
from rich.console import Console

from croc_jax import machine_errors
from croc_jax.data.bad_records import UnreadableImagesError
from croc_jax.data.sources import open_sources
from croc_jax.data.sources.identity import identify
from croc_jax.data.sources.registry import KINDS
from croc_jax.data.specs import FOLDER, parse_spec
from croc_jax.data.workers import count_cores
from croc_jax.evaluation.backbones import RANDOM, FrozenBackbone, load_backbone, random_backbone, vit_recipe
from croc_jax.evaluation.embedding import embed_images, open_files
from croc_jax.evaluation.embedding_files import FORMATS, SKIPPED_NAME, EmbeddingFiles
from croc_jax.evaluation.embedding_images import EmbeddingConfig
from croc_jax.runtime import memory
from croc_jax.runtime.preemption import EXIT_STATUS, EXIT_STATUS_OF_SIGINT

SOURCE = flags.DEFINE_multi_string("source", [], "Images: KIND:VALUE, or a folder; repeat it for several.")
CHECKPOINT = define_path(
    "checkpoint", None, "A workdir, a checkpoint, a file, or 'random'.", required=True, must_exist=True, words=[RANDOM]
)
OUTPUT = define_path("output", None, "Folder of the features.", required=True)
FORMAT = flags.DEFINE_enum("format", "parquet", FORMATS, "Parquet files, or NumPy arrays that can be memory-mapped.")
PATCHES = flags.DEFINE_bool("patches", False, "Also write the tokens of all patches, in half precision.")
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 224, "Side of the square in the middle that is seen, in pixels.", lower_bound=1
)
RESIZE = flags.DEFINE_integer(
    "resize", None, "Pixels that the shorter side is resized to; by default 8/7 of --image_size.", lower_bound=1
)
SQUARE = flags.DEFINE_integer(
    "square", None, "Resize whole images to a square of this side, whatever their shape.", lower_bound=1
)
WINDOW = flags.DEFINE_integer(
    "window", 0, "Divide larger images into windows of so many pixels, each with a row of its own.", lower_bound=0
)
WHICH = flags.DEFINE_enum("which", "teacher", ("teacher", "student"), "Weights of a run.")
PATCH_SIZE = flags.DEFINE_enum(
    "patch_size", None, ("8", "16", "32"), "Pixels between the tokens of a convolutional network, if not its own."
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images at a time on each device.", lower_bound=1)
SHARD_SIZE = flags.DEFINE_integer(
    "shard_size", EmbeddingConfig.shard_size, "Images of the source a Parquet file.", lower_bound=1
)
NUM_THREADS = flags.DEFINE_integer(
    "num_threads", None, "Threads that decode images; by default one a core, and two beside a CPU.", lower_bound=1
)
read_colors = define_colors()

SECONDS_BETWEEN_LINES = 30.0


def main() -> None:
    """Writes what is missing of the features."""
    config = read_config()
    if not SOURCE.value:
        raise UserError("no images: add --source=KIND:VALUE, or --source=FOLDER")
    if config.format == "parquet":
        # Before any work; it says how to install what is missing.
        import pyarrow.parquet  # noqa: F401
    roots = [find_root(spec) for spec in SOURCE.value]
    with explaining_errors(OUTPUT.value):
        backbone = open_backbone()
        source = open_sources(SOURCE.value, window=config.window, pixels=backbone.module.pixels)

        def name_of(index: int) -> str:
            # Several sources may have images of the same name.
            return source.name(index) if len(roots) > 1 else source.name(index).removeprefix(roots[0])

        notes = {"checkpoint": str(CHECKPOINT.value), "sources": SOURCE.value}
        try:
            settings = {"images": identify(source), "notes": notes, "name_of": name_of}
            files = open_files(backbone, source, config, OUTPUT.value, **settings)
        except ValueError as error:
            raise UserError(f"--image_size={config.image_size}: {error}") from error
        with writable(OUTPUT.value, name="--output"):
            embed(backbone, source, config, files)


def read_config() -> EmbeddingConfig:
    """Returns what the flags say of images and files."""
    size, resize = IMAGE_SIZE.value, RESIZE.value
    if FORMAT.value != "parquet" and flags.FLAGS["shard_size"].present:
        raise UserError(f"--shard_size has no effect on --format={FORMAT.value}: leave it out")
    if SQUARE.value is not None:
        if flags.FLAGS["image_size"].present or resize is not None:
            raise UserError(f"--square={SQUARE.value} cuts nothing out: leave out --image_size and --resize")
        size = SQUARE.value
    elif resize is None:
        resize = round(size * 8 / 7)
    return EmbeddingConfig(
        image_size=size,
        resize=resize,
        window=WINDOW.value,
        patches=PATCHES.value,
        format=FORMAT.value,
        shard_size=SHARD_SIZE.value,
    )


def find_root(spec: str) -> str:
    """Returns what the names of the images of a source begin with, and is left out of them: a path, ending in /.

    Raises:
        UserError: if the output lies in a folder of images: its files would be listed the next time.
    """
    kind, value = parse_spec(spec, {kind: form for kind, (form, _) in KINDS.items()}, what="source of images")
    if kind == FOLDER and OUTPUT.value.resolve().is_relative_to(Path(value).resolve()):
        raise UserError(f"--output={OUTPUT.value} lies in the folder of images {value}: choose one outside of it")
    root = str(Path(value)) if os.path.isdir(value) else os.path.dirname(value)
    return f"{root.rstrip('/')}/" if root else ""


def open_backbone() -> FrozenBackbone:
    """Returns the weights."""
    colors: Any = read_colors()
    if CHECKPOINT.value == RANDOM:
        backbone = random_backbone(vit_recipe(**colors))
    else:
        backbone = load_backbone(CHECKPOINT.value, which=WHICH.value, **colors)
    return backbone if PATCH_SIZE.value is None else backbone.with_patch_size(int(PATCH_SIZE.value))


def embed(backbone: FrozenBackbone, source: Any, config: EmbeddingConfig, files: EmbeddingFiles) -> None:
    """Writes the features, and says how far it is."""
    console, begin = Console(soft_wrap=True, highlight=False, markup=False), time.monotonic()
    if backbone.note:
        console.print(f"{CHECKPOINT.value}: {backbone.note}")
    devices = jax.local_devices()
    mib = len(source) * sum(spec.num_bytes for spec in files.specs.values()) / 2**20
    console.print(
        f"{len(source)} images, {config.preprocessing['rule']}; {BATCH_SIZE.value} at a time on each of "
        f"{len(devices)} {devices[0].platform} device(s); {mib:,.0f} MiB of features"
    )
    num_threads = NUM_THREADS.value or (min(2, count_cores()) if devices[0].platform == "cpu" else count_cores())
    with make_progress(console) as progress:
        show = make_show(console, progress, len(source))
        summary = embed_images(
            backbone, source, config, files, batch_size=BATCH_SIZE.value, num_threads=num_threads, show=show
        )
    if summary is None:
        console.print(f"other programs are still writing the remaining files in {files.folder}")
        return
    console.print(f"the features of {summary.num_rows} images are in {files.folder}, {time.monotonic() - begin:.0f} s")
    if summary.skipped:
        console.print(f"{len(summary.skipped)} images are left out: see {files.folder / SKIPPED_NAME}")


def make_show(console: Console, progress: Any, total: int) -> Callable[[int], None]:
    """Returns a function of the number of images done: a bar on a terminal, a line every half minute elsewhere."""
    start, task = (0, 0.0), None
    last_line = time.monotonic()

    def show(done: int) -> None:
        nonlocal start, task, last_line
        now = time.monotonic()
        if task is None:
            start = done, now
            task = progress.add_task("images", total=total, completed=done)
            if done:
                console.print(f"{done} of {total} images are done already")
        progress.update(task, completed=done)
        if not console.is_terminal and now - last_line >= SECONDS_BETWEEN_LINES:
            last_line, speed = now, (done - start[0]) / (now - start[1])
            left = datetime.timedelta(seconds=round((total - done) / speed)) if speed else "unknown"
            console.print(f"{done}/{total} images  {speed:.1f} images/s  ETA {left}")

    return show


@contextlib.contextmanager
def explaining_errors(output: Path) -> Iterator[None]:
    """Turns signals and faults of the machine into a line and an exit status: 75 asks for the same command again."""
    remedy = f"run the same command again to go on; what is done is kept in {output}"

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        name = str(interrupt) or "SIGINT"
        print(f"stopped by {name}: {remedy}", file=sys.stderr)
        raise SystemExit(EXIT_STATUS if name == "SIGTERM" else EXIT_STATUS_OF_SIGINT) from None
    except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        raise UserError(f"out of memory: lower --batch_size={BATCH_SIZE.value}; {remedy}") from error
    except UnreadableImagesError as error:
        print(f"error: {error}; {remedy}", file=sys.stderr)
        raise SystemExit(EXIT_STATUS) from None
    except OSError as error:
        fault = machine_errors.find_fault(error, str(output))
        if fault is None:
            raise
        if fault.errno in machine_errors.EXHAUSTED:
            raise UserError(machine_errors.explain(fault)) from error
        print(f"error: {machine_errors.explain(fault)}", file=sys.stderr)
        raise SystemExit(EXIT_STATUS) from None
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    run(main)
