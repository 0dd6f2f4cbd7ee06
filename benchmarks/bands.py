"""Images of many channels of 16 bits, made of photographs, in the files that such images come in."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from croc_jax.data.decoding import decode_image
from croc_jax.data.sources import FolderSource

SIDE = 256
# As GDAL writes them: all channels of a pixel together, in strips of about 8 KB.
_FORMS = {"TIFF": {}, "TIFF, deflate": {"compression": "deflate"}, "TIFF, LZW": {"compression": "lzw"}}
_MAX_IMAGES = 64


def write_bands(photographs: Path, scratch: Path, *, channels: int) -> dict[str, Path]:
    """Writes images of 256 x 256 pixels, and returns their folders by the kind of their files.

    Args:
        photographs: folder of photographs, whose colors are mixed at random.
        scratch: an empty folder.
        channels: channels of an image.
    """
    source, mixes = FolderSource(photographs), np.random.default_rng(0).dirichlet(np.ones(3), channels)
    folders = {name: scratch / str(number) for number, name in enumerate([*_FORMS, ".npy"])}
    for folder in folders.values():
        folder.mkdir()
    for index in range(min(len(source), _MAX_IMAGES)):
        planes = Image.fromarray(decode_image(source, index)).resize((SIDE, SIDE), Image.Resampling.BOX)
        noise = np.random.default_rng(index).normal(0, 10, (SIDE, SIDE, channels))
        values = (np.asarray(planes) @ mixes.T * 16 + 1000 + noise).astype(np.uint16)
        for name, options in _FORMS.items():
            tifffile.imwrite(
                folders[name] / f"{index}.tif", values, photometric="minisblack", planarconfig="contig",
                predictor="compression" in options, rowsperstrip=2, **options,
            )  # fmt: skip
        np.save(folders[".npy"] / f"{index}.npy", values)
    return folders
