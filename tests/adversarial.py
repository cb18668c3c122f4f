"""Adversarial pairs of rows of logits: recipes that Hypothesis draws and shrinks, and the arrays that they stand for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

INF = np.inf


class Side(NamedTuple):
    """How one row is made; the first of each list is the simplest, towards which Hypothesis shrinks."""

    shape: str
    mask: str
    offset: float


class Recipe(NamedTuple):
    """How a pair of rows is made: `size` real tokens, the rest of the vocabulary impossible on both sides.

    Attributes:
        size: how many real tokens.
        target: the target's row.
        model: the model's.
        seed: of everything random.
        made_in: the precision of the numbers: the program's own, or less.
    """

    size: int
    target: Side
    model: Side
    seed: int
    made_in: str = "full"


SHAPES = (
    "constant",
    "normal",
    "huge",  # uniform on ±1e4
    "ends",  # −1e4, 0 or 1e4
    "peaked",  # one-hot by 1e4
    "certain",  # one-hot by a +inf logit
    "edge",  # gaps at which a probability is about to underflow
    "denormal",
    "lowest",  # masked with the most negative float
    "vast",  # anything up to the largest float
)
# The model's row may also be made from the target's.
RELATIONS = (
    "equal",
    "ulp",  # the next float, up or down, at every token
    "near",
    "shifted",
    "reversed",
    "negated",
)
MASKS = ("none", "some", "half", "all but one", "all")
# The model may also rule out exactly what the target rules out, or exactly what it does not.
MASK_RELATIONS = ("same", "opposite")
OFFSETS = (0.0, 1e4, -1e4, 1e30, -1e30)
PRECISIONS = {"full": None, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class Batch:
    """Recipes of one program's rows; shows those that Hypothesis could not shrink to the simplest."""

    def __init__(self, rows: Sequence[Recipe]):
        self.rows = tuple(rows)

    def __repr__(self) -> str:
        plain = Side("constant", "none", 0.0)
        shown = {i: r for i, r in enumerate(self.rows) if r != Recipe(r.size, plain, plain, 0)}
        return f"{len(self.rows)} rows, all constant but {shown}"


@st.composite
def batches(draw: st.DrawFn, sizes: tuple[int, ...], rows: int) -> Batch:
    """So many rows of these real sizes."""
    return Batch(draw(st.lists(_recipes(sizes), min_size=rows, max_size=rows)))


def _recipes(sizes: tuple[int, ...]) -> st.SearchStrategy[Recipe]:
    def side(shapes, masks):
        return st.builds(
            Side, st.sampled_from(shapes), st.sampled_from(masks), st.sampled_from(OFFSETS)
        )

    return st.builds(
        Recipe,
        st.sampled_from(sizes),
        side(SHAPES, MASKS),
        side((*SHAPES, *RELATIONS), (*MASKS, *MASK_RELATIONS)),
        st.integers(0, 2**16 - 1),
        st.sampled_from(["full", "full", *PRECISIONS]),
    )


def materialised(
    batch: Batch, vocabulary: int, dtype: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The recipes' rows, targets and models `[N, vocabulary]` of the dtype, and which of the pairs are equal."""
    with np.errstate(over="ignore"):  # float16 ends at 65504; what lies beyond is infinite
        pairs = [_pair(recipe, vocabulary, dtype) for recipe in batch.rows]
    target, model = (np.stack(rows) for rows in zip(*pairs, strict=True))
    return target, model, np.all(target == model, -1)


def _pair(recipe: Recipe, vocabulary: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    rng, (size, target, model, _, made_in) = np.random.default_rng(recipe.seed), recipe
    made_in = PRECISIONS[made_in] or dtype
    t = _shaped(target.shape, size, made_in, rng)
    related = model.shape in RELATIONS
    s = _related(model.shape, t, rng) if related else _shaped(model.shape, size, made_in, rng)
    off = _mask(target.mask, size, rng)
    model_off = {"same": off, "opposite": ~off}.get(model.mask)
    if model_off is None:
        model_off = _mask(model.mask, size, rng)
    # Equal rows stay equal only if their offsets are.
    t, s = _moved(t, target.offset), _moved(s, target.offset if related else model.offset)
    rows = np.full((2, vocabulary), -INF, dtype)
    rows[0, :size], rows[1, :size] = t.astype(dtype), s.astype(dtype)
    rows[0, :size][off] = rows[1, :size][model_off] = -INF
    return rows[0], rows[1]


def _moved(logits: np.ndarray, offset: float) -> np.ndarray:
    return (logits.astype(np.float64) + offset).astype(logits.dtype) if offset else logits


def _shaped(shape: str, size: int, dtype: Any, rng: np.random.Generator) -> np.ndarray:
    """Logits `[size]` of the dtype."""
    one = np.arange(size) == rng.integers(size)
    most = float(jnp.finfo(dtype).max)
    # exp(−87.3) is float32's smallest normal number and exp(−103.3) its smallest of all; 708.4 and 744.4 in float64.
    edges = (700, 750) if dtype == np.float64 else (80, 110)
    logits = {
        "constant": lambda: np.zeros(size),
        "normal": lambda: 3 * rng.standard_normal(size),
        "huge": lambda: rng.uniform(-1e4, 1e4, size),
        "ends": lambda: rng.choice([-1e4, 0.0, 1e4], size),
        "peaked": lambda: np.where(one, 1e4, rng.standard_normal(size)),
        "certain": lambda: np.where(one, INF, rng.standard_normal(size)),
        "edge": lambda: np.where(one, 0.0, -rng.uniform(*edges, size)),
        "lowest": lambda: np.where(rng.random(size) < 0.4, -most, rng.standard_normal(size)),
        "vast": lambda: rng.choice(np.asarray([-1, -0.9, -1e-3, 0, 1e-3, 0.9, 1]) * most, size),
        "denormal": lambda: (
            rng.integers(-99, 99, size) * float(jnp.finfo(dtype).smallest_subnormal)
        ),
    }[shape]()
    return logits.astype(dtype)


def _related(relation: str, target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A model's logits `[size]` from the target's."""
    finite, size = np.isfinite(target), target.shape
    if relation == "ulp":
        towards = rng.choice([-INF, INF], size).astype(target.dtype)
        return np.where(finite, np.nextafter(target, towards), target)
    wide = target.astype(np.float64)
    return {
        "equal": wide,
        "near": wide + 1e-3 * rng.standard_normal(size),
        "shifted": wide + rng.uniform(-100, 100),
        "reversed": wide[::-1],
        "negated": -wide,
    }[relation].astype(target.dtype)


def _mask(mask: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Which tokens are impossible, boolean `[size]`."""
    if mask == "all but one":
        return np.arange(size) != rng.integers(size)
    return rng.random(size) < {"none": 0.0, "some": 0.1, "half": 0.5, "all": 2.0}[mask]


class Support(NamedTuple):
    """What the rows' supports and their log-ratios say about a value, in float64 from the logits alone.

    Attributes:
        legal: both sides have a possible token, `[N]`.
        disjoint: legal, and no token is possible on both.
        target_zero: a token that only the target rules out.
        model_zero: likewise.
        growth: max log(p²/q + q²/p) over the tokens possible on both, up to log 2: the size of a χ²-divergence.
    """

    legal: np.ndarray
    disjoint: np.ndarray
    target_zero: np.ndarray
    model_zero: np.ndarray
    growth: np.ndarray


def supports(target: np.ndarray, model: np.ndarray) -> Support:
    """What the supports of rows of any float dtype are."""
    (log_p, t_on), (log_q, s_on) = _log_probabilities(target), _log_probabilities(model)
    legal, both = np.any(t_on, -1) & np.any(s_on, -1), t_on & s_on
    log_p, log_q = (np.maximum(np.where(both, x, 0), -1e300) for x in (log_p, log_q))
    growth = np.where(both, np.maximum(2 * log_p - log_q, 2 * log_q - log_p), -INF)
    return Support(
        legal,
        legal & ~np.any(both, -1),
        legal & np.any(s_on & ~t_on, -1),
        legal & np.any(t_on & ~s_on, -1),
        np.max(growth, -1),
    )


def _log_probabilities(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits = logits.astype(np.float64)
    certain = (logits == INF).any(-1, keepdims=True)
    logits = np.where(certain, np.where(logits == INF, 0.0, -INF), logits)
    top = logits.max(-1, keepdims=True)
    with np.errstate(over="ignore"):
        centred = logits - np.where(np.isfinite(top), top, 0)
    total = np.exp(centred).sum(-1, keepdims=True)
    return centred - np.log(np.where(total > 0, total, 1)), logits > -INF
