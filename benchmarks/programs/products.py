"""Counts multiplications and additions of the matrix products of a compiled program, one operation at a time."""

import functools
import json
import math
import re
from collections.abc import Sequence

# The windows of one operation, with the values of those that it leaves out.
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_CONTRACTING = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CONFIG = re.compile(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]')
_SCORES = re.compile(r'"intermediate_tensor_shape":\s*(\{.*?"dimensions":\s*\[[^\]]*\])')
_GEMM = ("__cublas$", "__triton_gemm", "__cudnn$gemm")
_ATTENTION = "__cudnn$fmha"

Shape = tuple[int, ...]


def product_flops(operation: str, line: str, result: Shape, operands: Sequence[Shape]) -> int:
    """Returns the multiplications and additions of an operation; 0 if it is no matrix product.

    Args:
        operation: "dot", "convolution" (products on TPUs), "custom-call" (of libraries on GPUs), or another kind.
        line: the operation's line of the program, with its attributes.
        result: sides of the (first) result.
        operands: sides of the operands.

    Raises:
        ValueError: for a product whose attributes cannot be read.
    """
    if operation == "dot":
        return _dot(result, operands[0], _match(_CONTRACTING, line)[1])
    if operation == "convolution":
        return _convolution(line, result, operands[0], operands[1])
    if operation != "custom-call" or not (target := _TARGET.search(line)):
        return 0
    if target[1].startswith(_ATTENTION):
        return _attention(line, operands[0], backward=target[1].endswith("Backward"))
    if target[1].startswith(_GEMM):
        return _dot(result, operands[0], _match(_CONFIG, line)[1].replace('"', "").replace(" ", ""))
    return 0


def _match(pattern: re.Pattern, line: str) -> re.Match:
    if not (match := pattern.search(line)):
        raise ValueError(f"a product without {pattern.pattern}: {line.strip()[:200]}")
    return match


def _dot(result: Shape, left: Shape, contracting: str) -> int:
    return 2 * math.prod(result) * math.prod(left[int(axis)] for axis in contracting.split(",") if axis)


def _convolution(line: str, result: Shape, left: Shape, right: Shape) -> int:
    """Counts pairs of a result and an entry of the window that hit a number, not padding or a hole.

    Batched products have their batch as a spatial axis, with a window as large that hits one number each time.
    """
    left_labels, right_labels, result_labels = _match(_LABELS, line).groups()
    match = _WINDOW.search(line)
    fields = (field.split("=") for field in match[1].split()) if match else ()
    # {"size": ["16", "3"], ...}: one value for each spatial axis.
    windows = {name: values.split("x") for name, values in fields}
    count = result[result_labels.index("b")] * result[result_labels.index("f")] * right[right_labels.index("i")]
    for axis in sorted(set(left_labels) - {"b", "f"}):
        sizes = left[left_labels.index(axis)], result[result_labels.index(axis)], right[right_labels.index(axis)]
        window = {name: values[int(axis)] for name, values in windows.items()}
        low = int(window.get("pad", "0_0").split("_")[0])
        dilation = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
        count *= _pairs(*sizes, int(window.get("stride", 1)), low, *dilation)
    return 2 * count


@functools.cache
def _pairs(size: int, results: int, window: int, stride: int, low: int, dilation: int, spread: int) -> int:
    """Returns how many entries of a window hit a number, over all results of an axis."""
    last, found = (size - 1) * dilation, 0
    for place in range(-low, results * stride - low, stride):
        if spread == 1:
            found += max(min(place + window - 1, last) // dilation - (max(place, 0) - 1) // dilation, 0)
        else:
            hit = range(place, place + window * spread, spread)
            found += sum(0 <= entry <= last and entry % dilation == 0 for entry in hit)
    return found


def _attention(line: str, query: Shape, *, backward: bool) -> int:
    """Counts the products of scores and values, or the five of the backward pass, which has the scores again."""
    scores = json.loads(f"{_match(_SCORES, line)[1]}}}")["dimensions"]
    return (10 if backward else 4) * math.prod(map(int, scores)) * query[-1]
