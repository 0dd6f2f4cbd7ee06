"""Labels, boxes and masks belong to the upright image, whether they were drawn on it or on the stored one."""

import logging

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled.boxes import open_voc_boxes
from croc_jax.data.labeled.classes import open_class_folder
from croc_jax.data.labeled.davis import load_frames, open_videos, turn_with_frame
from croc_jax.data.labeled.label_files import read_ids
from croc_jax.data.labeled.segmentation import open_segmentation
from tests.data.image_bytes import exif, smooth
from tests.data.tiny_sets import write_voc_boxes

# As stored 6 x 10; upright, orientation 6 is 10 x 6.
STORED = np.arange(60, dtype=np.uint8).reshape(6, 10) % 3
UPRIGHT = np.rot90(STORED, -1)


@pytest.fixture
def told(caplog):
    """Returns the warnings so far as one text."""
    caplog.set_level(logging.WARNING, logger="absl")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def write(file, orientation=None, image=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    options = {} if orientation is None else {"exif": exif(orientation), "quality": 95}
    (image or smooth()).save(file, **options)


def write_labels(root, stem, ids):
    write(root / f"labels/val/{stem}.png", image=Image.fromarray(np.ascontiguousarray(ids)))


@pytest.mark.parametrize("count_first", [False, True])
def test_labels_are_turned_only_where_they_fit_the_stored_image_alone(tmp_path, told, count_first):
    cases = {"plain": (None, STORED, STORED), "upright": (6, UPRIGHT, UPRIGHT), "stored": (6, STORED, UPRIGHT)}
    cases |= {"half": (3, STORED, STORED)}
    for stem, (orientation, ids, _) in cases.items():
        write(tmp_path / f"images/val/{stem}.jpg", orientation)
        write_labels(tmp_path, stem, ids)
    split = open_segmentation(tmp_path, "val", num_classes=3)
    for index, pair in enumerate(split.pairs):
        pixels, labels = split.load(index)
        assert pixels.shape[:2] == labels.shape
        np.testing.assert_array_equal(labels, cases[pair.image.stem][2], err_msg=pair.image.stem)
    passes = [split.label_batches(3, label_size=(5, 5)), split.batches(3, image_size=(8, 8), label_size=None)]
    for batches in reversed(passes) if count_first else passes:
        assert len(list(batches)) == 2
    assert told().count("EXIF orientation turned 3 images of") == 1 and f"{tmp_path}, val, such as" in told()
    assert "the labels of 1 fit only the stored image, and were turned along; those of 1 fit either way" in told()


def test_labels_that_fit_neither_way_are_refused_and_upright_images_say_nothing(tmp_path, told):
    write(tmp_path / "images/val/a.jpg", 6)
    write_labels(tmp_path, "a", STORED[:5])
    with pytest.raises(ValueError, match=r"a\.png has 5 x 10 pixels, but \S+a\.jpg has 10 x 6, turned upright"):
        open_segmentation(tmp_path, "val", num_classes=3).load(0)
    for orientation in (None, 1):
        write(tmp_path / "images/val/a.jpg", orientation)
        write_labels(tmp_path, "a", STORED)
        list(open_segmentation(tmp_path, "val", num_classes=3).batches(1, image_size=(8, 8), label_size=None))
    assert told() == ""


def test_images_with_classes_are_turned_and_counted(tmp_path, told):
    for split, orientation in (("train", None), ("val", 8)):
        for name in ("ant", "bee"):
            write(tmp_path / split / name / "a.jpg", orientation)
    for split in ("train", "val"):
        opened = open_class_folder(tmp_path, split)
        (batch,) = opened.batches(2, resize=6, image_size=6)
        assert batch.images.shape == (2, 6, 6, 3)
    upright = np.asarray(Image.open(tmp_path / "val/ant/a.jpg").transpose(Image.Transpose.ROTATE_90))
    np.testing.assert_array_equal(opened.load(0, resize=6, image_size=6), upright[2:8])
    assert told() == f"EXIF orientation turned 2 images of {tmp_path}, val, such as {tmp_path}/val/ant/a.jpg"


@pytest.mark.parametrize(
    # Orientation 6 turns clockwise: columns 1 to 4 and rows 0 to 5 become rows 1 to 4 and columns 6 - 5 to 6 - 0.
    ("stated", "expected"), [((10, 6), [1, 1, 6, 4]), ((6, 10), [1, 0, 4, 5]), (None, [1, 0, 4, 5])]
)  # fmt: skip
def test_boxes_are_turned_where_their_annotation_states_the_stored_size(tmp_path, stated, expected):
    folder = write_voc_boxes(tmp_path, [np.zeros((6, 10, 3))], [[(2, 1, 4, 5, "0")]])
    write(folder / "JPEGImages/000000.jpg", 6)
    if stated:
        file = folder / "Annotations/000000.xml"
        size = f"<size><width>{stated[0]}</width><height>{stated[1]}</height></size>"
        file.write_text(file.read_text().replace("<annotation>", f"<annotation>{size}"))
    pixels, boxes = open_voc_boxes(tmp_path).load(0)
    assert pixels.shape == (10, 6, 3) and boxes.tolist() == [expected]


def test_frames_and_masks_of_a_video_are_turned_alike(tmp_path, told):
    for number in range(3):
        write(tmp_path / f"images/dog/{number}.jpg", 6)
        ids = UPRIGHT if number == 1 else STORED
        write(tmp_path / f"masks/dog/{number}.png", image=Image.fromarray(np.ascontiguousarray(ids)))
    (video,) = open_videos(tmp_path)
    assert "turns the frames of 1 of 1 videos, such as dog" in told()
    assert [frame.shape for frame in load_frames(video)] == [(10, 6, 3)] * 3
    for number, mask in video.masks.items():
        np.testing.assert_array_equal(turn_with_frame(read_ids(mask), video.frames[number]), UPRIGHT)
    write(tmp_path / "images/dog/2.jpg")
    with pytest.raises(ValueError, match=r"2\.jpg has 6 x 10 pixels, but \S+0\.jpg has 10 x 6: frames of a video need"):
        load_frames(video)
    (tmp_path / "images/dog/2.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot read \S+2\.jpg \(cannot identify the image: it is empty"):
        load_frames(video)
