"""Proves an objective right on example inputs, or names the law that it breaks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from divax.divergences import Law, Verdict
from divax.divergences.law import named_law, verdict_of
from divax.objectives import gradient_laws, value_laws
from divax.objectives.case import ObjectiveCase
from divax.objectives.law import ObjectiveTrial

LAWS: Mapping[str, Law] = MappingProxyType(
    {
        one.name: one
        for one in (
            value_laws.weighted,
            value_laws.jit_equals_eager,
            gradient_laws.gradient,
            gradient_laws.held_fixed,
            gradient_laws.no_gradient_in_metrics,
            gradient_laws.masked_rows,
            gradient_laws.all_masked,
            value_laws.additive,
            value_laws.permutation,
            value_laws.vmap,
            value_laws.half_precision,
        )
    }
)
"""The laws by name, in the order in which they are tried."""


def check_objective(
    case: ObjectiveCase, *, laws: Iterable[str] | None = None, seed: int = 0
) -> tuple[Verdict, ...]:
    """Tries an objective on every law that it must obey, in double precision where that decides.

    What the case says decides what applies: no law of masks without the name of a mask, and so on. A case excuses
    itself from others by `known_exceptions`, a mapping from a law's name to the reason; the reason is then in the
    verdict. The laws are tried on the example inputs and variants of them: what they do not show, no law sees.

    Args:
        case: the objective, example inputs, and what they are.
        laws: names from `LAWS` to try, all when None. Laws named here are tried even where they would be excused, but
            not where the case lacks what they need.
        seed: of the random directions, masks and orders.

    Returns:
        A verdict per law, those that are not applicable included.

    Raises:
        BrokenLaw: at the first law broken, with its name, the claim and the inputs.
        ValueError: an unknown law.

    Example:
        >>> import numpy as np
        >>> from divax import divergences as dv, objectives
        >>> logits, labels, mask = np.eye(4, 5)[:, None], np.array([[1], [2], [4], [3]]), np.ones((4, 1))
        >>> case = objectives.ObjectiveCase(
        ...     objective=objectives.cross_entropy, inputs=dict(logits=logits, labels=labels, mask=mask),
        ...     differentiated="logits", mask="mask",
        ... )
        >>> verdicts = objectives.check_objective(case, laws=["gradient", "held_fixed", "masked_rows"])
        >>> [verdict.skipped for verdict in verdicts]
        [None, 'no input is named as held fixed', None]
        >>> def mean_of_the_batch(*, logits, mask):
        ...     loss = objectives.token_mean(logits[..., 0], mask)
        ...     return objectives.Weighted(loss.mean(), loss.count), {}
        >>> case = objectives.ObjectiveCase(
        ...     objective=mean_of_the_batch, inputs=dict(logits=logits, mask=mask),
        ...     differentiated="logits", mask="mask",
        ... )
        >>> objectives.check_objective(case, laws=["additive"])
        Traceback (most recent call last):
        ...
        divax.divergences.law.BrokenLaw: mean_of_the_batch breaks the law 'additive', totals and counts of...

    Source: the idea of scikit-learn's `check_estimator`; L. Buitinck et al., "API design for machine learning software:
    experiences from the scikit-learn project", arXiv:1309.0238.
    """
    forced = laws is not None
    return tuple(
        check_law(case, name, even_if_excused=forced, seed=seed)
        for name in (LAWS if laws is None else laws)
    )


def check_law(
    case: ObjectiveCase, law: str, *, even_if_excused: bool = False, seed: int = 0
) -> Verdict:
    """Tries an objective on one law; what `check_objective` does for each (for progress bars and tables).

    Args:
        case: the objective, example inputs, and what they are.
        law: a name from `LAWS`.
        even_if_excused: try it also where the case names it among its `known_exceptions`, to see it broken.
        seed: as in `check_objective`.

    Returns:
        The verdict.

    Raises:
        BrokenLaw: the law is broken.
        ValueError: an unknown law.

    Example:
        >>> import numpy as np
        >>> from divax import objectives
        >>> case = objectives.ObjectiveCase(
        ...     objective=objectives.cross_entropy,
        ...     inputs=dict(logits=np.zeros((2, 4)), labels=np.array([0, 3])), differentiated="logits",
        ... )
        >>> objectives.check_law(case, "masked_rows").skipped
        'no mask is named'
    """
    one = named_law(LAWS, law)
    trial = ObjectiveTrial(one, case, seed)
    excuse = None if even_if_excused else case.known_exceptions.get(law)
    return verdict_of(one, trial, excuse or one.skipped(trial))
