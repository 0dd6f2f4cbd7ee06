"""The list of what prepared shards hold, in a file beside them."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from croc_jax.data.sources.base import SourceError

MANIFEST_NAME = "manifest.json"
# While shards are being written: a line of settings, then a line for each finished shard.
JOURNAL_NAME = "manifest.jsonl"
VERSION = 1
_FORMAT = "croc_jax image shards"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What one shard holds.

    Attributes:
        name: of its file.
        count: of images.
        bytes: size of the file.
        sha256: of the file, in hexadecimal.
        names: of the images in the source that they came from.
        skipped: why an image of the source is not there, by name.
    """

    name: str
    count: int
    bytes: int
    sha256: str
    names: tuple[str, ...]
    skipped: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The settings that shards were made with, and the shards."""

    settings: dict[str, Any]
    shards: tuple[ShardRecord, ...]


def read_manifest(folder: str | os.PathLike) -> Manifest | None:
    """Returns the manifest of a folder, or None if there is none, or one of something else.

    Raises:
        SourceError: for a damaged manifest, or one of another version.
    """
    file = Path(folder) / MANIFEST_NAME
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("format") != _FORMAT:
            return None
        if content["version"] != VERSION:
            raise SourceError(f"{file} has version {content['version']}, not {VERSION}: prepare the images again")
        return Manifest(content["settings"], tuple(parse_record(shard) for shard in content["shards"]))
    except FileNotFoundError:
        return None
    except SourceError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"cannot read {file} ({type(error).__name__}: {error}): prepare the images again") from error


def write_manifest(folder: str | os.PathLike, manifest: Manifest) -> Path:
    """Writes the manifest of a folder as a whole or not at all; returns its path.

    Raises:
        OSError: if it cannot be written.
    """
    file = Path(folder) / MANIFEST_NAME
    content = {"format": _FORMAT, "version": VERSION, **dataclasses.asdict(manifest)}
    fresh = file.with_suffix(".tmp")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(file)
    return file


def parse_record(content: dict[str, Any]) -> ShardRecord:
    """Returns the record of a shard from its form in JSON.

    Raises:
        KeyError, TypeError: if it is none.
    """
    fields: dict[str, Any] = {**content, "names": tuple(content["names"])}
    return ShardRecord(**fields)
