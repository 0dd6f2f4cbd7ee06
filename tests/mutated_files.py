"""Small files of every kind that the package reads, and the function that reads each; for tests/mutations.py."""

import contextlib
import dataclasses
import functools
import io
import json
import math
import re
import struct
import tarfile
import zipfile

import jax
import numpy as np
import safetensors.numpy
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from croc_jax.checkpoints.official import load_networks, to_official
from croc_jax.checkpoints.pretrained import flatten_run
from croc_jax.checkpoints.restore import restore_backbone
from croc_jax.data.bad_records import BadRecords
from croc_jax.data.config import DataConfig
from croc_jax.data.decoding import DecodeError, decode
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.prepare import PrepareConfig, prepare
from croc_jax.data.sources import open_data
from croc_jax.evaluation import FrozenFeatures, MemoryBudget, get_protocol
from croc_jax.evaluation.backbones import load_backbone
from croc_jax.models import BackboneConfig, make_backbone
from croc_jax.report.comparison import comparison_facts
from croc_jax.report.evaluations import group_evaluations, read_evaluations
from croc_jax.report.page import COLUMNS, collect_facts, read_metrics
from croc_jax.runtime.metrics_writer import drop_lines_after
from croc_jax.runtime.workdir import init_workdir, read_recipe
from croc_jax.training.config import recipe_to_dict
from tests.checkpoints.tiny_weights import official_weights, save_run
from tests.checkpoints.torch_writer import write_torch
from tests.data import tiny_sets
from tests.mutated_pixels import PIXELS, VIEWS, Subject, check, paths_below, read_folder, repair_png, write_folder
from tests.mutated_records import read_recorded, write_recorded
from tests.mutated_windows import read_measured, read_windows, write_measured, write_windows
from tests.report.test_figures import make_rows
from tests.report.tiny_results import write_linear
from tests.training.tiny import first_state, tiny_recipe

# A checkpoint may be called anything.
WEIGHTS_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".pth.tar", ".h5", "")


# Sources.


def encode(number=0):
    stream = io.BytesIO()
    Image.fromarray(tiny_sets.image(number)).save(stream, "PNG")
    return stream.getvalue()


def read_source(root, file, kind):
    source = open_data(DataConfig(sources=(f"{kind}:{file}",)))
    for index in range(min(len(source), 20)):
        check("\n" not in repr(source.name(index)), "a name")
        with contextlib.suppress(OSError):
            check(isinstance(source[index], bytes), "no bytes")


def write_tars(root):
    for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(root / f"{form}.tar", "w", format=form) as archive:
            for number in range(3):
                info = tarfile.TarInfo(f"{'x' * (150 if number == 1 and form else 3)}{number}.png")
                info.size = len(encode(number))
                archive.addfile(info, io.BytesIO(encode(number)))
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.LNKTYPE, "xxx0.png"
            archive.addfile(link)
    (root / "several.tar").write_bytes((root / "0.tar").read_bytes() + (root / "1.tar").read_bytes())
    return paths_below(root)


def repair_tar(data):
    """Makes the checksum of each header fit."""
    out, at = bytearray(data), 0
    while at + 512 <= len(out):
        block = out[at : at + 512]
        if block.strip(b"\0"):
            block[148:156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(block)
            digits = re.match(rb"[0-7]*", bytes(block[124:136]).strip(b" \0"))
            at += 512 * math.ceil(int(digits[0] or b"0", 8) / 512) if digits else 0
        at += 512
    return bytes(out)


def write_lists(root):
    for number in range(3):
        (root / f"{number}.png").write_bytes(encode(number))
    (root / "a.txt").write_text("".join(f"{number}.png\n" for number in range(3)))
    (root / "b.txt").write_bytes("\ufeff# images\r\n0.png\r\n./1.png\r\n".encode())
    return [root / "a.txt", root / "b.txt"]


def write_records(root):
    for name, options in (("a", "group_size:1,uncompressed"), ("b", "group_size:2")):
        writer = ArrayRecordWriter(str(root / f"{name}.array_record"), options)
        for number in range(4):
            writer.write(encode(number))
        writer.close()
    return paths_below(root)


def write_prepared(root):
    for number in range(3):
        tiny_sets.save(root / "photos" / f"{number}.png", tiny_sets.image(number))
    read_prepared(root, None)
    return [root / "shards" / "prepare.json", *(root / "photos").iterdir()]


def read_prepared(root, file):
    prepare(PrepareConfig(sources=(str(root / "photos"),)), root / "shards", num_workers=1)


# What runs write and read again.


def write_config(root):
    file = root / "config.json"
    init_workdir(root, tiny_recipe())
    return [file]


def read_config(root, file):
    recipe_to_dict(read_recipe(file))


def write_metrics(root):
    rows = [json.dumps(row | {"images_per_sec": 8.0, "valid_fraction": 0.75}) for row in make_rows(4)]
    (root / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    return [root / "metrics.jsonl"]


def read_rows(root, file):
    rows = read_metrics(file, columns=COLUMNS)
    collect_facts(rows, batch_size=4)
    drop_lines_after(file, 100)


def write_results(root):
    return [write_linear(root / name, miou=20.0, sky=20.0) / "results.json" for name in ("a", "b")]


def read_results(root, file):
    comparison_facts(group_evaluations(read_evaluations([root])))


def write_skipped(root):
    (root / "skipped.txt").write_text("photos/1.jpg\tcut short\n")
    return [root / "skipped.txt"]


def add_skipped(root, file):
    BadRecords(file=file).add("photos/2.jpg", "cut short")


# Checkpoints.


def write_run(root):
    save_run(root, tiny_recipe(), 3)
    return [path for path in paths_below(root) if "checkpoints" in path.parts]


@functools.cache
def undamaged(root):
    return jax.device_get(restore_backbone(root)[1])


def read_run(root, file):
    expected = undamaged(root)
    params = jax.device_get(restore_backbone(root)[1])
    same = jax.tree.map(np.array_equal, params, expected)
    check(jax.tree.all(same), "other weights")


def write_torch_files(root):
    weights = official_weights(width=64, depth=1)
    write_torch(root / "backbone.pth", weights)
    write_torch(root / "wrapped.pth", {f"module.backbone.{name}": array for name, array in weights.items()})
    write_torch(root / "old.pth", weights, legacy=True)
    return paths_below(root)


def unpack_zip(data):
    """Returns the pickle in a zip file, or the file itself if it is none."""
    if not data.startswith(b"PK"):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read("weights/data.pkl")


def pack_zip(data, pickled):
    if not data.startswith(b"PK"):
        return pickled
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name), pickled if name.endswith("data.pkl") else old.read(name))
    return out.getvalue()


def write_safetensors(root):
    recipe = tiny_recipe(backbone=dataclasses.replace(tiny_recipe().backbone, width=64, num_heads=1, depth=1))
    state = jax.device_get(first_state(recipe))
    contents = {name: to_official(getattr(state, name), recipe.backbone) for name in ("student", "teacher")}
    contents["croc_loss"] = {"center": state.center[None], "center_c": state.center_dense[None]}
    run = flatten_run(contents | {"epoch": 3})
    weights = official_weights(width=64, depth=1)
    safetensors.numpy.save_file(weights, root / "backbone.safetensors")
    safetensors.numpy.save_file(run, root / "run.safetensors")
    return paths_below(root)


def unpack_safetensors(data):
    """Returns the header."""
    return data[8 : 8 + struct.unpack("<Q", data[:8])[0]]


def pack_safetensors(data, header):
    return struct.pack("<Q", len(header)) + header + data[8 + len(unpack_safetensors(data)) :]


def read_weights(root, file):
    backbone = load_backbone(file)
    check(all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(backbone.params)), "other types")
    if file.stem.startswith("run"):
        load_networks(file)


def write_hf(root):
    for name in ("one", "parts"):
        folder = root / name
        folder.mkdir()
        weights = official_weights(width=64, depth=1)
        config = {
            "model_type": "dinov2",
            "num_attention_heads": 1,
            "hidden_size": 64,
            "hidden_act": "gelu",
            "image_size": 12,
        }
        (folder / "config.json").write_text(json.dumps(config | {"patch_size": 4, "layer_norm_eps": 1e-6}))
        processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_normalize": True}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        if name == "one":
            safetensors.numpy.save_file(weights, folder / "model.safetensors")
        else:
            (folder / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": dict.fromkeys(weights, "a.safetensors")})
            )
            safetensors.numpy.save_file(weights, folder / "a.safetensors")
    return [path for path in paths_below(root) if path.suffix == ".json"]


def read_hf(root, file):
    load_backbone(file.parent)


# Scores and batches of data of which one file is damaged.


@functools.cache
def tiny_features():
    backbone = make_backbone(
        BackboneConfig(variant="vit_tiny", width=8, depth=1, num_heads=1, patch_size=4), image_size=8
    )
    params = jax.jit(backbone.init)(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))["params"]
    return FrozenFeatures(backbone, params, budget=MemoryBudget(num_threads=1))


def write_scored(root):
    write_folder(root)
    return paths_below(root)


def read_scored(root, file):
    """A score of data of which a file cannot be read is an error."""
    settings = get_protocol("retrieval").config(image_size=(8, 8), num_neighbors=2, memory_size=16)
    dataset = get_protocol("retrieval").open_dataset(root=root, train_split="train", val_split="val")
    result = get_protocol("retrieval").evaluate(tiny_features(), dataset, settings, None)
    check(result.dataset["num_val"] == 2 and result.dataset["num_train"] == 2, "images left out")
    check(0 <= result.scores["miou"] <= 100, f"a score of {result.scores['miou']}")
    read_folder(root, file)


def write_trained(root):
    for number in range(4):
        tiny_sets.save(root / f"{number}.jpg", tiny_sets.image(number))
        tiny_sets.save(root / f"{number}.png", tiny_sets.image(number))
    return paths_below(root)


def read_trained(root, file):
    """A batch counts the images that it replaces."""
    source = open_data(DataConfig(folders=(str(root),)))
    dataset = make_dataset(source, views=VIEWS["exact"], batch_size=len(source), seed=0)
    with dataset.iterate(num_workers=0, num_threads=0) as batches:
        batch = next(batches)
        check(batch["views"].shape == (8, 2, 16, 16, 3), f"views {batch['views'].shape}")
        try:
            decode(file.read_bytes())
        except DecodeError:
            check(set(batches.skipped) == {str(file)}, f"skipped {batches.skipped}")
        else:
            check(not batches.skipped, f"skipped {batches.skipped}")


SUBJECTS = {
    **PIXELS,
    "tar": Subject(write_tars, functools.partial(read_source, kind="tar"), repair_tar, weight=2),
    "list": Subject(write_lists, functools.partial(read_source, kind="list"), weight=2),
    "arrayrecord": Subject(write_records, functools.partial(read_source, kind="arrayrecord"), weight=2),
    "windows": Subject(write_windows, read_windows, weight=2),
    "statistics": Subject(write_measured, read_measured, weight=0.5),
    "prepare": Subject(write_prepared, read_prepared, weight=0.5),
    "config": Subject(write_config, read_config),
    "metrics": Subject(write_metrics, read_rows),
    "recorded": Subject(write_recorded, read_recorded, weight=0.3),
    "results": Subject(write_results, read_results),
    "skipped": Subject(write_skipped, add_skipped, weight=0.3),
    "run": Subject(write_run, read_run, weight=0.5),
    "torch": Subject(
        write_torch_files, read_weights, opened=(unpack_zip, pack_zip), suffixes=WEIGHTS_SUFFIXES, weight=2
    ),
    "safetensors": Subject(
        write_safetensors, read_weights, opened=(unpack_safetensors, pack_safetensors), suffixes=WEIGHTS_SUFFIXES
    ),
    "hf": Subject(write_hf, read_hf),
    "scored": Subject(write_scored, read_scored, repair_png, weight=0.5),
    "trained": Subject(write_trained, read_trained, repair_png),
}
