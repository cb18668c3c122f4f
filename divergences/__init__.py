"""Divergences between categorical distributions given by logits; imports JAX and NumPy only.

A divergence is a frozen value object, called as `div(target, model)` on logits `[..., V]`, one value per row, in nats.
`forward_*` is D(target‖model), `reverse_*` is D(model‖target).

Members, by what they compute (`get` and `names` reach them by their snake-case names):

- f-divergences: `ForwardKL`, `ReverseKL`, `Jeffreys`, `JensenShannon`, `InterpolatedJS`, `Alpha`, `ClippedAlpha`,
  `ForwardChi2`, `ReverseChi2`, `SkewChi2`, `SquaredHellinger`, `TotalVariation`, `Triangular`, `SkewForwardKL`,
  `SkewReverseKL`, `ArithmeticGeometric`, `FrontierIntegral`, `ModifiedGAN`, `Log1pAbs`; your own from a generator with
  `from_generator` (a `Generator`); by the names of other fields, `chi2_kl`, `cressie_read`, `tsallis`, `t_power`.
- logarithms of sums of powers, with bounded gradients: `Renyi`, `Bhattacharyya`, `Gamma`, `CauchySchwarz` (of more than two
  distributions: `generalized_cauchy_schwarz`), `Hoelder`, `LogVariance`, `GeometricJS`.
- sums of powers: `Beta`, `AlphaBeta`.
- adaptive: `AdaptiveKL` (and `head_mask`, the head it uses), `AdaptiveAlpha`, `EntropyGatedKL` (and `entropy`).
- transport: `Sinkhorn` (and its solver `sinkhorn_potentials`, which returns `SinkhornPotentials`).

Algebra: `+`, scalar `*` and `.dual()` make a `Mixture`, an `FMixture`, a `Dual` or an `FDual`; `mixture` does so by hand;
`symmetrized` and `skewed` (a `Skewed` or an `FSkewed`) wrap any member, `Tempered` softens both rows; `.normalized()`
divides by the curvature. `generator_weight` is h(r) = r²f″(r) for generator distillation.

What a new member states: `AbstractDivergence` (`InfiniteAt`), `AbstractRowDivergence` (its value and slopes) or
`AbstractFDivergence` (`Limits`, on a `Pair`), with the decorator `divergence`; `log_softmax` is the normalisation that
survives impossible tokens.
"""

from divax.divergences.adaptive_alpha import AdaptiveAlpha as AdaptiveAlpha
from divax.divergences.adaptive_kl import AdaptiveKL as AdaptiveKL
from divax.divergences.adaptive_kl import head_mask as head_mask
from divax.divergences.algebra import Dual as Dual
from divax.divergences.algebra import FDual as FDual
from divax.divergences.algebra import FMixture as FMixture
from divax.divergences.algebra import Mixture as Mixture
from divax.divergences.algebra import mixture as mixture
from divax.divergences.alpha import Alpha as Alpha
from divax.divergences.alpha_beta import AlphaBeta as AlphaBeta
from divax.divergences.alpha_beta import Beta as Beta
from divax.divergences.arithmetic_geometric import ArithmeticGeometric as ArithmeticGeometric
from divax.divergences.base import AbstractDivergence as AbstractDivergence
from divax.divergences.base import InfiniteAt as InfiniteAt
from divax.divergences.base import divergence as divergence
from divax.divergences.chi2 import ForwardChi2 as ForwardChi2
from divax.divergences.chi2 import ReverseChi2 as ReverseChi2
from divax.divergences.clipped_alpha import ClippedAlpha as ClippedAlpha
from divax.divergences.entropy_gate import EntropyGatedKL as EntropyGatedKL
from divax.divergences.entropy_gate import entropy as entropy
from divax.divergences.escort import CauchySchwarz as CauchySchwarz
from divax.divergences.escort import Gamma as Gamma
from divax.divergences.escort import Hoelder as Hoelder
from divax.divergences.f_divergence import AbstractFDivergence as AbstractFDivergence
from divax.divergences.f_divergence import Limits as Limits
from divax.divergences.frontier_integral import FrontierIntegral as FrontierIntegral
from divax.divergences.generalized_cauchy_schwarz import (
    generalized_cauchy_schwarz as generalized_cauchy_schwarz,
)
from divax.divergences.generator import Generator as Generator
from divax.divergences.generator import from_generator as from_generator
from divax.divergences.generator_weight import generator_weight as generator_weight
from divax.divergences.geometric_js import GeometricJS as GeometricJS
from divax.divergences.hellinger import SquaredHellinger as SquaredHellinger
from divax.divergences.jeffreys import Jeffreys as Jeffreys
from divax.divergences.jensen_shannon import InterpolatedJS as InterpolatedJS
from divax.divergences.jensen_shannon import JensenShannon as JensenShannon
from divax.divergences.kl import ForwardKL as ForwardKL
from divax.divergences.kl import ReverseKL as ReverseKL
from divax.divergences.log1p_abs import Log1pAbs as Log1pAbs
from divax.divergences.log_variance import LogVariance as LogVariance
from divax.divergences.modified_gan import ModifiedGAN as ModifiedGAN
from divax.divergences.named import chi2_kl as chi2_kl
from divax.divergences.named import cressie_read as cressie_read
from divax.divergences.named import t_power as t_power
from divax.divergences.named import tsallis as tsallis
from divax.divergences.renyi import Bhattacharyya as Bhattacharyya
from divax.divergences.renyi import Renyi as Renyi
from divax.divergences.row_wise import AbstractRowDivergence as AbstractRowDivergence
from divax.divergences.rows import Pair as Pair
from divax.divergences.rows import log_softmax as log_softmax
from divax.divergences.sinkhorn import Sinkhorn as Sinkhorn
from divax.divergences.sinkhorn import SinkhornPotentials as SinkhornPotentials
from divax.divergences.sinkhorn import sinkhorn_potentials as sinkhorn_potentials
from divax.divergences.skew_chi2 import SkewChi2 as SkewChi2
from divax.divergences.skew_kl import SkewForwardKL as SkewForwardKL
from divax.divergences.skew_kl import SkewReverseKL as SkewReverseKL
from divax.divergences.skewed import FSkewed as FSkewed
from divax.divergences.skewed import Skewed as Skewed
from divax.divergences.skewed import skewed as skewed
from divax.divergences.specs import get as get
from divax.divergences.specs import names as names
from divax.divergences.symmetrized import symmetrized as symmetrized
from divax.divergences.tempered import Tempered as Tempered
from divax.divergences.total_variation import TotalVariation as TotalVariation
from divax.divergences.triangular import Triangular as Triangular
