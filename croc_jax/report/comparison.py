"""Sections of a report about evaluations: scores beside each other and beside the paper's, classes, pictures."""

import json
import math
from collections.abc import Sequence
from typing import Any

from croc_jax.evaluation.results import RESULTS
from croc_jax.report.evaluations import MAIN_SCORES, Entry, Group, differing_settings
from croc_jax.report.figures import SERIES_COLORS, plot_class_scores
from croc_jax.report.html import Block, Details, Fact, Photo, Picture, Section, Table
from croc_jax.report.paper import PAPER, PAPER_DATASETS, PROTOCOL_SETTINGS, TABLES, PaperTable

# Further scores of a protocol, and their names.
OTHER_SCORES = {
    "video": {"j_mean": "J mean", "j_recall": "J recall", "j_decay": "J decay", "f_mean": "F mean",
              "f_recall": "F recall", "f_decay": "F decay"},
    "knn": {"top5": "top-5"},
    "classification": {"top5": "top-5"},
}  # fmt: skip
TITLES = {
    "linear": "Linear segmentation",
    "unsupervised": "Unsupervised segmentation",
    "retrieval": "Retrieval of labels",
    "video": "Objects through videos",
    "knn": "Nearest neighbors",
    "classification": "Linear classification",
    "discovery": "Object discovery",
}
# Beyond this, only the classes that the weights differ most in have bars.
MOST_CLASSES = 40
PICTURES = {"best": "where most pixels are right", "worst": "where fewest pixels are right", "typical": "typical"}


def comparison_facts(groups: Sequence[Group], *, most: int = 6) -> list[Fact]:
    """Returns the best score of each group, after that of random weights if there is one.

    Args:
        groups: of evaluations.
        most: facts.
    """
    facts = []
    for group, different in list(zip(groups, differing_settings(groups), strict=True))[:most]:
        first, best = group.entries[0], max(group.entries, key=lambda entry: entry.score)
        value = f"{best.score:.1f}"
        name = (
            f"{MAIN_SCORES[group.protocol][1]} (%), {TITLES[group.protocol].lower()}{_notes(different)}: {best.label}"
        )
        if first is not best and first.label == "random weights":
            value, name = f"{first.score:.1f} → {value}", f"{name}, from random weights"
        facts.append(Fact(value, name))
    return facts


def comparison_sections(groups: Sequence[Group]) -> list[Section]:
    """Returns a section for each group, and the paper's tables.

    Args:
        groups: of evaluations; one at least.
    """
    sections = [_group_section(group, title) for group, title in zip(groups, group_titles(groups), strict=True)]
    return [*sections, paper_section(groups)]


def group_titles(groups: Sequence[Group]) -> list[str]:
    """Returns a title for each group, no two alike.

    Args:
        groups: of evaluations.
    """
    return [_title(group, different) for group, different in zip(groups, differing_settings(groups), strict=True)]


def _title(group: Group, different: dict[str, Any]) -> str:
    return f"{TITLES[group.protocol]}: {_dataset_name(group.dataset)}{_notes(different)}"


def _group_section(group: Group, title: str) -> Section:
    blocks: list[Block] = [_score_table(group)]
    if figure := _class_figure(group):
        blocks.append(figure)
    blocks += [block for entry in group.entries for block in _pictures(entry, folded=entry is not group.entries[-1])]
    blocks.append(Details("Everything that moves these scores", [_fingerprint_table(group)]))
    return Section(title, TEXTS[group.protocol], blocks)


def _notes(different: dict[str, Any]) -> str:
    notes = ", ".join(f"{name} {_short(value)}" for name, value in different.items() if value is not None)
    return f" ({notes})" if notes else ""


def _dataset_name(dataset: dict[str, Any]) -> str:
    name: str = PAPER_DATASETS.get(dataset.get("kind", "")) or dataset["name"]
    split = dataset.get("val_split", dataset.get("split"))
    return f"{name}, {split}" if split else name


def _score_table(group: Group) -> Table:
    key, name = MAIN_SCORES[group.protocol]
    others = OTHER_SCORES.get(group.protocol, {})
    rows = []
    for entry in group.entries:
        first, deviation = entry.evaluations[0], entry.deviation
        rows.append(
            [
                entry.label,
                f"{entry.score:.1f}",
                "–" if deviation is None else f"± {deviation:.1f}",
                str(len(entry.seed_scores)),
                *(f"{first.results[other]:.1f}" for other in others),
                f"{first.results['seconds']['total']:.0f}",
                first.fingerprint["digest"],
            ]
        )
    header = ["weights", f"{name} (%)", "deviation", "seeds", *others.values(), "seconds", "fingerprint"]
    best = max(range(len(rows)), key=lambda index: group.entries[index].score)
    caption = "Deviation: of the scores of several seeds. The fingerprint differs wherever a setting does."
    return Table(header, rows, own=[best], caption=caption)


def _class_figure(group: Group) -> Picture | None:
    entries = [entry for entry in group.entries if entry.evaluations[0].class_scores]
    if not entries:
        return None
    # The first, which random weights are if there are any, and the best.
    shown = entries[:1] + entries[1:][-(len(SERIES_COLORS) - 1) :]
    scores = {entry.label: entry.evaluations[0].class_scores for entry in shown}
    means = {entry.label: entry.evaluations[0].score for entry in shown}
    names, caption = list(next(iter(scores.values()))), ""
    if len(names) > MOST_CLASSES:
        kept = set(sorted(names, key=lambda name: -_spread(scores, name))[:MOST_CLASSES])
        scores = {label: {n: v for n, v in of.items() if n in kept} for label, of in scores.items()}
        caption = f"The {MOST_CLASSES} classes of {len(names)} that these weights differ most in."
    if any(len(entry.evaluations) > 1 for entry in shown):
        caption += " Of the first seed."
    unit = {"video": "Mean of J and F, each object (%)", "classification": "Top-1 accuracy (%)"}
    title = unit.get(group.protocol, "Intersection over union (%)")
    return Picture(plot_class_scores(scores, means, title=title), caption.strip())


def _spread(scores: dict[str, dict[str, float | None]], name: str) -> float:
    values = [value for of in scores.values() if (value := of.get(name)) is not None]
    return max(values) - min(values) if values else -math.inf


def _pictures(entry: Entry, *, folded: bool) -> list[Block]:
    """Returns the pictures of one entry; those of all but the best fold away."""
    one = entry.evaluations[0]
    captions = PICTURES | {name: name for name in one.fingerprint["dataset"].get("sequences", ())}
    files = {one.folder / f"{name}.png": f"{entry.label}: {caption}" for name, caption in captions.items()}
    photos: list[Block] = [Photo(file, caption) for file, caption in files.items() if file.is_file()]
    return [Details(f"Pictures: {entry.label}", photos)] if folded and photos else photos


def _fingerprint_table(group: Group) -> Table:
    members = [one for entry in group.entries for one in entry.evaluations]
    rows = [[one.label, json.dumps(one.fingerprint), str(one.folder / RESULTS)] for one in members]
    return Table(["weights", "fingerprint", "file"], rows)


def paper_section(groups: Sequence[Group]) -> Section:
    """Returns all tables of the paper, with our scores on the same data sets; tables without any fold away.

    Args:
        groups: of evaluations.
    """
    blocks: list[Block] = []
    folded: list[Block] = []
    for table in TABLES:
        rendered, comparable = _paper_table(table, groups)
        (blocks if comparable else folded).append(rendered)
    text = PAPER_TEXT if blocks else NO_PAPER_TEXT
    return Section(f"Beside the paper ({PAPER})", text, [*blocks, Details("Tables on other data sets", folded)])


def _paper_table(table: PaperTable, groups: Sequence[Group]) -> tuple[Table, bool]:
    """Returns a table with our rows at its end, and whether there are any."""
    columns = list(zip(table.protocols, table.datasets, strict=True))
    ours: dict[str, dict[int, float]] = {}
    for group in groups if not table.setting else ():
        column = group.protocol, PAPER_DATASETS.get(group.dataset.get("kind", ""), "")
        for entry in group.entries if column in columns else ():
            name = f"{entry.label} (ours{'' if _as_in_the_paper(group) else ', with other settings'})"
            scores, place = ours.setdefault(name, {}), columns.index(column)
            scores[place] = max(entry.score, scores.get(place, -math.inf))
    rows = [
        [
            ", ".join(filter(None, [row.label, row.model, row.images, f"{row.epochs} epochs" if row.epochs else ""])),
            *(f"{score:.1f}" for score in row.scores),
        ]
        for row in table.rows
    ]
    own = range(len(rows), len(rows) + len(ours))
    rows += [
        [label, *(f"{of[index]:.1f}" if index in of else "" for index in range(len(columns)))]
        for label, of in ours.items()
    ]
    protocols = {protocol for protocol, _ in columns}
    names = [f"{TITLES[p].split()[0].lower()}, {d}" if len(protocols) > 1 else d for p, d in columns]
    caption = f"Table {table.number}: {table.title.lower()}, mIoU (%)."
    return Table([table.setting or "method", *names], rows, own=own, caption=caption), bool(ours)


def _as_in_the_paper(group: Group) -> bool:
    settings, expected = group.settings[group.protocol], PROTOCOL_SETTINGS[group.protocol]
    return all(settings.get(name) == value for name, value in expected.items())


def _short(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)


TEXTS = {
    "linear": (
        "The transformer is frozen, and a single linear layer learns to name the class of every pixel from its patch "
        "features. Where random weights are among the rows, whatever the difference is, training found it without "
        "labels. Scored on images that neither has seen; 100% would be perfect."
    ),
    "unsupervised": (
        "K-means puts the patch features of all images in clusters, without labels. These only serve to give each "
        "cluster its class and to score the result, so nothing is learned from them."
    ),
    "retrieval": (
        "Nothing is trained: each patch gets the labels of the most similar patches among labeled training images."
    ),
    "video": (
        "The mask of the first frame travels through the video from patch to similar patch. J is the overlap of the "
        "regions, F that of their outlines; each is a mean over objects and frames."
    ),
    "knn": "Each image gets the class that most of its nearest training images have; nothing is trained.",
    "classification": "The transformer is frozen, and a linear layer learns to name the class of an image.",
    "discovery": (
        "One box an image, around the patches that resemble the fewest others. It counts as found if it "
        "overlaps with the box of any object by half."
    ),
}
PAPER_TEXT = (
    "All rows of the paper, with ours on the same data sets in color; of several evaluations the best is shown. "
    "Numbers compare only as far as the protocols agree: the fingerprints above tell what moved ours."
)
NO_PAPER_TEXT = (
    "None of the evaluations above is on a data set of the paper, so their scores do not compare with its tables."
)
