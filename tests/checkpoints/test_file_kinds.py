"""Files are known by their first bytes, and what they are is said in a line."""

import os
import re
import struct

import numpy as np
import pytest

from croc_jax.checkpoints.file_kinds import describe_folder, identify
from croc_jax.checkpoints.pretrained import load_pretrained
from tests.checkpoints.tiny_weights import official_weights, write
from tests.checkpoints.torch_writer import write_torch

BEGINNINGS = {
    b"": "is empty: get it again",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0": "a pointer of Git LFS.*: run git lfs pull",
    b"\n<!DOCTYPE html><html>": "is a web page, not the weights behind it",
    b'<?xml version="1.0"?><Error>': "is a web page",
    b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}": "a pickle, but none of torch.save",
    b"\x89HDF\r\n\x1a\n\x00": "is HDF5",
    b"\x1f\x8b\x08\x00": "compressed with gzip: unpack it first",
    b"\x82\xa6params": "msgpack, as of Flax",
    b"a" * 257 + b"ustar\x00": "is a tar archive: unpack it",
    b"\x93NUMPY\x01\x00": "is an array of NumPy",
    b'model_checkpoint_path: "model.ckpt-1"': "TensorFlow",
    b'{"weight_map": {}}': "is JSON: name the weights beside it",
    b"\x00\x01\x02": r"is no file of weights: it begins with b'\\x00\\x01\\x02'",
}


@pytest.mark.parametrize("start", BEGINNINGS, ids=lambda start: repr(start[:8]))
def test_other_files_are_named(tmp_path, start):
    file = tmp_path / "model.pth"
    file.write_bytes(start)
    with pytest.raises(ValueError, match=BEGINNINGS[start]) as caught:
        load_pretrained(file)
    assert str(caught.value).isprintable() and len(str(caught.value).replace(str(file), "")) < 300


@pytest.mark.parametrize("name", ["model", "model.ckpt", "model.pth.tar", "model.pkl", "model.safetensors", "1.5"])
def test_no_suffix_matters(tmp_path, name):
    weights = official_weights()
    for file in (write(tmp_path / name, weights), write_torch(tmp_path / name, {"state_dict": weights, "epoch": 4})):
        np.testing.assert_array_equal(load_pretrained(file).params["cls_token"], weights["cls_token"])


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    for name, kind in (("pipe.pth", "pipe"), ("folder.pth", "folder"), ("/dev/null", "device")):
        with pytest.raises(ValueError, match=f"is no regular file, but a {kind}$"):
            identify(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no file .*model.ckpt$"):
        identify(tmp_path / "model.ckpt")


def test_files_cut_short_are_corrupt(tmp_path):
    weights = official_weights()
    good = {
        "torch": write_torch(tmp_path / "a", weights).read_bytes(),
        "safe": write(tmp_path / "b", weights).read_bytes(),
    }
    length = struct.unpack("<Q", good["safe"][:8])[0]
    lies = good["safe"].replace(b'"shape":[64]', b'"shape":[65]'), good["safe"].replace(b'"F32"', b'"F64"', 1)
    for octets in (*lies, *(data[:end] for data in good.values() for end in (60, length, length + 100, -1))):
        (tmp_path / "cut.ckpt").write_bytes(octets)
        with pytest.raises(ValueError, match=r"cut.ckpt is (a )?corrupt.*: get it again$") as caught:
            load_pretrained(tmp_path / "cut.ckpt")
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("snapshots/1/model.safetensors", "a cache of Hugging Face: name the folder in snapshots"),
        (".metadata", "a distributed checkpoint of PyTorch"),
        ("saved_model.pb", "a SavedModel of TensorFlow"),
        ("manifest.ocdbt", "that another program wrote with Orbax"),
        ("model.safetensors", "its model.safetensors is no file that can be read"),
        ("last.ckpt", "name one of its files: last.ckpt$"),
    ],
)
def test_folders_say_what_is_looked_for(tmp_path, name, hint):
    assert "it is empty" in describe_folder(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).symlink_to("missing") if name == "model.safetensors" else (tmp_path / name).touch()
    if name != "model.safetensors":
        assert describe_folder(tmp_path).startswith("it has neither a folder checkpoints, as runs have, nor model.saf")
    assert re.search(hint, describe_folder(tmp_path))
