"""The numbers of the paper's Tables 1 to 6, to show results beside."""

from typing import NamedTuple

PAPER = "CrOC, CVPR 2023"


class Row(NamedTuple):
    """One line of a table, with mIoU in percent for each column.

    The label names the method, its backbone and the images of pre-training (IN is ImageNet, CC is COCO, CC+ is COCO
    with its unlabeled images), or the value that an ablation sets.
    """

    label: str
    scores: tuple[float, ...]


class PaperTable(NamedTuple):
    """A table of the paper: the protocol and data set of each column, and its rows.

    Attributes:
        number: number in the paper.
        title: short title.
        protocols: protocol of each column, as results.json names it.
        datasets: data set of each column.
        rows: rows in the paper's order.
        setting: field of a run's config that an ablation varies.
    """

    number: int
    title: str
    protocols: tuple[str, ...]
    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    setting: str = ""


LINEAR, UNSUPERVISED = "linear", "unsupervised"
# The paper's settings of its protocols, as results.json names them.
PROTOCOL_SETTINGS = {
    LINEAR: {
        "image_size": [448, 448],
        "train_size": [100, 100],
        "score_size": [100, 100],
        "optimizer": "sgd",
        "lr": 0.01,
        "weight_decay": 1e-4,
        "drop_epochs": [20],
        "epochs": 25,
        "normalization": "none",
    },
    UNSUPERVISED: {"image_size": [448, 448], "num_clusters": None, "matching": "hungarian"},
}
# The paper's data sets, by the kind that results.json names.
PAPER_DATASETS = {"voc": "PVOC12", "coco-things": "COCO-Things", "coco-stuff": "COCO-Stuff", "ade20k": "ADE20K"}
THREE_SETS = ("PVOC12", "COCO-Things", "COCO-Stuff")

_ABLATION = {
    "protocols": (UNSUPERVISED, LINEAR) * 3,
    "datasets": tuple(name for name in THREE_SETS for _ in range(2)),
}

TABLES = (
    PaperTable(1, "Linear segmentation", (LINEAR,) * 3, THREE_SETS, (
        Row("BYOL, ResNet50, CC+", (38.7, 50.4, 39.8)),
        Row("DINO, ViT-S/16, CC", (47.2, 47.1, 46.2)),
        Row("ORL, ResNet50, CC+", (45.2, 55.6, 45.6)),
        Row("DenseCL, ResNet50, IN", (57.9, 60.4, 47.5)),
        Row("SoCo, ResNet50, IN", (54.0, 56.8, 44.2)),
        Row("ReSim, ResNet50, IN", (55.1, 57.7, 46.5)),
        Row("PixPro, ResNet50, IN", (57.1, 54.7, 45.9)),
        Row("VICRegL, ResNet50, IN", (58.9, 58.7, 48.2)),
        Row("MAE, ViT-S/16, CC", (31.7, 35.1, 39.6)),
        Row("CP2, ViT-S/16, IN+PVOC12", (63.1, 59.4, 46.5)),
        Row("CrOC, ViT-S/16, CC", (54.5, 55.6, 49.7)),
        Row("CrOC, ViT-S/16, CC+", (60.6, 62.7, 51.7)),
        Row("CrOC, ViT-S/16, IN", (70.6, 66.1, 52.6)),
    )),
    PaperTable(2, "Linear segmentation", (LINEAR,), ("ADE20K",), (
        Row("DINO, ViT-S/16, CC, 300 epochs", (18.5,)),
        Row("DINO, ViT-S/16, IN, 800 epochs", (26.8,)),
        Row("DenseCL, ResNet50, IN, 200 epochs", (24.3,)),
        Row("VICRegL, ResNet50, IN, 300 epochs", (23.7,)),
        Row("CP2, ViT-S/16, IN+PVOC12, 320 epochs", (25.4,)),
        Row("CrOC, ViT-S/16, CC, 300 epochs", (23.2,)),
        Row("CrOC, ViT-S/16, CC+, 300 epochs", (27.0,)),
        Row("CrOC, ViT-S/16, IN, 300 epochs", (28.4,)),
    )),
    PaperTable(3, "Unsupervised segmentation", (UNSUPERVISED,) * 3, THREE_SETS, (
        Row("BYOL, ResNet50, CC+", (13.6, 9.4, 8.9)),
        Row("DINO, ViT-S/16, CC", (5.2, 9.4, 14.0)),
        Row("ORL, ResNet50, CC+", (11.9, 12.0, 13.7)),
        Row("DenseCL, ResNet50, IN", (18.0, 19.2, 16.9)),
        Row("SoCo, ResNet50, IN", (15.1, 16.3, 18.9)),
        Row("ReSim, ResNet50, IN", (17.1, 15.9, 16.6)),
        Row("PixPro, ResNet50, IN", (9.5, 15.2, 12.4)),
        Row("VICRegL, ResNet50, IN", (13.9, 11.2, 16.0)),
        Row("MAE, ViT-S/16, CC", (3.3, 7.5, 13.6)),
        Row("CP2, ViT-S/16, IN", (9.5, 12.9, 13.6)),
        Row("CrOC, ViT-S/16, CC", (16.1, 17.2, 20.0)),
        Row("CrOC, ViT-S/16, CC+", (20.6, 17.1, 21.9)),
        Row("CrOC, ViT-S/16, IN", (3.8, 5.4, 6.6)),
    )),
    PaperTable(4, "Weight of the positional cost", **_ABLATION, rows=(
        Row("0", (3.4, 52.2, 6.8, 53.8, 6.3, 48.9)),
        Row("1", (4.0, 55.8, 6.8, 56.6, 8.3, 50.3)),
        Row("2", (6.9, 56.7, 7.8, 58.0, 13.3, 50.4)),
        Row("3", (15.7, 56.5, 12.1, 56.5, 17.9, 50.2)),
        Row("4", (16.4, 55.0, 17.0, 56.9, 20.9, 50.4)),
        Row("inf", (2.3, 55.9, 5.4, 57.2, 5.5, 50.1)),
    ), setting="clustering.lambda_pos"),
    PaperTable(5, "Number of initial centroids", **_ABLATION, rows=(
        Row("4", (5.3, 48.0, 8.3, 48.7, 12.6, 47.5)),
        Row("8", (15.8, 54.8, 17.6, 56.5, 23.4, 49.8)),
        Row("12", (15.7, 56.5, 12.1, 56.5, 17.9, 50.2)),
        Row("16", (10.9, 56.9, 8.0, 58.0, 14.2, 50.5)),
    ), setting="clustering.k_start"),
    PaperTable(6, "Type of clustering tokens", **_ABLATION, rows=(
        Row("last", (11.2, 52.6, 12.7, 54.6, 16.0, 49.1)),
        Row("queries", (8.3, 55.1, 7.6, 56.5, 11.9, 49.8)),
        Row("keys", (15.7, 56.5, 12.1, 56.5, 17.9, 50.2)),
        Row("values", (16.5, 55.2, 16.0, 55.8, 21.5, 49.5)),
    ), setting="objective.tokens"),
)  # fmt: skip
