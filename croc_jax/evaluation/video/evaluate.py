"""Semi-supervised video segmentation: the first mask goes through the video, and is compared with the others."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from croc_jax.data.labeled.davis import Video
from croc_jax.data.labeled.label_files import open_image, read_ids
from croc_jax.evaluation.features import ExtractFn, FrozenFeatures, make_extract_fn
from croc_jax.evaluation.video.drawing import draw_strip, save_gif, save_indexed
from croc_jax.evaluation.video.measures import Statistics, boundary_accuracy, region_similarity, summarize
from croc_jax.evaluation.video.propagation import LabelQueue, PropagationConfig, segment

Ids = UInt8[np.ndarray, "H W"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoProtocol:
    """Every setting that moves the score; the defaults are DINO's and DAVIS's.

    Attributes:
        short_side: of the frames, in pixels.
        multiple: the long side is cut down to a multiple of this.
        score_ends: whether the last frame of a sequence counts; never the first, which is given.
        num_last_frames: see `PropagationConfig`, as for the rest.
        neighborhood: see there.
        topk: see there.
        temperature: see there.
    """

    short_side: int = 480
    multiple: int = 64
    score_ends: bool = False
    num_last_frames: int = 7
    neighborhood: int = 12
    topk: int = 5
    temperature: float = 0.1

    @property
    def propagation(self) -> PropagationConfig:
        """How labels travel."""
        return PropagationConfig(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(PropagationConfig)}
        )

    def __post_init__(self) -> None:
        """Raises ValueError, naming the field and the value, for settings that cannot work."""
        for name in ("short_side", "multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be 1 or more")
        _ = self.propagation

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns the height and width that frames are resized to."""
        short, long = sorted((width, height))
        long_side = max(self.multiple, self.short_side * long // short // self.multiple * self.multiple)
        return (self.short_side, long_side) if height <= width else (long_side, self.short_side)


class ObjectScore(NamedTuple):
    """Of one object of one sequence."""

    sequence: str
    object_id: int
    region: Statistics
    boundary: Statistics


class VideoScore(NamedTuple):
    """The result, in percent: means over all objects.

    Attributes:
        region: mean, recall and decay of J.
        boundary: of F.
        objects: the same of each object, from 0 to 1.
        num_frames: frames that were labeled.
        seconds: in all.
    """

    region: Statistics
    boundary: Statistics
    objects: list[ObjectScore]
    num_frames: int
    seconds: float

    @property
    def jf_mean(self) -> float:
        """J&F, the mean of the means of J and F."""
        return (self.region.mean + self.boundary.mean) / 2


def evaluate_video(
    features: FrozenFeatures, videos: Sequence[Video], *, protocol: VideoProtocol, output: Path
) -> VideoScore:
    """Labels videos, writes what it predicts, and scores the frames that have masks.

    OUTPUT/predictions/SEQUENCE/FRAME.png are ids with DAVIS's palette; OUTPUT/SEQUENCE.png shows
    a few frames, OUTPUT/SEQUENCE.gif all of them.

    Args:
        features: of the backbone.
        videos: see `open_videos`.
        protocol: every setting that moves the score.
        output: folder of the predictions.

    Raises:
        ValueError: if whole patches do not tile the frames, or no sequence has a mask to score.
        LabeledDataError: for an unreadable frame or mask.
    """
    backbone, progress = features.module, features.progress
    if protocol.short_side % backbone.patch_size or protocol.multiple % backbone.patch_size:
        raise ValueError(
            f"short_side={protocol.short_side}, multiple={protocol.multiple}: both need to be multiples of the "
            f"patches of {backbone.patch_size} pixels"
        )
    begin, objects, num_frames = time.perf_counter(), [], sum(len(video.frames) for video in videos)
    task = progress.add_task("frames", total=num_frames) if progress else None
    extract_fn = make_extract_fn(backbone)
    for video in videos:
        frames = [open_image(file).convert("RGB") for file in video.frames]
        predictions = []
        sizes = {"protocol": protocol, "patch_size": backbone.patch_size}
        for ids in label_video(extract_fn, features.params, video, frames, **sizes):
            predictions.append(ids)
            if progress and task is not None:
                progress.advance(task)
        _write(video, frames, predictions, output)
        objects += score_video(video, predictions, score_ends=protocol.score_ends)
    if not objects:
        raise ValueError("no sequence has a mask between its first frame and its last: nothing to score")
    region, boundary = (_mean([getattr(o, name) for o in objects]) for name in ("region", "boundary"))
    return VideoScore(region, boundary, objects, num_frames, time.perf_counter() - begin)


def label_video(
    extract_fn: ExtractFn,
    params: Any,
    video: Video,
    frames: Sequence[Image.Image],
    *,
    protocol: VideoProtocol,
    patch_size: int,
) -> Iterator[Ids]:
    """Yields the ids of each frame at its own size; those of the first are given.

    Args:
        extract_fn: see `make_extract_fn`.
        params: of the backbone.
        video: for its first mask.
        frames: images.
        protocol: how labels travel.
        patch_size: of the backbone.
    """
    given = read_ids(video.masks[0])
    height, width = protocol.frame_size(given.shape[1], given.shape[0])
    grid = (height // patch_size, width // patch_size)
    small = _resize(given, grid)
    one_hot = jnp.asarray(np.eye(int(given.max()) + 1, dtype=np.float32)[small])
    queue = None
    for frame in frames:
        pixels = np.asarray(frame.resize((width, height), Image.Resampling.BILINEAR))[None]
        tokens = extract_fn(params, pixels)[0]
        if queue is None:
            queue = LabelQueue(tokens, one_hot, protocol.propagation)
            yield _resize(given, (frame.height, frame.width))
            continue
        ids = np.asarray(segment(queue.label(tokens), patch_size=patch_size))
        yield _resize(ids, (frame.height, frame.width))


def score_video(video: Video, predictions: Sequence[Ids], *, score_ends: bool) -> list[ObjectScore]:
    """Returns the scores of each object, over the frames that have masks; none if there are no such frames.

    Masks of another size than their frame, which happens by a pixel, are compared at their own.

    Args:
        video: for its masks.
        predictions: ids of each frame.
        score_ends: whether the last frame counts.

    Raises:
        LabeledDataError: for an unreadable mask.
    """
    last = len(video.frames) - 1
    scored = [number for number in sorted(video.masks) if number and (score_ends or number != last)]
    if not scored:
        return []
    truths = {number: read_ids(video.masks[number]) for number in scored}
    resized = {number: _resize(predictions[number], truth.shape) for number, truth in truths.items()}
    scores = []
    for object_id in range(1, int(read_ids(video.masks[0]).max()) + 1):
        pairs = [(resized[number] == object_id, truths[number] == object_id) for number in scored]
        region = summarize(np.array([region_similarity(*pair) for pair in pairs]))
        boundary = summarize(np.array([boundary_accuracy(*pair) for pair in pairs]))
        scores.append(ObjectScore(video.name, object_id, region, boundary))
    return scores


def _resize(ids: Ids, size: tuple[int, ...]) -> Ids:
    return np.asarray(Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _mean(statistics: Sequence[Statistics]) -> Statistics:
    return Statistics(*(100 * float(np.mean(values)) for values in zip(*statistics, strict=True)))


def _write(video: Video, frames: Sequence[Image.Image], predictions: Sequence[Ids], output: Path) -> None:
    folder = output / "predictions" / video.name
    folder.mkdir(parents=True, exist_ok=True)
    for file, ids in zip(video.frames, predictions, strict=True):
        save_indexed(ids, folder / f"{file.stem}.png")
    draw_strip(frames, predictions).save(output / f"{video.name}.png")
    save_gif(frames, predictions, output / f"{video.name}.gif")
