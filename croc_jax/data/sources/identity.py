"""What identifies the images of a source, at the cost of a listing: their names and sizes, not their contents."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from croc_jax.data.sources.base import ImageSource
from croc_jax.data.sources.files import FileSource

# More names than that are not kept: they would make a file that nobody reads.
_MAX_LISTED = 100_000
_MAX_NAMED = 3


class ImageSet(NamedTuple):
    """What identifies the images of a source.

    Attributes:
        count: number of images.
        digest: hexadecimal digits that differ wherever the names, the sizes or their order do.
        entries: names and sizes that the digest is of; empty if there are more than 100,000.
    """

    count: int
    digest: str
    entries: Sequence[Sequence[Any]] = ()

    @property
    def brief(self) -> dict[str, Any]:
        """Number and digest alone."""
        return {"count": self.count, "digest": self.digest}


def identify(source: ImageSource) -> ImageSet:
    """Returns what identifies the images of a source; no path outside of it counts.

    Raises:
        OSError: if the file system fails.
    """
    sha, kept = hashlib.sha256(f"{len(source)}\n".encode()), list[tuple[str, int]]()
    for name, size in source.entries():
        sha.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
        if len(kept) <= _MAX_LISTED:
            kept.append((name, size))
    return ImageSet(len(source), sha.hexdigest()[:16], tuple(kept) if len(kept) <= _MAX_LISTED else ())


def digest_files(folder: str | os.PathLike, files: Iterable[str | os.PathLike]) -> str:
    """Returns the digest of files by their paths relative to a folder, and their sizes; OSError as `identify`."""
    return identify(FileSource(folder, [os.path.relpath(file, folder) for file in files])).digest


def describe_change(old: ImageSet, new: ImageSet) -> str:
    """Returns what has changed between two sets of images, such as "2 images then, 3 now (1 new: 'c.png')"."""
    before, after = ({str(name): size for name, size in images.entries} for images in (old, new))
    kinds = {
        "new": [name for name in after if name not in before],
        "missing": [name for name in before if name not in after],
        "of another size": [name for name in after if before.get(name, after[name]) != after[name]],
    }
    parts = ["names or sizes differ"]
    if before and after:
        parts = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds.items() if names]
    return f"{old.count} images then, {new.count} now ({'; '.join(parts) or 'in another order'})"


def _some(names: Sequence[str]) -> str:
    """Returns the first few names, in quotes, since they may hold anything."""
    return ", ".join(map(repr, names[:_MAX_NAMED])) + (", ..." if len(names) > _MAX_NAMED else "")
