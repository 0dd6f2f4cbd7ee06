"""The same images give the same batches, whatever source they lie in, with worker processes too."""

import io
import tarfile

import numpy as np
import pytest

from croc_jax.data.config import ViewsConfig
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.prepare import PrepareConfig, prepare
from croc_jax.data.sources import open_sources
from tests.data.tiny_images import encode

NUM_IMAGES = 9


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """One set of images as a folder, a list, two tar files and two ArrayRecord shards."""
    home = tmp_path_factory.mktemp("home")
    (home / "photos").mkdir()
    for i in range(NUM_IMAGES):
        (home / "photos" / f"{i}.png").write_bytes(encode(i, (30, 25)))
    (home / "list.txt").write_text("".join(f"photos/{i}.png\n" for i in range(NUM_IMAGES)))
    for number, part in enumerate([range(5), range(5, NUM_IMAGES)]):
        with tarfile.open(home / f"{number}.tar", "w") as archive:
            for i in part:
                member = tarfile.TarInfo(f"{i}.png")
                member.size = len(encode(i, (30, 25)))
                archive.addfile(member, io.BytesIO(encode(i, (30, 25))))
    prepare(PrepareConfig(sources=(str(home / "photos"),), shard_size=5), home / "shards", num_workers=1)
    return home


def stream(specs, *, num_workers=0):
    dataset = make_dataset(open_sources(specs), views=ViewsConfig(crop_size=8), batch_size=3, seed=0)
    with dataset.iterate(num_workers=num_workers, num_threads=1) as batches:
        return [next(batches) for _ in range(7)]


@pytest.mark.parametrize(
    ("kind", "num_workers"), [("list:{}/list.txt", 0), ("tar:{}/{{0..1}}.tar", 2), ("arrayrecord:{}/shards", 2)]
)
def test_streams_do_not_depend_on_the_source(home, kind, num_workers, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    batches = stream([kind.format(home)], num_workers=num_workers)
    for batch, expected in zip(batches, stream([str(home / "photos")]), strict=True):
        np.testing.assert_array_equal(batch["views"], expected["views"])
        np.testing.assert_array_equal(batch["boxes"], expected["boxes"])
