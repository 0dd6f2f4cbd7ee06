"""Shards hold the right images, in the right order, whatever interrupts their making."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from croc_jax.data import prepare as prepare_module
from croc_jax.data.crops import DecodeError
from croc_jax.data.prepare import PrepareConfig, plan_shards, prepare, verify
from croc_jax.data.shard_writer import PrepareError, shrink, write_shard
from croc_jax.data.sources import ArrayRecordSource, SourceError
from tests.data.tiny_images import contents, encode, names

NUM_IMAGES = 11


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(NUM_IMAGES):
        (folder / f"{i:02d}.png").write_bytes(encode(i, (20 + i, 40)))
    return folder


@pytest.fixture
def run(photos, tmp_path):
    """Prepares the photos four to a shard."""

    def call(num_workers=1, **changes):
        config = PrepareConfig(**{"sources": (str(photos),), "shard_size": 4} | changes)
        return prepare(config, tmp_path / "out", num_workers=num_workers)

    return call


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_shards_hold_a_fixed_number_of_images():
    names = [f"images-0000{i}-of-00003.array_record" for i in range(3)]
    assert plan_shards(11, 4) == [(names[0], 0, 4), (names[1], 4, 8), (names[2], 8, 11)]
    assert [plan[1:] for plan in plan_shards(8, 4)] == [(0, 4), (4, 8)]
    assert [plan[1:] for plan in plan_shards(3, 4)] == [(0, 3)]


def test_images_keep_bytes_order_and_names(run, photos, tmp_path):
    result = run()
    assert files(tmp_path / "out") == [*(f"images-0000{i}-of-00003.array_record" for i in range(3)), "manifest.json"]
    source = ArrayRecordSource(tmp_path / "out")
    assert contents(source) == [encode(i, (20 + i, 40)) for i in range(NUM_IMAGES)]
    assert names(source) == [str(photos / f"{i:02d}.png") for i in range(NUM_IMAGES)]
    assert (result.num_images, result.num_processed, result.num_kept, result.skipped) == (11, 11, 0, {})
    assert result.seconds > 0 and verify(tmp_path / "out") == result.manifest


def test_the_manifest_says_what_is_there(run, photos, tmp_path):
    run(short_side=25)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("croc_jax image shards", 1)
    assert manifest["settings"].pop("names_sha256")
    assert manifest["settings"] == {"sources": [str(photos)], "short_side": 25, "shard_size": 4, "num_images": 11}
    last = manifest["shards"][2]
    assert last["name"] == "images-00002-of-00003.array_record" and last["count"] == 3 and len(last["sha256"]) == 64
    assert last["bytes"] == (tmp_path / "out" / last["name"]).stat().st_size
    assert last["names"] == [str(photos / f"{i:02d}.png") for i in (8, 9, 10)] and last["skipped"] == {}


def test_any_number_of_workers_writes_the_same_files(run, tmp_path):
    run(num_workers=1)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    shutil.rmtree(tmp_path / "out")
    run(num_workers=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == expected


@pytest.mark.parametrize(
    ("size", "expected"), [((400, 300), (133, 100)), ((300, 400), (100, 133)), ((101, 101), (100, 100))]
)
def test_large_images_are_resized_as_by_pillow(size, expected):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    shrunk = Image.open(io.BytesIO(shrink(stream.getvalue(), 100)))
    reference = io.BytesIO()
    Image.fromarray(noise).resize(expected, Image.Resampling.BICUBIC).save(reference, "JPEG", quality=95)
    assert shrunk.format == "JPEG" and shrunk.size == expected
    np.testing.assert_array_equal(np.asarray(shrunk), np.asarray(Image.open(reference)))


@pytest.mark.parametrize("size", [(100, 100), (5000, 100), (30, 60)])
def test_images_that_are_small_enough_keep_their_bytes(size):
    encoded = encode(3, size, "JPEG")
    assert shrink(encoded, 100) == encoded and shrink(encoded, None) == encoded


def test_what_is_no_image_is_no_image_at_any_size():
    for encoded in (b"", b"Dear reader", encode(3, (300, 300), "JPEG")[:900]):
        with pytest.raises(DecodeError):
            shrink(encoded, None)


def test_gray_and_transparent_images_are_resized_as_color():
    for mode in ("L", "LA", "RGBA", "P", "CMYK", "I;16"):
        stream = io.BytesIO()
        Image.new(mode, (300, 200)).save(stream, "TIFF" if mode == "CMYK" else "PNG")
        shrunk = Image.open(io.BytesIO(shrink(stream.getvalue(), 50)))
        assert (shrunk.mode, shrunk.size) == ("RGB", (75, 50))


def test_bad_images_are_left_out_and_listed(run, photos, tmp_path):
    (photos / "01.png").write_bytes(b"")
    (photos / "05.png").write_text("Dear reader")
    (photos / "06.png").write_bytes(encode(6)[:45])
    result = run(num_workers=1)
    assert [shard.count for shard in result.manifest.shards] == [3, 2, 3] and result.num_processed == 11
    bad = [str(photos / name) for name in ("01.png", "05.png", "06.png")]
    assert list(result.skipped) == bad and "cannot identify" in result.skipped[bad[1]]
    listed = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == bad and all(line.split("\t")[1] for line in listed)
    source = ArrayRecordSource(tmp_path / "out")
    assert names(source) == [str(photos / f"{i:02d}.png") for i in (0, 2, 3, 4, 7, 8, 9, 10)]
    assert source[4] == encode(7, (27, 40)) and verify(tmp_path / "out") == result.manifest


def test_a_source_without_a_readable_image_is_an_error(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "letter.jpg").write_text("Dear reader")
    with pytest.raises(PrepareError, match=r"no image could be read, \S+letter\.jpg for one \(.*cannot identify"):
        prepare(PrepareConfig(sources=(str(tmp_path / "photos"),)), tmp_path / "out", num_workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def interrupt_after(monkeypatch, count):
    """Makes the work fail, as by a full disk, after so many shards."""
    written = []

    def write(plan):
        if len(written) == count:
            raise PrepareError("no room")
        written.append(plan.name)
        return write_shard(plan)

    monkeypatch.setattr(prepare_module, "write_shard", write)
    return written


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_an_interrupted_run_goes_on_after_its_finished_shards(run, tmp_path, monkeypatch, finished):
    out = tmp_path / "out"
    expected = run().manifest
    shutil.rmtree(out)
    interrupt_after(monkeypatch, finished)
    with pytest.raises(PrepareError, match="no room"):
        run()
    with pytest.raises(SourceError, match="not complete" if finished else "no ArrayRecord file"):
        ArrayRecordSource(out)
    with pytest.raises(PrepareError, match="is not complete: run .* without --verify first"):
        verify(out)
    # A line that was cut, and a shard that was being written.
    with (out / "manifest.jsonl").open("a") as journal:
        journal.write('{"name": "images-0000')
    (out / "images-00002-of-00003.array_record.tmp").write_bytes(b"half")
    written = interrupt_after(monkeypatch, 99)
    result = run()
    assert len(written) == 3 - finished and result.num_kept == finished and result.manifest == expected
    assert result.num_processed == NUM_IMAGES - 4 * finished
    assert files(out)[-1] == "manifest.json" and len(files(out)) == 4
    assert len(ArrayRecordSource(out)) == NUM_IMAGES


def test_a_finished_run_is_left_as_it_is(run, tmp_path, monkeypatch):
    expected = run().manifest
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    written = interrupt_after(monkeypatch, 99)
    result = run()
    assert written == [] and result.num_kept == 3 and result.manifest == expected
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times


def test_damaged_and_lost_shards_are_found_and_written_again(run, tmp_path, monkeypatch):
    out, expected = tmp_path / "out", run().manifest
    damaged, lost = (out / shard.name for shard in expected.shards[:2])
    data = bytearray(damaged.read_bytes())
    data[100] ^= 1
    damaged.write_bytes(data)
    lost.unlink()
    with pytest.raises(PrepareError, match=rf"2 of 3 shards in .*\({damaged.name}, {lost.name}\): run the same"):
        verify(out)
    written = interrupt_after(monkeypatch, 99)
    assert run().manifest == expected and written == [damaged.name, lost.name]
    assert verify(out) == expected and files(out)[-1] == "manifest.json"


def test_other_settings_are_refused_field_by_field(run, photos, tmp_path):
    run()
    with pytest.raises(PrepareError) as error:
        run(short_side=16, shard_size=5)
    assert str(error.value).endswith("or undo\n  short_side: None there, 16 now\n  shard_size: 4 there, 5 now")
    (photos / "99.png").write_bytes(encode(1))
    with pytest.raises(PrepareError, match="num_images: 11 there, 12 now"):
        run()
    (photos / "99.png").unlink()
    (photos / "00.png").rename(photos / "0.png")
    with pytest.raises(PrepareError, match="names_sha256: "):
        run()
    assert verify(tmp_path / "out").settings["shard_size"] == 4


def test_a_folder_of_something_else_is_refused(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.array_record").write_bytes(b"precious")
    with pytest.raises(PrepareError, match="unknown origin: choose another --output"):
        run()
    with pytest.raises(PrepareError, match=r"holds no manifest\.json"):
        verify(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text('{"format": "croc_jax image shards", "version": 99}')
    with pytest.raises(PrepareError, match="version 99.*choose another --output"):
        run()
    with pytest.raises(PrepareError, match=r"cannot write to \S+mine\.array_record"):
        prepare(PrepareConfig(sources=(str(tmp_path / "photos"),)), tmp_path / "out" / "mine.array_record")


def test_sources_of_every_kind_can_be_prepared(run, photos, tmp_path):
    run()
    again = tmp_path / "again"
    sources = (f"arrayrecord:{tmp_path / 'out'}", f"folder:{photos}")
    prepare(PrepareConfig(sources=sources, shard_size=7), again, num_workers=1)
    images = [encode(i, (20 + i, 40)) for i in range(NUM_IMAGES)]
    assert contents(ArrayRecordSource(again)) == 2 * images
    assert names(ArrayRecordSource(again)) == 2 * [str(photos / f"{i:02d}.png") for i in range(NUM_IMAGES)]


def test_progress_is_shown_and_ends_with_all_images(photos, tmp_path):
    shown = []
    config = PrepareConfig(sources=(str(photos),), shard_size=4)
    prepare(config, tmp_path / "out", num_workers=1, show=lambda *numbers: shown.append(numbers))
    done = [number for number, _ in shown]
    assert shown[-1] == (11, 11) and done == sorted(done)


def test_settings_that_make_no_sense_are_refused():
    for name in ("short_side", "shard_size"):
        with pytest.raises(ValueError, match=f"{name}=0: must be 1 or more"):
            PrepareConfig(sources=("photos",), **{name: 0})
