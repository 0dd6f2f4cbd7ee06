"""Damaged files are replaced, counted, listed once, and stop a run only if they are many."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.bad_records import DamageAccount, UnreadableImagesError
from croc_jax.data.config import DataConfig, ViewsConfig
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import FolderSource

GOOD = 24


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two dozen good photos, odd ones that can be read, and damaged ones that cannot."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    for index in range(GOOD):
        (tmp_path / f"good-{index}.jpg").write_bytes(encode(photo, "JPEG"))
    exif = Image.Exif()
    exif[0x0112] = 6
    odd = {
        "cmyk.jpg": encode(photo.convert("CMYK"), "JPEG"),
        "deep.png": encode(Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50)), "PNG"),
        "gray.jpg": encode(photo.convert("L"), "JPEG"),
        "rotated.jpg": encode(photo, "JPEG", exif=exif),
        "dot.png": encode(photo.resize((1, 1)), "PNG"),
        "long.jpg": encode(photo.resize((20_000, 50)), "JPEG"),
    }
    bad = {
        "truncated.jpg": encode(photo, "JPEG")[:700],
        "empty.jpg": b"",
        "text.jpg": b"this is no image",
        "bomb.png": encode(Image.new("1", (15_000, 15_000)), "PNG"),
    }
    for name, data in (odd | bad).items():
        (tmp_path / name).write_bytes(data)
    # A link to nowhere cannot be read by anyone, root included.
    os.symlink(tmp_path / "nowhere", tmp_path / "unreadable.jpg")
    return tmp_path, sorted([*bad, "unreadable.jpg"])


def dataset(folder, file=None, **options):
    return make_dataset(
        FolderSource(folder), views=ViewsConfig(crop_size=8), batch_size=5, seed=0, skipped_file=file, **options
    )


@pytest.mark.parametrize("decoding", ["exact", "fast"])
def test_training_goes_on_and_every_bad_file_is_listed_once(folder, tmp_path, decoding):
    root, bad = folder
    listing = tmp_path / "skipped.txt"
    data = make_dataset(
        FolderSource(root),
        views=ViewsConfig(crop_size=8, decoding=decoding),
        batch_size=5,
        seed=0,
        skipped_file=listing,
        max_bad_fraction=0.01,
    )
    assert data.images_per_epoch == GOOD + 6 + len(bad)
    for _ in range(2):  # a run, and the same one resumed
        with data.iterate() as batches:
            shapes = {next(batches)["views"].shape for _ in range(2 * data.steps_per_epoch)}
            assert shapes == {(5, 2, 8, 8, 3)}
            assert sorted(os.path.basename(name) for name in batches.skipped) == bad
            assert all(count >= 2 for count in batches.skipped.values())
    rows = dict(line.split("\t") for line in listing.read_text().splitlines())
    assert sorted(os.path.basename(name) for name in rows) == bad and len(rows) == len(bad)
    assert "100 million pixels" in rows[str(root / "bomb.png")]
    assert "No such file" in rows[str(root / "unreadable.jpg")]


def test_too_many_stop_the_stream_after_a_thousand(folder, tmp_path):
    root, bad = folder
    with dataset(root, tmp_path / "skipped.txt", max_bad_fraction=0.05).iterate() as batches:
        for _ in range(170):  # 850 good images and about 120 bad ones
            next(batches)
        with pytest.raises(UnreadableImagesError, match=r"of 1\d\d\d images .* more than data.max_bad_fraction=0.05"):
            for _ in range(30):
                next(batches)


def test_a_share_below_the_limit_goes_on():
    account = DamageAccount(max_fraction=0.01)
    for index in range(10):
        account.add(f"{index}", "reason")
        account.judge(99)
    assert account.counts == {f"{index}": 1 for index in range(10)}
    account.add("one more", "reason")
    with pytest.raises(UnreadableImagesError, match="^11 of 1001 images could not be read, such as 0, 1, 2: "):
        account.judge(0)


def test_lines_of_another_process_are_kept(tmp_path):
    file = tmp_path / "skipped.txt"
    first, second = (DamageAccount(file=file) for _ in range(2))
    first.add("a.jpg", "torn\nacross lines")
    second.add("a.jpg", "torn")
    second.add("b.jpg", "empty")
    second.add("b.jpg")
    assert file.read_text() == "a.jpg\ttorn across lines\nb.jpg\tempty\n"


def test_impossible_limit_is_named():
    with pytest.raises(ValueError, match="max_bad_fraction=2"):
        DataConfig(max_bad_fraction=2)
