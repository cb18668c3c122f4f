"""No NaN and no negative value, whatever the logits: property tests of every member over adversarial rows.

A case is one member on one drawn pair of rows. All members share one compiled program per dtype and shape (which costs
a fifth of a program each), and a batch of rows is judged at once; rows of fewer real tokens are padded with
impossible ones, itself an adversarial pattern.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adversarial import Batch, Recipe, Side, Support, batches, materialised, supports
from hypothesis import HealthCheck, Phase, example, given, settings

from divax import divergences as dv

ROWS, VOCABULARY, SMALL, LARGE = 64, 64, 8, 150_000


class Member(NamedTuple):
    """A divergence and which of the rules it bends, as documented.

    Attributes:
        div: the divergence.
        grows: like a χ²-divergence, so that it may be too large for any float.
        apart: +inf where no token is possible on both sides.
        may_be_infinite: is not always +inf where `infinite_at` says so.
        short: how far below 0 a value may be whose iterations end early; infinitely far when they end after 200.
        zero: exactly 0 for equal rows.
    """

    div: dv.AbstractDivergence
    grows: bool = False
    apart: bool = False
    may_be_infinite: bool = False
    short: float = 0.0
    zero: bool = True


POWERS = ("forward_chi2", "reverse_chi2", "log1p_abs", "adaptive_alpha", "chi2_kl")
POWERS += ("cressie_read", "tsallis", "t_power")
LOGARITHMS = ("renyi", "bhattacharyya", "gamma", "cauchy_schwarz", "hoelder")
ADAPTIVE = ("adaptive_kl",)  # a KL of weight exactly 0 is left out


def registered(spec: str) -> Member:
    return Member(dv.get(spec), spec in POWERS, spec in LOGARITHMS, spec in ADAPTIVE)


MEMBERS = {spec: registered(spec) for spec in dv.names() if spec != "sinkhorn"} | {
    member.div.name: member
    for member in (
        Member(dv.symmetrized(dv.ForwardChi2()), grows=True),
        Member(dv.symmetrized(dv.AdaptiveKL()), may_be_infinite=True),
        Member(dv.skewed(dv.Jeffreys(), 0.1)),
        Member(dv.skewed(dv.AdaptiveKL(), 0.3), may_be_infinite=True),
        Member(dv.SkewForwardKL(skew=0.0)),
        Member(dv.Tempered(inner=dv.JensenShannon(), temperature=3.0, power=2.0)),
        Member(0.5 * dv.CauchySchwarz() + dv.ForwardKL(), apart=True),
        Member(0.7 * dv.ForwardKL() + 0.3 * dv.ReverseChi2(), grows=True),
        Member(dv.AdaptiveKL().dual(), may_be_infinite=True),
        Member(dv.Renyi(order=2.0), apart=True),
        Member(dv.TopK(inner=dv.ReverseKL(), k=8, keep="union"), may_be_infinite=True),
        Member(dv.from_generator(lambda u: u * jnp.log(u), name="mine").dual()),
    )
}

# On few tokens, as they iterate.
PLACES = np.arange(SMALL, dtype=np.float32)
COST = jnp.asarray(np.abs(PLACES[:, None] - PLACES) / SMALL)
TRANSPORT = {
    member.div.name: member
    for member in (
        Member(dv.get("sinkhorn"), short=1e-6),
        Member(dv.Sinkhorn(cost=COST, debiased=False, max_iterations=200), zero=False),
        Member(dv.AnnealedSinkhorn(cost=COST, max_iterations=200), short=np.inf),
        Member(dv.UnbalancedSinkhorn(max_iterations=200), short=np.inf),
    )
}
# Sinkhorn at V = 150 000 may make 2000 iterations of three problems: as its documentation says, on a coarse vocabulary.
AT_SCALE = MEMBERS | {
    "top_k(sinkhorn)": Member(dv.TopK(inner=dv.Sinkhorn(max_iterations=50), k=32, keep="union"))
}


def with_gradients(div: dv.AbstractDivergence) -> Callable[..., Any]:
    """(targets, models) → values and both gradients."""

    def evaluate(target, model):
        value, pullback = jax.vjp(div, target, model)
        return value, *pullback(jnp.ones_like(value))

    return evaluate


def hypothesise(judge: Callable[[Batch], None], examples: int, rows: int, sizes) -> int:
    """Tries the judge on that many batches of so many drawn recipes; how many rows it has judged."""
    judged = 0

    @example(Batch((FOUND * rows)[:rows]))
    @example(Batch((FOUND[2:] * rows)[:rows]))
    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(batches(sizes, rows))
    def run(batch):
        nonlocal judged
        judge(batch)
        judged += len(batch.rows)

    run()
    return judged


# What these tests have found: p/m overflowed where q underflowed in skew_forward_kl(0.0), which made its gradient NaN;
# a token whose probability underflowed was taken for impossible by `Skewed`; a gap between logits that is no float made
# everything NaN; and equal rows of a batch were worth 1e-8 to Sinkhorn, not 0.
UNDERFLOWING_RATIO = Recipe(
    2, Side("huge", "all but one", -1e4), Side("shifted", "some", -1e4), 985
)
UNDERFLOWING_MASS = Recipe(3, Side("certain", "all but one", 1e30), Side("huge", "some", 0), 65534)
VAST_GAP = Recipe(8, Side("vast", "none", 0.0), Side("vast", "none", 0.0), 3)
EQUAL = Recipe(3, Side("normal", "none", 0.0), Side("equal", "same", 0.0), 0)
FOUND = [UNDERFLOWING_RATIO, UNDERFLOWING_MASS, VAST_GAP, EQUAL]


def require(ok: np.ndarray, claim: str, name: str, batch: Batch, target, model, *shown):
    """Fails with the member, the claim and the first row that breaks it: its recipe, its dtype, its logits."""
    ok = ok if ok.ndim == 1 else np.all(ok, axis=-1)
    if ok.all():
        return
    row = int(np.argmin(ok))
    few = slice(0, min(batch.rows[row].size, 8))
    pytest.fail(
        f"{name}, {target.dtype}: {claim}; row {row} of {batch.rows[row]}: target={target[row, few]!r},"
        f" model={model[row, few]!r}, got {[np.atleast_1d(x[row])[few] for x in shown]}"
    )


def judged(name: str, member: Member, batch: Batch, target, model, equal, of: Support, out) -> None:
    """All that a value and its gradients promise."""
    value, *slopes = out
    at = member.div.infinite_at
    infinite = (of.target_zero & bool(at.target_zero)) | (of.model_zero & bool(at.model_zero))
    # A sum of V terms leaves the floats when its largest term is within a factor of 1e4·V of doing so, at the earliest.
    limit = np.log(float(np.finfo(target.dtype).max)) - np.log(1e4 * target.shape[-1])
    allowed = infinite | (of.disjoint & member.apart) | ((of.growth > limit) & member.grows)

    def check(ok, claim):
        require(np.asarray(ok), claim, name, batch, target, model, *out)

    check(~np.isnan(value), "the value is NaN")
    check((value != np.inf) | allowed, "the value is +inf and `infinite_at` does not say so")
    if not member.may_be_infinite:
        check((value == np.inf) | ~infinite, "`infinite_at` says +inf")
    check(value >= -member.short, "the value is negative")
    if member.zero:
        check((value == 0) | ~equal, "equal rows are not worth 0")
    check((value == 0) | of.legal, "a row without a possible token is not worth 0")
    for slope, logits in zip(slopes, (target, model), strict=True):
        check(np.isfinite(slope), "a gradient is not finite")
        check((slope == 0) | (logits != -np.inf), "a gradient at an impossible token")
        check((slope == 0) | of.legal[:, None], "a gradient in a row without a possible token")


def judge_of(members: Mapping[str, Member], vocabulary: int, dtype) -> Callable:
    """Evaluates all members in one program, in this dtype, and judges every row."""
    functions = {name: with_gradients(member.div) for name, member in members.items()}
    # The suite compiles without optimisation; here float32 gets machine code as users do.
    options = {"xla_backend_optimization_level": 3} if dtype == np.float32 else None
    every = jax.jit(
        lambda t, s: {name: f(t, s) for name, f in functions.items()}, compiler_options=options
    )

    def judge(batch):
        target, model, equal = materialised(batch, vocabulary, dtype)
        of, out = supports(target, model), jax.device_get(every(target, model))
        for name, member in members.items():
            judged(name, member, batch, target, model, equal, of, out[name])

    return judge


@pytest.mark.parametrize(
    ("dtype", "examples"), [(np.float32, 12), (np.float64, 6)], ids=["float32", "float64"]
)
def test_never_nan_never_negative_and_infinite_only_where_it_says_so(dtype, examples):
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        judge = judge_of(MEMBERS, VOCABULARY, dtype)
        rows = hypothesise(judge, examples, ROWS, (1, 2, 3, 8, VOCABULARY))
    cases = rows * len(MEMBERS)
    print(f"{cases} cases in {np.dtype(dtype)}")
    assert cases >= 20_000


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_transport_is_never_nan_either(dtype):
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        judge = judge_of(TRANSPORT, SMALL, dtype)
        rows = hypothesise(judge, 3, ROWS, (1, 2, 3, SMALL))
    print(f"{rows * len(TRANSPORT)} cases in {np.dtype(dtype)}")
    assert rows * len(TRANSPORT) >= 1_000


def test_the_same_at_the_size_of_a_language_model():
    rows = hypothesise(judge_of(AT_SCALE, LARGE, np.float32), 2, 2, (LARGE, LARGE - 1, VOCABULARY))
    print(f"{rows * len(AT_SCALE)} cases of {LARGE} tokens")
    assert rows * len(AT_SCALE) >= 300


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a traced program, those of the programs inside it instead of their calls."""
    for equation in jaxpr.eqns:
        inside = [x for x in jax.tree.leaves(list(equation.params.values())) if hasattr(x, "eqns")]
        inside += [
            x.jaxpr for x in jax.tree.leaves(list(equation.params.values())) if hasattr(x, "jaxpr")
        ]
        for each in inside:
            yield from equations(each)
        if not inside:
            yield equation


HALF, BRAIN, SINGLE = (jnp.dtype(x) for x in (jnp.float16, jnp.bfloat16, jnp.float32))


def half_precision_operations(div: dv.AbstractDivergence) -> set[tuple]:
    """What the traced program of value and gradients does to and into float16 targets and bfloat16 models."""
    logits = jnp.zeros((1, SMALL), HALF), jnp.zeros((1, SMALL), BRAIN)
    program = jax.make_jaxpr(with_gradients(div))(*logits)
    assert [out.dtype for out in program.out_avals] == [SINGLE, HALF, BRAIN]
    return {
        (equation.primitive.name, *dtypes)
        for equation in equations(program.jaxpr)
        if {HALF, BRAIN}
        & set(dtypes := [x.aval.dtype for x in (*equation.invars, *equation.outvars)])
    }


def test_half_precision_is_float32_of_the_same_numbers():
    """By the programs themselves, whatever the numbers: half precision is only converted, and only from and to float32.

    (The law `half_precision` compares values bit for bit; the rows above are partly made of such numbers.)
    """
    pairs = (HALF, SINGLE), (SINGLE, HALF), (BRAIN, SINGLE), (SINGLE, BRAIN)
    conversions = {("convert_element_type", *pair) for pair in pairs}
    for name, member in (MEMBERS | TRANSPORT).items():
        assert half_precision_operations(member.div) == conversions, name


@dv.divergence
class Naive(dv.ForwardKL):
    """Σ p·log(p/q) as one writes it at first, in the dtype that is given."""

    def __call__(self, target, model, **options):
        t, s = (jax.nn.log_softmax(jnp.asarray(x)).astype(jnp.float32) for x in (target, model))
        return jnp.sum(jnp.exp(t) * (t - s), -1)


def test_a_naive_divergence_is_caught():
    judge = judge_of({"naive": Member(Naive())}, SMALL, np.float32)
    with pytest.raises(
        pytest.fail.Exception, match=r"naive, float32: the value is NaN; row 0 of R"
    ):
        judge(Batch(FOUND * (ROWS // len(FOUND))))
    assert len(half_precision_operations(Naive())) > 4
