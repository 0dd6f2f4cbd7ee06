"""DAVIS video object segmentation: the first mask is propagated through a video and compared with the others."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Real
from PIL import Image

from croc_jax.data.channels import show_pixels
from croc_jax.data.labeled.davis import Video, load_frames, open_videos, turn_with_frame
from croc_jax.data.labeled.object_masks import read_mask, summarize_ids
from croc_jax.data.resizing import resize_with_pillow
from croc_jax.data.sources.identity import digest_files
from croc_jax.evaluation.datasets import choose_part
from croc_jax.evaluation.davis_metrics import BOUNDARY_TOLERANCE, boundary_accuracy, region_similarity, summarize
from croc_jax.evaluation.features import FrozenFeatures, Params, check_finite, make_extract_fn
from croc_jax.evaluation.propagation import LabelQueue, PropagationConfig, segment
from croc_jax.evaluation.registry import Protocol, Result, Timer
from croc_jax.evaluation.settings import check_positive
from croc_jax.evaluation.visualize import Ids, draw_strip, save_gif, save_indexed
from croc_jax.models import Backbone
from croc_jax.paths import local_path
from croc_jax.pixel_format import RGB8, PixelFormat

# Height by width of a mask differs from its frame's by at most this share.
SHAPE_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class DavisConfig(PropagationConfig):
    """Every setting of video segmentation that moves the score; the defaults are those of DINO and DAVIS.

    Attributes:
        short_side: short side of the frames, in pixels.
        multiple: the long side is cut down to a multiple of this.
        score_ends: whether the last frame of a sequence counts; the first, which is given, never does.
    """

    short_side: int = 480
    multiple: int = 64
    score_ends: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        super().__post_init__()
        check_positive(self, "short_side", "multiple")

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the height and width that frames are resized to."""
        short, long = sorted((width, height))
        long_side = max(self.multiple, self.short_side * long // short // self.multiple * self.multiple)
        return (self.short_side, long_side) if height <= width else (long_side, self.short_side)


class Videos(NamedTuple):
    """The sequences of a data set and its folder."""

    root: Path
    videos: Sequence[Video]


def open_dataset(*, root: str | Path, split: str, val_part: str = "all") -> Videos:
    """Opens the sequences of a split, perhaps a half of them; errors as for `open_videos` and `choose_part`."""
    root = local_path(root, name="dataset.root")
    return Videos(root, choose_part(open_videos(root, split), val_part))


def evaluate(features: FrozenFeatures, dataset: Videos, config: DavisConfig, output: Path | None = None) -> Result:
    """Labels videos and scores the frames that have masks; see `Protocol` for the arguments.

    OUTPUT/predictions/SEQUENCE/FRAME.png are ids with DAVIS's palette; OUTPUT/SEQUENCE.png shows a few frames,
    OUTPUT/SEQUENCE.gif all of them.
    """
    backbone, progress = features.module, features.progress
    if config.short_side % backbone.patch_size or config.multiple % backbone.patch_size:
        raise ValueError(
            f"short_side={config.short_side}, multiple={config.multiple}: both need to be multiples of the "
            f"patches of {backbone.patch_size} pixels"
        )
    timer, found, num_frames = Timer(), {}, sum(len(video.frames) for video in dataset.videos)
    task = progress.add_task("frames", total=num_frames) if progress else None
    for video in dataset.videos:
        frames, predictions = load_frames(video, backbone.pixels), []
        first = _read_shaped(video, 0, frames[0].shape[:2], backbone.pixels)
        for ids in label_video(backbone, features.params, first, frames, config):
            predictions.append(ids)
            if progress and task is not None:
                progress.advance(task)
        found[video.name] = score_video(video, predictions, score_ends=config.score_ends, pixels=backbone.pixels)
        if output is not None:
            shown = [Image.fromarray(show_pixels(frame, backbone.pixels)) for frame in frames]
            write_predictions(video, shown, predictions, output)
    timer.end("labeling")
    sequences = [video.name for video in dataset.videos]
    described = {"name": dataset.root.resolve().name, "sequences": sequences, "num_frames": num_frames}
    files = [file for video in dataset.videos for file in (*video.frames, *video.masks.values())]
    described["digest"] = digest_files(dataset.root, files)
    return Result(join_scores(found, dataset.videos), described, dataset.root, timer.seconds)


def label_video(
    backbone: Backbone, params: Params, first: Ids, frames: Sequence[Real[np.ndarray, "H W c"]], config: DavisConfig
) -> Iterator[Ids]:
    """Yields the ids of each frame at its own size; `first`, those of the first one, are given."""
    extract_fn, patch_size = make_extract_fn(backbone, jnp.float32), backbone.patch_size
    height, width = config.frame_size(first.shape[1], first.shape[0])
    small = _resize(first, (height // patch_size, width // patch_size))
    # Background and the ids that occur: any others would be channels of zeros.
    known = np.unique(np.append(first, np.uint8(0)))
    one_hot = jnp.asarray(np.eye(len(known), dtype=np.float32)[np.searchsorted(known, small)])
    queue = None
    for number, frame in enumerate(frames):
        pixels = resize_with_pillow(frame, (height, width), Image.Resampling.BILINEAR)
        tokens = extract_fn(params, pixels[None])[0]
        check_finite(tokens, f"frame {number}")
        if queue is None:
            queue, ids = LabelQueue(tokens, one_hot, config), first
        else:
            ids = known[np.asarray(segment(queue.label(tokens), patch_size=patch_size))]
        yield _resize(ids, frame.shape[:2])


class VideoScore(NamedTuple):
    """The scores of one sequence, and what they are of.

    Attributes:
        objects: J and F of each SEQUENCE/OBJECT in percent ("j_" and "f_") with the statistics of `summarize`.
        num_frames: frames that are scored.
        absent: objects of the first mask that none of these frames holds; they have no score.
        later: ids of these frames that the first mask does not hold; they count as background.
    """

    objects: dict[str, dict[str, float]]
    num_frames: int
    absent: list[int]
    later: list[int]


def score_video(
    video: Video, predictions: Sequence[Ids], *, score_ends: bool, pixels: PixelFormat = RGB8
) -> VideoScore:
    """Returns the scores of a sequence over its frames with masks, but the first.

    Masks of another size than their frame, which happens by a pixel, are compared at their own.

    Raises:
        ValueError: for a mask that cannot be read, or whose height by width is not that of its frame.
    """
    last = len(video.frames) - 1
    scored = [number for number in sorted(video.masks) if number and (score_ends or number != last)]
    truths = {number: _read_shaped(video, number, predictions[number].shape, pixels) for number in scored}
    resized = {number: _resize(predictions[number], truth.shape) for number, truth in truths.items()}
    held = set().union(*(np.unique(truth).tolist() for truth in truths.values()))
    objects: dict[str, dict[str, float]] = {}
    for object_id in (one for one in video.objects if one in held):
        pairs = [(resized[number] == object_id, truths[number] == object_id) for number in scored]
        own = objects[f"{video.name}/{object_id}"] = {}
        for prefix, metric in (("j", region_similarity), ("f", boundary_accuracy)):
            found = summarize(np.array([metric(*pair) for pair in pairs]))
            own |= {f"{prefix}_{name}": 100 * value for name, value in found.items()}
    later = sorted(held - {0, *video.objects})
    return VideoScore(objects, len(scored), [one for one in video.objects if one not in held], later)


def _read_shaped(video: Video, number: int, frame_shape: tuple[int, ...], pixels: PixelFormat) -> Ids:
    ids = turn_with_frame(read_mask(video.masks[number]), video.frames[number], pixels)
    (height, width), (frame_height, frame_width) = ids.shape, frame_shape
    if abs(height * frame_width / (width * frame_height) - 1) > SHAPE_TOLERANCE:
        raise ValueError(
            f"{video.masks[number]} has {height} x {width} pixels, but {video.frames[number]} has {frame_height} x "
            f"{frame_width}: masks need the shape of their frame"
        )
    return ids


def join_scores(found: Mapping[str, VideoScore], videos: Sequence[Video]) -> dict[str, Any]:
    """Returns the scores of all sequences as results.json holds them.

    Raises:
        ValueError: if no frame is scored, or a sequence's scored frames hold none of its objects.
    """
    for video in videos:
        score = found[video.name]
        if score.num_frames and not score.objects:
            raise ValueError(
                f"{video.masks[0]} holds {summarize_ids([0, *video.objects])}, but the other masks that "
                f"are scored hold {summarize_ids([0, *score.later])} besides void: use the same ids in all masks"
            )
    objects = {name: of for score in found.values() for name, of in score.objects.items()}
    if not objects:
        raise ValueError(
            "no sequence has a mask between its first frame and its last, so nothing is scored; score_ends=True counts "
            "the last frame"
        )
    means = {name: float(np.mean([of[name] for of in objects.values()])) for name in next(iter(objects.values()))}
    return {
        "jf_mean": (means["j_mean"] + means["f_mean"]) / 2,
        **means,
        "num_sequences": sum(bool(score.objects) for score in found.values()),
        "num_frames": sum(score.num_frames for score in found.values()),
        "num_objects": len(objects),
        "num_objects_without_truth": sum(len(score.absent) for score in found.values() if score.num_frames),
        "num_ids_not_in_first_mask": sum(len(score.later) for score in found.values()),
        "objects": {name: {"j_mean": of["j_mean"], "f_mean": of["f_mean"]} for name, of in objects.items()},
        "sequences": {
            name: {
                "num_frames": score.num_frames,
                "num_objects": len(score.objects),
                "objects_without_truth": score.absent,
                "ids_not_in_first_mask": score.later,
            }
            for name, score in found.items()
        },
    }


def _resize(ids: Ids, size: tuple[int, ...]) -> Ids:
    return np.asarray(Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST))


def write_predictions(video: Video, frames: Sequence[Image.Image], predictions: Sequence[Ids], output: Path) -> None:
    """Writes ids as the DAVIS benchmark reads them, a strip of a few frames and an animation of all."""
    folder = output / "predictions" / video.name
    folder.mkdir(parents=True, exist_ok=True)
    for file, ids in zip(video.frames, predictions, strict=True):
        save_indexed(ids, folder / f"{file.stem}.png")
    draw_strip(frames, predictions).save(output / f"{video.name}.png")
    save_gif(frames, predictions, output / f"{video.name}.gif")


PROTOCOL = Protocol(
    name="video",
    title="Objects through videos",
    description=(
        "The mask of the first frame is propagated through the video from patch to similar patch. J is the overlap of "
        "the regions, F that of their outlines; each is a mean over objects and frames."
    ),
    config=DavisConfig,
    open_dataset=open_dataset,
    evaluate=evaluate,
    main_score="jf_mean",
    score_labels={
        "jf_mean": "J&F",
        "j_mean": "J mean",
        "j_recall": "J recall",
        "j_decay": "J decay",
        "f_mean": "F mean",
        "f_recall": "F recall",
        "f_decay": "F decay",
    },
    class_scores="objects",
    class_label="Mean of J and F, each object (%)",
    conventions={
        "tokens": "patch tokens after the final norm, float32",
        "frame_resize": "bilinear, antialiased; masks to patches: nearest",
        "upsampling": "bilinear soft labels, each stretched to [0, 1]; to the frame's size: nearest",
        "boundary_tolerance": BOUNDARY_TOLERANCE,
        "objects": "ids of the first mask; void (255) is background; an object in no scored mask has no score",
        "scores": "percent, mean over the objects of all sequences, over frames with masks but the first",
    },
)
