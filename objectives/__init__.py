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

Importing this package loads JAX and NumPy and nothing else.
"""

from divax.objectives.causal import CausalTargets as CausalTargets
from divax.objectives.causal import align_causal as align_causal
from divax.objectives.cross_entropy import cross_entropy as cross_entropy
from divax.objectives.distillation import distillation as distillation
from divax.objectives.reduction import Reduction as Reduction
from divax.objectives.reduction import constant_sum as constant_sum
from divax.objectives.reduction import sequence_mean as sequence_mean
from divax.objectives.reduction import token_mean as token_mean
from divax.objectives.weighted import Weighted as Weighted
