"""ArrayRecord and tar files: every image by its number, and damage is explained."""

import dataclasses
import hashlib
import io
import os
import tarfile
import threading

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from croc_jax.data.sources import ArrayRecordSource, SourceError, TarSource, open_sources
from croc_jax.data.sources import tar as tar_module
from croc_jax.data.sources.manifest import JOURNAL_NAME, Manifest, ShardRecord, read_manifest, write_manifest
from croc_jax.data.sources.shards import Handles, expand_braces
from tests.data.tiny_images import check_copies, contents, names


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "croc_jax" / "tar"


def write_records(file, *records):
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return file


def write_tar(file, members, form=tarfile.GNU_FORMAT, mode="w"):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode, format=form) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def read_in_threads(source):
    expected, wrong = contents(source), []

    def read(seed):
        for index in np.random.default_rng(seed).integers(len(source), size=200).tolist():
            if source[index] != expected[index]:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{0..2}", ["0", "1", "2"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{train,val}/{0..1}.tar", ["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]),
        ("plain", ["plain"]),
        ("{odd}[1]", ["{odd}[1]"]),
    ],
)
def test_braces_stand_for_each_choice(pattern, expected):
    assert list(expand_braces(pattern)) == expected


def test_handles_keep_the_last_ones_and_reopen_the_others():
    opened = []
    handles = Handles(lambda file: opened.append(file) or file.upper(), limit=2)
    assert [handles[file] for file in "abacab"] == list("ABACAB")
    assert opened == ["a", "b", "c", "b"]


def test_records_of_a_folder_a_pattern_and_a_file(tmp_path):
    write_records(tmp_path / "b.array_record", b"3", b"4")
    first = write_records(tmp_path / "a.array_record-00000-of-00001", b"0", b"1", b"2")
    (tmp_path / "c.array_record.tmp").write_bytes(b"being written")
    (tmp_path / "notes.txt").write_text("no records")
    for pattern in (
        tmp_path,
        f"{tmp_path}/[ab].array*",
        f"{tmp_path}/{{a.array_record-00000-of-00001,b.array_record}}",
    ):
        source = ArrayRecordSource(pattern)
        assert contents(source) == [b"0", b"1", b"2", b"3", b"4"]
        assert source.name(1) == f"{first}:1" and source.name(4) == f"{tmp_path}/b.array_record:1"
        check_copies(source)
    assert contents(open_sources([f"arrayrecord:{first}"])) == [b"0", b"1", b"2"]
    with pytest.raises(IndexError):
        source[5]


def test_records_are_read_by_threads_at_once(tmp_path):
    for shard in range(3):
        write_records(tmp_path / f"{shard}.array_record", *(bytes([shard, i]) * 500 for i in range(20)))
    read_in_threads(ArrayRecordSource(tmp_path))


def test_unreadable_records_are_os_errors_and_spare_the_others(tmp_path):
    rng = np.random.default_rng(0)
    records = [rng.bytes(3000) for _ in range(20)]
    file = write_records(tmp_path / "a.array_record", *records)
    data = bytearray(file.read_bytes())
    data[data.find(records[7]) + 5] ^= 0xFF
    file.write_bytes(data)
    source = ArrayRecordSource(tmp_path)
    with pytest.raises(OSError, match=r"a\.array_record: .*hash mismatch"):
        source[7]
    assert [source[i] for i in range(20) if i != 7] == records[:7] + records[8:]
    file.unlink()
    with pytest.raises(OSError, match=r"a\.array_record"):
        ArrayRecordSource.__getitem__(_reopened(source), 0)


def _reopened(source):
    source._readers = Handles(source._readers._open_file)
    return source


def test_useless_record_files_are_named(tmp_path):
    (tmp_path / "torn.array_record").write_bytes(b"\0" * 1000)
    with pytest.raises(SourceError, match=r"torn\.array_record is no whole ArrayRecord file"):
        ArrayRecordSource(tmp_path)
    with pytest.raises(SourceError, match=r"no ArrayRecord file .* in .*empty"):
        (tmp_path / "empty").mkdir()
        ArrayRecordSource(tmp_path / "empty")
    with pytest.raises(SourceError, match=r"called .*x-1\.array_record of .*x-{0\.\.1}"):
        write_records(tmp_path / "x-0.array_record", b"0")
        ArrayRecordSource(f"{tmp_path}/x-{{0..1}}.array_record")
    with pytest.raises(SourceError, match="are empty"):
        ArrayRecordSource(write_records(tmp_path / "none" / "a.array_record"))


@pytest.fixture
def prepared(tmp_path):
    """Two shards and their manifest."""
    shards = []
    for number, records in enumerate([[b"zero", b"one"], [b"two"]]):
        file = write_records(tmp_path / "shards" / f"{number}.array_record", *records)
        data = file.read_bytes()
        called = tuple(f"{word.decode()}.jpg" for word in records)
        checksum = hashlib.sha256(data).hexdigest()
        shards.append(
            ShardRecord(
                name=file.name, count=len(records), bytes=len(data), sha256=checksum, names=called, skipped={"x": "bad"}
            )
        )
    write_manifest(tmp_path / "shards", Manifest({"sources": ["photos"]}, tuple(shards)))
    return tmp_path / "shards"


def test_a_manifest_comes_back_as_written(prepared):
    manifest = read_manifest(prepared)
    assert manifest is not None and manifest.settings == {"sources": ["photos"]}
    assert [shard.names for shard in manifest.shards] == [("zero.jpg", "one.jpg"), ("two.jpg",)]
    assert manifest.shards[0].skipped == {"x": "bad"}
    write_manifest(prepared, manifest)
    assert read_manifest(prepared) == manifest and len(list(prepared.iterdir())) == 3


def test_the_manifest_gives_names(prepared):
    source = ArrayRecordSource(prepared)
    assert names(source) == ["zero.jpg", "one.jpg", "two.jpg"] and contents(source) == [b"zero", b"one", b"two"]
    check_copies(source)
    assert names(ArrayRecordSource(prepared / "1.array_record")) == ["two.jpg"]
    # A manifest of another program is none of ours.
    (prepared / "manifest.json").write_text('{"name": "something else"}')
    assert ArrayRecordSource(prepared).name(2) == f"{prepared}/1.array_record:0"


def test_shards_that_do_not_fit_their_manifest_are_refused(prepared):
    manifest = read_manifest(prepared)
    assert manifest is not None
    wrong = dataclasses.replace(manifest.shards[1], bytes=7)
    write_manifest(prepared, Manifest({}, (manifest.shards[0], wrong)))
    with pytest.raises(SourceError, match=r"1\.array_record has \d+ bytes, but 7 by its manifest"):
        ArrayRecordSource(prepared)
    (prepared / "1.array_record").unlink()
    with pytest.raises(SourceError, match=r"cannot read .*1\.array_record: No such file"):
        ArrayRecordSource(prepared)
    (prepared / "manifest.json").rename(prepared / JOURNAL_NAME)
    with pytest.raises(SourceError, match="not complete"):
        ArrayRecordSource(prepared)
    (prepared / "manifest.json").write_text('{"format": "croc_jax image shards", "version": 99}')
    with pytest.raises(SourceError, match="version 99"):
        ArrayRecordSource(prepared)
    (prepared / "manifest.json").write_text('{"format": "croc_jax')
    with pytest.raises(SourceError, match=r"cannot read .*manifest\.json"):
        ArrayRecordSource(prepared)


MEMBERS = {"a/1.JPG": b"one", "a/1.json": b"{}", "a/2.png": b"two!", "long/" * 60 + "ü.webp": b"3", "4.jpeg": b""}
IMAGES = ["a/1.JPG", "a/2.png", "long/" * 60 + "ü.webp", "4.jpeg"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_tar_files_in_their_order(tmp_path, form, monkeypatch):
    first, second = (write_tar(tmp_path / "tars" / f"{i}.tar", MEMBERS, form) for i in "01")
    (tmp_path / "tars" / "0.tar.idx").write_text("of another program")
    monkeypatch.setattr(tar_module, "_MANY", 0)
    for pattern in (tmp_path / "tars", f"{tmp_path}/tars/{{0..1}}.tar", f"{tmp_path}/tars/*.tar"):
        source = TarSource(pattern)
        assert contents(source) == 2 * [b"one", b"two!", b"3", b""]
        assert names(source) == [f"{file}:{name}" for file in (first, second) for name in IMAGES]
        read_in_threads(source)
    assert len(contents(open_sources([f"tar:{second}"]))) == 4


def test_tar_copies_are_small_and_whole(tmp_path):
    write_tar(tmp_path / "0.tar", {"1.jpg": b"1", "2.jpg": b"2"})
    check_copies(TarSource(tmp_path))


def test_the_index_is_made_once_for_each_state_of_a_file(tmp_path, cache, monkeypatch):
    file, made = write_tar(tmp_path / "0.tar", {"1.jpg": b"1"}), []
    make = tar_module._make_index
    monkeypatch.setattr(tar_module, "_make_index", lambda file: made.append(file) or make(file))
    assert contents(TarSource(file)) == contents(TarSource(file)) == [b"1"] and len(made) == 1
    (saved,) = cache.iterdir()
    saved.write_bytes(b"damaged")
    assert contents(TarSource(file)) == [b"1"] and len(made) == 2
    # The same size, but changed since.
    write_tar(file, {"2.jpg": b"2"})
    os.utime(file, ns=(0, 12345))
    assert names(TarSource(file)) == [f"{file}:2.jpg"] and len(made) == 3
    assert contents(TarSource(file)) == [b"2"] and len(made) == 3 and len(list(cache.iterdir())) == 1


def test_a_home_without_room_for_an_index_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert contents(TarSource(write_tar(tmp_path / "0.tar", {"1.jpg": b"1"}))) == [b"1"]


def test_compressed_tar_files_are_refused_with_the_reason(tmp_path):
    packed = write_tar(tmp_path / "a.tar.gz", MEMBERS, mode="w:gz")
    disguised = write_tar(tmp_path / "disguised" / "a.tar", MEMBERS, mode="w:xz")
    for pattern in (packed, tmp_path, disguised):
        with pytest.raises(SourceError, match=r"compressed, so that .* unpack it to a plain \.tar"):
            TarSource(pattern)


def test_damaged_tar_files_are_named(tmp_path):
    file = write_tar(tmp_path / "0.tar", {f"{i}.jpg": bytes(2000) for i in range(4)})
    whole = file.read_bytes()
    # Cut in a header, in the contents, and in the last contents; a damaged header in the middle.
    for size in (2560 * 2 + 100, 2560 * 2 + 700, 2560 * 3 + 1000):
        file.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"cannot read the tar file .*0\.tar"):
            TarSource(file)
    file.write_bytes(whole[:5120] + b"?" * 512 + whole[5632:])
    with pytest.raises(SourceError, match="damaged header at byte 5120"):
        TarSource(file)
    file.write_bytes(b"no tar" * 1000)
    with pytest.raises(SourceError, match=r"cannot read the tar file .*0\.tar"):
        TarSource(file)


def test_tar_files_without_images_and_none_at_all_are_errors(tmp_path):
    write_tar(tmp_path / "0.tar", {"1.json": b"{}"})
    with pytest.raises(SourceError, match=r"no images in .*0\.tar: looked for \.jpg"):
        TarSource(tmp_path / "0.tar")
    with pytest.raises(SourceError, match=r"no tar file .* called .*nowhere\.tar"):
        TarSource(tmp_path / "nowhere.tar")


def test_an_image_that_is_cut_later_is_an_os_error(tmp_path):
    file = write_tar(tmp_path / "0.tar", {"1.jpg": b"1" * 2000, "2.jpg": b"2" * 2000})
    source = TarSource(file)
    os.truncate(file, 3600)
    assert source[0] == b"1" * 2000
    with pytest.raises(OSError, match=r"0\.tar:2\.jpg: the tar file ends within it"):
        source[1]
    file.unlink()
    with pytest.raises(OSError, match=r"0\.tar"):
        TarSource.__getitem__(_without_handles(source), 0)


def _without_handles(source):
    source._handles = Handles(source._handles._open_file)
    return source
