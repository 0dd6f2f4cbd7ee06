"""What a person sees of a run."""

import io

from rich.console import Console

from croc_jax.runtime import progress
from croc_jax.runtime.progress import RunProgress


def watch(steps, *, terminal):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=200)
    with RunProgress(console, start=0, total=10) as display:
        for step in steps:
            display.advance(step)
            display.show({"step": step, "loss": 3.25, "num_clusters": 4.5, "images_per_sec": 88.0})
    return output.getvalue()


def test_elsewhere_than_on_a_terminal_there_is_a_line_now_and_then(monkeypatch):
    lines = watch(range(1, 11), terminal=False).splitlines()
    assert [line.split()[1] for line in lines] == ["1/10", "10/10"]
    assert "(100.0%)  loss 3.250  K 4.50  88.0 images/s  ETA 0:00:00" in lines[-1]
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    assert len(watch(range(1, 11), terminal=False).splitlines()) == 10


def test_a_terminal_shows_a_bar_with_the_numbers():
    text = watch([5], terminal=True)
    assert "pre-training" in text and "5/10" in text and "loss 3.250  K 4.50  88.0 images/s" in text


def test_other_bars_come_and_go():
    output = io.StringIO()
    with RunProgress(Console(file=output, force_terminal=True, width=200), start=2, total=10) as display:
        with display.bars() as bars:
            assert list(bars.track([1, 2], description="batches of val")) == [1, 2]
        display.advance(5)
    assert "batches of val" in output.getvalue() and len(display._bar.tasks) == 1
