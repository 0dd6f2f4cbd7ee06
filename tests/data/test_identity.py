"""The digest of a source: the same wherever its images lie, and another one once they have changed."""

import errno
import os
import shutil

import pytest

from croc_jax.data.labeled import open_labeled
from croc_jax.data.sources import files as files_module
from croc_jax.data.sources import open_sources
from croc_jax.data.sources.files import FileSource
from croc_jax.data.sources.identity import ImageSet, describe_change, digest_files, identify
from croc_jax.evaluation.datasets import describe_pixels
from tests.data.test_shards import write_records, write_tar

IMAGES = {"a.png": b"1", "b/c.png": b"22", "b/d.jpg": b"333"}


def write_folder(home, images):
    for name, content in images.items():
        (home / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "photos" / name).write_bytes(content)
    return f"folder:{home / 'photos'}"


def write_list(home, images):
    write_folder(home, images)
    (home / "list.txt").write_text("".join(f"photos/{name}\n" for name in images))
    return f"list:{home / 'list.txt'}"


def write_absolute_list(home, images):
    write_folder(home, images)
    (home / "list.txt").write_text("".join(f"{home}/photos/{name}\n" for name in images))
    return f"list:{home / 'list.txt'}"


def write_one_tar(home, images):
    return f"tar:{write_tar(home / 'images.tar', images)}"


def write_shards(home, images):
    for number, (name, content) in enumerate(images.items()):
        write_records(home / f"{name.replace('/', '-')}-{number}.array_record", content)
    return f"arrayrecord:{home}"


WRITERS = [write_folder, write_list, write_absolute_list, write_one_tar, write_shards]
CHANGED = {
    "added": IMAGES | {"b/e.png": b"1"},
    "removed": {name: IMAGES[name] for name in ("a.png", "b/d.jpg")},
    "renamed": {"z.png": b"1", "b/c.png": b"22", "b/d.jpg": b"333"},
    "of another size": IMAGES | {"b/c.png": b"4444"},
}


@pytest.mark.parametrize("write", WRITERS)
def test_images_are_known_by_names_and_sizes_wherever_they_lie(write, tmp_path):
    first = identify(open_sources([write(tmp_path / "first", IMAGES)]))
    assert first.count == 3 and len(first.digest) == 16 and len(first.entries) == 3
    assert identify(open_sources([write(tmp_path / "scratch" / "job", IMAGES)])) == first
    changed = [identify(open_sources([write(tmp_path / kind, images)])) for kind, images in CHANGED.items()]
    assert len({first.digest, *(images.digest for images in changed)}) == 5
    assert [images.count for images in changed] == [4, 2, 3, 3]


def test_parts_of_a_mixture_do_not_mix(tmp_path):
    one, two = (
        write_folder(tmp_path / "1", {"a.png": b"1"}),
        write_folder(tmp_path / "2", {"a.png": b"2", "b.png": b"3"}),
    )
    both = identify(open_sources([one, two]))
    assert both.entries == (("0/a.png", 1), ("1/a.png", 1), ("1/b.png", 1)) and both.count == 3
    assert identify(open_sources([two, one])).digest != both.digest
    # Shares are settings of the run; only the number of images of an epoch depends on them.
    assert identify(open_sources([one, two], (1, 1))).entries == both.entries
    assert identify(open_sources([one], (1,))).entries == (("a.png", 1),)


def test_missing_files_count_and_a_failing_disk_is_no_change(tmp_path, monkeypatch):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / os.fsdecode(b"\xff\n.png")).write_bytes(b"12")
    source = open_sources([str(tmp_path)])
    assert sorted(identify(source).entries) == [("gone.png", -1), ("\udcff\n.png", 2)]

    def fail(path):
        raise OSError(errno.ESTALE, "Stale file handle", path)

    monkeypatch.setattr(files_module.os, "stat", fail)
    with pytest.raises(OSError, match="Stale"):
        identify(source)


def test_of_very_many_files_some_sizes_are_read(tmp_path, monkeypatch):
    names = list(CHANGED["added"])
    write_folder(tmp_path, dict.fromkeys(names, b"123"))
    monkeypatch.setattr(files_module, "_MAX_SIZES", 2)
    assert list(FileSource(tmp_path / "photos", names).entries()) == list(zip(names, (3, 0, 3, 0), strict=True))


def test_a_change_is_described_by_numbers_and_a_few_names():
    old = ImageSet(3, "x", (("a", 1), ("b\n", 2), ("c", 3)))
    for new, expected in {
        ImageSet(2, "y", (("a", 1), ("c", 3))): r"3 images then, 2 now (1 missing: 'b\n')",
        ImageSet(3, "y", (("a", 1), ("d", 2), ("c", 4))): (
            r"3 images then, 3 now (1 new: 'd'; 1 missing: 'b\n'; 1 of another size: 'c')"
        ),
        ImageSet(3, "y", old.entries[::-1]): "3 images then, 3 now (in another order)",
        ImageSet(7, "y", (*old.entries, *((f"{i}.png", 1) for i in range(4)))): (
            "3 images then, 7 now (4 new: '0.png', '1.png', '2.png', ...)"
        ),
        ImageSet(200_000, "y"): "3 images then, 200000 now (names or sizes differ)",
    }.items():
        assert describe_change(old, new) == expected


def test_a_labeled_set_has_a_digest_of_images_and_labels(tmp_path):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "one" / kind / split).mkdir(parents=True)
            (tmp_path / "one" / kind / split / "0.png").write_bytes(b"never read")
    shutil.copytree(tmp_path / "one", tmp_path / "two")

    def describe(root):
        splits = [open_labeled(tmp_path / root, split, num_classes=2) for split in ("val", "train")]
        return describe_pixels(*splits)["digest"]

    before = describe("one")
    assert before == describe("two") and len(before) == 16
    (tmp_path / "two" / "labels" / "train" / "0.png").write_bytes(b"other labels")
    assert describe("two") != before == describe("one")
    assert digest_files(tmp_path, [tmp_path / "one" / "x"]) != digest_files(tmp_path, [tmp_path / "one" / "y"])
