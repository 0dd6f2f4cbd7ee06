"""What is written under other names comes back bit by bit, and other libraries load it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from croc_jax.checkpoints import Checkpointer, restore_backbone
from croc_jax.checkpoints.convert import to_official
from croc_jax.checkpoints.differences import largest_difference
from croc_jax.checkpoints.export import ExportError, export_backbone, write_arrays
from croc_jax.checkpoints.official import export_run, load_official_run
from croc_jax.checkpoints.pretrained import ForeignWeightsError, load_foreign_backbone
from croc_jax.models import BackboneConfig, HeadConfig, make_backbone
from croc_jax.runtime.workdir import init_workdir
from croc_jax.training.forward import init_params, make_networks
from croc_jax.training.state import init_state
from tests.checkpoints.official import read_official
from tests.checkpoints.test_pretrained import official_weights
from tests.training.tiny import first_state, tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
PLAIN = BackboneConfig(width=128, depth=2, num_heads=2, patch_size=14, dtype="float32")
DINOV2 = dataclasses.replace(PLAIN, layer_scale=True)
# 344 hidden features, the next multiple of 8 from 8/3 of the width.
GATED = dataclasses.replace(DINOV2, mlp="swiglu", mlp_ratio=344 / 128)
REGISTERS = dataclasses.replace(DINOV2, num_registers=4, position_resizing="antialias")
DINOV3 = dataclasses.replace(REGISTERS, positions="rope", norm_epsilon=1e-5)
DINOV3_GATED = dataclasses.replace(DINOV3, mlp="swiglu", mlp_ratio=344 / 128)
SIZE = 70


def equal_trees(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def random_params(config, *, size=SIZE, seed=0):
    module = make_backbone(config, image_size=size)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, size, size, 3), np.float32))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


def features(config, params, images, *, size=SIZE):
    module = make_backbone(dataclasses.replace(config, dtype="float32"), image_size=size)
    return jax.jit(module.apply)({"params": params}, images.permute(0, 2, 3, 1).numpy())


def test_official_names_go_in_and_out_bit_by_bit():
    rng = np.random.default_rng(0)
    weights = {f"backbone.{name}": array for name, array in official_weights().items()}
    for name, shape in (
        ("mlp.0.weight", (16, 64)), ("mlp.0.bias", (16,)), ("mlp.2.weight", (16, 16)), ("mlp.2.bias", (16,)),
        ("mlp.4.weight", (8, 16)), ("mlp.4.bias", (8,)), ("last_layer.weight_g", (12, 1)),
        ("last_layer.weight_v", (12, 8)), ("last_layer_c.weight_g", (10, 1)), ("last_layer_c.weight_v", (10, 8)),
    ):  # fmt: skip
        weights[f"head.{name}"] = rng.standard_normal(shape).astype(np.float32)
    config = BackboneConfig(width=64, depth=2, num_heads=1, patch_size=4, mlp_ratio=2.0)
    again = to_official(read_official(weights), config)
    assert again.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype and again[name].flags.c_contiguous


@pytest.mark.parametrize("form", ["official", "timm", "hf"])
@pytest.mark.parametrize("config", [PLAIN, DINOV2, GATED, REGISTERS], ids=["plain", "dinov2", "gated", "registers"])
def test_every_format_comes_back(tmp_path, form, config):
    params = random_params(config)
    output = tmp_path / ("model" if form == "hf" else "model.safetensors")
    export_backbone(params, config, image_size=SIZE, output=output, form=form)
    found = load_foreign_backbone(output)
    assert found.image_size == SIZE and found.config.mlp == config.mlp
    if form == "timm" and config.num_registers:
        # The place of [CLS] is added to it there.
        position, ours = found.params["position_embedding"], params["position_embedding"]
        assert not position[:, 0].any()
        np.testing.assert_array_equal(found.params["cls_token"], params["cls_token"] + ours[:, :1])
        np.testing.assert_array_equal(position[:, 1:], ours[:, 1:])
        kept = {"cls_token", "position_embedding"}
        found = found._replace(params={**found.params, **{name: params[name] for name in kept}})
    equal_trees(found.params, params)


TIMM = [
    ("vit_small_patch14_dinov2", DINOV2),
    ("vit_small_patch14_reg4_dinov2", REGISTERS),
    ("vit_giant_patch14_dinov2", GATED),
]


@pytest.mark.parametrize(("name", "config"), TIMM, ids=[name for name, _ in TIMM])
def test_timm_loads_it_strictly(tmp_path, name, config):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    params = random_params(config)
    export_backbone(params, config, image_size=SIZE, output=tmp_path / "model.pth", form="timm")
    sizes = {"depth": 2, "embed_dim": 128, "num_heads": 2, "num_classes": 0, "img_size": SIZE}
    extra = {"mlp_ratio": 2 * config.mlp_ratio} if config is GATED else {}
    model = timm.create_model(name, **sizes, **extra).eval()
    model.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = model.forward_features(images).numpy()
    found = features(config, params, images)
    np.testing.assert_allclose(found.cls, expected[:, 0], atol=1e-4)
    np.testing.assert_allclose(found.patches, expected[:, 1 + config.num_registers :], atol=1e-4)


@pytest.mark.parametrize("config", [DINOV3, DINOV3_GATED], ids=["gelu", "gated"])
def test_dinov3_comes_back_from_hugging_face_s_folder(tmp_path, config):
    params = random_params(config)
    export_backbone(params, config, image_size=SIZE, output=tmp_path, form="hf")
    found = load_foreign_backbone(tmp_path)
    equal_trees(found.params, params)
    assert (found.config.positions, found.config.mlp, found.config.num_registers) == ("rope", config.mlp, 4)
    assert found.config.norm_epsilon == 1e-5


HF = {"plain": PLAIN, "dinov2": DINOV2, "gated": GATED, "registers": REGISTERS, "dinov3": DINOV3}
HF |= {"dinov3_gated": DINOV3_GATED}


@pytest.mark.parametrize("config", HF.values(), ids=HF)
def test_hugging_face_loads_it(tmp_path, config):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    params = random_params(config)
    export_backbone(params, config, image_size=SIZE, output=tmp_path, form="hf")
    model, report = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"] and all("pooler" in key for key in report["missing_keys"])
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = model.eval()(images).last_hidden_state.numpy()
    found = features(config, params, images)
    np.testing.assert_allclose(found.cls, expected[:, 0], atol=1e-4)
    np.testing.assert_allclose(found.patches, expected[:, 1 + config.num_registers :], atol=1e-4)


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    with pytest.raises(ExportError, match="format='onnx'"):
        export_backbone({}, PLAIN, image_size=SIZE, output=tmp_path / "hf", form="onnx")
    with pytest.raises(ExportError, match="ends in .safetensors or .pth"):
        write_arrays({}, tmp_path / "model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ExportError, match="need PyTorch"):
        write_arrays({}, tmp_path / "model.pth")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a run whose student, teacher and centers differ."""
    workdir = tmp_path_factory.mktemp("run")
    recipe = tiny_recipe(
        backbone=BackboneConfig(width=64, depth=2, num_heads=1, patch_size=8, dtype="float32"),
        head=HeadConfig(hidden_dim=16, bottleneck_dim=8, num_prototypes=12, num_prototypes_dense=10),
    )
    init_workdir(workdir, recipe)
    state = jax.jit(lambda: init_state(recipe, steps_per_epoch=2))()
    other = init_params(make_networks(recipe), jax.random.key(5), crop_size=recipe.data.views.crop_size)
    state = dataclasses.replace(
        state, step=state.step + 7, teacher=other, center=state.center + 0.5, center_dense=state.center_dense - 0.25
    )
    saver = Checkpointer(workdir, recipe)
    saver.save(7, state, wait=True)
    saver.close()
    return workdir, state


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """The workdir of a run whose heads have 4 features, and whose epsilon is its own."""
    workdir, recipe = tmp_path_factory.mktemp("narrow"), tiny_recipe()
    recipe = dataclasses.replace(recipe, backbone=dataclasses.replace(recipe.backbone, norm_epsilon=1e-3))
    init_workdir(workdir, recipe)
    saver = Checkpointer(workdir, recipe)
    saver.save(1, jax.device_put(first_state(recipe)), wait=True)
    saver.close()
    return workdir


def test_a_run_goes_to_the_official_code_and_back(run, tmp_path):
    torch = pytest.importorskip("torch")
    workdir, state = run
    file = export_run(workdir, tmp_path / "checkpoint.pth")
    found = load_official_run(file)
    equal_trees(found.student, jax.device_get(state.student))
    equal_trees(found.teacher, jax.device_get(state.teacher))
    for center, ours in zip(found.centers, (state.center, state.center_dense), strict=True):
        np.testing.assert_array_equal(center, ours)
    contents = torch.load(file, weights_only=True)
    assert contents["croc_loss"]["center"].shape == (1, 12) and contents["epoch"] == 7
    assert all(name.startswith("module.") for name in contents["student"])
    np.testing.assert_array_equal(
        contents["teacher"]["head.last_layer.weight_v"].numpy(), state.teacher["head"]["last_layer"]["direction"]
    )
    del contents["croc_loss"]
    torch.save(contents, file)
    with pytest.raises(ForeignWeightsError, match="lacks croc_loss"):
        load_official_run(file)


def test_a_run_needs_no_pytorch_to_go_and_come_back(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    workdir, state = run
    file = export_run(workdir, tmp_path / "run.safetensors")
    with safetensors.safe_open(file, framework="numpy") as opened:
        names = set(opened.keys())
        assert opened.metadata() == {"format": "pt"}
    assert {"student.backbone.cls_token", "teacher.head.last_layer_c.weight_g", "croc_loss.center_c"} < names
    # As a file, it is a source like any other.
    again = export_run(file, tmp_path / "again.safetensors")
    for found in (load_official_run(file), load_official_run(again)):
        equal_trees(found.student, jax.device_get(state.student))
        equal_trees(found.teacher, jax.device_get(state.teacher))
        for center, ours in zip(found.centers, (state.center, state.center_dense), strict=True):
            np.testing.assert_array_equal(center, ours)
        assert found.epoch == 7
    arrays = safetensors.numpy.load_file(file)
    for epoch in ({}, {"epoch": np.ones(2, np.float32)}):
        arrays.pop("epoch", None)
        other = tmp_path / "other.safetensors"
        safetensors.numpy.save_file(arrays | epoch, other)
        assert load_official_run(other).epoch == 0
    student = load_foreign_backbone(file, which="student")
    equal_trees(student.params, jax.device_get(state.student["backbone"]))
    assert student.epoch == 7
    with pytest.raises(ExportError, match="ends in .safetensors or .pth"):
        export_run(workdir, tmp_path / "run.npz")


def test_differences_are_those_of_every_array():
    one = {"a": {"b": np.ones(3, np.float32)}, "c": np.zeros((2, 0), np.float32)}
    assert largest_difference(one, one) == (2, 0.0)
    assert largest_difference(one, {**one, "a": {"b": np.array([1, 1.5, 1], np.float32)}}) == (2, 0.5)
    assert np.isnan(largest_difference(one, {**one, "a": {"b": np.array([1, np.nan, 1], np.float32)}})[1])
    other = {"a": {"b": np.ones(2)}, "d": np.zeros(1)}
    with pytest.raises(ValueError, match=r"no c; d in excess; a/b is \(2,\), not \(3,\)$"):
        largest_difference(one, other)


# Runs the program once for each line of its input, in one process.
SEVERAL = """
import sys
sys.path.insert(0, "launch")
import convert
from absl import flags
for line in sys.stdin.read().splitlines():
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["convert", *line.split()])
    try:
        convert.main()
    except ValueError as error:
        print("error:", error)
"""


def launch(*command, lines=()):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    text = "\n".join(lines)
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, input=text, capture_output=True, text=True, timeout=180
    )


def test_the_program_reads_back_whatever_it_wrote(run, narrow, tmp_path):
    params = random_params(DINOV3)
    theirs = export_backbone(params, DINOV3, image_size=SIZE, output=tmp_path / "theirs", form="hf").parent
    heads = dataclasses.replace(PLAIN, num_heads=4, norm_epsilon=1e-3)
    other = export_backbone(random_params(heads), heads, image_size=SIZE, output=tmp_path / "heads", form="hf").parent
    lines = [
        f"--checkpoint={run[0]} --output={tmp_path / 'a.safetensors'}",
        f"--checkpoint={run[0]} --output={tmp_path / 'b.safetensors'} --format=timm",
        f"--checkpoint={run[0]} --output={tmp_path / 'c'} --format=hf",
        f"--checkpoint={theirs} --output={tmp_path / 'd'} --format=orbax",
        f"--checkpoint={run[0]} --output={tmp_path / 'e.stablehlo'} --format=stablehlo",
        f"--checkpoint={run[0]} --output={tmp_path / 'f.safetensors'} --run",
        f"--checkpoint={other} --output={tmp_path / 'g.safetensors'}",
        f"--checkpoint={narrow} --output={tmp_path / 'h.safetensors'} --run",
        f"--checkpoint={theirs} --output={tmp_path / 'i.safetensors'} --format=timm",
    ]
    done = launch("-c", SEVERAL, lines=lines)
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    assert len(found) == 17, done.stdout
    differences = [line.split(" differ by ")[1].split()[0] for line in found if "read back, its " in line]
    assert float(differences.pop(4)) < 1e-4
    assert differences == ["0.0e+00"] * 11
    assert f"its {len(jax.tree.leaves((run[1].student, run[1].teacher))) + 2} arrays" in found[5]
    assert [line.split(": ")[0] for line in found[6:8]] == ["student", "teacher"]
    for line, name, setting in zip(
        (*found[9:11], *found[14:16]),
        "gghh",
        ("num_heads=4", "norm_epsilon=0.001", "num_heads=2", "norm_epsilon=0.001"),
        strict=True,
    ):
        assert line == f"{tmp_path / name}.safetensors has no place for {setting}: set it where you load the file"
    assert found[16].startswith("error: positions='rope', biases of keys")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["model_type"] == "vit"
    recipe, orbax, step = restore_backbone(tmp_path / "d")
    equal_trees(jax.device_get(orbax), params)
    assert step == 0 and recipe.backbone.positions == "rope" and recipe.backbone.num_registers == 4


def test_the_program_says_in_one_line_what_it_cannot_write(run, tmp_path):
    flags = f"--checkpoint={run[0]}", f"--output={tmp_path / 'out'}"
    done = launch("launch/convert.py", *flags, "--run", "--format=hf")
    assert done.returncode == 1
    assert done.stderr == "error: --format=hf: only the official code has a place for a whole run\n"


IMPORT_ALL = """
import importlib, pkgutil, sys, croc_jax
for module in pkgutil.walk_packages(croc_jax.__path__, "croc_jax."):
    importlib.import_module(module.name)
print("torch" in sys.modules)
"""


def test_no_module_of_the_package_imports_pytorch():
    done = launch("-c", IMPORT_ALL)
    assert done.stdout.strip() == "False", done.stderr
