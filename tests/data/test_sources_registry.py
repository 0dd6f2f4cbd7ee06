"""Lists, named layouts, mixtures, and the specs that choose a source."""

import pickle
from collections import Counter

import pytest

from croc_jax.data import DataConfig
from croc_jax.data.sources import (
    FolderSource,
    JoinedSource,
    ListSource,
    MixtureSource,
    SourceError,
    open_coco,
    open_data,
    open_imagenet,
    open_sources,
)
from croc_jax.data.sources.mixture import mixture_shares
from tests.data.tiny_images import check_copies, contents, names


def write(folder, *paths):
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(file.name.encode())
    return folder


def test_a_list_names_files_relative_to_itself(tmp_path):
    write(tmp_path, "lists/near.jpg", "far/2.png", "far/odd name #1.bin")
    text = f"# mine\nnear.jpg\n\n  ../far/2.png  \n#gone.jpg\r\n{tmp_path}/far/odd name #1.bin\nmissing.jpg\n"
    (tmp_path / "lists" / "a.txt").write_text(text)
    source = ListSource(tmp_path / "lists" / "a.txt")
    assert len(source) == 4 and source[0] == b"near.jpg" and source[1] == b"2.png" and source[2] == b"odd name #1.bin"
    assert source.name(1) == f"{tmp_path}/lists/../far/2.png" and source.name(2) == f"{tmp_path}/far/odd name #1.bin"
    with pytest.raises(OSError, match=r"missing\.jpg"):
        source[3]
    copy = pickle.loads(pickle.dumps(source))
    assert names(copy) == names(source) and copy[1] == source[1]


def test_a_list_can_be_named_from_its_own_folder(tmp_path, monkeypatch):
    write(tmp_path, "1.jpg")
    (tmp_path / "a.txt").write_text("1.jpg")
    monkeypatch.chdir(tmp_path)
    assert contents(open_sources(["list:a.txt"])) == [b"1.jpg"]


def test_useless_lists_are_named(tmp_path):
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, reason in (("empty", "names no images"), ("binary", "no UTF-8 text"), ("nowhere", "No such file")):
        with pytest.raises(SourceError, match=rf"{name}\.txt.*{reason}"):
            ListSource(tmp_path / f"{name}.txt")


def test_coco_with_and_without_its_unlabeled_images(tmp_path):
    root = write(tmp_path / "coco", "train2017/2.jpg", "train2017/1.jpg", "val2017/v.jpg", "unlabeled2017/0.jpg")
    assert contents(open_coco(root)) == [b"1.jpg", b"2.jpg"]
    assert contents(open_sources([f"coco:{root}"])) == [b"1.jpg", b"2.jpg"]
    assert contents(open_sources([f"coco+:{root}"])) == [b"1.jpg", b"2.jpg", b"0.jpg"]


def test_missing_parts_of_coco_are_named_with_their_origin(tmp_path):
    root = write(tmp_path / "coco", "train2017/1.jpg")
    with pytest.raises(SourceError, match=r"no folder \S+/unlabeled2017: unpack \S+/zips/unlabeled2017\.zip in") as one:
        open_coco(root, unlabeled=True)
    assert "train2017" not in str(one.value)
    with pytest.raises(SourceError, match=r"train2017 and \S+/unlabeled2017: unpack \S+/train2017\.zip and \S+\.zip"):
        open_coco(tmp_path, unlabeled=True)


def test_imagenet_by_its_root_or_its_training_folder(tmp_path):
    root = write(tmp_path / "imagenet", "train/n02/b.JPEG", "train/n01/a.JPEG", "val/n01/v.JPEG")
    assert contents(open_imagenet(root)) == contents(open_sources([f"imagenet:{root}/train"])) == [b"a.JPEG", b"b.JPEG"]


@pytest.mark.parametrize("path", ["val/n01/v.JPEG", "a.JPEG"])
def test_an_imagenet_without_classes_is_explained(tmp_path, path):
    with pytest.raises(SourceError, match=r"imagenet/train .*ILSVRC2012_img_train\.tar from https://image-net"):
        open_imagenet(write(tmp_path / "imagenet", path))
    with pytest.raises(SourceError, match="nowhere/train"):
        open_imagenet(tmp_path / "nowhere")


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


def test_joined_sources_follow_one_another():
    source = JoinedSource([Numbers("a", 2), Numbers("b", 1), Numbers("c", 2)])
    assert contents(source) == [b"a0", b"a1", b"b0", b"c0", b"c1"]
    assert names(source) == ["a/0", "a/1", "b/0", "c/0", "c/1"]
    check_copies(source)
    for index in (5, -1):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize(
    ("lengths", "weights", "shares"),
    [
        ([10, 30], [1, 1], [30, 30]),
        ([30, 10], [1, 1], [30, 30]),
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
def test_shares_are_the_smallest_that_cover_every_source(lengths, weights, shares):
    assert mixture_shares(lengths, weights) == shares


def test_shares_by_their_definition():
    lengths, weights = [7, 11, 3], [0.2, 0.5, 0.3]
    shares = {total: [-(-weight * 10 * total // 10) for weight in weights] for total in range(1, 60)}
    covering = (share for share in shares.values() if all(n <= m for n, m in zip(lengths, share, strict=True)))
    assert mixture_shares(lengths, weights) == list(map(int, next(covering)))


def test_a_mixture_repeats_the_images_of_a_source_to_fill_its_share():
    source = MixtureSource([Numbers("a", 2), Numbers("b", 5)], [1, 1])
    assert contents(source) == [b"a0", b"a1", b"a0", b"a1", b"a0", b"b0", b"b1", b"b2", b"b3", b"b4"]
    assert source.name(4) == "a/0" and source.name(5) == "b/0"
    check_copies(source)
    counts = Counter(contents(MixtureSource([Numbers("a", 7), Numbers("b", 4)], [0.9, 0.1])))
    assert {count for image, count in counts.items() if image.startswith(b"b")} == {1}
    assert {count for image, count in counts.items() if image.startswith(b"a")} <= {4, 5}


def test_weights_that_make_no_sense_are_refused():
    sources = [Numbers("a", 2), Numbers("b", 5)]
    with pytest.raises(SourceError, match="1 weights for 2 sources"):
        MixtureSource(sources, [1])
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(SourceError, match="must be positive"):
            MixtureSource(sources, [1, wrong])


def test_a_bare_path_is_a_folder_and_several_specs_join_or_mix(tmp_path):
    one, two = write(tmp_path / "one", "1.jpg"), write(tmp_path / "two", "2.jpg", "3.jpg", "4.jpg")
    assert contents(open_sources([str(one)])) == contents(open_sources([f"folder:{one}"])) == [b"1.jpg"]
    assert contents(open_sources([str(two), f"folder:{one}"])) == [b"2.jpg", b"3.jpg", b"4.jpg", b"1.jpg"]
    assert contents(open_sources([str(one), str(two)], [1, 3])) == [b"1.jpg", b"2.jpg", b"3.jpg", b"4.jpg"]
    assert contents(open_sources([str(one), str(two)], [1, 1]))[:3] == [b"1.jpg"] * 3


def test_a_home_folder_may_be_written_short(tmp_path, monkeypatch):
    write(tmp_path, "mine/1.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert contents(open_sources(["folder:~/mine"])) == contents(open_sources(["~/mine"])) == [b"1.jpg"]


def test_unknown_kinds_and_empty_specs_are_explained(tmp_path, monkeypatch):
    kinds = "folder:PATH, list:FILE, coco:ROOT, .*tfds:NAME.*, arrayrecord:PATHS, tar:PATHS, hf:FOLDER"
    with pytest.raises(SourceError, match=f"unknown kind of source 'zip' in zip:a: choose one of {kinds}"):
        open_sources(["zip:a"])
    monkeypatch.chdir(write(tmp_path, "holiday:2024/1.jpg"))
    with pytest.raises(SourceError, match="write folder:holiday:2024 for a folder of this name"):
        open_sources(["holiday:2024"])
    assert contents(open_sources(["folder:holiday:2024"])) == [b"1.jpg"]
    with pytest.raises(SourceError, match="tar: names nothing: write tar:PATHS"):
        open_sources(["tar:"])
    with pytest.raises(SourceError, match="no sources"):
        open_sources([])
    with pytest.raises(SourceError, match=r"nowhere does not exist: correct the source \(now in"):
        open_sources(["nowhere"])


def test_a_config_s_folders_come_before_its_sources(tmp_path):
    one, two = write(tmp_path / "one", "1.jpg"), write(tmp_path / "two", "2.jpg", "3.jpg")
    assert contents(open_data(DataConfig(folders=(str(two),), sources=(str(one),)))) == [b"2.jpg", b"3.jpg", b"1.jpg"]
    folders = str(two), str(one)
    assert names(open_data(DataConfig(folders=folders))) == names(FolderSource(folders))
    mixed = open_data(DataConfig(folders=(str(one),), sources=(f"folder:{two}",), weights=(1, 1)))
    assert contents(mixed) == [b"1.jpg", b"1.jpg", b"2.jpg", b"3.jpg"]
    with pytest.raises(SourceError, match=r"nowhere does not exist: correct data\.folders"):
        open_data(DataConfig(folders=("nowhere",)))


def test_a_config_without_images_is_an_error_that_names_both_fields():
    with pytest.raises(SourceError, match=r"data\.folders is empty, and so is data\.sources: name folders of images"):
        open_data(DataConfig())


def test_a_config_s_weights_are_checked():
    with pytest.raises(ValueError, match=r"weights=\(1\.0,\): give one for each of 2 folders and sources"):
        DataConfig(folders=("a",), sources=("b",), weights=(1.0,))
    with pytest.raises(ValueError, match=r"weights=\(0\.0,\): must be positive"):
        DataConfig(sources=("b",), weights=(0.0,))
    with pytest.raises(ValueError, match=r"sources=\('',\): an empty name is no source"):
        DataConfig(sources=("",))
