"""Divergences between categorical distributions given by logits; imports JAX and NumPy only.

A divergence is a frozen value object, called as `div(target, model)` on logits `[..., V]`, one value per row, in nats.
`forward_*` is D(target‖model), `reverse_*` is D(model‖target).

Members, by what they compute (`get` and `names` reach them by their snake-case names):

- f-divergences: `ForwardKL`, `ReverseKL`, `Jeffreys`, `JensenShannon`, `InterpolatedJS`, `Alpha`, `ForwardChi2`,
  `ReverseChi2`, `SquaredHellinger`, `TotalVariation`, `Triangular`, `SkewForwardKL`, `SkewReverseKL`; your own from a
  generator with `from_generator` (a `Generator`).
- adaptive: `AdaptiveKL` (and `head_mask`, the head it uses).
- transport: `Sinkhorn` (and its solver `sinkhorn_potentials`, which returns `SinkhornPotentials`).

Algebra: `+`, scalar `*` and `.dual()` make a `Mixture`, an `FMixture`, a `Dual` or an `FDual`; `mixture` does so by hand;
`.normalized()` divides by the curvature.

Optimum of reward − β·D: `regularized_argmax` (a `RegularizedOptimum`), and `dro_weights`, the same for losses.

From samples: `estimate`, value form × gradient form, and `rao_blackwellized_kl` of sequences; lower bounds
from a critic, `f_gan_bound`, `donsker_varadhan_bound`, `renyi_bound`, `chi2_bound`.

Proof: `check_divergence` tries any divergence, yours too, on every law in `LAWS` (each a `Law`), `check_law` on one; what
holds gives a `Verdict`, what does not raises `BrokenLaw`, naming the law and the inputs that broke it.

What a new member states: `AbstractDivergence` (`InfiniteAt`) or `AbstractFDivergence` (`Limits`, on a `Pair`), with the
decorator `divergence`; `log_softmax` is the normalisation that survives impossible tokens.
"""

from divax.divergences.adaptive_kl import AdaptiveKL as AdaptiveKL
from divax.divergences.adaptive_kl import head_mask as head_mask
from divax.divergences.algebra import Dual as Dual
from divax.divergences.algebra import FDual as FDual
from divax.divergences.algebra import FMixture as FMixture
from divax.divergences.algebra import Mixture as Mixture
from divax.divergences.algebra import mixture as mixture
from divax.divergences.alpha import Alpha as Alpha
from divax.divergences.base import AbstractDivergence as AbstractDivergence
from divax.divergences.base import InfiniteAt as InfiniteAt
from divax.divergences.base import divergence as divergence
from divax.divergences.bounds import chi2_bound as chi2_bound
from divax.divergences.bounds import donsker_varadhan_bound as donsker_varadhan_bound
from divax.divergences.bounds import f_gan_bound as f_gan_bound
from divax.divergences.bounds import renyi_bound as renyi_bound
from divax.divergences.checks import LAWS as LAWS
from divax.divergences.checks import Verdict as Verdict
from divax.divergences.checks import check_divergence as check_divergence
from divax.divergences.checks import check_law as check_law
from divax.divergences.chi2 import ForwardChi2 as ForwardChi2
from divax.divergences.chi2 import ReverseChi2 as ReverseChi2
from divax.divergences.estimators import estimate as estimate
from divax.divergences.estimators import rao_blackwellized_kl as rao_blackwellized_kl
from divax.divergences.f_divergence import AbstractFDivergence as AbstractFDivergence
from divax.divergences.f_divergence import Limits as Limits
from divax.divergences.generator import Generator as Generator
from divax.divergences.generator import from_generator as from_generator
from divax.divergences.hellinger import SquaredHellinger as SquaredHellinger
from divax.divergences.jeffreys import Jeffreys as Jeffreys
from divax.divergences.jensen_shannon import InterpolatedJS as InterpolatedJS
from divax.divergences.jensen_shannon import JensenShannon as JensenShannon
from divax.divergences.kl import ForwardKL as ForwardKL
from divax.divergences.kl import ReverseKL as ReverseKL
from divax.divergences.law import BrokenLaw as BrokenLaw
from divax.divergences.law import Law as Law
from divax.divergences.optimum import RegularizedOptimum as RegularizedOptimum
from divax.divergences.optimum import dro_weights as dro_weights
from divax.divergences.optimum import regularized_argmax as regularized_argmax
from divax.divergences.rows import Pair as Pair
from divax.divergences.rows import log_softmax as log_softmax
from divax.divergences.sinkhorn import Sinkhorn as Sinkhorn
from divax.divergences.sinkhorn import SinkhornPotentials as SinkhornPotentials
from divax.divergences.sinkhorn import sinkhorn_potentials as sinkhorn_potentials
from divax.divergences.skew_kl import SkewForwardKL as SkewForwardKL
from divax.divergences.skew_kl import SkewReverseKL as SkewReverseKL
from divax.divergences.specs import get as get
from divax.divergences.specs import names as names
from divax.divergences.total_variation import TotalVariation as TotalVariation
from divax.divergences.triangular import Triangular as Triangular
