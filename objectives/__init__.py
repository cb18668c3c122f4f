"""Objectives: pure functions of logits to `(loss, metrics)`.

Every objective takes keyword arrays named for what they are, and returns a `Weighted` loss, which
is a sum and a count that add up exactly over micro-batches, devices and hosts and are divided once
(`loss.mean()`), with a dictionary of metrics of the same kind. A masked row contributes exactly 0
to both value and gradient, whatever it holds.

| objective | loss per row |
|---|---|
| `distillation` | `w T² D(softmax(t/T), softmax(s/T)) + (1 - w) CE(s, y)`, any divergence `D` |
| `distillation_from_hidden` | the same from two models' hidden states and heads (`HiddenLogits`), the logits in chunks |
| `cross_entropy` | `-log softmax(s)_y` |
| `cross_entropy_from_hidden` | the same from hidden states and a head |
| `preference` | of a pair: `loss(beta (score(s_w) - score(s_l)))`, any admissible divergence |

As a value, a frozen pytree that says of itself what it optimises (`explain()`), an objective of distillation is called
with `DistillationRows` (each a `DistillationObjective`); `FROM_DATA`, `FROM_STUDENT` and `FROM_TEACHER` say who wrote a row:

| of | objectives |
|---|---|
| tokens | `TokenDistillation`, `LabelCrossEntropy`; `OfLogits` makes one of any function below |
| sampled completions | `MiniLLM`, the reverse KL of whole completions; `SampledDistillation`, of tokens by sampled ones |
| completions by writer | `ContrastiveDistillation` (DistiLLM-2), `SequenceMatch` |
| likeliest tokens | `DirectPreferenceDistillation` (DPKD) |
| labels, by their distance | `EarthMover` (EMO) |
| published methods | `token_kd`, `seq_kd`, `gkd`, `distillm`, `distillm2`, `abkd`, `akl`, `bd_kd`, `minillm`, `dpkd` |
| | `emo`, `on_policy_distillation`; with the numbers of published code by `compat` |
| what published code computes | `AsPublished` (an objective, and what is different), `WithTeacherEntropy`, `EveryPosition` |
| a grown vocabulary | `expanded_teacher` (logits of any objective) of `new_tokens` (`NewTokens`) |
| states and heads (`HiddenRows`) | each `HiddenObjective`; yours by `token_by_token` or `AbstractTokenObjective` |
| | of several teachers `CombinedLogits` |
| several teachers | `mixture_of_teachers`, `product_of_teachers` (logits of any objective), `teacher_weights` per sample |

Distillation of logits beyond one divergence:

| of | objectives |
|---|---|
| a teacher's logits | `dkd` (label and others weighed apart), `nkd`, `dist` (correlations), `pld` (rankings), `logit_mse` |
| | `sinkd` (transport between the rows), `dual_head` (with `align_gradients`) |
| no teacher | `uskd` (soft labels by confidence and rank), `ps_kd` of a `PredictionMemory` |

Preferences, all from log-probs of completions summed over their tokens:

| of | objectives |
|---|---|
| pairs | `preference` (f-DPO), `entropy_preference` (H-DPO), `token_preference` (TDPO, Ra-DPO), `aot_paired` |
| pairs, no reference | `cpo`, `simpo` (AlphaPO too), `orpo`, `mapo` |
| single completions | `kto`, `unpaired_bco`, `ddo`, `kldo`, `negative_only` (D2O), `implicit_process_reward` |
| | `aot_unpaired` |
| demonstrations | `token_nll`, `implicit_reward_sft` |
| what to forget | `flat` |

| losses of a pair | members |
|---|---|
| what they are | `AbstractPairLoss`, of a margin `AbstractMarginLoss`; they add and scale to a `LossSum` |
| of the margin | `Logistic`, `RobustLogistic`, `Hinge`, `SquaredHinge`, `Squared` (IPO), `ExoPair` |
| | `Exponential`, `DiscoPop`; around any of them, `ClippedMargin` (chi-PO) |
| of each reward | `NcaPair`, `BcoPair`, `SppoHard`, `ApoZero`, `ApoDown` |
| | `ChosenDropPenalty`, `DecoupledLogistic` |
| to one loss | `pair_mean` (`PairMean`), `OptimisticMean` (Dr.DPO), `PessimisticMean` (DRO), `TailMean` (CVaR) |
| | `SpectralMean` (Prospect) of a `Spectrum`: `Superquantile`, `Extremile`, `ExponentialSpectrum` |

A `PairAggregate` is the type of the last rows.

Around them: `score` (the implicit reward of a divergence), `sequential_risk` of a `Risk`
(`expected`, `TailRisk`, `EntropicRisk`), `process_rewards`, `worst_case_reward`,
`uncertainty_weighted_reward`, `best_of_n` and `best_of_n_kl`.

Policy gradients, from per-token log-probs `[B, T]` of sampled completions:

| part | members |
|---|---|
| the objective | `policy_gradient`; on completions of the reference, `replay_penalty` |
| in full | `PolicyGradientMethod`: `credit` once per rollout, `loss` in every update |
| surrogates | `Reinforce`, `WeightedReinforce`, `Clipped`, `RpgClipped` (each an `AbstractSurrogate`) |
| regularisers | `Regularizer`: its gradient is the one it names, or it refuses; `PublishedPenalty` as trainers have it |
| | (each an `AbstractRegularizer`; `explain()` says in words what is optimised) |
| advantages of a group | `leave_one_out`, `group_centred`, `group_normalized`; `informative_groups`, `informative_scale` |
| of tokens | `gae`, `return_to_go`, `whiten`, `terminal_rewards` |
| as values | `LeaveOneOut`, `GroupCentred`, `GroupNormalized`, `ReturnToGo`, `GeneralizedAdvantage`, `WholeReward` |
| | (each an `AbstractAdvantage`) |
| credit | `Credit` of a `Rollout`, changed by an `AbstractShaping`: `ConflictShaping`, `AsymmetricShaping` |
| | `TopEntropy`, `UnsolvedOnly` |
| reductions as values | `ConstantSum`, `TokenMean`, `SequenceMean` |
| the sampler | `SamplerCorrection`, `fresh_or_positive` |
| beta over time | `FixedBeta`, `LinearBeta`, `AdaptiveBeta` (each an `AbstractBetaControl` with a `BetaState`) |
| length | `overlong_penalty`, `finished_mask` |
| value function | `value_loss` |
| published methods | `reinforce`, `rloo`, `ppo`, `grpo`, `dr_grpo`, `dapo`, `gspo`, `cispo`, `gpg`, `gtpo` |
| by their regulariser | `rao_blackwellized`, `unbiased_grpo`, `rpg`, `dph` (`dph_regularizer`), `kdrl`, `prorl`, `apo` |
| to any target | `distribution_matching` (f-DPG, GDC), `PartitionEstimate`, `fit_moments` (to `FittedMoments`) |
| proof | `check_surrogate` of your own surrogate (`expected_gradient` of a `SampledBatch`) on an |
| | `EnumerableTask` from `enumerate_task` |

| building block | what it does |
|---|---|
| `Weighted` | a sum and a count; `+`, scalar `*`, `mean()` |
| `token_mean`, `sequence_mean`, `constant_sum` | per-token values and a mask to a `Weighted` |
| `each_token` | no reduction: an objective's losses and metrics of every token |
| `Reduction` | the type of those three |
| `label_log_probs` | log-probs of tokens from hidden states, logits in chunks |
| `label_statistics`, `LabelStatistics` | the same with the collision probability of each distribution |
| `token_statistics`, `TokenStatistics` | from hidden states: log-probs, entropies, divergences to a reference |
| `token_loss` (of a `TokenLoss`) | a loss of these, token by token, its gradients in the same walk |
| `token_loss_and_statistics` | both |
| `tokens_from_hidden` | what a function finds of every token's logits of `HiddenRows`, to be used in any way |
| `objective_from_hidden` | any objective of `HiddenRows` whose tokens know nothing of each other, the logits in chunks |
| `align_causal`, `CausalTargets` | tokens to next-token labels and mask, packing included |

Proof: `check_objective` tries any objective, yours too, given as an `ObjectiveCase` (with example inputs), on every law
in `LAWS`, `check_law` on one; what holds gives a `divergences.Verdict`, what does not raises `divergences.BrokenLaw`.

Importing this package loads JAX and NumPy and nothing else.
"""

from divax.objectives.absolute_pair_losses import ApoDown as ApoDown
from divax.objectives.absolute_pair_losses import ApoZero as ApoZero
from divax.objectives.absolute_pair_losses import BcoPair as BcoPair
from divax.objectives.absolute_pair_losses import NcaPair as NcaPair
from divax.objectives.absolute_pair_losses import SppoHard as SppoHard
from divax.objectives.abstract_token_objective import (
    AbstractTokenObjective as AbstractTokenObjective,
)
from divax.objectives.advantage_estimators import AbstractAdvantage as AbstractAdvantage
from divax.objectives.advantage_estimators import GeneralizedAdvantage as GeneralizedAdvantage
from divax.objectives.advantage_estimators import GroupCentred as GroupCentred
from divax.objectives.advantage_estimators import GroupNormalized as GroupNormalized
from divax.objectives.advantage_estimators import LeaveOneOut as LeaveOneOut
from divax.objectives.advantage_estimators import ReturnToGo as ReturnToGo
from divax.objectives.advantage_estimators import WholeReward as WholeReward
from divax.objectives.advantages import group_centred as group_centred
from divax.objectives.advantages import group_normalized as group_normalized
from divax.objectives.advantages import informative_groups as informative_groups
from divax.objectives.advantages import informative_scale as informative_scale
from divax.objectives.advantages import leave_one_out as leave_one_out
from divax.objectives.aggregation import ConstantSum as ConstantSum
from divax.objectives.aggregation import SequenceMean as SequenceMean
from divax.objectives.aggregation import TokenMean as TokenMean
from divax.objectives.batch_sinkhorn_distillation import sinkd as sinkd
from divax.objectives.beta_control import AbstractBetaControl as AbstractBetaControl
from divax.objectives.beta_control import AdaptiveBeta as AdaptiveBeta
from divax.objectives.beta_control import BetaState as BetaState
from divax.objectives.beta_control import FixedBeta as FixedBeta
from divax.objectives.beta_control import LinearBeta as LinearBeta
from divax.objectives.case import ObjectiveCase as ObjectiveCase
from divax.objectives.causal import CausalTargets as CausalTargets
from divax.objectives.causal import align_causal as align_causal
from divax.objectives.check_surrogate import SampledBatch as SampledBatch
from divax.objectives.check_surrogate import check_surrogate as check_surrogate
from divax.objectives.check_surrogate import expected_gradient as expected_gradient
from divax.objectives.checks import LAWS as LAWS
from divax.objectives.checks import check_law as check_law
from divax.objectives.checks import check_objective as check_objective
from divax.objectives.contrastive_distillation import (
    ContrastiveDistillation as ContrastiveDistillation,
)
from divax.objectives.correlation_distillation import dist as dist
from divax.objectives.credit_shaping import AbstractShaping as AbstractShaping
from divax.objectives.credit_shaping import AsymmetricShaping as AsymmetricShaping
from divax.objectives.credit_shaping import ConflictShaping as ConflictShaping
from divax.objectives.credit_shaping import Credit as Credit
from divax.objectives.credit_shaping import Rollout as Rollout
from divax.objectives.credit_shaping import TopEntropy as TopEntropy
from divax.objectives.credit_shaping import UnsolvedOnly as UnsolvedOnly
from divax.objectives.cross_entropy import cross_entropy as cross_entropy
from divax.objectives.cross_entropy_from_hidden import (
    cross_entropy_from_hidden as cross_entropy_from_hidden,
)
from divax.objectives.customized_soft_labels import uskd as uskd
from divax.objectives.decoupled_distillation import dkd as dkd
from divax.objectives.direct_preference_distillation import (
    DirectPreferenceDistillation as DirectPreferenceDistillation,
)
from divax.objectives.distillation import distillation as distillation
from divax.objectives.distillation_from_hidden import (
    distillation_from_hidden as distillation_from_hidden,
)
from divax.objectives.distillation_presets import abkd as abkd
from divax.objectives.distillation_presets import akl as akl
from divax.objectives.distillation_presets import bd_kd as bd_kd
from divax.objectives.distillation_presets import distillm as distillm
from divax.objectives.distillation_presets import distillm2 as distillm2
from divax.objectives.distillation_presets import dpkd as dpkd
from divax.objectives.distillation_presets import emo as emo
from divax.objectives.distillation_presets import gkd as gkd
from divax.objectives.distillation_presets import minillm as minillm
from divax.objectives.distillation_presets import on_policy_distillation as on_policy_distillation
from divax.objectives.distillation_presets import seq_kd as seq_kd
from divax.objectives.distillation_presets import token_kd as token_kd
from divax.objectives.distillation_rows import FROM_DATA as FROM_DATA
from divax.objectives.distillation_rows import FROM_STUDENT as FROM_STUDENT
from divax.objectives.distillation_rows import FROM_TEACHER as FROM_TEACHER
from divax.objectives.distillation_rows import DistillationObjective as DistillationObjective
from divax.objectives.distillation_rows import DistillationRows as DistillationRows
from divax.objectives.distribution_matching import FittedMoments as FittedMoments
from divax.objectives.distribution_matching import PartitionEstimate as PartitionEstimate
from divax.objectives.distribution_matching import distribution_matching as distribution_matching
from divax.objectives.distribution_matching import fit_moments as fit_moments
from divax.objectives.dual_head import align_gradients as align_gradients
from divax.objectives.dual_head import dual_head as dual_head
from divax.objectives.earth_mover import EarthMover as EarthMover
from divax.objectives.enumeration import EnumerableTask as EnumerableTask
from divax.objectives.enumeration import enumerate_task as enumerate_task
from divax.objectives.expanded_vocabulary import NewTokens as NewTokens
from divax.objectives.expanded_vocabulary import expanded_teacher as expanded_teacher
from divax.objectives.expanded_vocabulary import new_tokens as new_tokens
from divax.objectives.hidden_logits import CombinedLogits as CombinedLogits
from divax.objectives.hidden_logits import HiddenLogits as HiddenLogits
from divax.objectives.hidden_rows import HiddenObjective as HiddenObjective
from divax.objectives.hidden_rows import HiddenRows as HiddenRows
from divax.objectives.label_log_probs import LabelStatistics as LabelStatistics
from divax.objectives.label_log_probs import label_log_probs as label_log_probs
from divax.objectives.label_log_probs import label_statistics as label_statistics
from divax.objectives.link_score import score as score
from divax.objectives.logit_mse import logit_mse as logit_mse
from divax.objectives.margin_losses import ClippedMargin as ClippedMargin
from divax.objectives.margin_losses import DiscoPop as DiscoPop
from divax.objectives.margin_losses import ExoPair as ExoPair
from divax.objectives.margin_losses import Exponential as Exponential
from divax.objectives.margin_losses import Hinge as Hinge
from divax.objectives.margin_losses import Logistic as Logistic
from divax.objectives.margin_losses import RobustLogistic as RobustLogistic
from divax.objectives.margin_losses import Squared as Squared
from divax.objectives.margin_losses import SquaredHinge as SquaredHinge
from divax.objectives.minillm import MiniLLM as MiniLLM
from divax.objectives.normalized_distillation import nkd as nkd
from divax.objectives.of_logits import OfLogits as OfLogits
from divax.objectives.overlong import finished_mask as finished_mask
from divax.objectives.overlong import overlong_penalty as overlong_penalty
from divax.objectives.pair_loss import AbstractMarginLoss as AbstractMarginLoss
from divax.objectives.pair_loss import AbstractPairLoss as AbstractPairLoss
from divax.objectives.pair_loss import LossSum as LossSum
from divax.objectives.pair_mean import OptimisticMean as OptimisticMean
from divax.objectives.pair_mean import PairAggregate as PairAggregate
from divax.objectives.pair_mean import PairMean as PairMean
from divax.objectives.pair_mean import PessimisticMean as PessimisticMean
from divax.objectives.pair_mean import TailMean as TailMean
from divax.objectives.pair_mean import pair_mean as pair_mean
from divax.objectives.plackett_luce import pld as pld
from divax.objectives.policy_gradient import policy_gradient as policy_gradient
from divax.objectives.policy_gradient import replay_penalty as replay_penalty
from divax.objectives.policy_gradient_method import PolicyGradientMethod as PolicyGradientMethod
from divax.objectives.policy_presets import cispo as cispo
from divax.objectives.policy_presets import dapo as dapo
from divax.objectives.policy_presets import dr_grpo as dr_grpo
from divax.objectives.policy_presets import gpg as gpg
from divax.objectives.policy_presets import grpo as grpo
from divax.objectives.policy_presets import gspo as gspo
from divax.objectives.policy_presets import gtpo as gtpo
from divax.objectives.policy_presets import ppo as ppo
from divax.objectives.policy_presets import reinforce as reinforce
from divax.objectives.policy_presets import rloo as rloo
from divax.objectives.policy_surrogates import AbstractSurrogate as AbstractSurrogate
from divax.objectives.policy_surrogates import Clipped as Clipped
from divax.objectives.policy_surrogates import Reinforce as Reinforce
from divax.objectives.policy_surrogates import RpgClipped as RpgClipped
from divax.objectives.policy_surrogates import WeightedReinforce as WeightedReinforce
from divax.objectives.preference import entropy_preference as entropy_preference
from divax.objectives.preference import preference as preference
from divax.objectives.process_reward import implicit_process_reward as implicit_process_reward
from divax.objectives.process_reward import process_rewards as process_rewards
from divax.objectives.progressive_distillation import PredictionMemory as PredictionMemory
from divax.objectives.progressive_distillation import ps_kd as ps_kd
from divax.objectives.published_distillation import AsPublished as AsPublished
from divax.objectives.published_distillation import EveryPosition as EveryPosition
from divax.objectives.published_distillation import WithTeacherEntropy as WithTeacherEntropy
from divax.objectives.published_penalty import PublishedPenalty as PublishedPenalty
from divax.objectives.reduction import Reduction as Reduction
from divax.objectives.reduction import constant_sum as constant_sum
from divax.objectives.reduction import each_token as each_token
from divax.objectives.reduction import sequence_mean as sequence_mean
from divax.objectives.reduction import token_mean as token_mean
from divax.objectives.reference_free import cpo as cpo
from divax.objectives.reference_free import mapo as mapo
from divax.objectives.reference_free import orpo as orpo
from divax.objectives.reference_free import simpo as simpo
from divax.objectives.reference_free import token_nll as token_nll
from divax.objectives.regularized_presets import apo as apo
from divax.objectives.regularized_presets import dph as dph
from divax.objectives.regularized_presets import dph_regularizer as dph_regularizer
from divax.objectives.regularized_presets import kdrl as kdrl
from divax.objectives.regularized_presets import prorl as prorl
from divax.objectives.regularized_presets import rao_blackwellized as rao_blackwellized
from divax.objectives.regularized_presets import unbiased_grpo as unbiased_grpo
from divax.objectives.regularizer import AbstractRegularizer as AbstractRegularizer
from divax.objectives.regularizer import Regularizer as Regularizer
from divax.objectives.reward_ensemble import best_of_n as best_of_n
from divax.objectives.reward_ensemble import best_of_n_kl as best_of_n_kl
from divax.objectives.reward_ensemble import (
    uncertainty_weighted_reward as uncertainty_weighted_reward,
)
from divax.objectives.reward_ensemble import worst_case_reward as worst_case_reward
from divax.objectives.rpg import rpg as rpg
from divax.objectives.sampled_distillation import SampledDistillation as SampledDistillation
from divax.objectives.sampler_correction import SamplerCorrection as SamplerCorrection
from divax.objectives.sampler_correction import fresh_or_positive as fresh_or_positive
from divax.objectives.sequence_match import SequenceMatch as SequenceMatch
from divax.objectives.spectral_mean import ExponentialSpectrum as ExponentialSpectrum
from divax.objectives.spectral_mean import Extremile as Extremile
from divax.objectives.spectral_mean import SpectralMean as SpectralMean
from divax.objectives.spectral_mean import Spectrum as Spectrum
from divax.objectives.spectral_mean import Superquantile as Superquantile
from divax.objectives.stochastic_dominance import aot_paired as aot_paired
from divax.objectives.stochastic_dominance import aot_unpaired as aot_unpaired
from divax.objectives.supervised_anchor import ChosenDropPenalty as ChosenDropPenalty
from divax.objectives.supervised_anchor import DecoupledLogistic as DecoupledLogistic
from divax.objectives.supervised_anchor import implicit_reward_sft as implicit_reward_sft
from divax.objectives.teacher_ensembles import mixture_of_teachers as mixture_of_teachers
from divax.objectives.teacher_ensembles import product_of_teachers as product_of_teachers
from divax.objectives.teacher_ensembles import teacher_weights as teacher_weights
from divax.objectives.token_advantages import gae as gae
from divax.objectives.token_advantages import return_to_go as return_to_go
from divax.objectives.token_advantages import terminal_rewards as terminal_rewards
from divax.objectives.token_advantages import whiten as whiten
from divax.objectives.token_distillation import LabelCrossEntropy as LabelCrossEntropy
from divax.objectives.token_distillation import TokenDistillation as TokenDistillation
from divax.objectives.token_form import TokenStatistics as TokenStatistics
from divax.objectives.token_objective import objective_from_hidden as objective_from_hidden
from divax.objectives.token_objective import token_by_token as token_by_token
from divax.objectives.token_objective import tokens_from_hidden as tokens_from_hidden
from divax.objectives.token_risk import EntropicRisk as EntropicRisk
from divax.objectives.token_risk import Risk as Risk
from divax.objectives.token_risk import TailRisk as TailRisk
from divax.objectives.token_risk import expected as expected
from divax.objectives.token_risk import sequential_risk as sequential_risk
from divax.objectives.token_risk import token_preference as token_preference
from divax.objectives.token_statistics import TokenLoss as TokenLoss
from divax.objectives.token_statistics import token_loss as token_loss
from divax.objectives.token_statistics import (
    token_loss_and_statistics as token_loss_and_statistics,
)
from divax.objectives.token_statistics import token_statistics as token_statistics
from divax.objectives.unlearning import flat as flat
from divax.objectives.unpaired import ddo as ddo
from divax.objectives.unpaired import kldo as kldo
from divax.objectives.unpaired import kto as kto
from divax.objectives.unpaired import negative_only as negative_only
from divax.objectives.unpaired import unpaired_bco as unpaired_bco
from divax.objectives.value_loss import value_loss as value_loss
from divax.objectives.weighted import Weighted as Weighted
