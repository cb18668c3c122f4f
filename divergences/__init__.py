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
- on few tokens: `TopK` and `TopKRenormalized` (each an `AbstractTopK`), in two steps `coarsen`, `coarsen_cached` and
  `drop_tail` (which return `Coarse` rows; a teacher's `TopKCache` comes from `cache_top_k`); from sampled tokens
  `sampled_divergence`, with `sample_tokens` and `sample_distinct_tokens` (a `TokenSample`).
- transport (each an `AbstractTransport`; 0–1 cost, a matrix, or an `EmbeddingCost`, and `TopK` around it for a whole
  vocabulary): `Sinkhorn` (and its solver `sinkhorn_potentials`, which returns `SinkhornPotentials`), `AnnealedSinkhorn`
  (`annealed_potentials`) for sharp ε, `UnbalancedSinkhorn` (`unbalanced_potentials`), `self_potentials` for OT_ε(p, p);
  `batch_sinkhorn` between the samples of a batch (as published, `sinkd_as_published`); on an ordered support
  `Wasserstein1` and `Cramer` (`AbstractOrderedDistance`);
  over head rows `EMO` (its training loss is `balanced_with_likelihood`) and `DebiasedEMO`;
  across vocabularies `universal_logit_distance`.
- samples and features: `biased_mmd`, `unbiased_mmd`, `energy_distance`, `noise_adaptive_mmd` (and its
  `noise_adaptive_witness`), `sample_cauchy_schwarz`, `conditional_cauchy_schwarz`; kernels `RBFKernel`, `LaplaceKernel`,
  `IMQKernel`, `EnergyKernel`, `KernelMean`, with `multi_bandwidth` and `median_bandwidth` (an `AbstractKernel`, or only an
  `AbstractSemimetric`); on the vocabulary `VocabularyMMD`.
- frontiers: `divergence_frontier` (a `Frontier`), its `frontier_area`, `mauve`, and `smoothed_log_counts` for histograms.

From hidden states and heads (`LinearHead`), the logits never all there: `fused_linear` (a `FusedSum`), `fused_linear_rows`.
From a vocabulary that is spread over devices: `vocabulary_parallel`; from heads that are, `VocabularySharding`.

Algebra: `+`, scalar `*` and `.dual()` make a `Mixture`, an `FMixture`, a `Dual` or an `FDual`; `mixture` does so by hand;
`symmetrized` and `skewed` (a `Skewed` or an `FSkewed`) wrap any member, `Tempered` softens both rows; `.normalized()`
divides by the curvature. `generator_weight` is h(r) = r²f″(r) for generator distillation.

Optimum of reward − β·D: `regularized_argmax` (a `RegularizedOptimum`), and `dro_weights`, the same for losses.

From samples: `estimate`, value form × gradient form, and `rao_blackwellized_kl` of sequences; lower bounds
from a critic, `f_gan_bound`, `donsker_varadhan_bound`, `renyi_bound`, `chi2_bound`, with a standard error by
`estimate_bound` (a `BoundEstimate`).

Proof: `check_divergence` tries any divergence, yours too, on every law in `LAWS` (each a `Law`), `check_law` on one; what
holds gives a `Verdict`, what does not raises `BrokenLaw`, naming the law and the inputs that broke it.

What a new member states: `AbstractDivergence` (`InfiniteAt`), `AbstractTokenDivergence` (if it tells tokens apart),
`AbstractRowDivergence` (its value and slopes), `AbstractRowMixture` (f-divergences and their weights) or
`AbstractFDivergence` (`Limits`, on a `Pair`), with the decorator `divergence`;
`log_softmax` is the normalisation that survives impossible tokens.
"""

from divax.divergences.adaptive_alpha import AdaptiveAlpha as AdaptiveAlpha
from divax.divergences.adaptive_kl import AdaptiveKL as AdaptiveKL
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
from divax.divergences.batch_sinkhorn import batch_sinkhorn as batch_sinkhorn
from divax.divergences.batch_sinkhorn import sinkd_as_published as sinkd_as_published
from divax.divergences.bounds import BoundEstimate as BoundEstimate
from divax.divergences.bounds import chi2_bound as chi2_bound
from divax.divergences.bounds import donsker_varadhan_bound as donsker_varadhan_bound
from divax.divergences.bounds import estimate_bound as estimate_bound
from divax.divergences.bounds import f_gan_bound as f_gan_bound
from divax.divergences.bounds import renyi_bound as renyi_bound
from divax.divergences.cauchy_schwarz_samples import (
    conditional_cauchy_schwarz as conditional_cauchy_schwarz,
)
from divax.divergences.cauchy_schwarz_samples import sample_cauchy_schwarz as sample_cauchy_schwarz
from divax.divergences.checks import LAWS as LAWS
from divax.divergences.checks import check_divergence as check_divergence
from divax.divergences.checks import check_law as check_law
from divax.divergences.chi2 import ForwardChi2 as ForwardChi2
from divax.divergences.chi2 import ReverseChi2 as ReverseChi2
from divax.divergences.clipped_alpha import ClippedAlpha as ClippedAlpha
from divax.divergences.coarse import Coarse as Coarse
from divax.divergences.coarse import TopKCache as TopKCache
from divax.divergences.coarse import cache_top_k as cache_top_k
from divax.divergences.coarse import coarsen as coarsen
from divax.divergences.coarse import coarsen_cached as coarsen_cached
from divax.divergences.coarse import drop_tail as drop_tail
from divax.divergences.emo import EMO as EMO
from divax.divergences.emo import DebiasedEMO as DebiasedEMO
from divax.divergences.emo import balanced_with_likelihood as balanced_with_likelihood
from divax.divergences.entropy_gate import EntropyGatedKL as EntropyGatedKL
from divax.divergences.entropy_gate import entropy as entropy
from divax.divergences.escort import CauchySchwarz as CauchySchwarz
from divax.divergences.escort import Gamma as Gamma
from divax.divergences.escort import Hoelder as Hoelder
from divax.divergences.estimators import estimate as estimate
from divax.divergences.estimators import rao_blackwellized_kl as rao_blackwellized_kl
from divax.divergences.f_divergence import AbstractFDivergence as AbstractFDivergence
from divax.divergences.f_divergence import Limits as Limits
from divax.divergences.frontier import Frontier as Frontier
from divax.divergences.frontier import divergence_frontier as divergence_frontier
from divax.divergences.frontier import frontier_area as frontier_area
from divax.divergences.frontier import mauve as mauve
from divax.divergences.frontier import smoothed_log_counts as smoothed_log_counts
from divax.divergences.frontier_integral import FrontierIntegral as FrontierIntegral
from divax.divergences.fused_linear import FusedSum as FusedSum
from divax.divergences.fused_linear import fused_linear as fused_linear
from divax.divergences.fused_linear import fused_linear_rows as fused_linear_rows
from divax.divergences.generalized_cauchy_schwarz import (
    generalized_cauchy_schwarz as generalized_cauchy_schwarz,
)
from divax.divergences.generator import Generator as Generator
from divax.divergences.generator import from_generator as from_generator
from divax.divergences.generator_weight import generator_weight as generator_weight
from divax.divergences.geometric_js import GeometricJS as GeometricJS
from divax.divergences.ground_cost import EmbeddingCost as EmbeddingCost
from divax.divergences.head_mask import head_mask as head_mask
from divax.divergences.hellinger import SquaredHellinger as SquaredHellinger
from divax.divergences.jeffreys import Jeffreys as Jeffreys
from divax.divergences.jensen_shannon import InterpolatedJS as InterpolatedJS
from divax.divergences.jensen_shannon import JensenShannon as JensenShannon
from divax.divergences.kernels import AbstractKernel as AbstractKernel
from divax.divergences.kernels import AbstractSemimetric as AbstractSemimetric
from divax.divergences.kernels import EnergyKernel as EnergyKernel
from divax.divergences.kernels import IMQKernel as IMQKernel
from divax.divergences.kernels import KernelMean as KernelMean
from divax.divergences.kernels import LaplaceKernel as LaplaceKernel
from divax.divergences.kernels import RBFKernel as RBFKernel
from divax.divergences.kernels import median_bandwidth as median_bandwidth
from divax.divergences.kernels import multi_bandwidth as multi_bandwidth
from divax.divergences.kl import ForwardKL as ForwardKL
from divax.divergences.kl import ReverseKL as ReverseKL
from divax.divergences.law import BrokenLaw as BrokenLaw
from divax.divergences.law import Law as Law
from divax.divergences.law import Verdict as Verdict
from divax.divergences.linear_head import LinearHead as LinearHead
from divax.divergences.log1p_abs import Log1pAbs as Log1pAbs
from divax.divergences.log_variance import LogVariance as LogVariance
from divax.divergences.mmd import biased_mmd as biased_mmd
from divax.divergences.mmd import energy_distance as energy_distance
from divax.divergences.mmd import noise_adaptive_mmd as noise_adaptive_mmd
from divax.divergences.mmd import noise_adaptive_witness as noise_adaptive_witness
from divax.divergences.mmd import unbiased_mmd as unbiased_mmd
from divax.divergences.modified_gan import ModifiedGAN as ModifiedGAN
from divax.divergences.named import chi2_kl as chi2_kl
from divax.divergences.named import cressie_read as cressie_read
from divax.divergences.named import t_power as t_power
from divax.divergences.named import tsallis as tsallis
from divax.divergences.optimum import RegularizedOptimum as RegularizedOptimum
from divax.divergences.optimum import dro_weights as dro_weights
from divax.divergences.optimum import regularized_argmax as regularized_argmax
from divax.divergences.ordered import AbstractOrderedDistance as AbstractOrderedDistance
from divax.divergences.ordered import Cramer as Cramer
from divax.divergences.ordered import Wasserstein1 as Wasserstein1
from divax.divergences.renyi import Bhattacharyya as Bhattacharyya
from divax.divergences.renyi import Renyi as Renyi
from divax.divergences.row_mixture import AbstractRowMixture as AbstractRowMixture
from divax.divergences.row_wise import AbstractRowDivergence as AbstractRowDivergence
from divax.divergences.rows import Pair as Pair
from divax.divergences.rows import log_softmax as log_softmax
from divax.divergences.sampled_vocabulary import TokenSample as TokenSample
from divax.divergences.sampled_vocabulary import sample_distinct_tokens as sample_distinct_tokens
from divax.divergences.sampled_vocabulary import sample_tokens as sample_tokens
from divax.divergences.sampled_vocabulary import sampled_divergence as sampled_divergence
from divax.divergences.sinkhorn import Sinkhorn as Sinkhorn
from divax.divergences.sinkhorn_annealed import AnnealedSinkhorn as AnnealedSinkhorn
from divax.divergences.sinkhorn_annealed import annealed_potentials as annealed_potentials
from divax.divergences.sinkhorn_potentials import SinkhornPotentials as SinkhornPotentials
from divax.divergences.sinkhorn_potentials import sinkhorn_potentials as sinkhorn_potentials
from divax.divergences.sinkhorn_symmetric import self_potentials as self_potentials
from divax.divergences.sinkhorn_unbalanced import UnbalancedSinkhorn as UnbalancedSinkhorn
from divax.divergences.sinkhorn_unbalanced import unbalanced_potentials as unbalanced_potentials
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
from divax.divergences.token_divergence import (
    AbstractTokenDivergence as AbstractTokenDivergence,
)
from divax.divergences.topk import AbstractTopK as AbstractTopK
from divax.divergences.topk import TopK as TopK
from divax.divergences.topk import TopKRenormalized as TopKRenormalized
from divax.divergences.total_variation import TotalVariation as TotalVariation
from divax.divergences.transport import AbstractTransport as AbstractTransport
from divax.divergences.triangular import Triangular as Triangular
from divax.divergences.vocabulary import universal_logit_distance as universal_logit_distance
from divax.divergences.vocabulary_mmd import VocabularyMMD as VocabularyMMD
from divax.divergences.vocabulary_parallel import vocabulary_parallel as vocabulary_parallel
from divax.divergences.vocabulary_sharding import VocabularySharding as VocabularySharding
