"""Folders, lists, named layouts, mixtures, and the specs that choose a source."""

import errno
import importlib.util
import itertools
import logging
import os
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from PIL import features

from croc_jax.data.config import DataConfig
from croc_jax.data.decoding import decode
from croc_jax.data.sources import FolderSource, entries, files, open_data, open_sources
from croc_jax.data.sources.base import find_image_feature, report_left_out, split_choice
from croc_jax.data.sources.combined import CombinedSource, mixture_shares
from croc_jax.data.sources.files import open_list
from tests.data.tiny_images import check_copies, contents, encode, names


def write(folder, *paths):
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())
    return folder


def logged(caplog):
    """Returns what was told since the last call."""
    messages = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return messages


# What no lister may take for an image, a class, a label or a frame; the last lie in folders.
SIDECARS = ("._a.jpg", ".hidden.png", "Thumbs.db", "desktop.ini", ".DS_Store", "__MACOSX/a.jpg", "@eaDir/a.jpg/T.jpg",
            ".ipynb_checkpoints/a.jpg", ".thumbnails/a.jpg", ".AppleDouble/a.jpg", ".git/a.jpg", "lost+found/a.jpg",
            "#recycle/a.jpg", "$RECYCLE.BIN/a.jpg")  # fmt: skip


def test_folder_source_lists_images_by_relative_path_at_any_depth_with_any_name_and_case(tmp_path, caplog):
    images = ("b.JPG", "a/deep/er/ü 1.jpeg", "c.Png", "a.webp", "d.jPeG", "no.stem.png", "e.TIFF", "10.jpg", "2.jpg")
    images += ("f.jpe", "f.jfif", "f.bmp", "f.gif", "f.tif", "f.avif", "f.JP2", "f.pgm", "new\nline/x.jpg")
    folder = write(tmp_path / ".photos", *images, "notes.txt", "jpg", "x.jpg.bak", "raw.DNG", *SIDECARS)
    (folder / "a\udcff.jpg").write_bytes("a\udcff.jpg".encode(errors="surrogateescape"))
    source = FolderSource(folder)
    expected = sorted((*images, "a\udcff.jpg"))
    assert [content.decode(errors="surrogateescape") for content in contents(source)] == expected
    assert names(source) == [str(folder / name) for name in expected]
    left_out = "1 .bak, 1 .dng (raw: develop to JPEG or PNG), 1 .txt, 14 hidden or of the system, 1 without suffix"
    assert logged(caplog) == [f"{folder}: 19 files are read, 18 are left out: {left_out}"]
    check_copies(FolderSource(folder))
    assert logged(caplog) == []


def test_arrays_are_images_where_there_are_no_others_and_in_lists(tmp_path, caplog):
    folder = write(tmp_path / "mixed", "a.png", "a.npy", "b/c.NPY")
    assert names(FolderSource(folder)) == [str(folder / "a.png")]
    (message,) = logged(caplog)
    assert "1 files are read, 2 are left out: 2 .npy (read where no other images are, or by list:FILE and" in message
    (folder / "a.png").unlink()
    assert names(FolderSource(folder)) == [str(folder / "a.npy"), str(folder / "b/c.NPY")]
    (tmp_path / "list.txt").write_text("mixed/b/c.NPY\nmixed/a.npy\n")
    assert contents(open_list(tmp_path / "list.txt")) == [b"b/c.NPY", b"a.npy"]
    assert logged(caplog) == []
    with pytest.raises(ValueError, match=r"looked for .*\.npy files"):
        FolderSource(write(tmp_path / "none", "a.txt"))


KINDS = {".jfif": "JPEG", ".JPE": "JPEG", ".tif": "TIFF", ".BMP": "BMP", ".gif": "GIF", ".ppm": "PPM", ".webp": "WEBP",
         ".avif": "AVIF", ".jp2": "JPEG2000"}  # fmt: skip


def test_what_is_listed_can_be_decoded(tmp_path):
    for suffix, kind in KINDS.items():
        (tmp_path / f"a{suffix}").write_bytes(encode(9, kind=kind))
    for image in map(decode, contents(FolderSource(tmp_path))):
        assert image.shape == (6, 8, 3) and abs(int(image[0, 0, 0]) - 90) < 8
    assert len(FolderSource(tmp_path)) == len(KINDS)


def test_formats_follow_what_is_installed(monkeypatch):
    def load():
        spec = importlib.util.find_spec("croc_jax.data.formats")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    registered = []
    monkeypatch.setattr(features, "check", lambda name: name == "webp")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    without = load()
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=lambda: registered.append(1)))
    assert ".heic" in load().SUFFIXES and ".heic" not in load().HINTS and registered
    assert not {".heic", ".avif", ".jp2"} & {*without.SUFFIXES} and ".webp" in without.SUFFIXES
    assert without.HINTS[".heic"] == "pip install pillow-heif"
    assert without.HINTS[".avif"] == without.HINTS[".jp2"] == "this build of Pillow has no decoder for it"


def test_folder_source_follows_links_but_not_in_circles(tmp_path, caplog):
    elsewhere, folder = write(tmp_path / "elsewhere", "far.jpg"), write(tmp_path / "photos", "near.jpg")
    for target, link in (
        (elsewhere, "link"),
        (folder, "circle"),
        ("self.jpg", "self.jpg"),
        ("/dev/zero", "zero.jpg"),
        ("x", "b"),
    ):
        os.symlink(target, folder / link)
    os.mkfifo(folder / "pipe.jpg")
    source = FolderSource(folder)
    # A link to nothing counts as unreadable when it is read: its disk may only be missing.
    assert names(source) == [f"{folder}/{name}" for name in ("link/far.jpg", "near.jpg", "self.jpg")]
    (message,) = logged(caplog)
    assert "4 are left out: 1 links to a folder above them, 1 links to nothing, 2 pipes, sockets or devices" in message
    os.remove(elsewhere / "far.jpg")
    with pytest.raises(OSError, match=r"far\.jpg"):
        source[0]
    os.symlink(elsewhere, folder / "once_more")
    FolderSource(folder)
    assert logged(caplog)[0] == f"{folder}: 1 folders are listed again through links, and their files count again"


def test_folders_that_link_to_each_other_end(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "MAX_AGAIN", 20)
    for name in "abcd":
        write(tmp_path, f"{name}/{name}.jpg")
    for name, other in itertools.permutations("abcd", 2):
        os.symlink(tmp_path / other, tmp_path / name / f"to_{other}")
    with pytest.raises(ValueError, match="links lead to the same folders over and over, as .*to_"):
        FolderSource(tmp_path)


@pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, ValueError), (errno.EIO, OSError)])
def test_folder_source_names_a_folder_that_cannot_be_listed(tmp_path, monkeypatch, number, kind):
    write(tmp_path, "a.jpg", "locked/b.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("locked"):
            raise OSError(number, os.strerror(number), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(kind, match=r"locked"):
        FolderSource(tmp_path)


def test_a_choice_among_several_images_is_asked_for_or_told(tmp_path, caplog):
    def find(*images, chosen="", nested=()):
        return find_image_feature("set", images, (*images, "x"), nested=nested, chosen=chosen, form="hf:set@")

    assert find("left", "right", chosen="right") == "right" and find("photo") == "photo" and not caplog.records
    assert find("depth", "image") == "image"
    assert logged(caplog) == [
        "set: of the image features depth, image, image is read (to choose, write hf:set@depth or hf:set@image)"
    ]
    for call, message in (
        (lambda: find("left", "right"), r"\(left, right\), none called image: write hf:set@left or hf:set@right"),
        (lambda: find("left", chosen="x"), "'x' is no image feature of the data set set: write hf:set@left"),
        (
            lambda: find(nested=["frames"]),
            r"no image feature, only x \(images in sequences .* frames, are not read\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    (tmp_path / "a@b").mkdir()
    for value in (f"{tmp_path}/a@b", f"{tmp_path}@x/b", "plain", "odd@"):
        assert split_choice(value) == (value, "")
    assert split_choice(f"{tmp_path}/a@b@left") == (f"{tmp_path}/a@b", "left") and split_choice("@left") == ("", "left")


def test_report_left_out_counts_by_kind(caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        for _ in range(2):
            report_left_out("left\nout", ["a.PSD", "b.psd", "._c.jpg", "README"], others={"named pipes": 1}, taken=3)
        report_left_out("photos", [])
    (record,) = caplog.records
    assert record.getMessage() == (
        "left\\nout: 3 files are read, 5 are left out: 2 .psd (export as PNG), 1 hidden or of the system, "
        "1 named pipes, 1 without suffix"
    )


@pytest.mark.parametrize(
    ("encoding", "end"), [("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\r\n"), ("utf-32", "\n"), ("utf-8", "\r")]
)
def test_open_list_names_files_relative_to_itself(tmp_path, monkeypatch, caplog, encoding, end):
    monkeypatch.setenv("HOME", str(tmp_path))
    written = (
        "lists/near.jpg",
        "far/2.png",
        "far/odd name #1.bin",
        "lists/#1.jpg",
        "lists/.mine/ü.gif",
        "lists/b.dng",
    )
    write(tmp_path, *written, "lists/._near.jpg")
    lines = ("near.jpg", "# mine", "", "  ../far/2.png  ", "#gone.jpg", f"{tmp_path}/far/odd name #1.bin", "#1.jpg")
    lines += (".mine/ü.gif", "~/far/2.png", "b.dng", "._near.jpg", "x/@eaDir/near.jpg", "__MACOSX/near.jpg", "\x1a")
    (tmp_path / "lists" / "a.txt").write_bytes(end.join(lines).encode(encoding))
    source = open_sources([f"list:{tmp_path}/lists/a.txt"])
    expected = ("lists/near.jpg", "far/2.png", "far/odd name #1.bin", "lists/#1.jpg", "lists/.mine/ü.gif", "far/2.png")
    assert contents(source) == [path.encode() for path in expected]
    assert source.name(1) == f"{tmp_path}/lists/../far/2.png"
    (message,) = logged(caplog)
    left_out = "1 .dng (raw: develop to JPEG or PNG), 3 hidden or of the system, 1 images in lines that start with #"
    assert message == f"{tmp_path}/lists/a.txt: 6 files are read, 5 are left out: {left_out}"


def test_open_list_takes_names_that_are_no_utf_8(tmp_path):
    (tmp_path / "a\udcff.jpg").write_bytes(b"x")
    (tmp_path / "a.txt").write_bytes(b"a\xff.jpg\n")
    assert contents(open_list(tmp_path / "a.txt")) == [b"x"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a.jpg 3", "write the path alone"),
        ("a.jpg\tcat", "write the path alone"),
        ("a.jpg,3", "write the path alone"),
        ("a.jpg b.png", "write the path alone"),
        ('"a.jpg"', "without quotes"),
        ("sub\\a.jpg", "write / between folders"),
        ("https://host/a.jpg", "no URL is read"),
        ("filename,label", "without a header"),
        ("sub", "this is a folder"),
        ("pipe.jpg", "this is no regular file"),
    ],
)
def test_open_list_refuses_the_first_line_that_is_no_path(tmp_path, line, reason):
    write(tmp_path, "a.jpg", "sub/a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.txt").write_text(f"# mine\na.jpg\n\n{line}\nmissing too.jpg\n")
    with pytest.raises(ValueError) as caught:
        open_list(tmp_path / "a.txt")
    assert str(caught.value).startswith(f"{tmp_path}/a.txt, line 4, {line!r}: ") and reason in str(caught.value)


def test_open_list_tells_of_the_first_files_that_do_not_exist(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "NUM_CHECKED", 3)
    write(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("a.jpg\nmissing.jpg\n2 a.jpg\nnot looked for.jpg\n")
    source = open_list(tmp_path / "a.txt")
    (message,) = logged(caplog)
    assert message.endswith("a.txt: 2 files do not exist (line 2, 'missing.jpg'), and will count as unreadable images")
    with pytest.raises(OSError, match=r"missing\.jpg"):
        source[1]
    for text, number in (("# mine\nmissing.jpg\n", 2), ("a.jpg\n\n\nnot looked for.jpg 3\n", 4)):
        (tmp_path / "a.txt").write_text(text)
        with pytest.raises(ValueError, match=f"line {number}, "):
            open_list(tmp_path / "a.txt")


def test_coco_and_imagenet_folders(tmp_path):
    root = write(tmp_path / "coco", "train2017/2.jpg", "train2017/1.jpg", "val2017/v.jpg", "unlabeled2017/0.jpg")
    assert contents(open_sources([f"coco:{root}"])) == [b"train2017/1.jpg", b"train2017/2.jpg"]
    assert contents(open_sources([f"coco+:{root}"]))[2:] == [b"unlabeled2017/0.jpg"]
    root = write(tmp_path / "imagenet", "train/n02/b.JPEG", "train/n01/a.JPEG", "val/n01/v.JPEG", "train/@eaDir/x.jpg")
    for spec in (f"imagenet:{root}", f"imagenet:{root}/train"):
        assert contents(open_sources([spec])) == [b"train/n01/a.JPEG", b"train/n02/b.JPEG"]


MISTAKES = [
    ([], "nowhere", r"the image folder nowhere does not exist: correct the path \(now in"),
    (["a.txt"], "folder:a.txt", r"a\.txt is a file"),
    (["empty/a.txt"], "empty", r"no images in empty or below it: looked for \.jpg, \.jpeg"),
    (["a.txt"], "list:b.txt", r"cannot read the list of images b\.txt: No such file"),
    ([], "list:binary.txt", r"binary\.txt is no text .*: save it as UTF-8"),
    ([], "list:zeros.txt", r"zeros\.txt is no text: it holds bytes of value 0"),
    ([], "list:long.txt", r"long\.txt, line 2, 'x{100}\.\.\.': 5000 characters are no path"),
    ([], "list:pipe", "cannot read the list of images pipe: pipe is a FIFO.*not a regular file"),
    ([], "list:.", "cannot read the list of images .: . is a folder, not a regular file"),
    ([], "list:comment.txt", r"comment\.txt names no images"),
    (["train2017/1.jpg"], "coco+:.", r"no folder unlabeled2017: unpack \S+/zips/unlabeled2017\.zip in"),
    (["val/n01/v.JPEG"], "imagenet:.", r"train .*ILSVRC2012_img_train\.tar from https://image-net"),
    ([], "zip:a", r"unknown source of images 'zip' in zip:a: choose one of folder:PATH, list:FILE, coco:ROOT"),
    (["holiday:2024/1.jpg"], "holiday:2024", "write folder:holiday:2024 for a folder of this name"),
    ([], "tar:", r"'tar:' has no value: write tar:PATHS"),
    (["val/n01/v.JPEG", ".git/x/v.JPEG"], "imagenet:.", "no folder train with one folder of images a class"),
    ([], "gs://bucket/photos", "gs:// is not read or written here"),
    ([], "folder:s3://bucket", "folder=s3://bucket: s3:// is not read"),
    ([], "list:https://host/a.txt", "list=https://host/a.txt: https:// is not read"),
    ([], "hf:hf://datasets/cats", "hf=hf://datasets/cats: hf:// is not read"),
    ([], "~no_such_user/photos", "~no_such_user/photos: there is no such home folder"),
]


def test_open_sources_explains_what_is_wrong(tmp_path, monkeypatch):
    for number, (paths, spec, message) in enumerate(MISTAKES):
        folder = write(tmp_path / str(number), *paths)
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
        (folder / "comment.txt").write_text("# nothing\n")
        (folder / "zeros.txt").write_text("a.jpg\n", encoding="utf-16-le")
        (folder / "long.txt").write_text(f"# all\n{5000 * 'x'}\n")
        os.mkfifo(folder / "pipe")
        with pytest.raises(ValueError, match=message):
            open_sources([spec])


def test_open_sources_and_open_data_join_or_mix(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    one, two = write(tmp_path / "one", "1.jpg"), write(tmp_path / "two:x", "2.jpg", "3.jpg")
    for spec in (str(one), f"folder:{one}", "~/one", "folder:~/one"):
        assert contents(open_sources([spec])) == [b"1.jpg"]
    assert contents(open_data(DataConfig(folders=(str(two),), sources=(str(one),)))) == [b"2.jpg", b"3.jpg", b"1.jpg"]
    mixed = open_data(DataConfig(folders=(str(one),), sources=(f"folder:{two}",), weights=(1, 1)))
    assert contents(mixed) == [b"1.jpg", b"1.jpg", b"2.jpg", b"3.jpg"]
    with pytest.raises(ValueError, match=r"data\.folders is empty, and so is data\.sources: name folders of images"):
        open_data(DataConfig())


class Numbers:
    """A source of so many images under one letter."""

    def __init__(self, letter, length):
        self.letter, self.length = letter, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return f"{self.letter}{index}".encode()

    def name(self, index):
        return f"{self.letter}/{index}"


def test_combined_source_repeats_the_images_of_a_source_to_fill_its_share():
    source = CombinedSource([Numbers("a", 2), Numbers("b", 1), Numbers("c", 2)])
    assert contents(source) == [b"a0", b"a1", b"b0", b"c0", b"c1"]
    assert names(source) == ["a/0", "a/1", "b/0", "c/0", "c/1"]
    check_copies(source)
    source = CombinedSource([Numbers("a", 2), Numbers("b", 5)], [1, 1])
    assert contents(source) == [b"a0", b"a1", b"a0", b"a1", b"a0", b"b0", b"b1", b"b2", b"b3", b"b4"]
    assert source.name(4) == "a/0" and source.name(5) == "b/0"
    counts = Counter(contents(CombinedSource([Numbers("a", 7), Numbers("b", 4)], [0.9, 0.1])))
    assert {count for image, count in counts.items() if image.startswith(b"b")} == {1}
    assert {count for image, count in counts.items() if image.startswith(b"a")} <= {4, 5}


@pytest.mark.parametrize(
    ("lengths", "weights", "shares"),
    [
        ([10, 30], [1, 1], [30, 30]),
        ([10, 30], [0.25, 0.75], [10, 30]),
        # L = 14: ceil(9.8) and ceil(4.2).
        ([10, 5], [0.7, 0.3], [10, 5]),
        ([3, 7, 2], [0.1, 0.2, 0.7], [4, 7, 22]),
        ([118_287, 1_281_167], [0.5, 0.5], [1_281_167, 1_281_167]),
        ([5], [0.3], [5]),
        ([1, 1], [1e-3, 1], [1, 1]),
    ],
)
def test_mixture_shares_are_the_smallest_that_cover_every_source(lengths, weights, shares):
    assert mixture_shares(lengths, weights) == shares


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_mixture_shares_refuses_weights(weights):
    with pytest.raises(ValueError, match="1 weights for 2 sources|must be positive"):
        mixture_shares([2, 5], weights)
