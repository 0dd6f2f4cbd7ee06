"""Films are reproducible, exactly labeled, and read as videos."""

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled.davis import open_videos
from croc_jax.data.scenes import make_film, write_film

SIZE = (72, 128)


@pytest.fixture(scope="module")
def film():
    return list(make_film(3, 4, size=SIZE))


def test_a_film_depends_on_nothing_but_its_arguments(film):
    again = list(make_film(3, 4, size=SIZE))
    for one, other in zip(film, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.ids, other.ids)
    other = next(iter(make_film(4, 4, size=SIZE)))
    assert np.mean(other.image != film[0].image) > 0.5


def test_objects_move_and_nothing_else_does(film):
    assert all(set(np.unique(frame.ids)) == {0, 1, 2, 3} for frame in film)
    centers = [[np.argwhere(frame.ids == number).mean(0)[1] for number in (1, 2, 3)] for frame in film]
    steps = np.sign(np.diff(centers, axis=0))
    np.testing.assert_array_equal(steps, [[1, -1, -1]] * 3)
    # What never carries an object changes by noise and passing shadows alone.
    still = np.all([frame.ids == 0 for frame in film], axis=0)
    change = np.abs(film[0].image.astype(int) - film[3].image)[still].mean(-1)
    assert np.median(change) < 6 < np.abs(film[0].image.astype(int) - film[3].image)[film[0].ids == 2].mean()


def test_a_written_film_is_a_video_with_all_its_masks(film, tmp_path):
    (video,) = open_videos(write_film(tmp_path, seed=3, num_frames=4, size=SIZE))
    assert video.name == "film-3" and len(video.frames) == 4 and sorted(video.masks) == [0, 1, 2, 3]
    for number, frame in enumerate(film):
        np.testing.assert_array_equal(np.asarray(Image.open(video.masks[number])), frame.ids)
        assert np.abs(np.asarray(Image.open(video.frames[number])).astype(int) - frame.image).mean() < 6


def test_a_film_has_two_frames_at_least():
    with pytest.raises(ValueError, match="num_frames=1"):
        list(make_film(0, 1))
