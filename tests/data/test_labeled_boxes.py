"""Boxes of VOC are read from its annotations, and what is missing is named with its origin."""

import numpy as np
import pytest

from croc_jax.data.labeled.boxes import open_voc_boxes
from tests.data.tiny_sets import image, write_text, write_voc_boxes

BOXES = [[(2, 1, 4, 3, "0"), (1, 1, 6, 4, "1")], [(1, 2, 3, 4, "1")]]


def test_boxes_count_from_zero_with_exclusive_ends(tmp_path):
    folder = write_voc_boxes(tmp_path, [image(0), image(5)], BOXES)
    for root in (tmp_path, tmp_path / "VOCdevkit", folder):
        split = open_voc_boxes(root)
        pixels, boxes = split.load(0)
        np.testing.assert_array_equal(boxes, [[1, 0, 4, 3], [0, 0, 6, 4]])
        assert pixels.shape == (4, 6, 3) and split.load(1)[0].mean() == pytest.approx(50, abs=1) and len(split) == 2


def test_hard_objects_can_be_left_out(tmp_path):
    write_voc_boxes(tmp_path, [image(0), image(5)], BOXES)
    split = open_voc_boxes(tmp_path, hard=False)
    np.testing.assert_array_equal(split.load(0)[1], [[1, 0, 4, 3]])
    assert split.load(1)[1].shape == (0, 4)


def error_of(root, split="trainval", **settings):
    with pytest.raises(ValueError) as caught:
        opened = open_voc_boxes(root, split, **settings)
        for index in range(len(opened)):
            opened.load(index)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_is_named(tmp_path):
    message = error_of(tmp_path)
    assert f"no folder {tmp_path / 'Annotations'}" in message and "VOCtrainval_06-Nov-2007.tar" in message
    assert "VOCtrainval_11-May-2012.tar" in error_of(tmp_path, year=2012)
    assert "year=2010" in error_of(tmp_path, year=2010)
    folder = write_voc_boxes(tmp_path, [image(0), image(5)], BOXES)
    assert f"no list {folder / 'ImageSets' / 'Main' / 'test.txt'}" in error_of(tmp_path, "test")
    write_text(folder / "Annotations" / "000001.xml", "<annotation><object></object></annotation>")
    assert f"cannot read the boxes of {folder / 'Annotations' / '000001.xml'}" in error_of(tmp_path)
    write_text(folder / "Annotations" / "000001.xml", "<annotation><object>")
    assert "000001.xml" in error_of(tmp_path)
    (folder / "Annotations" / "000000.xml").unlink()
    assert f"no labels {folder / 'Annotations' / '000000.xml'}" in error_of(tmp_path)
    write_text(folder / "ImageSets" / "Main" / "trainval.txt", "\n")
    assert "trainval.txt names no images" in error_of(tmp_path)
