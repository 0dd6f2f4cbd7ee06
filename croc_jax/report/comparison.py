"""Sections about evaluations: scores beside each other and beside the paper's, classes, pictures."""

import json
import math
from collections.abc import Sequence

from croc_jax.evaluation.registry import find_protocols
from croc_jax.evaluation.results import RESULTS, describe_counts
from croc_jax.report import html
from croc_jax.report.evaluations import RANDOM_LABEL, Group, differing_settings
from croc_jax.report.figures import SERIES_COLORS, plot_class_scores
from croc_jax.report.paper import PAPER, PAPER_DATASETS, PROTOCOL_SETTINGS, TABLES, PaperTable
from croc_jax.report.published import published_for

# With more classes, only those that the weights differ most in have bars.
MOST_CLASSES = 40
MOST_FACTS = 6
PICTURES = {"best": "where most pixels are right", "worst": "where fewest pixels are right", "typical": "typical"}
PAPER_TEXT = (
    "All rows of the paper, with this project's on the same data sets in color; of several evaluations the best is "
    "shown. Numbers compare only as far as the protocols agree: the fingerprints above say what moved these."
)
NO_PAPER_TEXT = (
    "None of the evaluations above is on a data set of the paper, so their scores do not compare with its tables."
)


def comparison_facts(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Returns the best score of each group, after that of random weights if there is one, and what it is."""
    facts = []
    for group, notes in list(zip(groups, _notes(groups), strict=True))[:MOST_FACTS]:
        first, best = group.entries[0], max(group.entries, key=lambda entry: entry.score)
        label, title = group.protocol.score_labels[group.protocol.main_score], group.protocol.title.lower()
        value, name = f"{best.score:.1f}", f"{label} (%), {title}{notes}: {best.label}"
        if first is not best and first.label == RANDOM_LABEL:
            value, name = f"{first.score:.1f} → {value}", f"{name}, from random weights"
        facts.append((value, name))
    return facts


def comparison_sections(groups: Sequence[Group]) -> list[str]:
    """Returns a section for each group, no two with the same title, and one with the paper's tables; [] for none."""
    if not groups:
        return []
    sections = []
    for group, notes in zip(groups, _notes(groups), strict=True):
        split = group.dataset.get("val_split", group.dataset.get("split"))
        name = PAPER_DATASETS.get(group.dataset.get("kind", "")) or group.dataset["name"]
        title = f"{group.protocol.title}: {name}{f', {split}' if split else ''}{notes}"
        sections.append(html.section(title, group.protocol.description, _group_blocks(group)))
    return [*sections, paper_section(groups)]


def _notes(groups: Sequence[Group]) -> list[str]:
    """Returns the settings that distinguish each group from others, in parentheses."""
    notes = []
    for different in differing_settings(groups):
        shown = {n: " x ".join(map(str, v)) if isinstance(v, list) else v for n, v in different.items()}
        text = ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)
        notes.append(f" ({text})" if text else "")
    return notes


def _group_blocks(group: Group) -> list[str]:
    blocks = [_score_table(group), _published_table(group), _class_figure(group)]
    for entry in group.entries:
        one = entry.evaluations[0]
        captions = PICTURES | {name: name for name in one.fingerprint["dataset"].get("sequences", ())}
        files = {one.folder / f"{name}.png": f"{entry.label}: {caption}" for name, caption in captions.items()}
        photos = [html.photo(file, caption) for file, caption in files.items() if file.is_file()]
        # Pictures of all but the best fold away.
        folded = photos and entry is not group.entries[-1]
        blocks += [html.details(f"Pictures: {entry.label}", photos)] if folded else photos
    members = [one for entry in group.entries for one in entry.evaluations]
    rows = [[one.label, json.dumps(one.fingerprint), str(one.folder / RESULTS)] for one in members]
    fingerprints = html.table(["weights", "fingerprint", "file"], rows)
    return [*blocks, html.details("Everything that moves these scores", [fingerprints])]


def _score_table(group: Group) -> str:
    main, protocol, rows = group.protocol.main_score, group.protocol, []
    others = {n: label for n, label in protocol.score_labels.items() if n not in (main, f"{main}_deviation")}
    for entry in group.entries:
        first, deviation = entry.evaluations[0], entry.deviation
        scores = [f"{first.results[name]:.1f}" for name in others]
        spread = ["–" if deviation is None else f"± {deviation:.1f}", str(len(entry.seed_scores))]
        seconds = f"{first.results['seconds']['total']:.0f}"
        rows.append([entry.label, f"{entry.score:.1f}", *spread, *scores, seconds, first.fingerprint["digest"]])
    header = ["weights", f"{protocol.score_labels[main]} (%)", "deviation", "seeds", *others.values()]
    best = max(range(len(rows)), key=lambda index: group.entries[index].score)
    counts = describe_counts(group.entries[best].evaluations[0].results)
    caption = "Deviation: of the scores of several seeds. The fingerprint differs wherever a setting does."
    caption += f" The best is a score of {counts}." if counts else ""
    return html.table([*header, "seconds", "fingerprint"], rows, own=[best], caption=caption)


def _published_table(group: Group) -> str:
    """Returns published scores by the same protocol, with this group's below; "" if there are none."""
    protocol, kind = group.protocol, group.dataset.get("kind", "")
    published = published_for(protocol.name, group.settings[protocol.name], kind)
    if not published:
        return ""
    rows = [[row.network, f"{row.scores[kind]:.1f}", row.source] for row in published]
    own = [[entry.label, f"{entry.score:.1f}", "this project"] for entry in group.entries]
    header = ["weights", f"{protocol.score_labels[protocol.main_score]} (%)", "source"]
    caption = "Published scores by this protocol on this data set."
    return html.table(header, rows + own, own=range(len(rows), len(rows + own)), caption=caption)


def _class_figure(group: Group) -> str:
    entries = [entry for entry in group.entries if entry.evaluations[0].class_scores]
    if not entries:
        return ""
    # The first, which random weights are if there are any, and the best.
    shown = entries[:1] + entries[1:][-(len(SERIES_COLORS) - 1) :]
    scores, caption = choose_classes({entry.label: entry.evaluations[0].class_scores for entry in shown})
    if any(len(entry.evaluations) > 1 for entry in shown):
        caption += " Of the first seed."
    means = {entry.label: entry.evaluations[0].score for entry in shown}
    figure = plot_class_scores(scores, means, title=group.protocol.class_label)
    return html.picture(figure, caption.strip(), description=f"{group.protocol.title}, class by class")


Scores = dict[str, dict[str, float | None]]


def choose_classes(scores: Scores) -> tuple[Scores, str]:
    """Returns the scores of the classes that some weights differ most in, and a caption if there are more."""

    def spread(name: str) -> float:
        values = [value for of in scores.values() if (value := of.get(name)) is not None]
        return max(values) - min(values) if values else -math.inf

    names = list(next(iter(scores.values())))
    if len(names) <= MOST_CLASSES:
        return scores, ""
    kept = set(sorted(names, key=spread, reverse=True)[:MOST_CLASSES])
    chosen = {label: {name: value for name, value in of.items() if name in kept} for label, of in scores.items()}
    return chosen, f"The {MOST_CLASSES} classes of {len(names)} that these weights differ most in."


def paper_section(groups: Sequence[Group]) -> str:
    """Returns all tables of the paper, with the groups' scores on the same data sets; tables without any are folded."""
    shown, folded = [], []
    for table in TABLES:
        own = own_rows(table, groups)
        (shown if own else folded).append(_render_table(table, own))
    blocks = [*shown, html.details("Tables on other data sets", folded)]
    return html.section(f"Beside the paper ({PAPER})", PAPER_TEXT if shown else NO_PAPER_TEXT, blocks)


def own_rows(table: PaperTable, groups: Sequence[Group]) -> list[list[str]]:
    """Returns the rows of a table of the paper that evaluations add: a label, and a score or "" for each column."""
    columns, found = list(zip(table.protocols, table.datasets, strict=True)), {}
    for group in groups if not table.setting else ():
        column = group.protocol.name, PAPER_DATASETS.get(group.dataset.get("kind", ""), "")
        for entry in group.entries if column in columns else ():
            name = f"{entry.label} (this project{'' if _has_paper_settings(group) else ', with other settings'})"
            best = found.setdefault(name, {})
            best[column] = max(entry.score, best.get(column, -math.inf))
    return [[name, *(f"{of[c]:.1f}" if c in of else "" for c in columns)] for name, of in found.items()]


def _has_paper_settings(group: Group) -> bool:
    settings, expected = group.settings[group.protocol.name], PROTOCOL_SETTINGS[group.protocol.name]
    return all(settings.get(name) == value for name, value in expected.items())


def _render_table(table: PaperTable, own: list[list[str]]) -> str:
    rows = [[row.label, *(f"{score:.1f}" for score in row.scores)] for row in table.rows] + own
    names = list(table.datasets)
    if len(set(table.protocols)) > 1:
        titles = (find_protocols()[name].title.split()[0].lower() for name in table.protocols)
        names = [f"{title}, {name}" for title, name in zip(titles, names, strict=True)]
    caption = f"Table {table.number}: {table.title.lower()}, mIoU (%)."
    return html.table([table.setting or "method", *names], rows, own=range(len(table.rows), len(rows)), caption=caption)
