"""Members from specifications, typed as what the tests need them to be."""

from divax import divergences as dv


def f_member(spec: str) -> dv.AbstractFDivergence:
    div = dv.get(spec)
    assert isinstance(div, dv.AbstractFDivergence)
    return div
