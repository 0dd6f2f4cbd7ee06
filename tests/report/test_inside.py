"""What a run records of a few images is what `explore` finds; colors stay with clusters; a page has as many frames."""

import base64
import dataclasses
import functools
import io
import operator
import re
from collections import Counter

import jax
import numpy as np
import pytest
from PIL import Image

from croc_jax.data.sources import FolderSource
from croc_jax.evaluation.components import principal_components, unit_variance
from croc_jax.evaluation.inside import InsideRecorder, Moment, read_inside
from croc_jax.report.inside import agreement, count_shares, inside_sections, make_film, match_clusters
from croc_jax.report.inspect import explore
from croc_jax.training.run_config import EvaluationConfig

NUM_MOMENTS = 3


def start_recorder(workdir, recipe, photos):
    recipe = dataclasses.replace(recipe, evaluation=EvaluationConfig(pictures=7))
    return InsideRecorder(workdir / "inside", recipe, FolderSource(photos))


@pytest.fixture(scope="module")
def states(backbone):
    """The parameters at each moment."""
    return [jax.tree.map(functools.partial(operator.mul, factor), backbone.params) for factor in (1.0, 1.3, 1.6)]


@pytest.fixture(scope="module")
def workdir(states, recipe, photos, tmp_path_factory):
    """A workdir with the records of steps 0, 9 and 10."""
    workdir = tmp_path_factory.mktemp("recorded")
    recorder = start_recorder(workdir, recipe, photos)
    for step, params in zip((0, 9, 10), states, strict=True):
        recorder.record(params, step=step, epoch=step / 5)
    return workdir


def test_a_moment_is_what_explore_finds_with_the_same_parameters(workdir, states, backbone, photos):
    inside = read_inside(workdir / "inside")
    assert list(inside.moments) == [0, 9, 10] and [float(one.epoch) for one in inside.moments.values()] == [0, 1.8, 2]
    assert inside.crops.names.tolist() == [f"{photos}/{index}.png" for index in (0, 1, 3, 4, 5, 6)]
    for one, params in zip(inside.moments.values(), states, strict=True):
        found = explore(backbone._replace(params=params), FolderSource(photos), num_images=7, crop_size=48)
        np.testing.assert_array_equal(inside.crops.views, found.views)
        np.testing.assert_array_equal(inside.crops.boxes, found.boxes)
        for name in ("labels", "valid", "num_clusters", "costs"):
            np.testing.assert_array_equal(getattr(one, name), getattr(found, name))
    patches = backbone._replace(params=params).encode(found.views.reshape(-1, 48, 48, 3)).patches
    expected = unit_variance(principal_components(np.asarray(patches))).reshape(6, 2, 36, 3).swapaxes(0, 1)
    assert one.components.dtype == np.float16 and one.labels.dtype == np.uint8
    np.testing.assert_allclose(one.components, expected, atol=4e-3)


def test_another_start_repeats_a_moment_and_one_with_other_crops_leaves_those_before_out(
    workdir, states, recipe, photos, tmp_path, caplog
):
    before = {path: path.read_bytes() for path in (workdir / "inside").iterdir()}
    start_recorder(workdir, recipe, photos).record(states[2], step=10, epoch=2.0)
    assert {path: path.read_bytes() for path in (workdir / "inside").iterdir()} == before
    folder = tmp_path / "inside"
    folder.mkdir()
    for path, content in before.items():
        (folder / path.name).write_bytes(content)
    moment = read_inside(folder).moments[9]
    with (folder / "11.npz").open("wb") as file:
        np.savez(file, **moment._replace(crops=np.array("other"))._asdict())
    assert list(read_inside(folder).moments) == [0, 9, 10] and "1 moments are of other crops" in caplog.text
    (folder / "9.npz").write_bytes(before[workdir / "inside" / "9.npz"][:300])
    with pytest.raises(ValueError, match=re.escape(f"{folder / '9.npz'} is damaged")):
        read_inside(folder)


def test_clusters_keep_their_colors_while_they_stay():
    # Numbers change at each moment, one patch moves, and cluster 5 is away at the moment before the last.
    last = [5, 5, 5, 2, 2, 2, 2, 0]
    labels = np.array([[0, 0, 0, 1, 1, 1, 1, 5], [3, 3, 3, 4, 4, 4, 3, 4], [1, 1, 1, 1, 1, 1, 1, 3], last])
    colors = match_clusters(labels, 6)
    assert all(sorted(row) == list(range(6)) for row in colors.tolist())
    found = [row[own].tolist() for row, own in zip(colors, labels, strict=True)]
    # At the end, the largest cluster has the first color.
    assert found[3] == [1, 1, 1, 0, 0, 0, 0, 2] and found[2] == [0] * 7 + [2]
    assert found[1] == [1, 1, 1, 0, 0, 0, 1, 0] and found[0] == found[3]


def test_a_film_shows_the_same_clusters_in_other_colors(workdir):
    inside = read_inside(workdir / "inside")
    film = make_film(inside)
    assert film.names == ["start", "epoch 1.8", "epoch 2"] and film.grid == (6, 6)
    for one, labels, valid in zip(inside.moments.values(), film.labels, film.valid, strict=True):
        for image, head in np.ndindex(*one.num_clusters.shape):
            pairs = set(zip(one.labels[:, image, head].flat, labels[:, image, head].flat, strict=True))
            assert len(pairs) == len(dict(pairs)) == len({color for _, color in pairs})
            assert all(one.valid[image, head, old] == valid[image, head, new] for old, new in pairs)
    assert film.components.shape == (3, 2, 6, 36, 3) and film.components.min() == 0 and film.components.max() == 255


def test_shares_of_each_number_of_clusters():
    num_clusters = np.random.default_rng(0).integers(2, 6, (2, 5, 3))
    for found, moment in zip(count_shares(num_clusters, 6), num_clusters, strict=True):
        counts = Counter(moment.flat)
        assert found.tolist() == [counts[k] / 15 for k in (2, 3, 4, 5, 6)]


def test_agreement_by_pairs_of_tokens():
    labels = np.random.default_rng(0).integers(0, 3, (3, 2, 2, 2, 8))
    labels[2, :, :, :] = (labels[0] + 1) % 3

    def rand_index(first, second):
        """Hubert and Arabie's formula from the pairs of tokens that are together."""
        together = [np.equal.outer(one, one)[np.triu_indices(16, 1)] for one in (first, second)]
        both, mean = np.sum(together[0] & together[1]), np.sum(together, axis=1).mean()
        expected = np.prod(np.sum(together, axis=1)) / together[0].size
        return (both - expected) / (mean - expected)

    for place in (0, -1):
        expected = [
            np.mean([rand_index(*both[:, :, image, head].reshape(2, 16)) for image, head in np.ndindex(2, 2)])
            for both in (np.stack([labels[place], own]) for own in labels)
        ]
        np.testing.assert_allclose(agreement(labels, place), expected, atol=1e-12)
    assert agreement(labels, 0)[2] == 1


def test_a_page_moves_through_all_moments(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr("croc_jax.report.html._PHOTO_DPI", 30)
    (text,) = inside_sections(workdir)
    assert text.count("<img ") == 2 and text.count("<svg ") == 2
    frames = Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]*)', text)[1])))
    assert frames.n_frames == NUM_MOMENTS
    (tmp_path / "inside").mkdir()
    assert inside_sections(tmp_path) == []
    for name in ("crops", "0"):
        (tmp_path / "inside" / f"{name}.npz").write_bytes((workdir / "inside" / f"{name}.npz").read_bytes())
    assert inside_sections(tmp_path) == []
    assert set(read_inside(tmp_path / "inside").moments[0]._fields) == set(Moment._fields)
