"""Damages files of every kind that the package reads, at random, and says what comes of it.

    PYTHONPATH=. python tests/mutations.py [NUMBER] [SEED] [FIRST] [KIND ...]

A damaged file must give a value, or an error that the programs turn into one line: of a known type, short, with the
name of the file. All else is a failure: another error, a crash of the interpreter, more than 10 seconds, or 1 GiB. Each
case is a function of its seed and number (but for times that checkpoints hold), and a failure is printed with the
command that repeats it alone.
"""

import collections
import contextlib
import json
import pathlib
import queue
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import traceback

from tests.mutated_files import SUBJECTS

SECONDS, SECONDS_TO_START = 10, 300
MEMORY_BYTES = 2**30
LONGEST_MESSAGE = 2000
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)
# Of headers, the part that states sizes.
HEADER_BYTES = 256
# Kinds whose files are put in the place of others.
DONORS = ("png", "tar", "list", "metrics")
WORDS = (
    b"-1", b"0", b"0.5", b"1e400", b"99999999999999999999", b"NaN", b"null", b"true", b'""', b'"x"', b"[]", b"{}",
    b"\0", b"\xff\xfe", b"\xe9", b"\n", b"\r\n", b"../", b"[[[[",
)  # fmt: skip


JSON_VALUES = (
    None, True, -1, 0, 1, 3, 0.5, 2**31, 2**64, 10**30, float("nan"), float("inf"), "", "x", "\0", "../..", "\ud800",
    [], {}, [[]], [None], {"": 1}, [1, 2, 3], "a\nb", "0" * 5000,
)  # fmt: skip


def draw_case(seed, number):
    """Returns random numbers of a case, and its kind."""
    draw = random.Random(f"{seed} {number}")
    return draw, draw.choices(list(SUBJECTS), [subject.weight for subject in SUBJECTS.values()])[0]


def damage(draw, data, donor, subject):
    """Returns damaged bytes; `donor` is another file."""
    if subject.opened and draw.random() < 0.5:
        unpack, pack = subject.opened
        return pack(data, mutate(draw, unpack(data), donor))
    data = mutate(draw, data, donor)
    if draw.random() < 0.5:
        # What cannot be parsed any more needs no checksum.
        with contextlib.suppress(Exception):
            return subject.repair(data)
    return data


def mutate(draw, data, donor):
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        data = draw.choice(MUTATIONS)(draw, data, donor)
    return data


def flip_bits(draw, data, donor):
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 64)) if data else 0):
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncate(draw, data, donor):
    return data[: place(draw, data)]


def insert(draw, data, donor):
    at = place(draw, data)
    return data[:at] + draw.randbytes(draw.choice((1, 3, 64, 1000))) + data[at:]


def remove(draw, data, donor):
    first, last = sorted((place(draw, data), place(draw, data)))
    return data[:first] + data[last:]


def erase(draw, data, donor):
    first, last = sorted((place(draw, data), place(draw, data)))
    return data[:first] + bytes(last - first) + data[last:]


def repeat(draw, data, donor):
    first, last = sorted((place(draw, data), place(draw, data)))
    return data[:last] + data[first:last] * draw.choice((1, 1, 10)) + data[last:]


def splice(draw, data, donor):
    return data[: place(draw, data)] + donor[place(draw, donor) :]


def swap(draw, data, donor):
    return draw.choice((donor, donor, b"", b"[" * 100_000, draw.randbytes(100), data + donor, 2 * data))


def edit_number(draw, data, donor):
    """Writes an extreme number where a header may state a size."""
    size, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
    value = (draw.choice(EXTREMES) % 256**size).to_bytes(size, order)
    at = min(place(draw, data[:HEADER_BYTES]), max(len(data) - size, 0))
    return data[:at] + value + data[at + size :]


def edit_word(draw, data, donor):
    """Replaces a number or a word of a text."""
    found = list(re.finditer(rb'-?\d+(\.\d+)?|"[^"]*"|true|false|null|\w+', data[:100_000]))
    if not found:
        return data
    match = draw.choice(found)
    new = draw.choice((*WORDS, draw.choice(found)[0]))
    return data[: match.start()] + new + data[match.end() :]


def edit_json(draw, data, donor):
    """Replaces, removes or repeats a value at any depth of a JSON file, or of one of its lines."""
    lines = data.split(b"\n")
    number = draw.randrange(len(lines))
    for found, merge in (
        (data, bytes),
        (lines[number], lambda new: b"\n".join([*lines[:number], new, *lines[number + 1 :]])),
    ):
        with contextlib.suppress(ValueError, RecursionError):
            content = [json.loads(found)]
            draw_edit(draw, draw.choice(list(containers(content))))
            return merge(json.dumps(content[0] if content else None).encode())
    return flip_bits(draw, data, donor)


def containers(value):
    """Yields all lists and dictionaries that hold something."""
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def draw_edit(draw, container):
    key = draw.choice(list(container) if isinstance(container, dict) else range(len(container)))
    edit = draw.random()
    if edit < 0.2:
        del container[key]
    elif edit < 0.3 and isinstance(container, list):
        container.insert(key, container[key])
    else:
        others = (*container.values(),) if isinstance(container, dict) else (*container,)
        container[key] = draw.choice((*JSON_VALUES, draw.choice(others)))


def place(draw, data):
    """Draws a place, near the start as often as anywhere."""
    return draw.randint(0, min(len(data), HEADER_BYTES) if draw.random() < 0.5 else len(data))


MUTATIONS = (
    flip_bits, flip_bits, truncate, insert, remove, erase, repeat, splice, swap, edit_number, edit_number, edit_word,
    edit_word, edit_json, edit_json, edit_json,
)  # fmt: skip


class Folders:
    """The undamaged files of each kind, written when they are first needed."""

    def __init__(self, home):
        self.home, self.known = pathlib.Path(home), {}

    def files(self, kind):
        if kind not in self.known:
            root = self.home / kind
            root.mkdir()
            files = SUBJECTS[kind].write(root)
            self.known[kind] = {file: file.read_bytes() for file in files}
            # Imports and compilation belong to no case.
            for file in files:
                outcome, text = judge(SUBJECTS[kind], root, file)
                assert outcome != "failure", (file, text)
        return self.home / kind, self.known[kind]


def read_status(name):
    """Returns a number of bytes that Linux knows about this process."""
    return 1024 * int(re.search(rf"{name}:\s*(\d+)", pathlib.Path("/proc/self/status").read_text())[1])


def run_case(folders, seed, number, *, show=False):
    """Returns kind, outcome ("value", "refusal" or "failure") and a text."""
    draw, kind = draw_case(seed, number)
    root, originals = folders.files(kind)
    file = draw.choice(list(originals))
    others = folders.files(draw.choice(DONORS))[1] if draw.random() < 0.1 else originals
    damaged = damage(draw, originals[file], draw.choice(list(others.values())), SUBJECTS[kind])
    read_from = file
    if SUBJECTS[kind].suffixes and draw.random() < 0.2:
        read_from = file.with_name(f"renamed{draw.choice(SUBJECTS[kind].suffixes)}")
    read_from.write_bytes(damaged)
    try:
        return kind, *judge(SUBJECTS[kind], root, read_from, show=show)
    finally:
        if read_from != file:
            read_from.unlink()
        file.write_bytes(originals[file])


def judge(subject, root, file, *, show=False):
    """Reads a damaged file; returns outcome and text."""
    try:
        subject.read(root, file)
    except (ValueError, FileNotFoundError) as error:
        problem = find_problem(str(error), root, file)
        if show:
            traceback.print_exc()
        return ("failure", f"{problem}: {type(error).__name__}: {error}") if problem else ("refusal", str(error))
    except Exception as error:
        if show:
            traceback.print_exc()
        return "failure", f"{type(error).__name__}: {error} ({innermost(error)})"
    return "value", ""


def innermost(error):
    """Returns the line of the package, or else of the tests, that an error passed last."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "croc_jax" in frame.filename] or frames
    return f"{'/'.join(pathlib.Path(ours[-1].filename).parts[-2:])}:{ours[-1].lineno}"


def find_problem(message, root, file):
    """Returns what is wrong with a message, or nothing."""
    if "\n" in message or "\r" in message:
        return "more than a line"
    if len(message) > LONGEST_MESSAGE:
        return f"{len(message)} characters"
    if re.search(" at 0x[0-9a-f]{6}", message):
        return "an address"
    return "" if file.name in message or str(root) in message else "no file named"


def work(seed, numbers, *, show=False):
    """Runs cases and prints a line of JSON for each."""
    with tempfile.TemporaryDirectory(prefix="mutations") as home:
        folders = Folders(home)
        for kind in dict.fromkeys([*DONORS, *(draw_case(seed, number)[1] for number in numbers)]):
            folders.files(kind)
        if not show:
            # So that no case takes the memory of the machine, or finds that it has enough.
            most = read_status("VmSize") + 4 * MEMORY_BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        print(json.dumps("ready"), flush=True)
        for number in numbers:
            # Starts the peak again from the present use.
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            before = read_status("VmHWM")
            kind, outcome, text = run_case(folders, seed, number, show=show)
            if (used := read_status("VmHWM") - before) > MEMORY_BYTES:
                outcome, text = "failure", f"{used / 2**30:.1f} GiB: {text}"
            print(json.dumps([number, outcome, text[:3000].replace(home, "")]), flush=True)


def forward(stream, lines):
    """Puts the lines of a stream in a queue, and an empty one at its end."""
    for line in stream:
        lines.put(line)
    lines.put(b"")


def run_in_child(seed, numbers):
    """Yields (number, outcome, text) of cases that another process runs; a crash or a hang ends it and counts."""
    code = "import sys, json; from tests.mutations import work; work(sys.argv[1], json.loads(sys.argv[2]))"
    while numbers:
        lines = queue.Queue()
        with tempfile.TemporaryFile() as log:
            child = subprocess.Popen(
                [sys.executable, "-c", code, str(seed), json.dumps(numbers)], stdout=subprocess.PIPE, stderr=log
            )
            threading.Thread(target=forward, args=(child.stdout, lines), daemon=True).start()
            done, seconds, line = -1, SECONDS_TO_START, b"-"
            try:
                while line := lines.get(timeout=seconds):
                    if done >= 0:
                        yield json.loads(line)
                    done, seconds = done + 1, SECONDS
            except queue.Empty:
                pass
            finally:
                child.kill()
                status = child.wait()
            if done < 0:
                log.seek(0)
                raise SystemExit(f"the undamaged files cannot be read:\n{log.read().decode(errors='replace')[-3000:]}")
            if line and done < len(numbers):
                yield [numbers[done], "failure", f"more than {SECONDS} seconds"]
            elif done < len(numbers):
                log.seek(0)
                yield [
                    numbers[done],
                    "failure",
                    f"crash, status {status}: {log.read()[-1000:].decode(errors='replace')}",
                ]
            numbers = numbers[done + 1 :]


def main(count, seed, first, kinds):
    """Prints failures and a table; returns whether there were none."""
    numbers = []
    while len(numbers) < count:
        if not kinds or draw_case(seed, first)[1] in kinds:
            numbers.append(first)
        first += 1
    if count == 1:
        work(str(seed), numbers, show=True)
        return True
    tallies = collections.defaultdict(collections.Counter)
    # A fresh process now and then: what leaks shows in none of them.
    for start in range(0, count, 2000):
        for number, outcome, text in run_in_child(seed, numbers[start : start + 2000]):
            kind = draw_case(seed, number)[1]
            tallies[kind][outcome] += 1
            if outcome == "failure":
                print(f"{kind}: {text[:600]!r}\n    python tests/mutations.py 1 {seed} {number}", flush=True)
    print(f"{'kind':<16}{'cases':>8}{'values':>8}{'refusals':>10}{'failures':>10}")
    for kind in sorted(tallies):
        row = [tallies[kind].total(), *(tallies[kind][outcome] for outcome in ("value", "refusal", "failure"))]
        print(f"{kind:<16}{row[0]:>8}{row[1]:>8}{row[2]:>10}{row[3]:>10}")
    failures = sum(tally["failure"] for tally in tallies.values())
    print(f"{count} mutations, seed {seed}: {failures} failures")
    return not failures


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    count, seed, first = [*given, *(1000, random.randrange(2**32), 0)[len(given) :]]
    unknown = [argument for argument in sys.argv[1 + len(given) :] if argument not in SUBJECTS]
    if unknown:
        raise SystemExit(f"no kind {unknown[0]}: choose of {', '.join(SUBJECTS)}")
    raise SystemExit(not main(count, seed, first, sys.argv[1 + len(given) :]))
