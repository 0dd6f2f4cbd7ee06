"""Recognizes a file of weights by its first bytes, whatever its name, and says what any other file is."""

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

TORCH, SAFETENSORS = "torch", "safetensors"
# Files of a folder as Hugging Face ships it; an index names the files that hold the parts.
HF_WEIGHTS, TORCH_WEIGHTS, INDEX = "model.safetensors", "pytorch_model.bin", ".index.json"
IN_FOLDERS = (HF_WEIGHTS, f"{HF_WEIGHTS}{INDEX}", TORCH_WEIGHTS, f"{TORCH_WEIGHTS}{INDEX}")
# The first bytes of what PyTorch before 1.6 wrote.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LONGEST = 600
_RESAVE = "load it where it comes from, and save its state_dict as .safetensors or with torch.save"
# What a file begins with, what it is then, and what to do.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS, without the weights", "run git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "HDF5, as of Keras", _RESAVE),
    (b"\x89PNG", "an image", "name a file of weights"),
    (b"\xff\xd8\xff", "an image", "name a file of weights"),
    (b"\x93NUMPY", "an array of NumPy", _RESAVE),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first"),
    (b"7z\xbc\xaf", "an archive of 7-Zip", "unpack it first"),
    (b"GGUF", "GGUF", _RESAVE),
    (b"model_checkpoint_path:", "the list of a TensorFlow checkpoint", _RESAVE),
    *((bytes([0x80, version]), "a pickle, but none of torch.save", _RESAVE) for version in range(2, 6)),
    *((bytes([first]), "msgpack, as of Flax", _RESAVE) for first in (*range(0x81, 0x90), 0xDE, 0xDF)),
)  # fmt: skip
# Of folders: a name, and what to do about it.
_FOLDER_MARKS = (
    ("snapshots", "it is a cache of Hugging Face: name the folder in snapshots"),
    (".metadata", "it is a distributed checkpoint of PyTorch: join it with dcp_to_torch_save"),
    ("saved_model.pb", f"it is a SavedModel of TensorFlow: {_RESAVE}"),
    ("_CHECKPOINT_METADATA", f"it is a checkpoint that another program wrote with Orbax: {_RESAVE}"),
    ("manifest.ocdbt", f"it is a checkpoint that another program wrote with Orbax: {_RESAVE}"),
)


def identify(file: Path) -> str:
    """Returns `TORCH` or `SAFETENSORS`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for any other file, saying what it is and what to do.
    """
    try:
        found = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no file {file}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{file} is no regular file, but a {_kind_of(found.st_mode)}")
    if not found.st_size:
        raise ValueError(f"{file} is empty: get it again")
    with file.open("rb") as stream:
        start = stream.read(512)
    if start.startswith((b"PK\x03\x04", LEGACY)):
        return TORCH
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < 2**40:
        return SAFETENSORS
    raise ValueError(f"{file} {_describe(start)}")


def _describe(start: bytes) -> str:
    for beginning, what, remedy in _BEGINNINGS:
        if start.startswith(beginning):
            return f"is {what}: {remedy}"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        return "is a web page, not the weights behind it: get it again"
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it first"
    if text.startswith((b"{", b"[")):
        return "is JSON: name the weights beside it, or their folder"
    return f"is no file of weights: it begins with {start[:12]!r}; PyTorch's and safetensors are read"


def _kind_of(mode: int) -> str:
    kinds = {stat.S_ISDIR: "folder", stat.S_ISFIFO: "pipe", stat.S_ISSOCK: "socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "device")


def describe_folder(folder: Path) -> str:
    """Returns why a folder is no checkpoint that can be read, and what to name instead."""
    looked = f"it has neither a folder checkpoints, as runs have, nor {IN_FOLDERS[0]} or {IN_FOLDERS[2]}"
    names = sorted(path.name for path in folder.iterdir())
    if found := [name for name in IN_FOLDERS if name in names]:
        return f"its {found[0]} is no file that can be read, as a link whose target is missing"
    if hint := next((hint for name, hint in _FOLDER_MARKS if name in names), None):
        return f"{looked}; {hint}"
    return f"{looked}; name one of its files: {list_some(names)}" if names else f"{looked}; it is empty"


def list_some(items: Sequence[str], *, limit: int = 200, separator: str = ", ") -> str:
    """Returns the first items, as many as fit in so many characters, at least one, and how many more there are."""
    text = shorten(items[0], limit) if items else ""
    for number, item in enumerate(items[1:], 1):
        if len(text) + len(separator) + len(item) > limit:
            return f"{text}{separator}and {len(items) - number} more"
        text += separator + shorten(item, limit)
    return text


def shorten(text: str, limit: int = _LONGEST) -> str:
    """Returns a text in one line of so many characters at most."""
    line = " ".join(text.split()) if text.isprintable() else text.encode("unicode_escape").decode()
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
