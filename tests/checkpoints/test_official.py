"""Whole checkpoints of CrOC and DINO are taken whole, or refused with all that they lack."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from croc_jax.checkpoints import official
from croc_jax.checkpoints.init_from import init_from
from croc_jax.checkpoints.official import export_run, load_networks, to_official
from croc_jax.models import BackboneConfig
from croc_jax.training.config import InitConfig
from tests.checkpoints.test_init_from import fresh
from tests.checkpoints.tiny_weights import equal_trees
from tests.training.tiny import first_state, tiny_recipe

FILE = Path("checkpoint.pth")
RECIPE = tiny_recipe(
    backbone=BackboneConfig(width=64, depth=2, num_heads=1, patch_size=8, dtype="float32"),
    init_from=InitConfig(source=str(FILE), parts="networks"),
)


@pytest.fixture(scope="module")
def networks():
    """Student and teacher, which differ."""
    student = jax.device_get(first_state(RECIPE).student)
    return {"student": student, "teacher": jax.tree.map(lambda leaf: leaf * 2 + 1, student)}


@pytest.fixture
def contents(networks):
    """What the official code of CrOC writes."""
    rng = np.random.default_rng(0)
    return {
        "student": {
            f"module.{name}": array for name, array in to_official(networks["student"], RECIPE.backbone).items()
        },
        "teacher": to_official(networks["teacher"], RECIPE.backbone),
        "optimizer": {"state": {}},
        "epoch": 100,
        "croc_loss": {
            "center": rng.standard_normal((1, 12)).astype(np.float32),
            "center_c": rng.standard_normal((1, 10)).astype(np.float32),
        },
    }


@pytest.fixture
def dino(contents):
    """What the official code of DINO writes."""
    kept = {
        which: {name: array for name, array in contents[which].items() if "last_layer_c" not in name}
        for which in ("student", "teacher")
    }
    return kept | {"epoch": 80, "dino_loss": {"center": contents["croc_loss"]["center"]}}


@pytest.fixture
def read(monkeypatch):
    """Reads contents as if the file held them."""

    def read(contents):
        monkeypatch.setattr(official, "is_weights_file", lambda file: True)
        monkeypatch.setattr(official, "read_contents", lambda file: contents)
        return load_networks(FILE)

    return read


def start(recipe=RECIPE, **options):
    return init_from(recipe, fresh(dataclasses.replace(recipe, init_from=InitConfig())), **options)


def test_all_of_croc_comes_in(read, contents, networks):
    found = read(contents)
    equal_trees(found.student, networks["student"])
    equal_trees(found.teacher, networks["teacher"])
    for center, name in zip((found.center, found.center_dense), ("center", "center_c"), strict=True):
        np.testing.assert_array_equal(center, contents["croc_loss"][name][0])
    assert found.epoch == 100 and found.image_size == 24 and found.config.width == 64


# What replaces a part (None: it is missing), and the error.
INCOMPLETE = [
    ("teacher", {"head.mlp.0.weight": None}, "teacher: missing head.mlp.0.weight$"),
    ("student", {"module.backbone.blocks.1.norm1.weight": None}, "student.backbone: missing block_1/norm_1/scale$"),
    ("croc_loss", {"center_c": None}, "missing croc_loss.center_c$"),
    ("croc_loss", {"center": np.ones((1, 3))}, r"croc_loss.center is \(1, 3\), expected \(1, 12\)$"),
    ("croc_loss", {"other": np.ones(3)}, "unknown weights croc_loss.other$"),
    ("student", {"module.head.mlp.2.weight": np.ones((16, 3))}, r"student: mlp_2/kernel is \(3, 16\), expected"),
    ("student", {"module.queue": np.ones(3)}, "student: unknown weights queue$"),
    ("student", {"module.head.mlp.0.bias": np.ones(16, np.int8)}, "student: head.mlp.0.bias is of type int8"),
    ("teacher", {"head.mlp.6.weight": np.zeros(3)}, "teacher: unknown weights head.mlp.6.weight$"),
    ("student", {0: np.ones(3)}, "has keys that are no strings, such as 0"),
]


def test_what_is_incomplete_is_refused(read, contents):
    for part, change, message in INCOMPLETE:
        changed = {name: array for name, array in (contents[part] | change).items() if array is not None}
        with pytest.raises(ValueError, match=message):
            read(contents | {part: changed})
    for part, word, message in (
        ("student", "backbone", "student.backbone: missing block_0/attention/projection/bias"),
        ("teacher", "head", "teacher: missing head.mlp.0.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            read(contents | {part: {name: array for name, array in contents[part].items() if word not in name}})
    del contents["student"], contents["croc_loss"]
    with pytest.raises(ValueError, match="it lacks student, croc_loss or dino_loss$"):
        read(contents)


def test_one_error_lists_all(read, contents):
    for which, wrapper in (("student", "module."), ("teacher", "")):
        for end in ("g", "v"):
            del contents[which][f"{wrapper}head.last_layer_c.weight_{end}"]
    del contents["student"]["module.backbone.cls_token"]
    contents["teacher"]["backbone.blocks.0.adapter"] = np.ones(3)
    contents["croc_loss"] = {"center": np.ones((1, 12))}
    with pytest.raises(ValueError) as caught:
        read(contents)
    assert str(caught.value) == (
        "checkpoint.pth is no known whole checkpoint of CrOC or DINO: "
        "teacher: missing head.last_layer_c.weight_g; teacher: missing head.last_layer_c.weight_v; "
        "teacher.backbone: unknown weights blocks.0.adapter; student: missing head.last_layer_c.weight_g; "
        "student: missing head.last_layer_c.weight_v; student.backbone: missing cls_token; missing croc_loss.center_c"
    )


def test_a_run_starts_from_dino_with_a_new_layer_for_centroids(read, dino, networks):
    found = read(dino)
    assert found.center_dense is None and found.epoch == 80
    lines = []
    state = start(log=lines.append)
    before = fresh(dataclasses.replace(RECIPE, init_from=InitConfig()))
    for which in ("student", "teacher"):
        network = getattr(state, which)
        expected = {**networks[which]["head"], "last_layer_dense": before.student["head"]["last_layer_dense"]}
        equal_trees(
            jax.device_get(network), {"backbone": networks[which]["backbone"], "head": jax.device_get(expected)}
        )
    np.testing.assert_array_equal(state.center, dino["dino_loss"]["center"][0])
    np.testing.assert_array_equal(state.center_dense, np.zeros(10))
    assert [line.partition(":")[0] for line in lines] == ["checkpoint.pth has no head for centroids, as runs of DINO"]
    with pytest.raises(ValueError, match="is a run of DINO: it has no head for centroids"):
        export_run(FILE, Path("out.pth"))
    dino["teacher"]["head.last_layer_c.weight_g"] = np.ones((10, 1))
    with pytest.raises(ValueError, match="teacher: unknown weights head.last_layer_c.weight_g"):
        read(dino)


def test_nothing_is_said_where_nothing_is_left_out(read, contents, networks):
    read(contents)
    lines = []
    state = start(log=lines.append)
    equal_trees(jax.device_get(state.teacher), networks["teacher"])
    assert not lines
    head = dataclasses.replace(RECIPE.head, num_prototypes=13, hidden_dim=17)
    with pytest.raises(
        ValueError, match=r"center is \(12,\), expected \(13,\); student/head/last_layer/.*; and 7 more; see"
    ):
        start(dataclasses.replace(RECIPE, head=head))
