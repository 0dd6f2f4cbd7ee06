"""Accelerators that programs can be compiled for without having them."""

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from jax.experimental import topologies

# What libtpu would ask the machine about; it reads them once.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    # Its lock keeps programs from sharing chips, of which there are none.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Chip(NamedTuple):
    """An accelerator, by its data sheet.

    Attributes:
        peak: bfloat16 operations of its matrix units a second.
        bandwidth: bytes a second of its memory.
        memory: GiB.
        usable: share of the memory that a program gets; JAX takes three quarters of a GPU's.
        clock: cycles a second of the compiler's estimate; 0 where it makes none.
        description: file beside this one that the compiler for a GPU needs.
        library: Python package with its compiler.
    """

    peak: float
    bandwidth: float
    memory: float
    usable: float = 1.0
    clock: float = 0.0
    description: str = ""
    library: str = "libtpu"


CHIPS = {
    "v5e": Chip(197e12, 819e9, 16, clock=1.5e9),
    "v5p": Chip(459e12, 2765e9, 95, clock=1.75e9),
    "v6e": Chip(918e12, 1640e9, 32, clock=1.75e9),
    "h100": Chip(989e12, 3352e9, 79.1, usable=0.75, description="h100.txtpb", library="jax_cuda12_plugin"),
}


def chip_of(topology: str) -> Chip:
    """Returns the chip of a topology such as "v5e:2x2"; ValueError if it is unknown."""
    name = topology.partition(":")[0]
    if name not in CHIPS:
        raise ValueError(f"{topology}: choose one of {', '.join(f'{chip}:SIDES' for chip in CHIPS)}")
    return CHIPS[name]


def missing_library(topology: str) -> str:
    """Returns the package that has to be installed to compile for a topology; empty if it is there."""
    library = chip_of(topology).library
    return "" if importlib.util.find_spec(library) else library


def find_devices(topology: str) -> list[Any]:
    """Returns devices that programs can be compiled for, but not run on.

    Args:
        topology: chip and sides: "v5e:4x4" of a TPU's grid, "h100:1x1x8" of slices x hosts x GPUs.
    """
    chip, sides = chip_of(topology), topology.partition(":")[2]
    if chip.description:
        text = (Path(__file__).parent / chip.description).read_text(encoding="utf-8")
        return list(topologies.get_topology_desc(platform="cuda", topology=sides, target_config=text).devices)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
