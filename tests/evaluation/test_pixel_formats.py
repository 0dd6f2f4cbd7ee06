"""Evaluations take images of the weights' own format: gray in 16 bits, without a way through 8 bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from PIL import Image

from croc_jax.data.config import DataConfig
from croc_jax.data.labeled.boxes import BoxSplit
from croc_jax.data.labeled.classes import open_class_folder
from croc_jax.data.labeled.segmentation import LabeledPair, open_segmentation
from croc_jax.data.resizing import resize_image, resize_with_pillow
from croc_jax.evaluation import get_protocol
from croc_jax.evaluation.backbones import FrozenBackbone
from croc_jax.evaluation.davis import DavisConfig, label_video
from croc_jax.evaluation.discovery import DiscoveryConfig, find_boxes
from croc_jax.evaluation.features import FrozenFeatures, PoolingConfig
from croc_jax.evaluation.image_batch import as_batch
from croc_jax.evaluation.registry import Result
from croc_jax.evaluation.results import make_results
from croc_jax.evaluation.visualize import ExampleSelector
from croc_jax.models import BackboneConfig, make_backbone
from croc_jax.pixel_format import PixelFormat
from croc_jax.training.config import Recipe
from tests.evaluation.conftest import read_config

MEAN, STD = 0.4, 0.2
GRAY16 = PixelFormat(channels=1, dtype="uint16", range=(1000.0, 5000.0))
CONFIG = BackboneConfig(
    variant="vit_tiny", width=24, depth=1, num_heads=2, patch_size=4, image_mean=(MEAN,), image_std=(STD,)
)
SIZES = {"image_size": (16, 24), "label_size": (8, 12)}


@pytest.fixture(scope="module")
def backbone():
    return make_backbone(CONFIG, image_size=16, pixels=GRAY16)


@pytest.fixture(scope="module")
def frozen(backbone):
    rng, shapes = np.random.default_rng(0), jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    params = jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), shapes["params"])
    return FrozenFeatures(backbone, params)


@pytest.fixture(scope="module")
def reference(backbone, frozen):
    """Returns the features of stored values, mapped and normalized in double precision."""
    apply_fn = jax.jit(backbone.apply)

    def apply(images):
        unit = np.clip((np.asarray(images, np.float64) - 1000) / 4000, 0, 1)
        return apply_fn({"params": frozen.params}, jnp.asarray((unit - MEAN) / STD, jnp.float32))

    return apply


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two halves, pixel labels beside them; and the same images in folders of classes."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("gray16")
    for index in range(3):
        labels = np.repeat([0, 1], 16)[None].repeat(20, 0).astype(np.uint8)
        image = (2000 + 1500 * labels.astype(int) + rng.integers(0, 300, labels.shape)).astype(np.uint16)
        files = {f"images/val/{index}.png": image, f"labels/val/{index}.png": labels}
        for file, values in (files | {f"val/{'ab'[index % 2]}/{index}.png": image}).items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(root / file)
    return root


def stored(root, index):
    return np.asarray(Image.open(root / f"images/val/{index}.png"))[..., None]


def test_tokens_of_pixel_labels(frozen, reference, root):
    split = open_segmentation(root, "val", num_classes=2)
    found = frozen.collect_tokens(split, **SIZES)
    images = np.stack([resize_image(stored(root, index), SIZES["image_size"]) for index in range(3)])
    expected = np.asarray(reference(images).patches)
    np.testing.assert_allclose(found.tokens.reshape(expected.shape), expected, atol=4e-3)
    assert np.std(expected[:, 0] - expected[:, -1]) > 0.05 and np.unique(found.labels).tolist() == [0, 1]
    # Pictures show low to high of the range.
    selector = ExampleSelector(split, (20, 32), GRAY16, count=1)
    selector.add(found.labels[0], found.labels[0])
    (shown,) = selector.examples().typical
    assert shown.image.shape == (20, 32, 3) and shown.image.dtype == np.uint8
    np.testing.assert_allclose(shown.image[..., 0], 255 * (stored(root, 0)[..., 0] - 1000.0) / 4000, atol=0.51)


def test_vectors_of_classes(frozen, reference, root):
    config = PoolingConfig(feature="cls_mean", resize=20, image_size=16)
    found = frozen.collect_pooled(open_class_folder(root, "val", train_split="val"), config)
    # The shorter side has 20 pixels already; the middle of 16.
    images = np.stack([stored(root, index)[2:18, 8:24] for index in (0, 2, 1)])
    tokens = reference(images)
    np.testing.assert_allclose(found.features[:, :24], tokens.cls, atol=2e-5)
    assert found.labels.tolist() == [0, 0, 1]


def test_boxes_and_videos(frozen, backbone, reference, root, tmp_path):
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    (tmp_path / "0.xml").write_text(f"<annotation><object><bndbox>{box}</bndbox></object></annotation>")
    split = BoxSplit(root, "val", (LabeledPair(root / "images/val/0.png", tmp_path / "0.xml"),), True)
    boxes, ious, count = find_boxes(frozen, split, DiscoveryConfig(tokens="last"))
    assert boxes.shape == (1, 4) and ious.shape == (1,) and count == 1
    frames = [stored(root, 0)] * 2
    first = np.asarray(Image.open(root / "labels/val/0.png"))
    config = DavisConfig(short_side=16, multiple=4, topk=1)
    _, second = label_video(backbone, frozen.params, first, frames, config)
    # What stands still keeps its label.
    assert np.mean(second == first) > 0.9
    small = resize_with_pillow(frames[0], (16, 24), Image.Resampling.BILINEAR)
    plane = Image.fromarray(frames[0][..., 0].astype(np.float32)).resize((24, 16), Image.Resampling.BILINEAR)
    assert small.dtype == np.uint16
    np.testing.assert_allclose(small[..., 0], plane, atol=0.5)


def test_images_of_another_format_are_refused_by_name(frozen, folder):
    with pytest.raises(ValueError, match=r"0.png .*3 channels of uint8.*1 channel of uint16") as caught:
        frozen.collect_tokens(open_segmentation(folder, "val", num_classes=3), **SIZES)
    assert "\n" not in str(caught.value)


def test_bands_in_pages_are_named_before_their_sizes_are_compared(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    bands = np.zeros((6, 8, 5), np.uint8)
    tifffile.imwrite(tmp_path / "images/train/a.tif", bands, photometric="minisblack")
    Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(tmp_path / "labels/train/a.png")
    with pytest.raises(ValueError, match="a.tif .*a TIFF of 6 pages"):
        open_segmentation(tmp_path, "train").load(0)


def test_batches_have_the_format():
    image = np.full((8, 8, 1), 3000, np.uint16)
    np.testing.assert_array_equal(as_batch([image, Image.fromarray(image[..., 0])], GRAY16), [image, image])
    for images, message in (
        (np.zeros((1, 8, 8, 3), np.uint8), r"images \(1, 8, 8, 3\) uint8: expected \[b H W 1\] uint16"),
        ([image.astype(np.uint8)], r"images\[0\] \(8, 8, 1\) uint8: expected \[H W 1\] uint16"),
        ([Image.new("RGB", (8, 8))], r"images\[0\].* \(8, 8, 3\) uint8: expected \[H W 1\] uint16"),
        ([image.tolist()], r"images\[0\] is list: give arrays \[H W 1\] uint16"),
    ):
        with pytest.raises(ValueError, match=message):
            as_batch(images, GRAY16)


def test_a_fingerprint_tells_formats_but_that_of_8_bit_rgb(backbone):
    protocol, config, result = get_protocol("knn"), read_config("knn"), Result({"top1": 1.0}, {}, None, {})
    recipe = Recipe(backbone=CONFIG, data=DataConfig(channels=1, dtype="uint16", range=GRAY16.range))
    shown = dataclasses.replace(GRAY16, shown_channels=(0,))
    rgb = make_backbone(BackboneConfig(variant="vit_tiny", patch_size=4), image_size=16)
    # The places of an embedding count, and not where their number comes from.
    same = dataclasses.replace(recipe, backbone=dataclasses.replace(CONFIG, position_size=16))
    modules = backbone, backbone.clone(pixels=shown), rgb, backbone, backbone.clone(grid_size=5)
    found = []
    for module, of in zip(modules, (recipe, recipe, recipe, same, same), strict=True):
        frozen = FrozenBackbone(module, {}, of, 0, "teacher")
        found.append(make_results(protocol, config, result, backbone=frozen, checkpoint="x")["fingerprint"])
    assert found[0]["backbone"]["pixels"] == {"channels": 1, "dtype": "uint16", "range": [1000.0, 5000.0]}
    assert found[0]["digest"] == found[1]["digest"] and "pixels" not in found[2]["backbone"]
    assert found[0]["digest"] == found[3]["digest"] != found[4]["digest"]
