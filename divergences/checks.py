"""Proves a divergence right, or names the law that it breaks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from divax.divergences import derivative_laws, generator_laws, support_laws, value_laws
from divax.divergences.base import AbstractDivergence
from divax.divergences.law import Law, Trial, Verdict, named_law, verdict_of

LAWS: Mapping[str, Law] = MappingProxyType(
    {
        one.name: one
        for one in (
            derivative_laws.transformations,
            value_laws.shape_and_dtype,
            value_laws.half_precision,
            value_laws.non_negative,
            value_laws.zero_at_equality,
            value_laws.flat_at_equality,
            value_laws.separates,
            value_laws.shift_invariant,
            value_laws.permutation_equivariant,
            value_laws.duality,
            value_laws.data_processing,
            value_laws.curvature,
            value_laws.precise_near_equality,
            support_laws.absent_tokens,
            support_laws.one_sided_tokens,
            support_laws.support_policies,
            support_laws.one_hot,
            support_laws.empty_rows,
            support_laws.never_nan,
            support_laws.single_token,
            support_laws.large_vocabulary,
            derivative_laws.model_gradient,
            derivative_laws.target_gradient,
            derivative_laws.forward_mode,
            derivative_laws.second_order,
            derivative_laws.parameter_gradient,
            generator_laws.standard_form,
            generator_laws.generator_sum,
            generator_laws.generator_derivatives,
            generator_laws.link,
            generator_laws.inverses,
            generator_laws.conjugate,
            generator_laws.limits,
        )
    }
)
"""The laws by name, in the order in which they are tried."""


def check_divergence(
    div: AbstractDivergence,
    *,
    laws: Iterable[str] | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
) -> tuple[Verdict, ...]:
    """Tries a divergence on every law that it must obey, in double precision where that decides.

    What a divergence is decides what it must obey: generators only f-divergences, curvature only what `normalized`
    accepts, data processing f-divergences and classes that say `data_processing = True`. A class excuses itself
    from others by `known_exceptions`, a mapping from a law's name to the reason; the reason is then in the verdict.

    Args:
        div: the divergence.
        laws: names from `LAWS` to try, all when None. Laws named here are tried even where they would be skipped.
        vocab_size: the one V that the divergence understands (that of its cost matrix or embedding); None for any.
        seed: of the random inputs.

    Returns:
        A verdict per law, the skipped ones included.

    Raises:
        BrokenLaw: at the first law broken, with its name, the claim and the inputs.
        ValueError: an unknown law.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> verdicts = dv.check_divergence(dv.ForwardKL(), laws=["non_negative", "link"])
        >>> [(verdict.law, verdict.cases > 0) for verdict in verdicts]
        [('non_negative', True), ('link', True)]
        >>> @dv.divergence
        ... class CrossEntropy(dv.AbstractDivergence):
        ...     spec_name, formula = "cross_entropy", "−Σ p log q"
        ...     def rows(self, target, model):
        ...         return -jnp.sum(jnp.exp(dv.log_softmax(target)) * dv.log_softmax(model), -1)
        ...     @property
        ...     def infinite_at(self):
        ...         return dv.InfiniteAt(False, True)
        >>> dv.check_divergence(CrossEntropy(), laws=["zero_at_equality"])
        Traceback (most recent call last):
        ...
        divax.divergences.law.BrokenLaw: cross_entropy breaks the law 'zero_at_equality', D(p, p) = 0 exactly...

    Source: the idea of scikit-learn's `check_estimator`; L. Buitinck et al., "API design for machine learning software:
    experiences from the scikit-learn project", arXiv:1309.0238.
    """
    forced = laws is not None
    return tuple(
        check_law(div, name, even_if_skipped=forced, vocab_size=vocab_size, seed=seed)
        for name in (LAWS if laws is None else laws)
    )


def check_law(
    div: AbstractDivergence,
    law: str,
    *,
    even_if_skipped: bool = False,
    vocab_size: int | None = None,
    seed: int = 0,
) -> Verdict:
    """Tries a divergence on one law; what `check_divergence` does for each (for progress bars and tables).

    Args:
        div: the divergence.
        law: a name from `LAWS`.
        even_if_skipped: try it also on a divergence to which it does not apply, to see it broken.
        vocab_size: as in `check_divergence`.
        seed: likewise.

    Returns:
        The verdict.

    Raises:
        BrokenLaw: the law is broken.
        ValueError: an unknown law.

    Example:
        >>> from divax import divergences as dv
        >>> dv.check_law(dv.ForwardKL(), "duality").skipped is None
        True
    """
    one = named_law(LAWS, law)
    trial = Trial(one, div, 6 if vocab_size is None else vocab_size, vocab_size is not None, seed)
    reason = known_exceptions(div).get(law) or one.skipped(trial)
    return verdict_of(one, trial, None if even_if_skipped else reason)


def known_exceptions(div: Any) -> dict[str, str]:
    """The laws from which a divergence, or one that it is made of, excuses itself, with the reasons."""
    found = dict(getattr(div, "known_exceptions", {}))
    for field in dataclasses.fields(div) if dataclasses.is_dataclass(div) else ():
        value = getattr(div, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, AbstractDivergence):
                found = {**known_exceptions(part), **found}
    return found
