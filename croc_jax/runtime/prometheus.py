"""The latest numbers of a run in the text format of Prometheus, for the textfile collector of its node exporter."""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

FILE_NAME = "metrics.prom"


def format_prometheus(row: Mapping[str, float], *, run: str, now: float) -> str:
    """Returns a gauge `croc_NAME{run="..."}` for each number of a row, and the time of the row.

    Args:
        row: of metrics.jsonl.
        run: a name for the run.
        now: seconds since 1970.
    """
    escaped = run.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines = []
    for name, value in {**row, "logged_timestamp_seconds": now}.items():
        gauge = "croc_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
        lines += [f"# TYPE {gauge} gauge", f'{gauge}{{run="{escaped}"}} {_number(value)}']
    return "\n".join(lines) + "\n"


def write_prometheus(workdir: Path, row: Mapping[str, float]) -> None:
    """Replaces WORKDIR/metrics.prom in one move: a reader sees the old numbers or the new ones.

    Raises:
        OSError: if it cannot be written; the old file is as it was.
    """
    file = workdir / FILE_NAME
    # The collector reads all that ends in .prom.
    new = file.with_name(FILE_NAME + ".tmp")
    try:
        new.write_text(format_prometheus(row, run=workdir.resolve().name, now=time.time()), encoding="utf-8")
        os.replace(new, file)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def _number(value: float) -> str:
    text = repr(float(value))
    return {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}.get(text, text)
