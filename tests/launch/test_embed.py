"""launch/embed.py: features are those of the backbone, whatever stops the program; the examples of the page run."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from croc_jax.data.labeled.classes import center_crop
from croc_jax.evaluation import embedding, embedding_files, embedding_images
from croc_jax.evaluation.backbones import load_backbone
from croc_jax.evaluation.row_log import RowLog
from croc_jax.training.sharding import make_mesh
from tests.checkpoints.tiny_weights import WIDTH, official_weights, write
from tests.launch.program import ROOT, end_program, run_program

PAGE = ROOT / "docs" / "embeddings.md"
NAMES = [f"cat/{number}.jpg" for number in range(14)] + [f"dog/{number}.png" for number in range(6)]
SIZE, RESIZE = 16, 20
BAD = "dog/letter.png"
# Of 20 images and a letter, four a batch and a device.
FLAGS = (f"--image_size={SIZE}", f"--resize={RESIZE}", "--batch_size=4", "--patches")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos of several sizes, a letter among them, and weights."""
    folder, rng = tmp_path_factory.mktemp("embed"), np.random.default_rng(0)
    for name in NAMES:
        file = folder / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30 + len(name), 96, 3), dtype=np.uint8)).save(file)
    (folder / "photos" / BAD).write_text("Dear reader")
    write(folder / "vit.safetensors", official_weights())
    write(folder / "other.safetensors", official_weights(1))
    return folder


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(embedding.jax, "local_devices", lambda: jax.devices()[:1])


def embed(folder, output, *more, source="photos", weights="vit"):
    given = f"--source={folder / source}", f"--checkpoint={folder / weights}.safetensors", f"--output={output}"
    run_program("embed", *given, *FLAGS, *more)


def read(output):
    """Returns names, and the arrays by name, of either format."""
    if (output / "names.json").exists():
        arrays = {file.stem: np.load(file) for file in output.glob("*.npy")}
        return json.loads((output / "names.json").read_text()), arrays
    table = pq.read_table(sorted(output.glob("*.parquet")))
    arrays = {name: np.stack(table[name].to_numpy()) for name in ("index", "cls", "mean", "patches")}
    arrays["sizes"] = np.stack([table["height"], table["width"]], axis=1)
    return table["name"].to_pylist(), arrays


@pytest.fixture(scope="module")
def expected(folder):
    """The arrays as `FrozenBackbone.encode` computes them."""
    with_letter = sorted([*NAMES, BAD])
    pictures = [np.asarray(Image.open(folder / "photos" / name)) for name in sorted(NAMES)]
    crops = [center_crop(picture, resize=RESIZE, image_size=SIZE) for picture in pictures]
    features = load_backbone(folder / "vit.safetensors").encode(np.stack(crops))
    return {
        "index": np.array([with_letter.index(name) for name in sorted(NAMES)]),
        "sizes": np.array([picture.shape[:2] for picture in pictures]),
        "cls": np.asarray(features.cls),
        "mean": np.asarray(features.patches).mean(axis=1),
        "patches": np.asarray(features.patches).astype(np.float16),
    }


def check(output, expected):
    names, arrays = read(output)
    assert names == sorted(NAMES) and set(arrays) == set(expected)
    for name, array in expected.items():
        rtol = 2e-3 if name == "patches" else 1e-5
        np.testing.assert_allclose(arrays[name].reshape(array.shape), array, rtol=rtol, atol=rtol, err_msg=name)
    assert not (output / "_working").exists() and not list(output.glob("*.tmp"))
    assert (output / "_skipped.txt").read_text().startswith(f"{BAD}\tcannot identify the image")


@contextlib.contextmanager
def counting(monkeypatch, *, stop_after=None):
    """Counts the images of batches that are computed; a program that is killed appends no more."""
    counts, append, start = [], RowLog.append, embedding._Encoder.start

    def append_or_end(self, rows, **more):
        if len(counts) == stop_after:
            raise KeyboardInterrupt
        append(self, rows, **more)

    def count(self, images):
        counts.append(len(images))
        return start(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(RowLog, "append", append_or_end)
        patch.setattr(embedding._Encoder, "start", count)
        yield counts


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_features_are_those_of_the_backbone_also_after_a_stop(folder, tmp_path, monkeypatch, capsys, expected, kind):
    flags = (f"--format={kind}", *(["--shard_size=12"] if kind == "parquet" else []))
    with counting(monkeypatch, stop_after=5) as first, pytest.raises(SystemExit) as end:
        embed(folder, tmp_path, *flags)
    assert end.value.code == 130 and "run the same command again to go on" in capsys.readouterr().err
    with counting(monkeypatch) as second:
        embed(folder, tmp_path, *flags)
    # Six batches cover 21 images in both formats; the fourth was lost, and the fifth was under way.
    assert (len(first), len(second)) == (5, 3)
    text = capsys.readouterr().out
    assert "images are done already" in text and f"the features of {len(NAMES)} images are in {tmp_path}" in text
    check(tmp_path, expected)
    with counting(monkeypatch) as third:
        embed(folder, tmp_path, *flags)
    assert not third and "1 images are left out" in capsys.readouterr().out
    check(tmp_path, expected)


def test_metadata_say_what_the_features_are_of(folder, tmp_path):
    embed(folder, tmp_path)
    (file,) = tmp_path.glob("*.parquet")
    about = json.loads(pq.read_schema(file).metadata[b"croc_jax"])
    assert about["weights"] == embedding.digest_weights(load_backbone(folder / "vit.safetensors").params)
    assert about["weights"] != embedding.digest_weights(load_backbone(folder / "other.safetensors").params)
    assert (about["step"], about["images"]["count"], about["num_rows"]) == (0, 21, 20)
    assert about["features"] == {"width": WIDTH, "patch_grid": [4, 4], "tokens": about["features"]["tokens"]}
    assert about["preprocessing"]["resize"] == RESIZE and "middle; bicubic" in about["preprocessing"]["rule"]
    noted = json.loads((tmp_path / "_metadata.json").read_text())
    assert noted == {name: value for name, value in about.items() if name != "skipped"}


def test_eight_devices_compute_what_one_does(folder, tmp_path, monkeypatch, expected):
    monkeypatch.setattr(embedding.jax, "local_devices", jax.devices)
    embed(folder, tmp_path, "--batch_size=1")
    check(tmp_path, expected)


def test_whole_images_are_squeezed_and_names_begin_with_their_source_if_there_are_several(folder, tmp_path):
    sources = [f"--source={folder / 'photos' / part}" for part in ("cat", "dog")]
    given = f"--checkpoint={folder / 'vit.safetensors'}", f"--output={tmp_path}"
    run_program("embed", *sources, *given, "--square=16", *FLAGS[2:])
    names, arrays = read(tmp_path)
    assert names == [str(folder / "photos" / name) for name in sorted(NAMES)]
    squares = [np.asarray(Image.open(name).resize((16, 16), Image.Resampling.BICUBIC)) for name in names]
    features = load_backbone(folder / "vit.safetensors").encode(np.stack(squares))
    np.testing.assert_allclose(arrays["cls"], np.asarray(features.cls), rtol=1e-5, atol=1e-5)


def test_images_of_other_channels_and_types(folder, tmp_path):
    rng, weights = np.random.default_rng(0), official_weights()
    weights["patch_embed.proj.weight"] = np.tile(weights["patch_embed.proj.weight"], (1, 2, 1, 1))[:, :5]
    write(tmp_path / "bands.safetensors", weights)
    (tmp_path / "bands").mkdir()
    images = [rng.integers(0, 10000, (30, 40, 5), dtype=np.uint16) for _ in range(3)]
    for number, image in enumerate(images):
        tifffile.imwrite(tmp_path / "bands" / f"{number}.tif", image, planarconfig="contig")
    tifffile.imwrite(tmp_path / "bands" / "3.tif", images[0][..., :4], planarconfig="contig")
    source, numbers = tmp_path / "bands", {"mean": (0.4, 0.5, 0.6, 0.5, 0.4), "std": (0.2,) * 5, "range": (0, 10000)}
    given = [f"--image_{name}={','.join(map(str, values))}" for name, values in numbers.items()]
    embed(folder, tmp_path / "out", *given, "--image_dtype=uint16", source=source, weights=tmp_path / "bands")
    names, arrays = read(tmp_path / "out")
    settings = {f"image_{name}": values for name, values in numbers.items()} | {"image_dtype": "uint16"}
    backbone = load_backbone(tmp_path / "bands.safetensors", **settings)
    crops = [center_crop(image, resize=RESIZE, image_size=SIZE) for image in [*images, images[0]]]
    # The one that is compiled already.
    embed_fn = embedding.make_embed_fn(backbone.module, make_mesh(jax.devices()[:1]), patches=True)
    expected = embed_fn(backbone.params, np.stack(crops)).arrays["cls"]
    np.testing.assert_allclose(arrays["cls"], expected[:3], rtol=1e-5, atol=1e-5)
    assert names == ["0.tif", "1.tif", "2.tif"] and arrays["sizes"].tolist() == [[30, 40]] * 3
    assert "5 channels of uint16" in (tmp_path / "out" / "_skipped.txt").read_text()


def test_windows_of_large_images_are_rows(folder, tmp_path):
    embed(folder, tmp_path, "--window=64")
    names, arrays = read(tmp_path)
    assert names[:2] == ["cat/0.jpg[0:0]", "cat/0.jpg[0:32]"] and len(names) == 2 * len(NAMES)
    assert arrays["sizes"][:2].tolist() == [[30 + len(NAMES[0]), 64]] * 2
    image = np.asarray(Image.open(folder / "photos" / "cat" / "0.jpg"))
    crops = np.stack([center_crop(image[:, left : left + 64], resize=RESIZE, image_size=SIZE) for left in (0, 32)] * 2)
    backbone = load_backbone(folder / "vit.safetensors")
    embed_fn = embedding.make_embed_fn(backbone.module, make_mesh(jax.devices()[:1]), patches=True)
    expected = embed_fn(backbone.params, crops).arrays["cls"]
    np.testing.assert_allclose(arrays["cls"][:2], expected[:2], rtol=1e-5, atol=1e-5)


def test_other_embeddings_in_the_folder_are_refused(folder, tmp_path):
    embed(folder, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    there = json.loads((tmp_path / "_metadata.json").read_text())
    for changes, words in (
        ({"weights": "other"}, rf"weights: '{there['weights']}' there, '\w+' now"),
        ({"source": "photos/cat"}, "images.count: 21 there, 14 now"),
        ({"more": "--image_size=20"}, "preprocessing.image_size: 16 there, 20 now"),
        ({"more": "--format=npy"}, "format: 'parquet' there, 'npy' now"),
        ({"more": "--nopatches"}, "features.patch_grid: .* there, None now"),
    ):
        with pytest.raises(ValueError, match=f"{words}.*: choose another --output"):
            embed(folder, tmp_path, *filter(None, [changes.pop("more", "")]), **changes)
    (tmp_path / "_metadata.json").unlink()
    with pytest.raises(ValueError, match=r"holds embeddings-00000-of-00001.parquet but no _metadata.json"):
        embed(folder, tmp_path)
    after = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    assert after == {file: content for file, content in before.items() if file.name != "_metadata.json"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--image_size=18"], "--image_size=18: images of 18 x 18 pixels: whole patches of 4 pixels must tile them"),
        (["--square=16"], "--square=16 cuts nothing out: leave out --image_size and --resize"),
        (["--format=npy", "--shard_size=9"], "--shard_size has no effect on --format=npy: leave it out"),
        (["--resize=15"], "image_size=16, resize=15: the square must lie within the resized image"),
        (["--output={0}/photos/new"], "--output={0}/photos/new lies in the folder of images {0}/photos"),
    ],
)
def test_wrong_flags_are_one_line(folder, tmp_path, flags, words):
    with pytest.raises(ValueError, match=re.escape(words.format(folder))):
        embed(folder, tmp_path, *(flag.format(folder) for flag in flags))
    assert not list(tmp_path.iterdir())


def test_without_pyarrow_it_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet")
    given = f"--source={folder / 'photos'}", f"--checkpoint={folder / 'vit.safetensors'}", f"--output={tmp_path}"
    message = end_program("launch/embed.py", *given)
    assert message == "error: pyarrow is not installed: pip install 'croc_jax[embed]'"
    assert end_program("launch/embed.py", *given, *FLAGS, "--format=npy") in (0, None)


@pytest.mark.parametrize(
    ("number", "status"), [(errno.EIO, 75), (errno.ENOSPC, "error: .*: free space on that disk"), (errno.ENOENT, 75)]
)
def test_faults_of_the_machine_end_it(folder, tmp_path, monkeypatch, capsys, number, status):
    def fail(read):
        raise OSError(number, os.strerror(number), "photo")

    monkeypatch.setattr(embedding_images, "read_patiently", fail)
    given = f"--source={folder / 'photos'}", f"--checkpoint={folder / 'vit.safetensors'}", f"--output={tmp_path}"
    found = end_program("launch/embed.py", *given, *FLAGS)
    assert found == status if status == 75 else re.match(status, found)
    words = {errno.EIO: "Input/output error", errno.ENOENT: "20 images in a row are gone.*disk still mounted"}
    assert re.search(words.get(number, ""), capsys.readouterr().err)


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_if_no_image_can_be_read_nothing_is_left(folder, tmp_path, kind):
    (tmp_path / "bad").mkdir()
    for number in range(3):
        (tmp_path / "bad" / f"{number}.jpg").write_text("Dear reader")
    with pytest.raises(ValueError, match=r"none of the 3 images can be read, such as 0.jpg \(cannot identify"):
        embed(folder, tmp_path / "out", f"--format={kind}", source=tmp_path / "bad")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_several_programs_share_the_files(folder, tmp_path, capsys, expected):
    with embedding_files.locked(tmp_path / "_working" / "1.lock"):
        embed(folder, tmp_path, "--shard_size=8")
    assert "other programs are still writing" in capsys.readouterr().out
    assert [file.name[11:16] for file in sorted(tmp_path.glob("*.parquet"))] == ["00000", "00002"]
    embed(folder, tmp_path, "--shard_size=8")
    check(tmp_path, expected)


def test_features_that_are_not_finite_name_their_image(folder, tmp_path):
    weights = official_weights()
    # Beyond what half precision holds.
    weights["norm.weight"] *= 1e6
    write(folder / "large.safetensors", weights)
    with pytest.raises(ValueError, match=r"the features of cat/0.jpg are not finite: .* use another checkpoint"):
        embed(folder, tmp_path, weights="large")


def test_the_examples_of_the_page_run(folder, tmp_path, monkeypatch, capsys):
    embed(folder, tmp_path / "features")
    embed(folder, tmp_path / "arrays", "--format=npy")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    vectors = np.stack(pq.read_table(tmp_path / "features")["cls"].to_numpy())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = sorted(NAMES).index("cat/1.jpg")
    order = np.argsort(-(vectors @ vectors[query]))[:5]
    nearest = [sorted(NAMES)[row] for row in order]
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[-5:]] == nearest
    assert [name for name, _ in names["nearest_sql"]] == nearest
    assert names["nearest"][0].tolist() == order.tolist()
    assert names["large"].shape == (20, 3) and names["patches"].shape == (20, 4, 4, WIDTH)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_a_kill_loses_one_batch(folder, tmp_path, expected, kind):
    given = f"--source={folder / 'photos'}", f"--checkpoint={folder / 'vit.safetensors'}", f"--output={tmp_path}"
    command = [sys.executable, "launch/embed.py", *given, *FLAGS, "--batch_size=1", f"--format={kind}"]
    environment, journal = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}, tmp_path / "_working/00000"
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    begin = time.monotonic()
    while not list(journal.glob("*.jsonl")) or not (journal / "journal.jsonl").stat().st_size:
        assert process.poll() is None and time.monotonic() - begin < 300
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_done = len(Path(journal / "journal.jsonl").read_text().splitlines())
    assert 0 < num_done < 21
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert f"{num_done} of 21 images are done already" in finished.stdout
    check(tmp_path, expected)
