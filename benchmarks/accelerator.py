r"""Tries a new GPU or TPU in ten minutes: are its numbers right, how fast is a step and why, does it train and resume?

    pip install -e . "jax[cuda12]"    # or "jax[tpu]", or the JAX of ROCm
    python benchmarks/accelerator.py [--images=path/to/photos] [--minutes=3] [--output=runs/accelerator]

Without --images it trains on random ones. --size=toy tries the same with tiny networks on CPU, in a minute.

Each phase is a process of its own with a time limit, as only one process may hold a TPU, and a crash must not end the
others. What fails is a row of the table at the end: OUTPUT/accelerator.md, to be pasted into docs/scaling.md, and
OUTPUT/accelerator.json. The status is 1 if something failed or is too far from the CPU's numbers.
"""

import contextlib
import functools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image
from rich.console import Console
from trial.findings import OK, Report, Row, attempt, print_rows, read_rows, write_findings
from trial.phases import environment, run_phase
from trial.sizes import SIZES, TrialSize

from croc_jax.runtime.program import UserError, define_path, run, writable

IMAGES = define_path("images", "", "A folder of photos; random images if not given.")
MINUTES = flags.DEFINE_float("minutes", 0.0, "Length of the training run; 3 by default, if they are left.")
SIZE = flags.DEFINE_enum("size", "full", list(SIZES), "full for an accelerator, toy for a test on CPU.")
OUTPUT = define_path("output", "runs/accelerator", "Where tables, logs and the trace go.")
PHASE = flags.DEFINE_string("phase", "", "Runs this phase alone, in this process; for the program itself.")
# Two starts and a few steps, where the other phases took long.
_LEAST_MINUTES = 2.0


def main() -> None:
    """Runs all phases, one after the other, and prints what they found."""
    size, folder = SIZES[SIZE.value], OUTPUT.value
    if PHASE.value:
        run_here(PHASE.value, size, folder)
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    with writable(folder, name="--output"), found_images(size, IMAGES.value) as images:
        rows = run_all(size, images, folder, console)
    devices = next((row.numbers for row in rows if row.name == "devices"), None)
    title = "Unknown devices"
    if devices is not None:
        title = f"{devices['count']} x {devices['kind']}, jax {devices['jax']}, jaxlib {devices['jaxlib']}"
    print_rows(console, title, rows)
    for file in write_findings(folder, title, rows):
        console.print(f"written: {file}")
    if any(row.is_bad for row in rows):
        raise SystemExit(1)


def run_all(size: TrialSize, images: Path, folder: Path, console: Console) -> list[Row]:
    """Returns the rows of all phases; this process uses no device, so that all are free for theirs."""
    rows, begin = [], time.monotonic()
    changes = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if SIZE.value == "toy" else {}
    # Programs of any size are kept: the toy compiles the same ones several times.
    env = environment(folder.resolve() / "cache", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", **changes)
    this = [sys.executable, str(Path(__file__).resolve())]
    this += [f"--size={SIZE.value}", f"--images={images}", f"--output={folder}"]
    for name, seconds in size.seconds.items():
        console.rule(f"{name}, at most {seconds:.0f} s")
        own = env
        if name in ("speed", "parts") and any(row.numbers.get("platform") == "gpu" for row in rows):
            # In a trace, kernels that are launched as one graph have lost their names. The same flags in both phases,
            # so that the second one finds the program in the cache; the training run shows what graphs gain.
            own = env | {"XLA_FLAGS": f"{env.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer=".strip()}
        rows += run_phase([*this, f"--phase={name}"], name=name, folder=folder, seconds=seconds, env=own)
    left = (size.total - (time.monotonic() - begin)) / 60
    minutes = MINUTES.value or min(size.minutes, max(left, _LEAST_MINUTES))
    console.rule(f"training, at most {minutes:.1f} min")
    return rows + train(size, images, folder, minutes, rows, env)


def run_here(phase: str, size: TrialSize, folder: Path) -> None:
    """Runs one phase in this process."""
    from trial import device_phases, numeric_checks

    report = Report(phase, folder / f"{phase}.jsonl", say=functools.partial(print, flush=True))
    functions = {
        "devices": lambda: device_phases.name_devices(size, report),
        "numbers": lambda: numeric_checks.check_numbers(size, str(IMAGES.value), report),
        "speed": lambda: device_phases.time_steps(size, report),
        "parts": lambda: device_phases.split_step(size, report, folder / "trace"),
    }
    attempt(report, functions[phase])


def train(
    size: TrialSize, images: Path, folder: Path, minutes: float, before: Sequence[Row], env: dict[str, str]
) -> list[Row]:
    """Returns the rows of a training run; the speed that was measured decides how long it is."""
    from trial import training

    file = folder / "training.jsonl"
    file.unlink(missing_ok=True)
    timed = next((row.numbers for row in before if row.phase == "speed" and row.verdict == OK), {})
    speed, seconds = timed.get("images_per_sec"), 60 * minutes - timed.get("compile_seconds", 60.0)
    report = Report("training", file)

    def start() -> None:
        plan = training.make_plan(size, images, folder, seconds=seconds, speed=speed, env=env)
        training.try_training(plan._replace(seconds=60 * minutes), report)

    attempt(report, start)
    return read_rows(file)


@contextlib.contextmanager
def found_images(size: TrialSize, folder: Path | None) -> Iterator[Path]:
    """Yields the given folder, or a temporary one of random images."""
    if folder:
        if not folder.is_dir():
            raise UserError(f"--images={folder}: there is no such folder")
        yield folder.resolve()
        return
    rng, (height, width) = np.random.default_rng(0), size.image_size
    with tempfile.TemporaryDirectory(prefix="images-") as temporary:
        for index in range(size.num_images):
            # Smooth shapes of all sizes, so that files are about as large as those of photos.
            noise = (Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)) for n in (3, 16, 96))
            coarse, middle, fine = (layer.resize((width, height)) for layer in noise)
            image = Image.blend(Image.blend(coarse, middle, 0.4), fine, 0.2)
            image.save(Path(temporary, f"{index:05d}.jpg"), quality=90)
        yield Path(temporary)


if __name__ == "__main__":
    run(main)
