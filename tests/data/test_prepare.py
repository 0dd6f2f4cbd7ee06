"""Shards hold the right images, in the right order, also after an interruption."""

import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from croc_jax.data import prepare as prepare_module
from croc_jax.data.channels import decode_pixels
from croc_jax.data.decoding import DecodeError
from croc_jax.data.prepare import PrepareConfig, prepare, shrink, write_shard
from croc_jax.data.sources.arrayrecord import ArrayRecordSource
from croc_jax.pixel_format import PixelFormat
from tests.data.tiny_images import contents, encode

NUM_IMAGES = 11
NAMES = [f"images-0000{i}-of-00003.array_record" for i in range(3)]
IMAGES = [encode(i, (20 + i, 40)) for i in range(NUM_IMAGES)]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, encoded in enumerate(IMAGES):
        (folder / f"{i:02d}.png").write_bytes(encoded)
    return folder


@pytest.fixture
def run(photos, tmp_path):
    """Prepares the photos four to a shard; returns what was shown, and the number of images left out."""

    def call(num_workers=1, **changes):
        config, shown = PrepareConfig(**{"sources": (str(photos),), "shard_size": 4} | changes), []
        skipped = prepare(
            config, tmp_path / "out", num_workers=num_workers, show=lambda *numbers: shown.append(numbers)
        )
        return shown, skipped

    return call


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_prepare_keeps_bytes_and_order_with_any_number_of_workers(run, photos, tmp_path):
    out = tmp_path / "out"
    assert run() == ([(0, 11), (4, 11), (8, 11), (11, 11)], 0)
    assert files(out) == [*NAMES, "prepare.json"] and contents(ArrayRecordSource(out)) == IMAGES
    settings = json.loads((out / "prepare.json").read_text())
    assert len(settings.pop("digest")) == 16
    pixels = {"channels": 3, "dtype": "uint8", "window": 0}
    assert settings == pixels | {"sources": [str(photos)], "short_side": None, "shard_size": 4, "num_images": 11}
    expected = {path.name: path.read_bytes() for path in out.iterdir()}
    # Of any source, the shards themselves among them.
    sources = (f"arrayrecord:{out}", f"folder:{photos}")
    prepare(PrepareConfig(sources=sources, shard_size=7), tmp_path / "again", num_workers=1)
    assert contents(ArrayRecordSource(tmp_path / "again")) == 2 * IMAGES
    shutil.rmtree(out)
    run(num_workers=2)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected


def test_prepare_leaves_bad_images_out_and_lists_them(run, photos, tmp_path):
    (photos / "01.png").write_bytes(b"")
    (photos / "05.png").write_text("Dear reader")
    assert run()[1] == 2
    rows = [line.split("\t") for line in (tmp_path / "out" / "skipped.txt").read_text().splitlines()]
    assert [row[0] for row in rows] == [str(photos / name) for name in ("01.png", "05.png")]
    assert "cannot identify" in rows[1][1]
    assert contents(ArrayRecordSource(tmp_path / "out")) == [IMAGES[i] for i in range(NUM_IMAGES) if i not in (1, 5)]
    shutil.rmtree(tmp_path / "out")
    for file in photos.iterdir():
        file.write_text("Dear reader")
    with pytest.raises(ValueError, match=r"no image of \S+photos could be read, such as \S+\d\d.png \("):
        run()
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize("finished", [0, 2])
def test_prepare_resumes_after_its_finished_shards(run, tmp_path, monkeypatch, finished):
    out, written = tmp_path / "out", []

    def write(file, *arguments):
        if len(written) == finished:
            raise OSError("no room")
        written.append(file)
        return write_shard(file, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_shard", write)
        with pytest.raises(OSError, match="no room"):
            run()
    assert files(out) == [*NAMES[:finished], "prepare.json"]
    with pytest.raises(ValueError, match="no ArrayRecord file" if not finished else "holds 2 of 3 shards"):
        ArrayRecordSource(out)
    (out / f"{NAMES[2]}.tmp").write_bytes(b"half")
    kept = {name: (out / name).stat().st_mtime_ns for name in NAMES[:finished]}
    assert run()[0][0] == (4 * finished, 11)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert files(out) == [*NAMES, "prepare.json"] and contents(ArrayRecordSource(out)) == IMAGES


def test_prepare_refuses_a_folder_of_other_shards(run, photos, tmp_path):
    run()
    with pytest.raises(ValueError) as error:
        run(short_side=16, shard_size=5)
    assert "short_side: None there, 16 now; shard_size: 4 there, 5 now): choose another --output" in str(error.value)
    # The same images may have moved; others of the same number have another digest.
    photos.rename(tmp_path / "moved")
    assert run(sources=(str(tmp_path / "moved"),)) == ([(11, 11)], 0)
    with (tmp_path / "moved" / "00.png").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match=r"shards of other settings or images \(digest: "):
        run(sources=(str(tmp_path / "moved"),))
    # Settings of an older version hold no digest, and are those of 8-bit RGB.
    settings = json.loads((tmp_path / "out" / "prepare.json").read_text())
    for name in ("digest", "channels", "dtype", "window"):
        del settings[name]
    (tmp_path / "out" / "prepare.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="channels: 3 there, 1 now"):
        run(sources=(str(tmp_path / "moved"),), channels=1)
    assert run(sources=(str(tmp_path / "moved"),)) == ([(11, 11)], 0)
    assert len(json.loads((tmp_path / "out" / "prepare.json").read_text())["digest"]) == 16
    (tmp_path / "out" / "prepare.json").unlink()
    (tmp_path / "moved").rename(photos)
    with pytest.raises(ValueError, match=r"holds ArrayRecord files but no prepare\.json: choose another --output"):
        run()


@pytest.mark.parametrize("damaged", [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_prepare_names_damaged_settings(run, tmp_path, damaged):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prepare.json").write_bytes(damaged)
    with pytest.raises(ValueError, match=re.escape(f"cannot read {tmp_path / 'out' / 'prepare.json'} (")) as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "expected"), [((400, 300), (133, 100)), ((101, 101), (100, 100))])
def test_shrink_resizes_large_images_as_pillow(size, expected):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream, reference = io.BytesIO(), io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    shrunk = Image.open(io.BytesIO(shrink(stream.getvalue(), 100)))
    Image.fromarray(noise).resize(expected, Image.Resampling.BICUBIC).save(reference, "JPEG", quality=95)
    assert shrunk.format == "JPEG" and shrunk.size == expected
    np.testing.assert_array_equal(np.asarray(shrunk), np.asarray(Image.open(reference)))


def test_shrink_keeps_small_images_converts_colors_and_refuses_other_bytes():
    for size in ((100, 100), (5000, 100), (30, 60)):
        encoded = encode(3, size, "JPEG")
        assert shrink(encoded, 100) == encoded and shrink(encoded, None) == encoded
    for mode in ("L", "LA", "RGBA", "P", "CMYK", "I;16"):
        stream = io.BytesIO()
        Image.new(mode, (300, 200)).save(stream, "TIFF" if mode == "CMYK" else "PNG")
        shrunk = Image.open(io.BytesIO(shrink(stream.getvalue(), 50)))
        assert (shrunk.mode, shrunk.size) == ("RGB", (75, 50))
    for encoded in (b"Dear reader", encode(3, (300, 300), "JPEG")[:900]):
        with pytest.raises(DecodeError):
            shrink(encoded, None)


@pytest.mark.parametrize(("channels", "dtype"), [(5, "uint16"), (1, "uint8"), (4, "float32")])
def test_other_formats_are_shrunk_in_their_own_type(tmp_path, channels, dtype):
    image = np.random.default_rng(0).uniform(0, 60_000 if dtype == "uint16" else 250, (60, 90, channels)).astype(dtype)
    np.save(tmp_path / "a.npy", image)
    encoded = (tmp_path / "a.npy").read_bytes()
    pixels = PrepareConfig(sources=(), channels=channels, dtype=dtype).pixels
    assert shrink(encoded, 60, pixels) == shrink(encoded, None, pixels) == encoded
    small = np.load(io.BytesIO(shrink(encoded, 20, pixels)))
    planes = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(channels)]
    expected = np.stack([plane.resize((30, 20), Image.Resampling.BICUBIC) for plane in planes], axis=-1)
    assert small.dtype == dtype and small.shape == (20, 30, channels)
    atol = 1e-3 if dtype == "float32" else 0.51
    np.testing.assert_allclose(small.astype(np.float64), expected, atol=atol, rtol=1e-5)
    np.testing.assert_array_equal(decode_pixels(shrink(encoded, 20, pixels), pixels), small)
    with pytest.raises(DecodeError, match=f"{channels} channel"):
        shrink(encoded, 20, PixelFormat(channels=2, dtype=pixels.dtype, range=(0, 1)))


def test_shards_of_windows_hold_arrays(tmp_path):
    image = np.random.default_rng(0).integers(0, 2**16, (40, 70, 2)).astype(np.uint16)
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", image, photometric="minisblack", planarconfig="contig")
    (tmp_path / "images" / "b.png").write_bytes(IMAGES[0])
    config = PrepareConfig(sources=(str(tmp_path / "images"),), channels=2, dtype="uint16", window=40)
    assert prepare(config, tmp_path / "out", num_workers=1) == 1
    windows = [np.load(io.BytesIO(encoded)) for encoded in contents(ArrayRecordSource(tmp_path / "out"))]
    np.testing.assert_array_equal(windows, [image[:, :40], image[:, 30:]])
    settings = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert (settings["channels"], settings["dtype"], settings["window"]) == (2, "uint16", 40)
    with pytest.raises(ValueError, match="window: 40 there, 64 now"):
        prepare(dataclasses.replace(config, window=64), tmp_path / "out", num_workers=1)
