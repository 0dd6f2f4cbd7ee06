"""Unreadable images are counted, listed once, and an error only if they are many."""

import logging

import pytest

from croc_jax.data.bad_records import BadRecords, UnreadableImagesError


def test_check_allows_a_share_up_to_the_limit():
    bad = BadRecords(max_fraction=0.01)
    for index in range(10):
        bad.add(f"{index}", "reason")
        bad.check(99)
    assert bad.counts == {f"{index}": 1 for index in range(10)}
    bad.add("one more", "reason")
    with pytest.raises(UnreadableImagesError, match="^11 of 1001 images could not be read, such as 0, 1, 2: "):
        bad.check(0)


def test_add_lists_each_image_once_beside_the_lines_of_other_processes(tmp_path, caplog):
    file = tmp_path / "skipped.txt"
    first, second = (BadRecords(file=file) for _ in range(2))
    with caplog.at_level(logging.WARNING, logger="absl"):
        first.add("a.jpg", "torn\nacross lines")
        second.add("a.jpg", "torn")
        second.add("b\n\udcff.jpg", "empty")
        second.add("b\n\udcff.jpg", "empty")
    assert file.read_text() == "a.jpg\ttorn across lines\nb\\n\\udcff.jpg\tempty\n"
    assert second.counts == {"a.jpg": 1, "b\\n\\udcff.jpg": 2} and len(caplog.records) == 3
