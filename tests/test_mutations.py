"""Damaged files give values, or errors in one line; tests/mutations.py runs many more."""

import collections
import signal

import pytest

from tests.mutated_files import SUBJECTS
from tests.mutations import MUTATIONS, Folders, draw_case, find_problem, judge, run_case

SEED, COUNT = "1", 200
# These train, compile or save first.
SLOW = ("run", "scored", "trained", "safetensors", "torch", "hf")


@pytest.fixture
def alarm():
    """Ends what hangs."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("more than 60 seconds"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Pillow warns of tags that make no sense.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("alarm")
def test_damaged_files_give_values_or_one_line(tmp_path):
    cases = (number for number in range(3 * COUNT) if draw_case(SEED, number)[1] not in SLOW)
    chosen, folders = [number for number, _ in zip(cases, range(COUNT), strict=False)], Folders(tmp_path)
    found = {number: run_case(folders, SEED, number) for number in chosen}
    failures = {number: one for number, one in found.items() if one[1] == "failure"}
    assert not failures, f"repeat with: python tests/mutations.py 1 {SEED} {next(iter(failures))}\n{failures}"
    outcomes = collections.Counter(outcome for _, outcome, _ in found.values())
    assert len(found) == COUNT and outcomes["value"] > 30 and outcomes["refusal"] > 60
    assert {kind for kind, *_ in found.values()} == SUBJECTS.keys() - set(SLOW)


@pytest.mark.parametrize("kind", sorted(SUBJECTS.keys() - set(SLOW)))
def test_undamaged_files_give_values(tmp_path, kind):
    refused = {}
    for file in SUBJECTS[kind].write(tmp_path):
        outcome, text = judge(SUBJECTS[kind], tmp_path, file)
        refused |= {} if outcome == "value" else {file.name: text}
    # Of floating-point numbers, whose range no file states.
    assert refused.keys() == ({"6.tiff"} if kind == "tiff" else set())


def test_cases_repeat_themselves(tmp_path):
    found = []
    *_, first, last = (number for number in range(20) if draw_case(SEED, number)[1] not in SLOW)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        folders, known = Folders(tmp_path / name), []
        for number in (first, last) if name == "a" else (last,):
            known = run_case(folders, SEED, number)
        found.append([str(part).replace(str(folders.home), "") for part in known])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("x.jpg is empty", ""),
        ("x.jpg\nis empty", "more than a line"),
        ("it is empty", "no file named"),
        ("x.jpg: <_io.BytesIO object at 0x7f1234567890>", "an address"),
        ("x.jpg" + 2000 * "x", "2005 characters"),
    ],
)
def test_messages_that_are_no_line_are_found(tmp_path, message, problem):
    assert find_problem(message, tmp_path, tmp_path / "x.jpg") == problem


def test_every_mutation_changes_a_file():
    draw, _ = draw_case(SEED, 0)
    data = b'{"width": 640, "height": 480}' * 3
    for mutation in MUTATIONS:
        assert any(mutation(draw, data, b"other") != data for _ in range(20)), mutation
