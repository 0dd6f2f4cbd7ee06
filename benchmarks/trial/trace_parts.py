"""How the time of a device splits over the parts of a step, read from a trace of JAX's profiler."""

import collections
import gzip
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from programs.instructions import COMPUTATION, ORIGIN

OTHER = "other"
_MAX_UNKNOWN = 5
ATTENTION, MLP, BACKBONE = "attention", "MLP", "rest of the backbone (norms, activations, residuals)"
COLLECTIVES, CLUSTERING = "collectives", "clustering"
PARTS = (
    "augmentation", ATTENTION, MLP, BACKBONE, CLUSTERING, "heads and losses", "optimizer and teacher",
    COLLECTIVES, OTHER,
)  # fmt: skip
# The outermost scope of an operation decides: functions that several parts call keep the inner scopes of the first.
_SCOPES = {
    "augmentation": "augmentation",
    "clustering": CLUSTERING,
    "_cluster_views": CLUSTERING,
    "masks": "augmentation",
    "heads": "heads and losses",
    "ProjectionHead": "heads and losses",
    "optimizer": "optimizer and teacher",
    "VisionTransformer": BACKBONE,
    "ResNet": BACKBONE,
    "ConvNeXt": BACKBONE,
}
_SCOPE = re.compile(rf"(?<![\w.])({'|'.join(_SCOPES)})(?!\w)")
_OF_BLOCK = re.compile(r"/(attention|mlp)(?:_\d)?(?=/|$)")
_EXCHANGE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast|nccl|rccl)",
    re.IGNORECASE,
)
_RESULT = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
_CALLS = re.compile(r"\b(?:calls|to_apply)=%?([\w.\-]+)")

Event = Mapping[str, Any]


class NoLanesError(ValueError):
    """A trace has no events of a device, as on CPU; the message lists the processes that it has."""


class Split(NamedTuple):
    """What the devices did.

    Attributes:
        seconds: time by part, of all devices together.
        busy: share of the time between the first and the last event in which a device was busy, on average.
        unknown: seconds of the longest events of no known part, by name.
    """

    seconds: dict[str, float]
    busy: float
    unknown: dict[str, float]

    @property
    def shares(self) -> dict[str, float]:
        """Shares by part; they add up to 1."""
        total = sum(self.seconds.values()) or 1.0
        return {part: self.seconds.get(part, 0.0) / total for part in PARTS}


def part_of(origin: str) -> str:
    """Returns the part of an operation with scopes such as "jit(train_step)/jvp(VisionTransformer)/Block/attention"."""
    scope = _SCOPE.search(origin)
    if not scope:
        return OTHER
    part = _SCOPES[scope[1]]
    inner = _OF_BLOCK.search(origin, scope.end()) if part == BACKBONE else None
    return part if inner is None else ATTENTION if inner[1] == "attention" else MLP


def parts_of_program(text: str) -> dict[str, str]:
    """Returns the part of each instruction of a compiled program (`Compiled.as_text()`).

    A fusion without an origin belongs to the part that most of its instructions belong to.
    """
    parts, callers, votes, name = {}, {}, collections.defaultdict(collections.Counter), ""
    for line in text.splitlines():
        if match := COMPUTATION.match(line):
            name = match[2]
        elif match := _RESULT.match(line):
            origin, calls = ORIGIN.search(line), _CALLS.search(line)
            part = part_of(origin[1]) if origin else OTHER
            parts[match[2]] = part
            if part != OTHER:
                votes[name][part] += 1
            if calls:
                callers[match[2]] = calls[1]
    for instruction, called in callers.items():
        if parts[instruction] == OTHER and votes[called]:
            parts[instruction] = votes[called].most_common(1)[0][0]
    return parts


def read_trace(folder: Path) -> dict[str, Any]:
    """Returns the newest trace below a folder, in the format of trace viewers; FileNotFoundError without one."""
    files = sorted(folder.rglob("*.trace.json.gz"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f"{folder}: the profiler wrote no *.trace.json.gz")
    with gzip.open(files[-1], "rt", encoding="utf-8") as file:
        return json.load(file)


def split_time(trace: Mapping[str, Any], parts: Mapping[str, str]) -> Split:
    """Adds up what devices did, each moment of a lane once.

    Args:
        trace: from `read_trace`.
        parts: parts of the program's instructions, from `parts_of_program`.

    Raises:
        NoLanesError: if no device is in the trace, as on CPU.
    """
    seconds: dict[str, float] = collections.defaultdict(float)
    unknown: dict[str, float] = collections.defaultdict(float)
    busy = []
    for lanes in _device_lanes(trace["traceEvents"]):
        for events in lanes:
            for event, own in _own_times(events):
                part = _part_of_event(event, parts)
                seconds[part] += own
                if part == OTHER:
                    unknown[str(event["name"])] += own
        busy.append(_busy_share([event for events in lanes for event in events]))
    longest = dict(sorted(unknown.items(), key=lambda pair: -pair[1])[:_MAX_UNKNOWN])
    return Split(dict(seconds), sum(busy) / len(busy), longest)


def _device_lanes(events: Iterable[Event]) -> list[list[list[Event]]]:
    """Returns, for each device, the events of its lanes of operations, without lanes of summaries."""
    processes, names, lanes = {}, {}, collections.defaultdict(list)
    for event in events:
        lane = event.get("pid"), event.get("tid")
        if event.get("ph") == "M" and event["name"] == "process_name":
            processes[event["pid"]] = str(event["args"]["name"])
        elif event.get("ph") == "M" and event["name"] == "thread_name":
            names[lane] = str(event["args"]["name"])
        elif event.get("ph") == "X":
            lanes[lane].append(event)
    devices = {pid: name for pid, name in processes.items() if name.startswith("/device:") and "CUSTOM" not in name}
    found = []
    for device in devices:
        own = [lane for lane in lanes if lane[0] == device]
        # A GPU has streams; a TPU has one lane of operations, beside others of steps, modules and scopes.
        kept = [lane for lane in own if names.get(lane, "").startswith("Stream")]
        kept = kept or [lane for lane in own if names.get(lane) == "XLA Ops"]
        if kept:
            found.append([lanes[lane] for lane in kept])
    if not found:
        threads = (f"{devices[lane[0]]} {name}" for lane, name in names.items() if lane[0] in devices)
        listed = {*processes.values(), *threads}
        raise NoLanesError(f"no device lanes in the trace, which has {', '.join(sorted(listed)) or 'nothing'}")
    return found


def _own_times(events: Iterable[Event]) -> list[tuple[Event, float]]:
    """Returns seconds of each event without the events inside it: a loop has its rounds inside."""
    found: list[list[Any]] = []
    open_events: list[tuple[float, int]] = []
    for event in sorted(events, key=lambda event: (event["ts"], -event.get("dur", 0.0))):
        begin, length = event["ts"], event.get("dur", 0.0)
        while open_events and open_events[-1][0] <= begin:
            open_events.pop()
        if open_events:
            end, outer = open_events[-1]
            found[outer][1] -= min(length, end - begin)
        open_events.append((begin + length, len(found)))
        found.append([event, length])
    return [(event, max(own, 0.0) / 1e6) for event, own in found]


def _busy_share(events: Iterable[Event]) -> float:
    """Returns the share of the time from the first event's begin to the last one's end that is within any event."""
    spans = sorted((event["ts"], event["ts"] + event.get("dur", 0.0)) for event in events)
    covered, reached = 0.0, spans[0][0]
    for begin, end in spans:
        covered += max(end - max(begin, reached), 0.0)
        reached = max(reached, end)
    return covered / ((reached - spans[0][0]) or 1.0)


def _part_of_event(event: Event, parts: Mapping[str, str]) -> str:
    """Returns the part of an event, by the instruction that it names or by the scopes that it carries."""
    args = event.get("args", {})
    instruction = str(args.get("hlo_op", event["name"]))
    if _EXCHANGE.search(instruction) or _EXCHANGE.match(str(event["name"])):
        return COLLECTIVES
    # Several launches of one instruction may have numbers added to its name.
    for name in (instruction, instruction.rpartition(".")[0], str(event["name"])):
        if parts.get(name, OTHER) != OTHER:
            return parts[name]
    scopes = (part_of(str(args.get(name, ""))) for name in ("name", "tf_op", "long_name"))
    return next((part for part in scopes if part != OTHER), OTHER)
