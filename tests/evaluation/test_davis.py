"""Videos in DAVIS's layout are labeled, written and scored."""

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled.label_files import read_ids
from croc_jax.evaluation.backbones import random_backbone
from croc_jax.evaluation.davis import DavisConfig, evaluate, join_scores, open_dataset, score_video
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.visualize import davis_palette
from croc_jax.models import BackboneConfig
from croc_jax.training.config import Recipe

TINY = DavisConfig(short_side=32, multiple=8, neighborhood=2)


def draw(number, shift):
    """A red square that moves over a textured ground, and its mask."""
    ground = np.random.default_rng(0).integers(90, 140, (36, 50, 3)).astype(np.uint8)
    mask = np.zeros((36, 50), np.uint8)
    left = 4 + shift * number
    mask[8:24, left : left + 16] = 1
    ground[mask == 1] = (220, 20, 20)
    mask[28:34, 40:48] = 2
    ground[mask == 2] = (20, 40, 220)
    return Image.fromarray(ground), Image.fromarray(mask)


def write_davis(root, names=("still", "slide"), count=5):
    for name in names:
        for number in range(count):
            frame, mask = draw(number, shift=0 if name == "still" else 3)
            for folder, image, suffix in (("JPEGImages", frame, "jpg"), ("Annotations", mask, "png")):
                file = root / folder / "480p" / name / f"{number:05d}.{suffix}"
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
    listed = root / "ImageSets" / "2017" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("\n".join(names) + "\n")
    return root


@pytest.fixture(scope="module")
def features():
    backbone = random_backbone(Recipe(backbone=BackboneConfig(width=32, depth=1, num_heads=2, patch_size=8)))
    return FrozenFeatures(backbone.module, backbone.params)


def test_what_stands_still_is_kept_and_what_moves_is_found(tmp_path, features):
    dataset = open_dataset(root=write_davis(tmp_path / "davis"), split="val")
    result = evaluate(features, dataset, TINY, tmp_path)
    described = {"name": "davis", "sequences": ["still", "slide"], "num_frames": 10}
    assert result.dataset == described | {"digest": result.dataset["digest"]}
    scores, objects = result.scores, result.scores["objects"]
    assert list(objects) == ["still/1", "still/2", "slide/1", "slide/2"]
    assert scores["j_mean"] == pytest.approx(np.mean([of["j_mean"] for of in objects.values()]))
    assert scores["jf_mean"] == pytest.approx((scores["j_mean"] + scores["f_mean"]) / 2)
    # A still object is kept but for the coarse patches; a moving one must be followed.
    assert objects["still/1"]["j_mean"] > 60
    first = {number: read_ids(dataset.videos[1].masks[number]) == 1 for number in range(4)}
    kept = np.mean([100 * (first[0] & first[n]).sum() / (first[0] | first[n]).sum() for n in (1, 2, 3)])
    assert objects["slide/1"]["j_mean"] > kept
    with Image.open(tmp_path / "predictions" / "slide" / "00003.png") as image:
        assert image.mode == "P" and image.size == (50, 36)
        assert image.getpalette()[:9] == davis_palette()[:3].ravel().tolist() == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    with Image.open(tmp_path / "slide.gif") as animation:
        assert animation.n_frames > 1
    assert (tmp_path / "slide.png").is_file()


def test_frames_without_masks_are_not_scored(tmp_path, features):
    for number in range(4):
        frame, mask = draw(number, shift=0)
        for folder, image, suffix in (("images", frame, "jpg"), ("masks", mask, "png")):
            file = tmp_path / folder / "one" / f"{number}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            if folder == "images" or number in (0, 3):
                image.save(file)
    dataset = open_dataset(root=tmp_path, split="val")
    with pytest.raises(ValueError, match="nothing is scored; score_ends=True counts"):
        evaluate(features, dataset, TINY)
    result = evaluate(features, dataset, DavisConfig(short_side=32, multiple=8, score_ends=True))
    assert len(result.scores["objects"]) == 2 and result.dataset["num_frames"] == 4


def test_frame_sizes_are_multiples_of_patches(features):
    config = DavisConfig()
    assert config.frame_size(854, 480) == (480, 832) and config.frame_size(480, 854) == (832, 480)
    with pytest.raises(ValueError, match="multiple=12: both need to be multiples of the patches of 8 pixels"):
        evaluate(features, (None, []), DavisConfig(short_side=32, multiple=12))


def score_masks(root, masks, shape=(6, 8)):
    """Returns the scores of predictions that equal the masks (where they are no void), each of rows of ids."""
    masks = [np.resize(np.repeat(np.array(ids, np.uint8), shape[1]), shape) for ids in masks]
    for number, mask in enumerate(masks):
        for folder, pixels in (("images", np.zeros((*shape, 3), np.uint8)), ("masks", mask)):
            file = root / folder / "dog" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    videos = open_dataset(root=root, split="val").videos
    predictions = [np.where(mask == 255, np.uint8(0), mask) for mask in masks]
    return join_scores({"dog": score_video(videos[0], predictions, score_ends=True)}, videos)


@pytest.mark.parametrize(
    ("masks", "objects", "absent", "later"),
    [
        ([[0, 1], [0, 1]], [1], [], []),
        ([[0, 1, 3], [0, 3, 1]], [1, 3], [], []),
        ([[0, 38, 75, 113], [0, 113, 75, 38]], [38, 75, 113], [], []),
        ([[0, 1, 255, 0, 1], [0, 1, 255]], [1], [], []),
        ([[0, 1, 2], [0, 1, 0], [0, 1, 4]], [1], [2], [4]),
    ],
)
def test_objects_that_no_mask_holds_have_no_score(tmp_path, masks, objects, absent, later):
    scores = score_masks(tmp_path, masks)
    assert list(scores["objects"]) == [f"dog/{one}" for one in objects] and scores["jf_mean"] == 100
    assert (scores["num_objects"], scores["num_objects_without_truth"]) == (len(objects), len(absent))
    assert scores["num_ids_not_in_first_mask"] == len(later)
    assert scores["sequences"]["dog"] == {
        "num_frames": len(masks) - 1,
        "num_objects": len(objects),
        "objects_without_truth": absent,
        "ids_not_in_first_mask": later,
    }


@pytest.mark.parametrize("later", [[0, 255], [0], [0, 2, 3]])
def test_masks_without_the_objects_of_the_first_are_refused(tmp_path, later):
    with pytest.raises(ValueError, match="0.png holds 0 and 1, but the other masks that are scored hold"):
        score_masks(tmp_path, [[0, 1], later])


def test_masks_of_another_shape_are_refused(tmp_path):
    score_masks(tmp_path, [[0, 1], [0, 1]])
    Image.fromarray(np.ones((8, 6), np.uint8)).save(tmp_path / "masks" / "dog" / "1.png")
    (video,) = open_dataset(root=tmp_path, split="val").videos
    with pytest.raises(ValueError, match=r"1.png has 8 x 6 pixels, but .*1.png has 6 x 8: masks need the shape"):
        score_video(video, [np.zeros((6, 8), np.uint8)] * 2, score_ends=True)
