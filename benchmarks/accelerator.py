r"""Tries a new GPU or TPU in ten minutes: are its numbers right, how fast is a step and why, does it train and resume?

    pip install -e . "jax[cuda12]"    # or "jax[tpu]", or the JAX of ROCm
    python benchmarks/accelerator.py [--images=path/to/photos] [--minutes=3] [--output=runs/accelerator]

Without --images it draws scenes. --size=toy tries the same with tiny networks on CPU, in a minute.

Each phase is a process of its own, as only one may hold a TPU, and a crash leaves the others alone. Each has its
time, and what fails is a row of the table that ends it all: OUTPUT/accelerator.md, to be pasted into
docs/scaling.md, and OUTPUT/accelerator.json. The status is 1 if something failed or is too far from the CPU's numbers.
"""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# The name of a variable that both programs share is in launch, the generator of scenes in examples.
sys.path.extend(str(Path(__file__).resolve().parent.parent / folder) for folder in ("launch", "examples"))

from absl import app, flags  # noqa: E402
from findings import OK, Report, Row, attempt, print_rows, read_rows, write_findings  # noqa: E402
from phases import environment, python, run_phase  # noqa: E402
from PIL import Image  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from scenes import make_scene  # noqa: E402
from trial_sizes import SIZES, TrialSize  # noqa: E402

IMAGES = flags.DEFINE_string("images", "", "A folder of photos; scenes are drawn if not given.")
MINUTES = flags.DEFINE_float("minutes", 0.0, "Of training, from start to end; 3 by default, if they are left.")
SIZE = flags.DEFINE_enum("size", "full", list(SIZES), "full for a card, toy for a test on CPU.")
OUTPUT = flags.DEFINE_string("output", "runs/accelerator", "Where tables, logs and the trace go.")
PHASE = flags.DEFINE_string("phase", "", "Runs this phase alone, in this process; for the program itself.")
# Scenes that one process draws in less time than others take to start.
_FEW_SCENES = 64
# Two starts and a few steps, where the other phases took long.
_LEAST_MINUTES = 2.0


def main(_: Sequence[str]) -> None:
    """Runs all phases, one after the other, and tells what they found."""
    size, folder = SIZES[SIZE.value], Path(OUTPUT.value)
    if PHASE.value:
        run_here(PHASE.value, size, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    with found_images(size, IMAGES.value) as images:
        rows = run_all(size, images, folder, console)
    title = title_of(rows)
    print_rows(console, title, rows)
    for file in write_findings(folder, title, rows):
        console.print(f"written: {file}")
    if any(row.is_bad for row in rows):
        raise SystemExit(1)


def run_all(size: TrialSize, images: Path, folder: Path, console: Console) -> list[Row]:
    """Returns the rows of all phases; this process starts no backend, so that the devices are free for theirs."""
    rows, cache, begin = [], folder.resolve() / "cache", time.monotonic()
    changes = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if SIZE.value == "toy" else {}
    # Programs of any size are kept: the toy compiles the same ones several times.
    env = environment(cache, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", **changes)
    this = python(str(Path(__file__).resolve()), f"--size={SIZE.value}", f"--images={images}", f"--output={folder}")
    for name, seconds in size.seconds.items():
        console.rule(f"{name}, at most {seconds:.0f} s")
        # Alike in both, so that the second one finds the program that the first one compiled.
        own = env | {"XLA_FLAGS": traced_flags(env, rows)} if name in ("speed", "parts") else env
        rows += run_phase([*this, f"--phase={name}"], name=name, folder=folder, seconds=seconds, env=own)
    # Whoever asks for a longer run gets it.
    left = (size.total - (time.monotonic() - begin)) / 60
    minutes = MINUTES.value or min(size.minutes, max(left, _LEAST_MINUTES))
    console.rule(f"training, at most {minutes:.1f} min")
    rows += train(size, images, folder, minutes, rows, env)
    return rows


def run_here(phase: str, size: TrialSize, folder: Path) -> None:
    """Runs one phase in this process."""
    import device_phases
    import numeric_checks

    report = Report(phase, folder / f"{phase}.jsonl", say=functools.partial(print, flush=True))
    functions = {
        "devices": lambda: device_phases.name_devices(size, report),
        "numbers": lambda: numeric_checks.check_numbers(size, IMAGES.value, report),
        "speed": lambda: device_phases.time_steps(size, report),
        "parts": lambda: device_phases.split_step(size, report, folder / "trace"),
    }
    attempt(report, functions[phase])


def train(
    size: TrialSize, images: Path, folder: Path, minutes: float, before: Sequence[Row], env: dict[str, str]
) -> list[Row]:
    """Returns the rows of a run of the training program; the speed that was measured decides how long it is."""
    import training_trial

    file = folder / "training.jsonl"
    file.unlink(missing_ok=True)
    timed = next((row.numbers for row in before if row.phase == "speed" and row.verdict == OK), {})
    speed, compile_seconds = timed.get("images_per_sec"), timed.get("compile_seconds", 60.0)

    def start() -> None:
        plan = training_trial.make_plan(
            size, images, folder, minutes=minutes, speed=speed, compile_seconds=compile_seconds, env=env
        )
        training_trial.try_training(plan, report)

    report = Report("training", file)
    attempt(report, start)
    return read_rows(file)


def traced_flags(env: dict[str, str], rows: Sequence[Row]) -> str:
    """Returns the flags of XLA for a trace: on a GPU, kernels that are launched as one graph would lose their names.

    The training at the end has the flags of its user, and so says what graphs gain.
    """
    on_gpu = any(row.numbers.get("platform") == "gpu" for row in rows)
    return f"{env.get('XLA_FLAGS', '')} {'--xla_gpu_enable_command_buffer=' if on_gpu else ''}".strip()


def title_of(rows: Sequence[Row]) -> str:
    """Names the devices and the versions, as far as they are known."""
    told = next((row.numbers for row in rows if row.name == "devices"), None)
    if told is None:
        return "Unknown devices"
    return f"{told['count']} x {told['kind']}, jax {told['jax']}, jaxlib {told['jaxlib']}"


@contextlib.contextmanager
def found_images(size: TrialSize, folder: str) -> Iterator[Path]:
    """Returns the folder that was given, or a temporary one of scenes."""
    if folder:
        if not Path(folder).is_dir():
            raise app.UsageError(f"--images={folder}: there is no such folder")
        yield Path(folder).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="scenes-") as drawn:
        draw = functools.partial(draw_scene, drawn, size.image_size)
        if size.num_images <= _FEW_SCENES:
            for index in range(size.num_images):
                draw(index)
        else:
            # A fork of a process with threads, as JAX has them, may hang.
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
                done = pool.map(draw, range(size.num_images), chunksize=8)
                for _ in track(done, description="drawing scenes", total=size.num_images):
                    pass
        yield Path(drawn)


def draw_scene(folder: str, size: tuple[int, int], index: int) -> None:
    """Writes a scene as a JPEG, enlarged: drawing takes longer than reading, which is to be tried at a usual size."""
    image = Image.fromarray(make_scene(0, "train", index, size=size).image)
    image.resize((2 * size[1], 2 * size[0]), Image.Resampling.BICUBIC).save(
        Path(folder, f"{index:05d}.jpg"), quality=90
    )


if __name__ == "__main__":
    app.run(main)
