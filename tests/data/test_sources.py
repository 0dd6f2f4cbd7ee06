"""Folders, lists, named layouts, mixtures, and the specs that choose a source."""

import logging
import os
import pickle
from collections import Counter

import pytest

from croc_jax.data.config import DataConfig
from croc_jax.data.sources import FolderSource, open_data, open_sources
from croc_jax.data.sources.base import Names, report_left_out
from croc_jax.data.sources.combined import CombinedSource, mixture_shares
from tests.data.tiny_images import check_copies, contents, names


def write(folder, *paths):
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())
    return folder


def test_folder_source_lists_images_at_any_depth_with_any_name_and_case(tmp_path):
    images = ("b.JPG", "a/deep/er/ü 1.jpeg", "c.Png", "a.webp", ".d.jPeG", "no.stem.png", "e.TIFF")
    folder = write(tmp_path / "photos", *images, "notes.txt", "jpg", "x.jpg.bak", "._b.JPG", "__MACOSX/b.jpg")
    source = FolderSource(folder)
    assert [content.decode() for content in contents(source)] == sorted(images)
    assert names(source) == [str(folder / name) for name in sorted(images)]
    copy = pickle.loads(pickle.dumps(source))
    assert names(copy) == names(source) and contents(copy) == contents(source)


def test_folder_source_is_ordered_by_relative_path(tmp_path):
    assert contents(FolderSource(write(tmp_path, "2.jpg", "10.jpg", "sub/1.jpg"))) == [
        b"10.jpg", b"2.jpg", b"sub/1.jpg"
    ]  # fmt: skip


def test_folder_source_follows_links_but_not_in_circles(tmp_path):
    elsewhere, folder = write(tmp_path / "elsewhere", "far.jpg"), write(tmp_path / "photos", "near.jpg")
    os.symlink(elsewhere, folder / "link")
    os.symlink(folder, folder / "circle")
    os.mkfifo(folder / "pipe.jpg")
    assert contents(FolderSource(folder)) == [b"far.jpg", b"near.jpg"]


def test_folder_source_raises_os_error_for_a_vanished_file(tmp_path):
    source = FolderSource(write(tmp_path, "1.jpg", "2.jpg"))
    os.remove(tmp_path / "1.jpg")
    with pytest.raises(OSError, match=r"1\.jpg"):
        source[0]


def test_report_left_out_counts_by_kind(caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        report_left_out("photos", ["a.HEIC", "b.heic", "._c.jpg", "README"])
        report_left_out("photos", [])
    (record,) = caplog.records
    assert record.getMessage() == "photos: 4 files are not read as images (2 .heic, 1 macOS sidecars, 1 without suffix)"


def test_names_are_small_and_exact():
    listed = [f"n01440764/n01440764_{i}.JPEG" for i in range(10_000)] + ["a\udcff.jpg", "ä b.png", ""]
    kept = pickle.loads(pickle.dumps(Names(listed)))
    assert [kept[i] for i in range(len(kept))] == listed
    assert len(pickle.dumps(kept)) < sum(map(len, listed)) + 9 * len(listed)
    for index in (-1, len(listed)):
        with pytest.raises(IndexError, match=f"name {index} of 10003"):
            kept[index]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_list_source_names_files_relative_to_itself(tmp_path, mark):
    write(tmp_path, "lists/near.jpg", "far/2.png", "far/odd name #1.bin")
    text = f"{mark}near.jpg\n# mine\n\n  ../far/2.png  \n#gone.jpg\r\n{tmp_path}/far/odd name #1.bin\nmissing.jpg\n"
    (tmp_path / "lists" / "a.txt").write_text(text, encoding="utf-8")
    source = open_sources([f"list:{tmp_path}/lists/a.txt"])
    assert [source[i] for i in range(3)] == [b"lists/near.jpg", b"far/2.png", b"far/odd name #1.bin"]
    assert len(source) == 4 and source.name(1) == f"{tmp_path}/lists/../far/2.png"
    with pytest.raises(OSError, match=r"missing\.jpg"):
        source[3]
    copy = pickle.loads(pickle.dumps(source))
    assert names(copy) == names(source) and copy[1] == source[1]


def test_open_coco_takes_one_or_both_parts(tmp_path):
    root = write(tmp_path / "coco", "train2017/2.jpg", "train2017/1.jpg", "val2017/v.jpg", "unlabeled2017/0.jpg")
    assert contents(open_sources([f"coco:{root}"])) == [b"train2017/1.jpg", b"train2017/2.jpg"]
    assert contents(open_sources([f"coco+:{root}"]))[2:] == [b"unlabeled2017/0.jpg"]


def test_open_imagenet_takes_the_root_or_the_training_folder(tmp_path):
    root = write(tmp_path / "imagenet", "train/n02/b.JPEG", "train/n01/a.JPEG", "val/n01/v.JPEG")
    for spec in (f"imagenet:{root}", f"imagenet:{root}/train"):
        assert contents(open_sources([spec])) == [b"train/n01/a.JPEG", b"train/n02/b.JPEG"]


@pytest.mark.parametrize(
    ("paths", "spec", "message"),
    [
        ([], "nowhere", r"the image folder nowhere does not exist: correct the path \(now in"),
        (["a.txt"], "folder:a.txt", r"a\.txt is a file"),
        (["empty/a.txt"], "empty", r"no images in empty or below it: looked for \.jpg, \.jpeg"),
        (["a.txt"], "list:b.txt", r"cannot read the list of images b\.txt: No such file"),
        ([], "list:binary.txt", r"binary\.txt: it is no UTF-8 text"),
        ([], "list:comment.txt", r"comment\.txt names no images"),
        (["train2017/1.jpg"], "coco+:.", r"no folder unlabeled2017: unpack \S+/zips/unlabeled2017\.zip in"),
        ([], "coco+:.", r"train2017 and unlabeled2017: unpack \S+/train2017\.zip and \S+\.zip"),
        (["val/n01/v.JPEG"], "imagenet:.", r"train .*ILSVRC2012_img_train\.tar from https://image-net"),
        (["a.JPEG"], "imagenet:.", r"ILSVRC2012_img_train\.tar"),
        ([], "zip:a", r"unknown source of images 'zip' in zip:a: choose one of folder:PATH, list:FILE, coco:ROOT"),
        (["holiday:2024/1.jpg"], "holiday:2024", "write folder:holiday:2024 for a folder of this name"),
        ([], "tar:", r"'tar:' has no value: write tar:PATHS"),
    ],
)
def test_open_sources_explains_what_is_wrong(tmp_path, monkeypatch, paths, spec, message):
    monkeypatch.chdir(write(tmp_path, *paths))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "comment.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match=message):
        open_sources([spec])


def test_open_sources_joins_or_mixes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    one, two = write(tmp_path / "one", "1.jpg"), write(tmp_path / "two", "2.jpg", "3.jpg", "4.jpg")
    for spec in (str(one), f"folder:{one}", "~/one", "folder:~/one"):
        assert contents(open_sources([spec])) == [b"1.jpg"]
    assert contents(open_sources([str(two), f"folder:{one}"])) == [b"2.jpg", b"3.jpg", b"4.jpg", b"1.jpg"]
    assert contents(open_sources([str(one), str(two)], [1, 1]))[:3] == [b"1.jpg"] * 3
    with pytest.raises(ValueError, match="no sources"):
        open_sources([])


def test_open_data_takes_folders_before_sources(tmp_path):
    one, two = write(tmp_path / "one", "1.jpg"), write(tmp_path / "two:x", "2.jpg", "3.jpg")
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


def test_combined_source_without_weights_takes_each_image_once():
    source = CombinedSource([Numbers("a", 2), Numbers("b", 1), Numbers("c", 2)])
    assert contents(source) == [b"a0", b"a1", b"b0", b"c0", b"c1"]
    assert names(source) == ["a/0", "a/1", "b/0", "c/0", "c/1"]
    check_copies(source)
    for index in (5, -1):
        with pytest.raises(IndexError):
            source[index]


def test_combined_source_repeats_the_images_of_a_source_to_fill_its_share():
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
        ([10, 30], [1, 3], [10, 30]),
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
