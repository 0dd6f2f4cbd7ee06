"""Turns any source of images into ArrayRecord shards with a manifest of their checksums."""

import contextlib
import dataclasses
import hashlib
import json
import math
import multiprocessing
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from croc_jax.data.shard_writer import (
    TEMPORARY,
    PrepareError,
    ShardPlan,
    Task,
    checksum,
    start_worker,
    write_shard,
)
from croc_jax.data.sources import ImageSource, SourceError, open_sources
from croc_jax.data.sources.manifest import (
    JOURNAL_NAME,
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    parse_record,
    read_manifest,
    write_manifest,
)
from croc_jax.data.workers import count_cores

SKIPPED_NAME = "skipped.txt"
_SECONDS_BETWEEN_UPDATES = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What becomes of which images.

    Attributes:
        sources: of the images, each KIND:VALUE or a folder, joined in order.
        short_side: images with a longer shorter side are made smaller, to so many pixels; None
            keeps every image as it came.
        shard_size: images of the source a shard.
    """

    sources: tuple[str, ...]
    short_side: int | None = None
    shard_size: int = 2048

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side={self.short_side}: must be 1 or more")
        if self.shard_size < 1:
            raise ValueError(f"shard_size={self.shard_size}: must be 1 or more")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` did.

    Attributes:
        manifest: of all shards.
        num_kept: shards that were there already.
        num_processed: images that were read this time.
        seconds: that this took.
    """

    manifest: Manifest
    num_kept: int
    num_processed: int
    seconds: float

    @property
    def num_images(self) -> int:
        """The images in all shards."""
        return sum(shard.count for shard in self.manifest.shards)

    @property
    def skipped(self) -> dict[str, str]:
        """Why images are left out, by name."""
        return {name: reason for shard in self.manifest.shards for name, reason in shard.skipped.items()}


def prepare(
    config: PrepareConfig,
    folder: Path,
    *,
    num_workers: int | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Prepared:
    """Writes FOLDER/images-00000-of-000NN.array_record and so on, and manifest.json.

    Which image goes where depends on their number and the size of a shard alone. Images that
    cannot be decoded are left out, and listed in skipped.txt. A run that was interrupted goes on
    after its finished shards, if their checksums still hold.

    Args:
        config: what to do.
        folder: of the shards; made if need be.
        num_workers: processes; 1 works in this one. By default, one a core.
        show: called now and then with the images done and of all.

    Raises:
        PrepareError: if the folder holds something else, with each differing setting, or cannot be
            written, or no image can be read.
        SourceError: if a source cannot be opened.
    """
    source = open_sources(config.sources)
    settings = _describe(config, source)
    num_workers = num_workers or count_cores()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = _find_records(folder, settings)
        kept = {record.name: record for record in _intact(folder, found, num_workers)}
        plans = plan_shards(len(source), config.shard_size)
        missing = [plan for plan in plans if plan.name not in kept]
        if missing:
            _write_journal(folder, settings, list(kept.values()))
        begin, done = time.monotonic(), len(source) - sum(plan.stop - plan.start for plan in missing)
        with _open_pool(source, folder, config.short_side, min(num_workers, len(missing))) as (pool, counter):
            for record in _write_all(pool, missing, lambda: show(done + counter.value, len(source))):
                kept[record.name] = record
                _append(folder, record)
        manifest = Manifest(settings, tuple(kept[plan.name] for plan in plans))
        result = Prepared(manifest, len(plans) - len(missing), len(source) - done, time.monotonic() - begin)
        _finish(folder, result)
    except OSError as error:
        raise PrepareError(f"cannot write to {folder}: {error.strerror or error}") from error
    return result


def verify(folder: Path, *, num_workers: int | None = None) -> Manifest:
    """Reads all shards of a folder again and compares their checksums; returns the manifest.

    Args:
        folder: of the shards.
        num_workers: threads; by default, one a core.

    Raises:
        PrepareError: if there is no manifest, or a shard is missing or damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        state = "is not complete" if (folder / JOURNAL_NAME).exists() else f"holds no {MANIFEST_NAME}"
        raise PrepareError(f"{folder} {state}: run launch/prepare.py without --verify first")
    intact = {record.name for record in _intact(folder, manifest.shards, num_workers or count_cores())}
    damaged = [record.name for record in manifest.shards if record.name not in intact]
    if damaged:
        raise PrepareError(
            f"{len(damaged)} of {len(manifest.shards)} shards in {folder} are missing or damaged "
            f"({', '.join(damaged)}): run the same command without --verify to write them again"
        )
    return manifest


def plan_shards(num_images: int, shard_size: int) -> list[ShardPlan]:
    """Returns which images go in which shard.

    Args:
        num_images: of the source.
        shard_size: images of the source a shard; the last one takes what is left.
    """
    count = math.ceil(num_images / shard_size)
    return [
        ShardPlan(
            f"images-{shard:05d}-of-{count:05d}.array_record",
            shard * shard_size,
            min((shard + 1) * shard_size, num_images),
        )
        for shard in range(count)
    ]


def _describe(config: PrepareConfig, source: ImageSource) -> dict[str, Any]:
    """Returns all that decides what the shards hold, but for the contents of the images."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.name(index).encode(errors="surrogateescape") + b"\n")
    fields = dataclasses.asdict(config) | {"sources": list(config.sources)}
    return fields | {"num_images": len(source), "names_sha256": digest.hexdigest()}


def _find_records(folder: Path, settings: dict[str, Any]) -> list[ShardRecord]:
    """Returns what is known of shards that are there already."""
    try:
        manifest = read_manifest(folder) or _read_journal(folder)
    except SourceError as error:
        raise PrepareError(f"{error}; or choose another --output") from error
    if manifest is None:
        if any(folder.glob("*.array_record")):
            raise PrepareError(f"{folder} holds ArrayRecord files of unknown origin: choose another --output")
        return []
    there = manifest.settings
    changes = {name: (there.get(name), now) for name, now in settings.items() if there.get(name) != now}
    if changes:
        listed = "".join(f"\n  {name}: {old!r} there, {new!r} now" for name, (old, new) in changes.items())
        raise PrepareError(f"{folder} holds shards of other settings; choose another --output, or undo{listed}")
    return list(manifest.shards)


def _intact(folder: Path, records: Sequence[ShardRecord], num_threads: int) -> list[ShardRecord]:
    """Returns the records whose shards have the right checksum."""

    def is_intact(record: ShardRecord) -> bool:
        try:
            return (folder / record.name).stat().st_size == record.bytes and (
                checksum(folder / record.name) == record.sha256
            )
        except OSError:
            return False

    with ThreadPoolExecutor(num_threads) as pool:
        return [record for record, good in zip(records, pool.map(is_intact, records), strict=True) if good]


@contextlib.contextmanager
def _open_pool(
    source: ImageSource, folder: Path, short_side: int | None, num_workers: int
) -> Iterator[tuple[Executor, Any]]:
    """Yields workers and the counter of images that they have done; stops them before it returns."""
    # Processes that start afresh: a copy of this one would share the locks of its threads.
    context = multiprocessing.get_context("spawn")
    task = Task(source, folder, short_side, context.Value("q", 0), context.Event())
    if num_workers > 1:
        pool = ProcessPoolExecutor(num_workers, context, start_worker, (task,))
    else:
        pool = ThreadPoolExecutor(1, initializer=start_worker, initargs=(task,))
    try:
        yield pool, task.counter
    finally:
        task.stop.set()
        pool.shutdown(cancel_futures=True)


def _write_all(pool: Executor, plans: list[ShardPlan], update: Callable[[], None]) -> Iterator[ShardRecord]:
    """Yields the record of each shard when it is finished; updates the display meanwhile."""
    with _deaf_to_interrupts():
        pending = {pool.submit(write_shard, plan) for plan in plans}
    while pending:
        done, pending = wait(pending, _SECONDS_BETWEEN_UPDATES, FIRST_COMPLETED)
        # Those that failed last, so that no shard beside them is forgotten.
        for future in sorted(done, key=lambda future: future.exception() is not None):
            try:
                record = future.result()
            except BrokenProcessPool as error:
                raise PrepareError(
                    "a worker process died, perhaps for lack of memory: run the same command again, "
                    "with fewer --workers; finished shards are kept"
                ) from error
            assert record is not None, "nobody has stopped it"
            yield record
        update()


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ignores Ctrl-C while worker processes start: they inherit that for good, and leave it to the main one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _finish(folder: Path, result: Prepared) -> None:
    """Writes the manifest and the list of skipped images, and removes what is left of the work."""
    if not result.num_images:
        name, reason = next(iter(result.skipped.items()))
        raise PrepareError(f"no image could be read, {name} for one ({reason}): check the source")
    lines = [f"{name}\t{reason}\n" for name, reason in result.skipped.items()]
    (folder / SKIPPED_NAME).write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    if not lines:
        (folder / SKIPPED_NAME).unlink()
    if read_manifest(folder) != result.manifest:
        write_manifest(folder, result.manifest)
    for leftover in (folder / JOURNAL_NAME, *folder.glob(f"*.array_record{TEMPORARY}")):
        leftover.unlink(missing_ok=True)


def _write_journal(folder: Path, settings: dict[str, Any], records: Sequence[ShardRecord]) -> None:
    """Makes the folder one of unfinished shards."""
    fresh = folder / (JOURNAL_NAME + TEMPORARY)
    lines = [{"settings": settings}, *map(dataclasses.asdict, records)]
    fresh.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    fresh.replace(folder / JOURNAL_NAME)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)


def _append(folder: Path, record: ShardRecord) -> None:
    with (folder / JOURNAL_NAME).open("a", encoding="utf-8") as journal:
        journal.write(json.dumps(dataclasses.asdict(record)) + "\n")


def _read_journal(folder: Path) -> Manifest | None:
    """Returns what an interrupted run has finished; a line that was cut does not count."""
    file = folder / JOURNAL_NAME
    if not file.exists():
        return None
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    try:
        settings, *records = [json.loads(line) for line in lines if line.endswith("\n")]
        return Manifest(settings["settings"], tuple(map(parse_record, records)))
    except (ValueError, KeyError, TypeError) as error:
        raise PrepareError(f"{file} is damaged ({error}): remove {folder}, or choose another --output") from error
