"""All equations of a traced function, those of the functions that it calls too."""


def equations(jaxpr):
    """Yields the equations of a jaxpr as often as they are called; a loop's once."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else (parameter,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)
