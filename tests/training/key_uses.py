"""Which random keys a function uses, and for what, found by evaluating all that its trace knows of keys."""

from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal


class Use(NamedTuple):
    """One use of one key: `kind` is bits, split or fold_in; `data` is what a key is folded with."""

    key: tuple[int, ...]
    kind: str
    data: int | None = None


RANDOM = {"random_bits": "bits", "random_split": "split", "random_fold_in": "fold_in"}


def key_uses(closed, *args):
    """Returns all uses of keys, one for each key of an array of keys.

    Args:
        closed: a traced function, whose keys depend on constants and on concrete arguments alone.
        *args: trees of concrete arrays or of `jax.ShapeDtypeStruct`, whose values are not known.
    """
    known = [None if isinstance(leaf, jax.ShapeDtypeStruct) else leaf for leaf in jax.tree.leaves(args)]
    uses = []
    _evaluate(closed.jaxpr, closed.consts, known, uses)
    return uses


def misused(uses):
    """Returns the keys that are used twice: to draw and to derive, in two ways to derive, or with the same data."""
    kinds, seen, found = {}, set(), set()
    for use in uses:
        if use in seen or kinds.setdefault(use.key, use.kind) != use.kind:
            found.add(use.key)
        seen.add(use)
    return found


def _evaluate(jaxpr, consts, args, uses):
    """Evaluates the equations whose inputs are known; None stands for a value that is not."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    for equation in jaxpr.eqns:
        inputs = [atom.val if isinstance(atom, Literal) else values.get(atom) for atom in equation.invars]
        outputs = _equation(equation, inputs, uses)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [atom.val if isinstance(atom, Literal) else values.get(atom) for atom in jaxpr.outvars]


def _equation(equation, inputs, uses):
    name, params = equation.primitive.name, equation.params
    unknown = [None] * len(equation.outvars)
    if name in RANDOM:
        assert inputs[0] is not None, f"{name}: the key depends on values"
        _record(RANDOM[name], inputs, uses)
        return unknown if name == "random_bits" else _bind(equation, inputs)
    if name == "scan":
        return _scan(params, inputs, uses)
    inner = params.get("jaxpr", params.get("call_jaxpr"))
    if inner is not None and name != "while":
        # The backward pass of `jax.checkpoint` draws again what the forward pass drew.
        if params.get("differentiated"):
            return unknown
        closed = hasattr(inner, "consts")
        return _evaluate(inner.jaxpr if closed else inner, inner.consts if closed else (), inputs, uses)
    return unknown if any(value is None for value in inputs) or name in ("while", "cond") else _bind(equation, inputs)


def _scan(params, inputs, uses):
    body, (num_consts, num_carry) = params["jaxpr"], _scan_sizes(params, len(inputs))
    consts, carry = inputs[:num_consts], inputs[num_consts : num_consts + num_carry]
    for step in range(params["length"]):
        step = params["length"] - 1 - step if params["reverse"] else step
        rows = [None if xs is None else xs[step] for xs in inputs[num_consts + num_carry :]]
        outputs = _evaluate(body.jaxpr, body.consts, [*consts, *carry, *rows], uses)
        carry = outputs[:num_carry]
    return [*carry, *[None] * (len(body.jaxpr.outvars) - num_carry)]


def _scan_sizes(params, num_inputs):
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    # From jax 0.12 on.
    consts, carry, _ = (list(part) for part in params["ft_in"].update(range(num_inputs)).unpack())
    return len(consts), len(carry)


def _bind(equation, inputs):
    outputs = equation.primitive.bind(*inputs, **equation.params)
    return outputs if equation.primitive.multiple_results else [outputs]


def _record(kind, inputs, uses):
    keys = np.asarray(jax.random.key_data(inputs[0]))
    keys = np.broadcast_to(keys, (*np.shape(inputs[1]), keys.shape[-1])) if kind == "fold_in" else keys
    data = np.ravel(inputs[1]) if kind == "fold_in" else [None] * keys.size
    for key, folded in zip(keys.reshape(-1, keys.shape[-1]), data, strict=False):
        uses.append(Use(tuple(key.tolist()), kind, None if folded is None else int(folded)))
