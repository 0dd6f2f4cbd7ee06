"""From the config of a protocol to its run: settings and data are checked before anything is computed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli import UserError

from croc_jax.data.labeled import open_labeled
from croc_jax.data.labeled.boxes import open_voc_boxes
from croc_jax.data.labeled.classes import open_classes
from croc_jax.data.labeled.davis import open_videos
from croc_jax.data.labeled.segmentation import SegmentationSplit
from croc_jax.evaluation import FrozenFeatures, Gallery, LinearProtocol, evaluate_linear, outcomes
from croc_jax.evaluation.classification import ClassificationProtocol, evaluate_classification
from croc_jax.evaluation.discovery import DiscoveryProtocol, evaluate_discovery
from croc_jax.evaluation.knn import KnnProtocol, evaluate_knn
from croc_jax.evaluation.pictures import draw_boxes, draw_examples
from croc_jax.evaluation.results import Outcome
from croc_jax.evaluation.retrieval import RetrievalProtocol, evaluate_retrieval
from croc_jax.evaluation.unsupervised import UnsupervisedProtocol, evaluate_unsupervised
from croc_jax.evaluation.video import VideoProtocol, evaluate_video

# A ConfigDict, whose fields the type checker cannot know.
Config = Any
# Scores features, and writes pictures in a folder.
RunFn = Callable[[FrozenFeatures, Path], Outcome]
# Checks settings and data.
PlanFn = Callable[[Config], RunFn]


def plan(config: Config) -> RunFn:
    """Returns what runs a protocol.

    Args:
        config: of a file in configs/eval.

    Raises:
        UserError: for an unknown protocol, or if no data set is named.
        ValueError: for settings that cannot work.
        LabeledDataError: if the data set cannot be used.
    """
    if config.protocol not in PROTOCOLS:
        raise UserError(f"config.protocol={config.protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    if not config.dataset.root:
        raise UserError("no data set: add --config.dataset.root=ROOT; the config file says what it holds")
    return PROTOCOLS[config.protocol](config)


def dense(name: str, protocol_type: Any, evaluate: Callable[..., Any], make_outcome: Callable[..., Outcome]) -> PlanFn:
    """Returns the plan of a protocol that learns from one split with pixel labels, and is scored on another."""

    def make(config: Config) -> RunFn:
        protocol = protocol_type(**config[name].to_dict())
        train, val = open_splits(config.dataset)

        def run(features: FrozenFeatures, output: Path) -> Outcome:
            score = evaluate(features, train=train, val=val, protocol=protocol)
            draw_gallery(score.gallery, val, output)
            return make_outcome(score, protocol=protocol, train=train, val=val)

        return run

    return make


def whole_images(
    name: str, protocol_type: Any, evaluate: Callable[..., Any], make_outcome: Callable[..., Outcome]
) -> PlanFn:
    """Returns the plan of a protocol that learns the classes of images of one split, and is scored on another."""

    def make(config: Config) -> RunFn:
        protocol, dataset = protocol_type(**config[name].to_dict()), config.dataset
        splits = {
            kind: open_classes(dataset.root, split, train_split=dataset.train_split)
            for kind, split in (("train", dataset.train_split), ("val", dataset.val_split))
        }

        def run(features: FrozenFeatures, output: Path) -> Outcome:
            score = evaluate(features, **splits, protocol=protocol)
            return make_outcome(score, protocol=protocol, **splits)

        return run

    return make


def plan_unsupervised(config: Config) -> RunFn:
    """Clusters of frozen tokens."""
    protocol = UnsupervisedProtocol(**config.unsupervised.to_dict())
    val = open_split(config.dataset, config.dataset.val_split)

    def run(features: FrozenFeatures, output: Path) -> Outcome:
        score = evaluate_unsupervised(features, val=val, protocol=protocol)
        draw_gallery(score.gallery, val, output)
        return outcomes.unsupervised_outcome(score, protocol=protocol, val=val)

    return run


def plan_video(config: Config) -> RunFn:
    """Labels that travel through videos."""
    protocol, root = VideoProtocol(**config.video.to_dict()), Path(config.dataset.root).expanduser()
    videos = open_videos(root, config.dataset.split)

    def run(features: FrozenFeatures, output: Path) -> Outcome:
        score = evaluate_video(features, videos, protocol=protocol, output=output)
        return outcomes.video_outcome(score, protocol=protocol, root=root, videos=videos)

    return run


def plan_discovery(config: Config) -> RunFn:
    """One box an image."""
    protocol, dataset = DiscoveryProtocol(**config.discovery.to_dict()), config.dataset
    split = open_voc_boxes(Path(dataset.root).expanduser(), dataset.split, year=dataset.year, hard=dataset.hard)

    def run(features: FrozenFeatures, output: Path) -> Outcome:
        score = evaluate_discovery(features, split=split, protocol=protocol)
        draw_boxes(split, score.boxes, score.ious).save(output / "typical.png")
        return outcomes.discovery_outcome(score, protocol=protocol, split=split)

    return run


PROTOCOLS: dict[str, PlanFn] = {
    "linear": dense("linear", LinearProtocol, evaluate_linear, outcomes.linear_outcome),
    "unsupervised": plan_unsupervised,
    "retrieval": dense("retrieval", RetrievalProtocol, evaluate_retrieval, outcomes.retrieval_outcome),
    "video": plan_video,
    "knn": whole_images("knn", KnnProtocol, evaluate_knn, outcomes.knn_outcome),
    "classification": whole_images(
        "classification", ClassificationProtocol, evaluate_classification, outcomes.classification_outcome
    ),
    "discovery": plan_discovery,
}


def open_splits(dataset: Config) -> tuple[SegmentationSplit, SegmentationSplit]:
    """Returns the images to learn from, and those to score."""
    train = open_split(dataset, dataset.train_split, fraction=dataset.train_fraction)
    return train, open_split(dataset, dataset.val_split)


def open_split(dataset: Config, split: str, *, fraction: float = 1) -> SegmentationSplit:
    """Returns labeled images, or a share of them."""
    return open_labeled(
        dataset.root, split, num_classes=dataset.num_classes, train_split=dataset.train_split, fraction=fraction
    )


def draw_gallery(gallery: Gallery, split: SegmentationSplit, output: Path) -> None:
    """Writes OUTPUT/typical.png, best.png and worst.png."""
    for name, examples in gallery._asdict().items():
        draw_examples(examples, split.class_names).save(output / f"{name}.png")
