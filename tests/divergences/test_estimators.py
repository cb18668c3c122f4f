"""Estimators by exact enumeration: over a small support the mean over samples is a sum, so bias is visible to 1e-12."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from members import f_member
from oracles import categorical

from divax import divergences as dv

LIGHT = ["reverse_kl", "jensen_shannon(0.5)", "alpha(0.5)", "alpha(-1.0)", "squared_hellinger"]
LIGHT += ["total_variation", "triangular", "skew_forward_kl(0.1)", "reverse_chi2"]
HEAVY = ["forward_kl", "jeffreys", "forward_chi2", "alpha(2.0)"]
pytestmark = pytest.mark.usefixtures("x64")
T, S, B = (np.random.default_rng(k).standard_normal(5) for k in range(3))


def expectation(spec, samples, value, gradient, s=S, **options):
    """E over the sampling distribution, held fixed, as a function of the model's logits."""
    p, b = jax.nn.log_softmax(jnp.asarray(T)), jax.nn.log_softmax(jnp.asarray(B))
    drawn = {"target": p, "model": jax.nn.log_softmax(jnp.asarray(S)), "behaviour": b}[samples]
    if samples == "behaviour":
        options["behaviour_logps"] = b
    each = dv.estimate(
        f_member(spec),
        target_logps=p,
        model_logps=jax.nn.log_softmax(s),
        samples=samples,
        value=value,
        gradient=gradient,
        **options,
    )
    return jnp.sum(jnp.exp(drawn) * each)


def check_exact(spec, samples, value, gradient, **options):
    got, slope = jax.value_and_grad(
        lambda s: expectation(spec, samples, value, gradient, s, **options)
    )(jnp.asarray(S))
    want = float(categorical.value(spec, T, S))
    assert float(got) == pytest.approx(want, rel=1e-10)
    if gradient != "none":
        exact = [float(x) for x in categorical.model_gradient(spec, T, S)]
        np.testing.assert_allclose(slope, exact, atol=1e-10)
    else:
        assert np.all(np.asarray(slope) == 0)


@pytest.mark.parametrize("spec", LIGHT)
@pytest.mark.parametrize("value", ["standard", "tail"])
@pytest.mark.parametrize("samples", ["model", "behaviour"])
def test_value_and_gradient_forms_are_exact(spec, value, samples):
    for gradient in ("none", "score", "importance"):
        check_exact(spec, samples, value, gradient)


@pytest.mark.parametrize("spec", [*LIGHT, *HEAVY])
def test_target_samples_are_exact_for_every_member(spec):
    for gradient in ("none", "score", "pathwise"):
        check_exact(spec, "target", "standard", gradient)
    if np.isfinite(float(f_member(spec).f_at_zero)):
        check_exact(spec, "target", "tail", "pathwise")


@pytest.mark.parametrize("spec", HEAVY)
def test_heavy_tails_on_request(spec):
    for gradient in ("score", "importance"):
        check_exact(spec, "model", "standard", gradient, allow_heavy_tails=True)


@pytest.mark.parametrize("samples", ["model", "behaviour"])
def test_a_baseline_changes_no_expected_gradient(samples):
    check_exact("jensen_shannon(0.5)", samples, "standard", "score", baseline=3.0)


def test_k1_k2_k3_are_what_their_names_say():
    p, q = jax.nn.log_softmax(jnp.asarray(T)), jax.nn.log_softmax(jnp.asarray(S))
    log_r = np.asarray(p - q)
    formulas = {"k1": -log_r, "k2": 0.5 * log_r**2, "k3": np.exp(log_r) - 1 - log_r}
    for name, want in formulas.items():
        got = dv.estimate(
            dv.ReverseKL(),
            target_logps=p,
            model_logps=q,
            samples="model",
            value=name,
            gradient="none",
        )
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)
    check_exact("reverse_kl", "model", "k1", "score")
    check_exact("reverse_kl", "model", "k3", "importance")
    biased = float(expectation("reverse_kl", "model", "k2", "none"))
    assert abs(biased - float(categorical.value("reverse_kl", T, S))) > 1e-3
    slope = jax.grad(lambda s: expectation("reverse_kl", "model", "k2", "score", s))(jnp.asarray(S))
    exact = [float(x) for x in categorical.model_gradient("reverse_kl", T, S)]
    np.testing.assert_allclose(slope, exact, atol=1e-12)


def test_why_the_refused_combinations_are_refused():
    """Pathwise k1 on model samples has no expected gradient, pathwise k3 that of forward_kl: the truth table."""
    p, fixed = jax.nn.log_softmax(jnp.asarray(T)), jax.nn.softmax(jnp.asarray(S))

    def naive(form, s):
        d = p - jax.nn.log_softmax(s)
        return jnp.sum(fixed * (-d if form == "k1" else jnp.exp(d) - 1 - d))

    np.testing.assert_allclose(jax.grad(lambda s: naive("k1", s))(jnp.asarray(S)), 0, atol=1e-14)
    forward = [float(x) for x in categorical.model_gradient("forward_kl", T, S)]
    np.testing.assert_allclose(
        jax.grad(lambda s: naive("k3", s))(jnp.asarray(S)), forward, atol=1e-12
    )


def test_the_control_variate_is_unbiased_and_beats_both():
    """All 5⁴ samples of four, weighted by their probability."""
    p, q = (
        np.asarray(jax.nn.log_softmax(jnp.asarray(T))),
        np.asarray(jax.nn.log_softmax(jnp.asarray(S))),
    )
    every = np.stack(np.meshgrid(*[np.arange(5)] * 4, indexing="ij"), -1).reshape(-1, 4)
    chance = np.exp(q[every].sum(-1))
    given = {
        "target_logps": p[every],
        "model_logps": q[every],
        "samples": "model",
        "gradient": "none",
    }
    each = dv.estimate(dv.ReverseKL(), value="control_variate", **given)
    assert float(chance @ np.asarray(each).mean(-1)) == pytest.approx(
        float(categorical.value("reverse_kl", T, S)), rel=1e-10
    )
    rng = np.random.default_rng(0)
    drawn = rng.choice(5, p=np.exp(q), size=(400, 64))
    given |= {"target_logps": p[drawn], "model_logps": q[drawn]}
    spread = {
        value: np.asarray(dv.estimate(dv.ReverseKL(), value=value, **given)).mean(-1).var()
        for value in ("k1", "k3", "control_variate")
    }
    assert spread["control_variate"] < 1.1 * min(spread["k1"], spread["k3"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spec", [spec for spec in LIGHT if spec != "total_variation"])
def test_the_tail_form_keeps_its_digits_where_the_model_lost_a_mode(spec, dtype):
    for log_ratio in [-20.0, -1.0, -0.1, 0.0, 0.5, 0.99, 1.01, 2.0, 10.0, 40.0]:
        with mp.workdps(80):
            f, slope = categorical.generator(spec)
            r = mp.exp(mp.mpf(log_ratio))
            want = float(f(r) - slope * (r - 1))
        got = dv.estimate(
            f_member(spec),
            target_logps=np.asarray([log_ratio], dtype),
            model_logps=np.zeros(1, dtype),
            samples="model",
            value="tail",
            gradient="none",
        )
        tolerance = 2e-6 if dtype == np.float32 else 1e-9
        assert float(got[0]) == pytest.approx(want, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("masked", [False, True])
def test_rao_blackwellized_kl_is_exact_over_all_sequences(masked):
    """All 3³ sequences of an autoregressive pair with logits that depend on the prefix."""
    rng = np.random.default_rng(5)
    tables = [rng.standard_normal((2, *([3] * t), 3)) for t in range(3)]
    every = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    mask = np.broadcast_to(np.array([True, True, not masked]), every.shape)
    prefixes = [tuple(every[:, :t].T) for t in range(3)]

    def logits(side, tables):
        return jnp.stack(
            [
                jnp.broadcast_to(t[side][at], (27, 3))
                for t, at in zip(tables, prefixes, strict=True)
            ],
            1,
        )

    def log_prob(all_logits):
        steps = jnp.take_along_axis(
            jax.nn.log_softmax(all_logits), jnp.asarray(every)[..., None], -1
        )
        return jnp.sum(jnp.where(mask, steps[..., 0], 0), -1)

    def estimated(model_tables, div, samples):
        target, model = logits(0, tables), logits(1, model_tables)
        drawn = jax.lax.stop_gradient(log_prob(model if samples == "model" else target))
        each = dv.rao_blackwellized_kl(
            div, target_logits=target, model_logits=model, tokens=every, samples=samples, mask=mask
        )
        return jnp.sum(jnp.exp(drawn) * each) / (3 if masked else 1)

    def exact(model_tables, swap):
        lp, lq = log_prob(logits(0, tables)), log_prob(logits(1, model_tables))
        one, other = (lq, lp) if swap else (lp, lq)
        return jnp.sum(jnp.exp(one) * (one - other)) / (3 if masked else 1)

    at = [jnp.asarray(table) for table in tables]
    for div, samples, swap in [(dv.ReverseKL(), "model", True), (dv.ForwardKL(), "target", False)]:
        got, slope = jax.value_and_grad(estimated)(at, div, samples)
        want, exact_slope = jax.value_and_grad(exact)(at, swap)
        assert float(got) == pytest.approx(float(want), rel=1e-12)
        for have, expected in zip(slope, exact_slope, strict=True):
            np.testing.assert_allclose(have[1], expected[1], atol=1e-12)


RIGHT = {"samples": "model", "value": "standard", "gradient": "score"}


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        ("reverse_kl", {"gradient": "pathwise"}, "k3 that of forward_kl; use gradient='score'"),
        ("reverse_kl", {"samples": "target", "gradient": "importance"}, "use gradient='pathwise'"),
        (
            "reverse_kl",
            {"samples": "behaviour", "gradient": "pathwise", "behaviour_logps": S},
            "neither",
        ),
        ("reverse_kl", {"samples": "behaviour"}, "needs behaviour_logps"),
        ("reverse_kl", {"behaviour_logps": S}, "takes no behaviour_logps"),
        ("jeffreys", {"value": "k3"}, "estimates reverse_kl"),
        ("reverse_kl", {"value": "k1", "samples": "target"}, "estimates reverse_kl"),
        ("reverse_kl", {"value": "k2", "gradient": "importance"}, "biased"),
        ("forward_kl", {"value": "tail"}, "infinite for forward_kl"),
        ("reverse_kl", {"value": "tail", "samples": "target"}, r"f\(0\)"),
        ("forward_kl", {}, "allow_heavy_tails=True"),
        ("reverse_kl", {"value": "k4"}, "value='k4' is none of standard"),
    ],
)
def test_wrong_combinations_say_why(spec, change, message):
    with pytest.raises(ValueError, match=message):
        dv.estimate(f_member(spec), target_logps=T, model_logps=S, **{**RIGHT, **change})


def test_other_wrong_input_is_explained():
    with pytest.raises(TypeError, match=r"adaptive_kl.* is not an f-divergence"):
        dv.estimate(dv.AdaptiveKL(), target_logps=T, model_logps=S, **RIGHT)
    given = {**RIGHT, "value": "control_variate"}
    with pytest.raises(ValueError, match="at least 3 are needed"):
        dv.estimate(dv.ReverseKL(), target_logps=T[:2], model_logps=S[:2], **given)
    given = {"target_logits": T, "model_logits": S, "tokens": np.zeros((), int)}
    with pytest.raises(ValueError, match="has no chain rule"):
        dv.rao_blackwellized_kl(dv.JensenShannon(), samples="model", **given)
    with pytest.raises(ValueError, match="prefixes that the model drew"):
        dv.rao_blackwellized_kl(dv.ReverseKL(), samples="target", **given)
