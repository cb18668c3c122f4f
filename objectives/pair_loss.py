"""What a loss of a preference pair is: a frozen value object, closed under sums and multiples."""

import abc

import jax
from jax.typing import ArrayLike

from divax.divergences import divergence as frozen_pytree


class AbstractPairLoss(abc.ABC):
    """Loss of one pair from the scores of its two completions, `score = link(log policy/reference)`.

    Final subclasses are frozen dataclasses of traced hyper-parameters. Those of the margin
    (`AbstractMarginLoss`) compose with any admissible divergence, because what the closed form
    leaves unknown about the reward is the same for both completions and cancels; those of a
    score by itself are for the reverse KL only.

    Example:
        >>> from divax.objectives import Hinge, Logistic
        >>> mixed = 0.8 * Logistic() + 0.2 * Hinge()
        >>> round(float(mixed.rows(0.0, 0.0, 0.1)), 4)  # 0.8 log 2 + 0.2
        0.7545
        >>> mixed.of_margin_only
        True
    """

    @abc.abstractmethod
    def rows(self, chosen: ArrayLike, rejected: ArrayLike, beta: ArrayLike) -> jax.Array:
        """The loss of each pair; scores of one shape, `beta` a positive scalar."""

    @property
    @abc.abstractmethod
    def of_margin_only(self) -> bool:
        """Whether the scores enter through `chosen - rejected` alone."""

    def __add__(self, other: object) -> "AbstractPairLoss":
        if not isinstance(other, AbstractPairLoss):
            return NotImplemented
        return LossSum(weights=(1.0, 1.0), parts=(self, other))

    def __mul__(self, factor: ArrayLike) -> "AbstractPairLoss":
        if isinstance(factor, AbstractPairLoss):
            return NotImplemented
        return LossSum(weights=(factor,), parts=(self,))

    __rmul__ = __mul__


@frozen_pytree
class LossSum(AbstractPairLoss):
    """A weighted sum of pair losses, such as the mixed preference optimisation of multi-loss MPO.

    Attributes:
        weights: one number per part; may be traced.
        parts: the losses.

    Example:
        >>> from divax.objectives import Logistic, NcaPair
        >>> (0.8 * Logistic() + 0.2 * NcaPair()).of_margin_only
        False
    """

    weights: tuple[ArrayLike, ...]
    parts: tuple[AbstractPairLoss, ...]

    def rows(self, chosen: ArrayLike, rejected: ArrayLike, beta: ArrayLike) -> jax.Array:
        """The weighted sum of the parts' rows."""
        terms = (
            weight * part.rows(chosen, rejected, beta)
            for weight, part in zip(self.weights, self.parts, strict=True)
        )
        return sum(terms)  # type: ignore[return-value]

    @property
    def of_margin_only(self) -> bool:
        """Whether every part is."""
        return all(part.of_margin_only for part in self.parts)


class AbstractMarginLoss(AbstractPairLoss):
    """Loss of the reward margin `d = beta (score_chosen - score_rejected)`.

    Example:
        >>> from divax.objectives import Logistic
        >>> round(float(Logistic().of_margin(0.0, 0.1)), 4)
        0.6931
    """

    @abc.abstractmethod
    def of_margin(self, margin: ArrayLike, beta: ArrayLike) -> jax.Array:
        """The loss at margin `d`; `beta` for the losses that are stated in units of the score."""

    def rows(self, chosen: ArrayLike, rejected: ArrayLike, beta: ArrayLike) -> jax.Array:
        """`of_margin(beta (chosen - rejected), beta)`."""
        return self.of_margin(beta * (chosen - rejected), beta)  # type: ignore[operator]

    @property
    def of_margin_only(self) -> bool:
        """True."""
        return True
