"""Object ids in the masks of videos: objects are the ids of the first mask, and 255 is void."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from croc_jax.data.labeled.label_files import IGNORED, Ids, read_ids

# More ids than this are the gray values of a soft edge.
MOST_OBJECTS = 100


def read_mask(file: Path) -> Ids:
    """Returns object ids; void becomes background, as in davis2017-evaluation.

    Raises:
        ValueError: as `read_ids`.
    """
    ids = read_ids(file)
    return np.where(ids == IGNORED, np.uint8(0), ids)


def find_objects(file: Path) -> list[int]:
    """Returns the ids of the objects in the first mask of a video, in their order.

    Raises:
        ValueError: as `read_ids`, and for a mask without an object, with several that void outweighs, or with so many
            ids that they cannot be objects.
    """
    counts = np.bincount(read_ids(file).ravel(), minlength=IGNORED + 1)
    objects = (np.flatnonzero(counts[1:IGNORED]) + 1).tolist()
    held = summarize_ids(np.flatnonzero(counts).tolist())
    # Beside one object, the rest may well be void; beside several ids, 255 is an object with soft edges.
    if len(objects) != 1 and counts[IGNORED] > counts[objects].sum():
        raise ValueError(
            f"{file} holds {held}, and {IGNORED} is void, not an object: save objects as 1, 2 and so on, and "
            "pixels that do not count as 0"
        )
    if not objects:
        raise ValueError(f"{file} holds {held}, so no object: number objects from 1, or leave the sequence out")
    if len(objects) > MOST_OBJECTS:
        raise ValueError(
            f"{file} holds {held}, {len(objects)} objects: these are gray values, not ids; save one id an object, "
            "without soft edges"
        )
    return objects


def summarize_ids(ids: Sequence[object], *, most: int = 8) -> str:
    """Returns ids or names as a text, the middle of many left out.

    Examples:
        >>> summarize_ids([0]), summarize_ids([0, 2, 255]), summarize_ids(list(range(90)), most=4)
        ('only 0', '0, 2 and 255', '0, 1, 2 ... 89')
    """
    if len(ids) < 2:
        return "only " + ("no id" if not ids else str(ids[0]))
    names = list(map(str, ids))
    if len(ids) > most:
        return f"{', '.join(names[: most - 1])} ... {names[-1]}"
    return f"{', '.join(names[:-1])} and {names[-1]}"
