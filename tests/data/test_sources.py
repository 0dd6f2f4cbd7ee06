"""Folders, lists, named layouts, mixtures, and the specs that choose a source."""

import logging
import os
from collections import Counter

import pytest

from croc_jax.data.config import DataConfig
from croc_jax.data.sources import FolderSource, open_data, open_sources
from croc_jax.data.sources.base import report_left_out
from croc_jax.data.sources.combined import CombinedSource, mixture_shares
from tests.data.tiny_images import check_copies, contents, names


def write(folder, *paths):
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())
    return folder


def test_folder_source_lists_images_by_relative_path_at_any_depth_with_any_name_and_case(tmp_path):
    images = ("b.JPG", "a/deep/er/ü 1.jpeg", "c.Png", "a.webp", "d.jPeG", "no.stem.png", "e.TIFF", "10.jpg", "2.jpg")
    folder = write(tmp_path / "photos", *images, "notes.txt", "jpg", "x.jpg.bak", "._b.JPG", "__MACOSX/b.jpg")
    (folder / "a\udcff.jpg").write_bytes("a\udcff.jpg".encode(errors="surrogateescape"))
    source = FolderSource(folder)
    expected = sorted((*images, "a\udcff.jpg"))
    assert [content.decode(errors="surrogateescape") for content in contents(source)] == expected
    assert names(source) == [str(folder / name) for name in expected]
    check_copies(source)


def test_folder_source_follows_links_but_not_in_circles(tmp_path):
    elsewhere, folder = write(tmp_path / "elsewhere", "far.jpg"), write(tmp_path / "photos", "near.jpg")
    os.symlink(elsewhere, folder / "link")
    os.symlink(folder, folder / "circle")
    os.mkfifo(folder / "pipe.jpg")
    source = FolderSource(folder)
    assert contents(source) == [b"far.jpg", b"near.jpg"]
    os.remove(elsewhere / "far.jpg")
    with pytest.raises(OSError, match=r"far\.jpg"):
        source[0]


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


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_open_list_names_files_relative_to_itself(tmp_path, mark):
    write(tmp_path, "lists/near.jpg", "far/2.png", "far/odd name #1.bin")
    text = f"{mark}near.jpg\n# mine\n\n  ../far/2.png  \n#gone.jpg\r\n{tmp_path}/far/odd name #1.bin\nmissing.jpg\n"
    (tmp_path / "lists" / "a.txt").write_text(text, encoding="utf-8")
    source = open_sources([f"list:{tmp_path}/lists/a.txt"])
    assert [source[i] for i in range(3)] == [b"lists/near.jpg", b"far/2.png", b"far/odd name #1.bin"]
    assert len(source) == 4 and source.name(1) == f"{tmp_path}/lists/../far/2.png"
    with pytest.raises(OSError, match=r"missing\.jpg"):
        source[3]


def test_coco_and_imagenet_folders(tmp_path):
    root = write(tmp_path / "coco", "train2017/2.jpg", "train2017/1.jpg", "val2017/v.jpg", "unlabeled2017/0.jpg")
    assert contents(open_sources([f"coco:{root}"])) == [b"train2017/1.jpg", b"train2017/2.jpg"]
    assert contents(open_sources([f"coco+:{root}"]))[2:] == [b"unlabeled2017/0.jpg"]
    root = write(tmp_path / "imagenet", "train/n02/b.JPEG", "train/n01/a.JPEG", "val/n01/v.JPEG")
    for spec in (f"imagenet:{root}", f"imagenet:{root}/train"):
        assert contents(open_sources([spec])) == [b"train/n01/a.JPEG", b"train/n02/b.JPEG"]


MISTAKES = [
    ([], "nowhere", r"the image folder nowhere does not exist: correct the path \(now in"),
    (["a.txt"], "folder:a.txt", r"a\.txt is a file"),
    (["empty/a.txt"], "empty", r"no images in empty or below it: looked for \.jpg, \.jpeg"),
    (["a.txt"], "list:b.txt", r"cannot read the list of images b\.txt: No such file"),
    ([], "list:binary.txt", r"binary\.txt: it is no UTF-8 text"),
    ([], "list:comment.txt", r"comment\.txt names no images"),
    (["train2017/1.jpg"], "coco+:.", r"no folder unlabeled2017: unpack \S+/zips/unlabeled2017\.zip in"),
    (["val/n01/v.JPEG"], "imagenet:.", r"train .*ILSVRC2012_img_train\.tar from https://image-net"),
    ([], "zip:a", r"unknown source of images 'zip' in zip:a: choose one of folder:PATH, list:FILE, coco:ROOT"),
    (["holiday:2024/1.jpg"], "holiday:2024", "write folder:holiday:2024 for a folder of this name"),
    ([], "tar:", r"'tar:' has no value: write tar:PATHS"),
]


def test_open_sources_explains_what_is_wrong(tmp_path, monkeypatch):
    for number, (paths, spec, message) in enumerate(MISTAKES):
        folder = write(tmp_path / str(number), *paths)
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
        (folder / "comment.txt").write_text("# nothing\n")
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
