"""Times reading and cropping against a plain Pillow pipeline, in turns: `python benchmarks/data.py --images=FOLDER`.

Both make two views of 224 x 224 of each image and their boxes. The plain one does all in Pillow and
NumPy, as torchvision does; ours leaves colors to the device, and their time is given apart. `--channels=13` times two
views of 96 x 96 of images of so many channels of 16 bits instead, on one core.
"""

import contextlib
import itertools
import multiprocessing
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags
from bands import write_bands
from memory import soak
from PIL import Image
from plain import load_views
from rich.console import Console
from rich.table import Table
from timing import median_seconds

from croc_jax.data.config import PhotometricConfig, ViewsConfig
from croc_jax.data.decoding import decode_image
from croc_jax.data.photometric import augment
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.prepare import PrepareConfig, prepare
from croc_jax.data.sources import FolderSource, ImageSource, open_sources
from croc_jax.data.workers import count_cores
from croc_jax.pixel_format import RGB8, PixelFormat
from croc_jax.runtime.program import define_path, run

IMAGES = define_path("images", None, "Folder of photographs.", required=True, must_exist=True)
SECONDS = flags.DEFINE_float("seconds", 3.0, "How long each reader works in each turn.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns; medians are printed.")
SOAK = flags.DEFINE_integer("soak", 0, "Instead, read so many batches of small crops and print the memory they leave.")
CHANNELS = flags.DEFINE_integer("channels", 0, "Instead, time images of so many channels of 16 bits, made of IMAGES.")

BATCH, REPEATS = 16, 32

Reader = Callable[[float], float]


def main() -> None:
    """Prints images/s on one core and on all, of each way to store and read, and the ratios."""
    if SOAK.value:
        soak(IMAGES.value, batches=SOAK.value)
        return
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        if CHANNELS.value:
            console.print(_time_channels(Path(scratch)))
            return
        for title, folder in _collections(IMAGES.value, Path(scratch)):
            stored = _stored(folder, Path(scratch) / f"{folder.name}-stored")
            for cores in dict.fromkeys((1, count_cores())):
                with contextlib.ExitStack() as stack:
                    readers = {"plain Pillow": _plain_reader(folder, cores, stack)}
                    for (kind, source), mode in itertools.product(stored.items(), ("exact", "fast")):
                        readers[f"{kind}, {mode}"] = _our_reader(source, ViewsConfig(decoding=mode), cores, stack)
                    console.print(_table(f"{title}, {cores} core(s)", _take_turns(readers)))
    console.print(f"colors on {jax.devices()[0].device_kind}: {_augmented_per_second():.0f} images/s")


def _time_channels(scratch: Path) -> Table:
    pixels = PixelFormat(channels=CHANNELS.value, dtype="uint16")
    folders = write_bands(IMAGES.value, scratch, channels=CHANNELS.value)
    with contextlib.ExitStack() as stack:
        readers = {}
        for (kind, folder), mode in itertools.product(folders.items(), ("exact", "fast")):
            views = ViewsConfig(crop_size=96, decoding=mode)
            readers[f"{kind}, {mode}"] = _our_reader(_Repeated(FolderSource(folder)), views, 1, stack, pixels)
        return _table(f"{CHANNELS.value} channels of 16 bits, 1 core", _take_turns(readers), beside="times TIFF, exact")


def _collections(folder: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """The photographs as they are, and all in the size of many cameras' previews."""
    yield f"{folder.name} as it is", folder
    resized = scratch / "resized"
    resized.mkdir()
    source = FolderSource(folder)
    for index in range(len(source)):
        image = Image.fromarray(decode_image(source, index)).resize((640, 480), Image.Resampling.BICUBIC)
        image.save(resized / f"{index}.jpg", quality=90)
    yield f"{folder.name} at 640 x 480", resized


def _stored(folder: Path, scratch: Path) -> dict[str, ImageSource]:
    """The same images in files, records and an archive; repeated, so that an epoch is long."""
    prepare(PrepareConfig(sources=(str(folder),)), scratch, num_workers=1)
    archive = scratch / "images.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname="images")
    specs = {"folder": f"folder:{folder}", "ArrayRecord": f"arrayrecord:{scratch}", "tar": f"tar:{archive}"}
    return {kind: _Repeated(open_sources([spec])) for kind, spec in specs.items()}


class _Repeated:
    """The images of a source, many times."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return REPEATS * len(self._source)

    def __getitem__(self, index: int) -> bytes:
        return self._source[index % len(self._source)]

    def name(self, index: int) -> str:
        return self._source.name(index % len(self._source))

    def entries(self) -> Iterator[tuple[str, int]]:
        return self._source.entries()


def _our_reader(
    source: ImageSource, views: ViewsConfig, cores: int, stack: contextlib.ExitStack, pixels: PixelFormat = RGB8
) -> Reader:
    dataset = make_dataset(source, views=views, pixels=pixels, batch_size=BATCH, seed=0)
    workers = cores if cores > 1 else 0
    batches = stack.enter_context(dataset.iterate(num_workers=workers, num_threads=min(workers, 1)))

    def read(seconds: float) -> float:
        for _ in range(4 * workers):  # What was read ahead between two turns does not count.
            next(batches)
        return _rate((BATCH for _ in batches), seconds)

    return read


def _plain_reader(folder: Path, cores: int, stack: contextlib.ExitStack) -> Reader:
    source = FolderSource(folder)
    files = itertools.cycle([source.name(index) for index in range(len(source))])
    if cores == 1:
        return lambda seconds: _rate((int(len(load_views(file)) > 0) for file in files), seconds)
    pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(cores))

    def rounds() -> Iterator[int]:
        while True:
            some = itertools.islice(files, 128 * cores)
            yield sum(1 for _ in pool.imap_unordered(load_views, some, chunksize=4))

    return lambda seconds: _rate(rounds(), seconds)


def _rate(counts: Iterator[int], seconds: float) -> float:
    """Images per second over at least so many seconds."""
    begin, images = time.perf_counter(), 0
    for count in counts:
        images += count
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            return images / elapsed
    raise RuntimeError("the stream ended")


def _take_turns(readers: dict[str, Reader]) -> dict[str, np.ndarray]:
    """Lets readers work one after the other again and again, so that a noisy machine is so to all."""
    rates = {name: [] for name in readers}
    for _ in range(TURNS.value):
        for name, reader in readers.items():
            rates[name].append(reader(SECONDS.value))
    return {name: np.array(values) for name, values in rates.items()}


def _table(title: str, rates: dict[str, np.ndarray], beside: str = "times plain") -> Table:
    table = Table("", "images/s", beside, title=title)
    first = next(iter(rates.values()))
    for name, values in rates.items():
        table.add_row(name, f"{np.median(values):.0f}", f"{np.median(values / first):.2f}")
    return table


def _augmented_per_second() -> float:
    views = jax.random.bits(jax.random.key(0), (BATCH, 2, 224, 224, 3), jax.numpy.uint8)
    step = jax.jit(lambda key: augment(key, views, PhotometricConfig()))
    return BATCH / median_seconds(lambda: step(jax.random.key(1)), repeats=10)


if __name__ == "__main__":
    run(main)
