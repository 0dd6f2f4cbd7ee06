"""The program that converts weights reads back what it wrote, and explains mistakes."""

import dataclasses
import json
import os
import subprocess
import sys

import jax

from croc_jax.checkpoints import restore_backbone
from croc_jax.checkpoints.export import export_backbone
from tests.checkpoints.test_export import DINOV3, ROOT, SIZE, random_params, run  # noqa: F401
from tests.checkpoints.tiny_weights import equal_trees, save_run
from tests.training.tiny import first_state, tiny_recipe

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


def test_the_program_reads_back_whatever_it_wrote(run, tmp_path):  # noqa: F811
    # A run whose heads have 4 features, whose epsilon is its own, and whose positions are not those of its crops.
    narrow, recipe, params = tmp_path / "narrow", tiny_recipe(), random_params(DINOV3)
    backbone = dataclasses.replace(recipe.backbone, norm_epsilon=1e-3, position_size=16)
    save_run(narrow, dataclasses.replace(recipe, backbone=backbone), 1)
    theirs = export_backbone(params, DINOV3, image_size=SIZE, output=tmp_path / "theirs", form="hf").parent
    lines = [
        f"--checkpoint={run[0]} --output={tmp_path / 'b.safetensors'} --format=timm",
        f"--checkpoint={narrow} --output={tmp_path / 'c'} --format=hf",
        f"--checkpoint={theirs} --output={tmp_path / 'd'} --format=orbax",
        f"--checkpoint={narrow} --output={tmp_path / 'h.safetensors'} --run",
        f"--checkpoint={theirs} --output={tmp_path / 'i.safetensors'} --format=timm",
        f"--checkpoint={narrow} --output={tmp_path / 'j'} --run --format=hf",
        f"--checkpoint={theirs} --output={tmp_path / 'd'} --format=orbax",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command, text = [sys.executable, "-c", SEVERAL], "\n".join(lines)
    done = subprocess.run(command, cwd=ROOT, env=environment, input=text, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    found = done.stdout.splitlines()
    assert len(found) == 11, done.stdout
    differences = [line.split(" differ by ")[1].split()[0] for line in found if "read back, its " in line]
    assert differences == ["0.0e+00"] * 6
    assert f"its {len(jax.tree.leaves(first_state(tiny_recipe()).student)) * 2 + 2} arrays differ by" in found[3]
    assert [line.split(": ")[0] for line in found[4:6]] == ["student", "teacher"]
    settings = [line.split(" place for ")[1].split(":")[0] for line in found[6:8]]
    assert settings == ["num_heads=2", "norm_epsilon=0.001"]
    assert found[8].startswith("error: positions='rope', biases of keys")
    assert found[9] == "error: --format=hf: only the official code has a place for a whole run"
    assert found[10].endswith("d has checkpoints already: choose a new folder")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["model_type"] == "vit"
    recipe, orbax, step = restore_backbone(tmp_path / "d")
    equal_trees(jax.device_get(orbax), params)
    assert step == 0 and recipe.backbone.positions == "rope" and recipe.backbone.num_registers == 4
