"""Scenes are reproducible, labeled exactly, varied, and written once."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import recall_score
from sklearn.tree import DecisionTreeClassifier

from croc_jax.data.labeled.segmentation import open_segmentation
from croc_jax.data.scenes import CLASS_NAMES, make_scene, write_scenes
from croc_jax.data.scenes.landscapes import World
from croc_jax.data.scenes.sprites import Canvas

SMALL = (48, 64)


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(3, "train", index, size=(96, 128)) for index in range(32)]


def test_a_scene_depends_on_nothing_but_its_arguments(scenes):
    again = make_scene(3, "train", 5, size=(96, 128))
    np.testing.assert_array_equal(again.image, scenes[5].image)
    np.testing.assert_array_equal(again.labels, scenes[5].labels)
    for other in (make_scene(4, "train", 5, size=(96, 128)), make_scene(3, "val", 5, size=(96, 128))):
        assert np.mean(other.image != scenes[5].image) > 0.5


def test_scenes_hold_every_class_and_several_at_once(scenes):
    assert all(scene.image.shape == (96, 128, 3) and scene.labels.dtype == np.uint8 for scene in scenes)
    counts = np.sum([np.bincount(scene.labels.ravel(), minlength=len(CLASS_NAMES)) for scene in scenes], axis=0)
    assert len(counts) == len(CLASS_NAMES) == 12
    assert (counts > 0.002 * counts.sum()).all(), dict(zip(CLASS_NAMES, counts, strict=True))
    assert np.median([len(np.unique(scene.labels)) for scene in scenes]) >= 5


def test_color_alone_does_not_tell_the_classes(scenes):
    pixels = [(s.image[::3, ::3].reshape(-1, 3), s.labels[::3, ::3].ravel()) for s in scenes]
    train, val = ([np.concatenate(part) for part in zip(*half, strict=True)] for half in (pixels[::2], pixels[1::2]))
    tree = DecisionTreeClassifier(max_leaf_nodes=200, random_state=0).fit(*train)
    recalls = recall_score(val[1], tree.predict(val[0]), average=None, zero_division=0)
    assert np.mean(recalls) < 0.4


def square_canvas(height):
    canvas = Canvas(height, 1.0)
    canvas.paint(np.array([1.0, 0.0, 0.0]), canvas.box(-0.25, 0.25, 0.0, 0.5))
    return canvas


def test_an_object_covers_and_labels_exactly_its_pixels():
    world = World(np.random.default_rng(0), SMALL)
    before = world.color.copy()
    world.place(square_canvas(16), foot=40, center=20, label=7, haze=0.0)
    expected = np.zeros(SMALL, bool)
    expected[32:40, 16:24] = True
    np.testing.assert_array_equal(world.labels == 7, expected)
    np.testing.assert_allclose(world.color[expected], np.broadcast_to([1, 0, 0], (64, 3)), atol=1e-6)
    np.testing.assert_array_equal(world.color[~expected], before[~expected])


def test_objects_are_cut_at_the_border_of_the_image():
    for foot, center, rows, columns in (
        (4, 20, slice(0, 4), slice(16, 24)),
        (52, 62, slice(44, 48), slice(58, 64)),
    ):
        world = World(np.random.default_rng(0), SMALL)
        world.place(square_canvas(16), foot=foot, center=center, label=7, haze=0.0)
        expected = np.zeros(SMALL, bool)
        expected[rows, columns] = True
        np.testing.assert_array_equal(world.labels == 7, expected)


def test_nearer_objects_hide_farther_ones():
    world = World(np.random.default_rng(0), SMALL)
    world.place(square_canvas(16), foot=40, center=20, label=7, haze=0.0)
    world.place(square_canvas(16), foot=44, center=24, label=8, haze=0.0)
    assert np.sum(world.labels == 8) == 64
    assert np.sum(world.labels == 7) == 64 - 4 * 4


def test_shapes_have_their_areas():
    canvas = Canvas(100, 1.0)
    canvas.paint(np.ones(3), canvas.ellipse(0.0, 0.5, 0.3, 0.3))
    assert canvas.opacity.sum() == pytest.approx(np.pi * 30**2, rel=0.01)
    canvas = Canvas(100, 1.0)
    canvas.paint(np.ones(3), canvas.polygon((-0.4, 0.1), (0.0, 0.9), (0.4, 0.1)))
    assert canvas.opacity.sum() == pytest.approx(0.5 * 80 * 80, rel=0.02)
    canvas = Canvas(100, 1.0)
    canvas.paint(np.ones(3), canvas.limb((-0.2, 0.5), (0.2, 0.5), 0.1))
    assert canvas.opacity.sum() == pytest.approx(40 * 20 + np.pi * 10**2, rel=0.02)


def write(root, **settings):
    defaults = {"num_train": 3, "num_val": 2, "seed": 1, "size": SMALL, "show_progress": False}
    return write_scenes(root, **(defaults | settings))


def written_times(root):
    return {file: file.stat().st_mtime_ns for file in sorted(root.rglob("*.*"))}


def test_the_folder_is_a_segmentation_folder_of_these_scenes(tmp_path):
    root = write(tmp_path / "scenes")
    train, val = open_segmentation(root, "train"), open_segmentation(root, "val")
    assert (len(train), len(val)) == (3, 2) and train.class_names == CLASS_NAMES
    for split in (train, val):
        for index in range(len(split)):
            image, labels = split.load(index)
            scene = make_scene(1, split.name, index, size=SMALL)
            np.testing.assert_array_equal(labels, scene.labels)
            assert np.abs(image.astype(float) - scene.image).mean() < 8


def test_scenes_are_made_once(tmp_path):
    root = write(tmp_path)
    before = written_times(root)
    write(tmp_path)
    assert written_times(root) == before and len(before) == 12


def test_other_settings_replace_the_scenes(tmp_path):
    write(tmp_path, num_train=4)
    first = make_scene(1, "train", 0, size=SMALL).labels
    write(tmp_path, num_train=2, seed=9)
    split = open_segmentation(tmp_path, "train")
    assert len(split) == 2 and len(list((tmp_path / "images" / "train").iterdir())) == 2
    assert np.any(split.load(0)[1] != first)


def test_an_interrupted_call_starts_over(tmp_path, monkeypatch):
    saved = []

    def fail(self, file, **settings):
        saved.append(file)
        if len(saved) == 4:
            raise KeyboardInterrupt
        original(self, file, **settings)

    original = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    monkeypatch.undo()
    assert not json.loads((tmp_path / "scenes.json").read_text())["complete"]
    write(tmp_path)
    assert len(open_segmentation(tmp_path, "train")) == 3 and len(open_segmentation(tmp_path, "val")) == 2


def test_a_folder_of_other_images_is_left_alone(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_text("precious")
    with pytest.raises(ValueError, match="choose a folder for the scenes alone"):
        write(tmp_path)
    assert (tmp_path / "images" / "mine.jpg").read_text() == "precious"


def test_impossible_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_val=0"):
        write(tmp_path, num_val=0)
    with pytest.raises(ValueError, match=r"size=\(16, 64\)"):
        write(tmp_path, size=(16, 64))
