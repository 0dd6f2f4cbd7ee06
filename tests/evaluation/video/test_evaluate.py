"""Videos in DAVIS's layout are labeled, written and scored."""

import numpy as np
import pytest
from PIL import Image

from croc_jax.data.labeled.davis import open_videos
from croc_jax.data.labeled.label_files import read_ids
from croc_jax.evaluation.backbones import random_backbone
from croc_jax.evaluation.features import FrozenFeatures
from croc_jax.evaluation.video import VideoProtocol, evaluate_video
from croc_jax.evaluation.video.drawing import davis_palette
from croc_jax.models import BackboneConfig
from croc_jax.training.config import Recipe

TINY = VideoProtocol(short_side=32, multiple=8, neighborhood=2)


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
    videos = open_videos(write_davis(tmp_path / "davis"))
    assert [(video.name, len(video.frames), sorted(video.masks)) for video in videos] == [
        ("still", 5, [0, 1, 2, 3, 4]),
        ("slide", 5, [0, 1, 2, 3, 4]),
    ]
    score = evaluate_video(features, videos, protocol=TINY, output=tmp_path / "out")
    assert score.num_frames == 10
    assert [(o.sequence, o.object_id) for o in score.objects] == [
        ("still", 1),
        ("still", 2),
        ("slide", 1),
        ("slide", 2),
    ]
    assert score.region.mean == pytest.approx(100 * np.mean([o.region.mean for o in score.objects]))
    assert score.jf_mean == pytest.approx((score.region.mean + score.boundary.mean) / 2)
    # A still object is kept but for the coarse patches; a moving one must be followed.
    assert score.objects[0].region.mean > 0.6
    first = open_videos(tmp_path / "davis")[1].masks
    kept = np.mean([_iou(read_ids(first[0]) == 1, read_ids(first[number]) == 1) for number in (1, 2, 3)])
    assert score.objects[2].region.mean > kept
    with Image.open(tmp_path / "out" / "predictions" / "slide" / "00003.png") as image:
        assert image.mode == "P" and image.size == (50, 36)
        assert image.getpalette()[:9] == davis_palette()[:3].ravel().tolist() == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    with Image.open(tmp_path / "out" / "slide.gif") as animation:
        assert animation.n_frames > 1
    assert (tmp_path / "out" / "slide.png").is_file()


def _iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_frames_without_masks_are_not_scored(tmp_path, features):
    for number in range(4):
        frame, mask = draw(number, shift=0)
        for folder, image, suffix in (("images", frame, "jpg"), ("masks", mask, "png")):
            file = tmp_path / folder / "one" / f"{number}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            if folder == "images" or number in (0, 3):
                image.save(file)
    videos = open_videos(tmp_path)
    run = {"output": tmp_path / "out"}
    with pytest.raises(ValueError, match="nothing to score"):
        evaluate_video(features, videos, protocol=TINY, **run)
    with_last = VideoProtocol(short_side=32, multiple=8, score_ends=True)
    score = evaluate_video(features, videos, protocol=with_last, **run)
    assert len(score.objects) == 2 and score.num_frames == 4


@pytest.mark.parametrize(
    "missing, message",
    [
        ("ImageSets/2017/val.txt", "val.txt, nor folders images and masks.*davischallenge"),
        ("Annotations/480p/slide/00000.png", "no mask of the first frame"),
        ("JPEGImages/480p/slide/00002.jpg", "00002.png has no frame"),
    ],
)
def test_missing_files_are_named(tmp_path, missing, message):
    root = write_davis(tmp_path)
    (root / missing).unlink()
    with pytest.raises(ValueError, match=message):
        open_videos(root)


def test_sizes(features, tmp_path):
    protocol = VideoProtocol()
    assert protocol.frame_size(854, 480) == (480, 832) and protocol.frame_size(480, 854) == (832, 480)
    with pytest.raises(ValueError, match="multiple=12: both need to be multiples of the patches of 8 pixels"):
        evaluate_video(
            features,
            [],
            protocol=VideoProtocol(short_side=32, multiple=12),
            output=tmp_path,
        )
    with pytest.raises(ValueError, match="short_side=0"):
        VideoProtocol(short_side=0)
