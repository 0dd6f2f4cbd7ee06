"""Reads many batches and says how much memory that leaves behind."""

import os
from pathlib import Path

from rich.progress import track

from croc_jax.data.config import ViewsConfig
from croc_jax.data.pipeline import make_dataset
from croc_jax.data.sources import FolderSource

PARTS = 20


def soak(folder: Path, *, batches: int, workers: int = 2) -> None:
    """Prints the memory of this process and its workers after each twentieth of the batches."""
    dataset = make_dataset(FolderSource(folder), views=ViewsConfig(crop_size=32), batch_size=8, seed=0)
    with dataset.iterate(num_workers=workers, num_threads=1) as stream:
        used = []
        for part in track(range(PARTS), description=f"{batches} batches"):
            for _ in range(batches // PARTS):
                next(stream)
            used.append(_resident_mib())
            print(f"after {(part + 1) * (batches // PARTS)} batches: {used[-1]:.0f} MiB")
    print(f"growth from the first part to the last: {100 * (used[-1] / used[0] - 1):+.1f}%")


def _resident_mib() -> float:
    """Memory of this process and all below it, shared pages counted by their share (Linux)."""
    total, waiting = 0, [os.getpid()]
    while waiting:
        process = waiting.pop()
        for task in Path(f"/proc/{process}/task").iterdir():
            waiting += map(int, (task / "children").read_text().split())
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
