"""A whole run in a file that knows arrays by name alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

# A name that only such a file has.
_MARK = "croc_loss.center"
_EPOCH = "epoch"


def flatten_run(contents: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns {"student.backbone.cls_token": x, ...} for {"student": {"module.backbone.cls_token": x}, ...}."""
    flat = {}
    for part, value in contents.items():
        arrays = value if isinstance(value, Mapping) else {}
        flat |= {f"{part}.{name.removeprefix('module.')}": array for name, array in arrays.items()}
    return flat | {_EPOCH: np.asarray(contents[_EPOCH], np.int64)}


def nest_run(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the inverse of `flatten_run`, without the wrapper "module"; arrays of other files as they are."""
    if _MARK not in arrays:
        return dict(arrays)
    contents: dict[str, Any] = {}
    for name, array in arrays.items():
        part, _, rest = name.partition(".")
        if rest:
            contents.setdefault(part, {})[rest] = array
    epoch = arrays.get(_EPOCH)
    if isinstance(epoch, np.ndarray) and epoch.size == 1 and epoch.dtype.kind in "iu":
        contents[_EPOCH] = int(epoch.item())
    return contents
