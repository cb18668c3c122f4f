"""Objectives: pure functions of logits to `(loss, metrics)`.

Every objective takes keyword arrays named for what they are, and returns a `Weighted` loss, which
is a sum and a count that add up exactly over micro-batches, devices and hosts and are divided once
(`loss.mean()`), with a dictionary of metrics of the same kind. A masked row contributes exactly 0
to both value and gradient, whatever it holds.

| objective | loss per row |
|---|---|
| `distillation` | `w T² D(softmax(t/T), softmax(s/T)) + (1 - w) CE(s, y)`, any divergence `D` |
| `cross_entropy` | `-log softmax(s)_y` |

| building block | what it does |
|---|---|
| `Weighted` | a sum and a count; `+`, scalar `*`, `mean()` |
| `token_mean`, `sequence_mean`, `constant_sum` | per-token values and a mask to a `Weighted` |
| `Reduction` | the type of those three |
| `align_causal`, `CausalTargets` | tokens to next-token labels and mask, packing included |

Proof: `check_objective` tries any objective, yours too, given as an `ObjectiveCase` (with example inputs), on every law
in `LAWS`, `check_law` on one; what holds gives a `divergences.Verdict`, what does not raises `divergences.BrokenLaw`.

Importing this package loads JAX and NumPy and nothing else.
"""

from divax.objectives.case import ObjectiveCase as ObjectiveCase
from divax.objectives.causal import CausalTargets as CausalTargets
from divax.objectives.causal import align_causal as align_causal
from divax.objectives.checks import LAWS as LAWS
from divax.objectives.checks import check_law as check_law
from divax.objectives.checks import check_objective as check_objective
from divax.objectives.cross_entropy import cross_entropy as cross_entropy
from divax.objectives.distillation import distillation as distillation
from divax.objectives.reduction import Reduction as Reduction
from divax.objectives.reduction import constant_sum as constant_sum
from divax.objectives.reduction import sequence_mean as sequence_mean
from divax.objectives.reduction import token_mean as token_mean
from divax.objectives.weighted import Weighted as Weighted
