"""Folders are listed completely, in a fixed order, and their absence is explained."""

import os
import pickle

import pytest

from croc_jax.data.sources import FolderSource, SourceError
from croc_jax.data.sources.base import Names


def _write(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    return folder


def test_lists_images_at_any_depth_with_any_name_and_case(tmp_path):
    images = ("b.JPG", "a/deep/er/ü 1.jpeg", "c.Png", "a.webp", ".d.jPeG", "no.stem.png")
    folder = _write(tmp_path / "photos", *images, "notes.txt", "jpg", "x.jpg.bak", "a/labels.csv")
    source = FolderSource(folder)
    assert [source[i].decode() for i in range(len(source))] == sorted(images)
    assert [source.name(i) for i in range(len(source))] == [str(folder / name) for name in sorted(images)]


def test_order_is_by_relative_path_within_folders_and_by_folder_between_them(tmp_path):
    late = _write(tmp_path / "z", "2.jpg", "10.jpg", "sub/1.jpg")
    early = _write(tmp_path / "a", "3.jpg")
    source = FolderSource([str(late), early])
    assert [source[i] for i in range(4)] == [b"10.jpg", b"2.jpg", b"sub/1.jpg", b"3.jpg"]
    assert len(FolderSource([late, late])) == 6


def test_is_picklable(tmp_path):
    source = FolderSource(_write(tmp_path, "1.jpg", "2.png"))
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 2 and copy[1] == source[1] and copy.name(1) == source.name(1)


def test_follows_links_but_not_in_circles(tmp_path):
    elsewhere = _write(tmp_path / "elsewhere", "far.jpg")
    folder = _write(tmp_path / "photos", "near.jpg")
    os.symlink(elsewhere, folder / "link")
    os.symlink(folder, folder / "circle")
    source = FolderSource(folder)
    assert [source[i] for i in range(len(source))] == [b"far.jpg", b"near.jpg"]


def test_missing_image_is_an_os_error(tmp_path):
    source = FolderSource(_write(tmp_path, "1.jpg", "2.jpg"))
    os.remove(tmp_path / "1.jpg")
    with pytest.raises(OSError, match=r"1\.jpg"):
        source[0]


def test_useless_folders_are_named(tmp_path):
    empty = _write(tmp_path / "empty", "notes.txt")
    with pytest.raises(SourceError, match=r"empty.*\.jpg, \.jpeg, \.png, \.webp"):
        FolderSource([_write(tmp_path / "full", "1.jpg"), empty])
    with pytest.raises(SourceError, match="nowhere does not exist"):
        FolderSource(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"notes\.txt is a file"):
        FolderSource(empty / "notes.txt")
    with pytest.raises(SourceError, match="data.folders is empty"):
        FolderSource(())


def test_names_are_small_and_exact():
    names = [f"n01440764/n01440764_{i}.JPEG" for i in range(10_000)] + ["a\udcff.jpg", "ä b.png", ""]
    kept = pickle.loads(pickle.dumps(Names(names)))
    assert [kept[i] for i in range(len(kept))] == names
    assert len(pickle.dumps(kept)) < sum(map(len, names)) + 9 * len(names)
    for index in (-1, len(names)):
        with pytest.raises(IndexError, match=f"name {index} of 10003"):
            kept[index]
