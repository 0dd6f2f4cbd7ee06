"""Generated scenes and films are reproducible, labeled exactly, varied, and written once."""

import numpy as np
import pytest
from PIL import Image
from scenes import CLASS_NAMES, make_film, make_scene, write_film, write_scenes
from scenes.landscapes import World
from scenes.sprites import Canvas
from sklearn.metrics import recall_score
from sklearn.tree import DecisionTreeClassifier

from croc_jax.data.labeled.davis import open_videos
from croc_jax.data.labeled.segmentation import open_segmentation

SMALL, WIDE = (48, 64), (72, 128)


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(3, "train", index, size=(96, 128)) for index in range(32)]


def test_make_scene_depends_on_nothing_but_its_arguments(scenes):
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


def test_color_alone_does_not_give_the_classes(scenes):
    pixels = [(s.image[::3, ::3].reshape(-1, 3), s.labels[::3, ::3].ravel()) for s in scenes]
    train, val = ([np.concatenate(part) for part in zip(*half, strict=True)] for half in (pixels[::2], pixels[1::2]))
    tree = DecisionTreeClassifier(max_leaf_nodes=200, random_state=0).fit(*train)
    recalls = recall_score(val[1], tree.predict(val[0]), average=None, zero_division=0)
    assert np.mean(recalls) < 0.4


@pytest.mark.parametrize(
    ("foot", "center", "rows", "columns"),
    [
        (40, 20, slice(32, 40), slice(16, 24)),
        (4, 20, slice(0, 4), slice(16, 24)),
        (52, 62, slice(44, 48), slice(58, 64)),
    ],
)
def test_labels_cover_exactly_the_pixels_of_an_object(foot, center, rows, columns):
    canvas = Canvas(16, 1.0)
    canvas.paint(np.array([1.0, 0.0, 0.0]), canvas.box(-0.25, 0.25, 0.0, 0.5))
    world = World(np.random.default_rng(0), SMALL)
    before, expected = world.color.copy(), np.zeros(SMALL, bool)
    world.place(canvas, foot=foot, center=center, label=7, haze=0.0)
    expected[rows, columns] = True
    np.testing.assert_array_equal(world.labels == 7, expected)
    np.testing.assert_allclose(world.color[expected] - [1, 0, 0], 0, atol=1e-6)
    np.testing.assert_array_equal(world.color[~expected], before[~expected])


def write(root, **settings):
    return write_scenes(
        root, **({"num_train": 3, "num_val": 2, "seed": 1, "size": SMALL, "show_progress": False} | settings)
    )


def test_write_scenes_makes_a_segmentation_folder_once(tmp_path):
    root = write(tmp_path / "scenes")
    train, val = open_segmentation(root, "train"), open_segmentation(root, "val")
    assert (len(train), len(val)) == (3, 2) and train.class_names == CLASS_NAMES
    for split in (train, val):
        for index in range(len(split)):
            image, labels = split.load(index)
            scene = make_scene(1, split.name, index, size=SMALL)
            np.testing.assert_array_equal(labels, scene.labels)
            assert np.abs(image.astype(float) - scene.image).mean() < 8
    before = {file: file.stat().st_mtime_ns for file in root.rglob("*.*")}
    write(root)
    assert {file: file.stat().st_mtime_ns for file in root.rglob("*.*")} == before and len(before) == 12


def test_write_scenes_replaces_unfinished_scenes_and_those_of_other_settings(tmp_path):
    write(tmp_path, num_train=4)
    (tmp_path / "scenes.json").write_text('{"complete": false}')
    (tmp_path / "images" / "train" / "00000.jpg").write_bytes(b"half")
    write(tmp_path, num_train=4)
    assert len(open_segmentation(tmp_path, "train").load(0)) == 2
    write(tmp_path, num_train=2, seed=9)
    assert len(open_segmentation(tmp_path, "train")) == len(list((tmp_path / "images" / "train").iterdir())) == 2


def test_write_scenes_refuses_other_folders_and_sizes(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.jpg").write_text("precious")
    with pytest.raises(ValueError, match="choose a folder for the scenes alone"):
        write(tmp_path)
    assert (tmp_path / "images" / "mine.jpg").read_text() == "precious"
    for settings in ({"num_val": 0}, {"size": (16, 64)}):
        with pytest.raises(ValueError, match="at least 1 scene and 32 pixels"):
            write(tmp_path / "small", **settings)


def test_make_film_moves_objects_and_nothing_else():
    film = list(make_film(3, 4, size=WIDE))
    for one, other in zip(film, make_film(3, 4, size=WIDE), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.ids, other.ids)
    assert all(set(np.unique(frame.ids)) == {0, 1, 2, 3} for frame in film)
    centers = [[np.argwhere(frame.ids == number).mean(0)[1] for number in (1, 2, 3)] for frame in film]
    np.testing.assert_array_equal(np.sign(np.diff(centers, axis=0)), [[1, -1, -1]] * 3)
    # What never carries an object changes by noise and passing shadows alone.
    change = np.abs(film[0].image.astype(int) - film[3].image)
    still = np.all([frame.ids == 0 for frame in film], axis=0)
    assert np.median(change[still].mean(-1)) < 6 < change[film[0].ids == 2].mean()
    with pytest.raises(ValueError, match="num_frames=1"):
        next(make_film(0, 1))


def test_write_film_makes_a_video_with_all_its_masks(tmp_path):
    (video,) = open_videos(write_film(tmp_path, seed=3, num_frames=4, size=WIDE))
    assert video.name == "film-3" and len(video.frames) == 4 and sorted(video.masks) == [0, 1, 2, 3]
    for number, frame in enumerate(make_film(3, 4, size=WIDE)):
        np.testing.assert_array_equal(np.asarray(Image.open(video.masks[number])), frame.ids)
        assert np.abs(np.asarray(Image.open(video.frames[number])).astype(int) - frame.image).mean() < 6
