"""ArrayRecord and tar files: every image by its number, and corrupt files are explained."""

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from croc_jax.data.sources import open_sources
from croc_jax.data.sources.arrayrecord import ArrayRecordSource
from croc_jax.data.sources.shards import expand_braces
from croc_jax.data.sources.tar import TarSource
from tests.data.tiny_images import check_copies, contents, names


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
    order = np.random.default_rng(0).integers(len(source), size=800).tolist()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.__getitem__, order)) == [source[index] for index in order]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{train,val}/{0..1}.tar", ["train/0.tar", "train/1.tar", "val/0.tar", "val/1.tar"]),
        ("{odd}[1]", ["{odd}[1]"]),
    ],
)
def test_expand_braces(pattern, expected):
    assert list(expand_braces(pattern)) == expected


def test_array_record_source_reads_a_folder_a_pattern_and_a_file(tmp_path):
    write_records(tmp_path / "b.array_record", b"3", b"4")
    first = write_records(tmp_path / "a.array_record-00000-of-00001", b"0", b"1", b"2")
    (tmp_path / "c.array_record.tmp").write_bytes(b"being written")
    braces = f"{tmp_path}/{{a.array_record-00000-of-00001,b.array_record}}"
    for pattern in (tmp_path, f"{tmp_path}/[ab].array*", braces):
        source = ArrayRecordSource(pattern)
        assert contents(source) == [b"0", b"1", b"2", b"3", b"4"]
        assert source.name(4) == f"{pattern}:4"
    check_copies(source)
    read_in_threads(source)
    assert contents(open_sources([f"arrayrecord:{first}"])) == [b"0", b"1", b"2"]


def test_array_record_source_raises_os_error_for_a_corrupt_record_alone(tmp_path):
    rng = np.random.default_rng(0)
    records = [rng.bytes(3000) for _ in range(20)]
    file = write_records(tmp_path / "a.array_record", *records)
    data = bytearray(file.read_bytes())
    data[data.find(records[7]) + 5] ^= 0xFF
    file.write_bytes(data)
    source = ArrayRecordSource(tmp_path)
    with pytest.raises(OSError, match=r":7: .*hash mismatch"):
        source[7]
    assert [source[i] for i in range(20) if i != 7] == records[:7] + records[8:]


def test_array_record_source_names_useless_files(tmp_path):
    (tmp_path / "torn" / "torn.array_record").parent.mkdir()
    (tmp_path / "torn" / "torn.array_record").write_bytes(b"\0" * 1000)
    (tmp_path / "empty").mkdir()
    write_records(tmp_path / "x-0.array_record", b"0")
    write_records(tmp_path / "none" / "a.array_record")
    for number in (0, 2):
        write_records(tmp_path / "lost" / f"images-0000{number}-of-00003.array_record", b"0")
    for pattern, message in {
        "torn": r"cannot read the ArrayRecord file .*torn\.array_record \(ArrayRecord file should",
        "empty": "no ArrayRecord file .* in .*empty",
        "x-{0..1}.array_record": r"called .*x-1\.array_record of .*x-{0\.\.1}",
        "none": "are empty",
        "lost": "lost holds 2 of 3 shards: run the launch/prepare.py",
    }.items():
        with pytest.raises(ValueError, match=message):
            ArrayRecordSource(f"{tmp_path}/{pattern}")


MEMBERS = {"a/1.JPG": b"one", "a/1.json": b"{}", "a/2.png": b"two!", "long/" * 60 + "ü.webp": b"3", "4.jpeg": b""}
IMAGES = ["a/1.JPG", "a/2.png", "long/" * 60 + "ü.webp", "4.jpeg"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_source_reads_members_in_their_order(tmp_path, form):
    first, second = (write_tar(tmp_path / "tars" / f"{i}.tar", MEMBERS, form) for i in "01")
    (tmp_path / "tars" / "._0.tar").write_bytes(b"AppleDouble")
    for pattern in (tmp_path / "tars", f"{tmp_path}/tars/{{0..1}}.tar", f"{tmp_path}/tars/*.tar"):
        source = TarSource(pattern)
        assert contents(source) == 2 * [b"one", b"two!", b"3", b""]
        assert names(source) == [f"{file}:{name}" for file in (first, second) for name in IMAGES]
    read_in_threads(source)
    check_copies(TarSource(write_tar(tmp_path / "0.tar", {"1.jpg": b"1", "2.jpg": b"2"})))


def test_tar_source_reads_on_after_the_end_of_an_archive(tmp_path, caplog):
    parts = [write_tar(tmp_path / f"{i}.tar", {f"{i}.jpg": bytes([i]) * 2000}) for i in range(3)]
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert contents(TarSource(joined)) == [bytes([i]) * 2000 for i in range(3)]
    assert "1 tar files hold several archives in a row; all of them are read" in caplog.text
    joined.write_bytes(parts[1].read_bytes()[:2560])
    assert contents(TarSource(joined)) == [b"\1" * 2000]
    assert f"1 tar files, such as {joined}, lack the zeros at their end" in caplog.text
    joined.write_bytes(parts[0].read_bytes() + b"?" * 1024)
    with pytest.raises(ValueError, match=r"joined\.tar \(a corrupt header at byte 10240\)"):
        TarSource(joined)


def test_tar_source_asks_which_image_of_a_sample(tmp_path):
    members = {f"{i}.{kind}": kind.encode() for i in "01" for kind in ("jpg", "seg.png", "json")}
    file = write_tar(tmp_path / "a.tar", members | {"._0.jpg": b"", "__MACOSX/1.jpg": b""})
    message = r"such as 2 of 0; in all there are 2 \.jpg, 2 \.seg\.png: choose one kind, as in tar:\S+a\.tar@jpg"
    with pytest.raises(ValueError, match=message):
        TarSource(file)
    assert contents(TarSource(f"{file}@jpg")) == [b"jpg"] * 2
    assert contents(TarSource(f"{tmp_path}@.seg.png")) == [b"seg.png"] * 2
    with pytest.raises(ValueError, match="looked for .gif"):
        TarSource(f"{file}@gif")
    # Dots in names are no extensions, and every shard may count from 0.
    assert len(TarSource(write_tar(tmp_path / "dots" / "0.tar", {"a.1.jpg": b"", "a.2.jpg": b"", "b.jpg": b""}))) == 3
    write_tar(tmp_path / "dots" / "1.tar", {"a.1.jpg": b""})
    assert len(TarSource(tmp_path / "dots")) == 4


def test_arrays_in_a_tar_file_are_images_where_there_are_no_others_or_by_their_extension(tmp_path, caplog):
    file = tmp_path / "a.tar"
    write_tar(file, {f"{i}.{kind}": kind.encode() for i in range(2) for kind in ("npy", "jpg", "cls")})
    assert contents(TarSource(file)) == [b"jpg"] * 2
    assert "4 are left out: 2 .cls, 2 .npy (read where no other images are" in caplog.text
    assert contents(TarSource(f"{file}@npy")) == [b"npy"] * 2
    write_tar(file, {"0.npy": b"npy", "0.cls": b"1"})
    assert contents(TarSource(file)) == [b"npy"]
    write_tar(file, {"0.npy": b"npy", "0.seg.npy": b"ids"})
    with pytest.raises(ValueError, match=r"1 \.npy, 1 \.seg\.npy: choose one kind, as in tar:\S+a\.tar@npy"):
        TarSource(file)


def test_tar_source_names_useless_files(tmp_path):
    packed = write_tar(tmp_path / "a.tar.gz", MEMBERS, mode="w:gz")
    disguised = write_tar(tmp_path / "disguised" / "a.tar", MEMBERS, mode="w:xz")
    for pattern in (packed, tmp_path, disguised):
        with pytest.raises(ValueError, match=r"compressed, so that .* unpack it to a plain \.tar"):
            TarSource(pattern)
    file = write_tar(tmp_path / "0.tar", {f"{i}.jpg": bytes(2000) for i in range(4)})
    whole = file.read_bytes()
    # Cut in a header, in the contents, and in the last contents; a corrupt header in the middle; no tar file.
    cuts = [whole[:size] for size in (2560 * 2 + 100, 2560 * 2 + 700, 2560 * 3 + 1000)]
    for content in (*cuts, whole[:5120] + b"?" * 512 + whole[5632:], b"no tar" * 1000):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read the tar file .*0\.tar"):
            TarSource(file)
    with pytest.raises(ValueError, match=r"no images in .*1\.tar: looked for \.jpg"):
        TarSource(write_tar(tmp_path / "1.tar", {"1.json": b"{}"}))
    with pytest.raises(ValueError, match=r"no tar file .* called .*nowhere\.tar"):
        TarSource(tmp_path / "nowhere.tar")


def test_tar_source_raises_os_error_for_an_image_that_is_cut_later(tmp_path):
    file = write_tar(tmp_path / "0.tar", {"1.jpg": b"1" * 2000, "2.jpg": b"2" * 2000})
    source = TarSource(file)
    os.truncate(file, 3600)
    assert source[0] == b"1" * 2000
    with pytest.raises(OSError, match=r"0\.tar:2\.jpg: the tar file ends within it"):
        source[1]


def add(file, *members):
    """Appends members that are (name, type, target of a link)."""
    with tarfile.open(file, "a") as archive:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return file


def test_tar_source_follows_links_and_counts_what_leads_nowhere(tmp_path, caplog):
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    file = write_tar(tmp_path / "a.tar", {"./blobs/0": b"zero", "1.jpg": b"one", "1.json": b"{}"})
    good = (
        ("2.jpg", hard, "1.jpg"),
        ("c/3.jpg", soft, "../2.jpg"),
        ("4.jpg", hard, "blobs/0"),
        ("c/5.jpg", soft, "3.jpg"),
    )
    bad = ("6.jpg", soft, "/etc/hosts"), ("7.jpg", hard, "nowhere.jpg"), ("8.jpg", soft, "8.jpg")
    source = TarSource(add(file, *good, *bad, ("9.jpg", tarfile.FIFOTYPE, ""), ("folder.jpg", tarfile.DIRTYPE, "")))
    assert contents(source) == [b"one", b"one", b"one", b"zero", b"one"]
    assert names(source)[1:] == [f"{file}:{name}" for name, *_ in good]
    assert "3 links to no file in it, 1 not regular" in caplog.text and "1 .json" in caplog.text


def test_tar_source_reads_all_names_and_forms(tmp_path):
    members = {"./a.jpg": b"1", "b\udce9.jpg": b"2", "c\nd.jpg": b"3"}
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = write_tar(tmp_path / f"{form}.tar", members, form)
        assert names(TarSource(file)) == [f"{file}:{name}" for name in members]
    # The oldest form has no magic number.
    header = bytearray(tarfile.TarInfo("v7.jpg").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[257:] = b"%011o\0" % 3, bytes(255)
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    (tmp_path / "v7.tar").write_bytes(header + b"abc" + bytes(509 + 1024))
    assert contents(TarSource(tmp_path / "v7.tar")) == [b"abc"]


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        (["jpg", "png"], "4 .jpg, 4 .png: choose one kind, as in tar:PATH@jpg, or all by @*"),
        (["png", "depth.png", "seg.png"], "4 .depth.png, 4 .png, 4 .seg.png: choose one kind, as in tar:PATH@png"),
        (["0.jpg", "1.jpg", "seg.png"], "4 .jpg, 4 .seg.png: choose one kind, as in tar:PATH@jpg"),
        ([f"part{letter}.png" for letter in "abcdefghijkl"], "choose one kind"),
        (["0.jpg", "1.png"], ""),
    ],
)
def test_kinds_of_images_are_told_from_names_with_dots(tmp_path, kinds, found):
    file = write_tar(tmp_path / "a.tar", {f"{i}.{kind}": b"" for i in range(4) for kind in sorted(kinds)})
    if not found:
        assert len(TarSource(file)) == 4 * len(kinds)
        return
    with pytest.raises(ValueError) as caught:
        TarSource(file)
    assert found.replace("PATH", str(file)) in str(caught.value)
    assert len(TarSource(f"{file}@*")) == 4 * len(kinds)
    assert len(TarSource(f"{file}@{kinds[0].removeprefix('0.')}")) == 4 * (1 + (kinds[0] == "0.jpg"))


def test_many_rare_kinds_are_names_with_dots(tmp_path):
    members = {f"trip.{letter}.jpg": b"" for letter in "abcdefghijkl"} | {"trip.jpg": b"", "other.jpg": b""}
    assert len(TarSource(write_tar(tmp_path / "a.tar", members))) == 14


def test_shards_are_regular_files_named_once(tmp_path):
    write_tar(tmp_path / "a.tar", {"1.jpg": b"1"})
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.tar").symlink_to(tmp_path / "a.tar")
    (tmp_path / "odd" / "folder.tar").mkdir(parents=True)
    os.mkfifo(tmp_path / "fifo.array_record")
    write_tar(tmp_path / "zip.tar", {}).write_bytes(b"PK\x03\x04" + bytes(600))
    for source, pattern, message in (
        (TarSource, f"{tmp_path}/{{a,a}}.tar", "are the same file: name it once"),
        (TarSource, f"{tmp_path}/{{a.tar,links/b.tar}}", "are the same file: name it once"),
        (TarSource, f"{tmp_path}/odd/*.tar", r"folder\.tar of .*odd.* is not a regular file"),
        (TarSource, f"{tmp_path}/zip.tar", "is compressed, .*unzip"),
        (TarSource, f"{tmp_path}/none*.tar", "no tar file .* called .*none"),
        (TarSource, "gs://bucket/{0..3}.tar", "^tar:PATHS=gs://bucket.*mounted disk"),
        (ArrayRecordSource, f"{tmp_path}/fifo.array_record", "not a regular file"),
        (ArrayRecordSource, "s3://bucket/x.array_record", "^arrayrecord:PATHS=s3://bucket"),
    ):
        with pytest.raises(ValueError, match=message):
            source(pattern)
