"""Pairs under every admissible divergence and loss, against transcriptions from the papers and tabular optima."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from divax import divergences as dv
from divax import objectives
from tests.oracles import preference as oracle

MARGIN = [
    objectives.Logistic(),
    objectives.RobustLogistic(flip=0.1),
    objectives.Hinge(),
    objectives.SquaredHinge(),
    objectives.Squared(),
    objectives.ExoPair(floor=1e-3),
    objectives.Exponential(),
    objectives.DiscoPop(temperature=0.05),
]
ABSOLUTE = [
    objectives.NcaPair(),
    objectives.BcoPair(),
    objectives.SppoHard(),
    objectives.ApoZero(),
    objectives.ApoDown(),
]
ADMISSIBLE = [
    name
    for name in dv.names()
    if isinstance(dv.get(name), dv.AbstractFDivergence)
    and dv.get(name).smooth  # type: ignore[union-attr]
    and bool(dv.get(name).admissible)  # type: ignore[union-attr]
]


def label(value):
    return type(value).__name__ if not isinstance(value, str) else value


def pairs(log_ratios_chosen, log_ratios_rejected) -> dict[str, Any]:
    """Log-probs whose log-ratios are given, against a reference that is not zero."""
    reference = (
        -np.linspace(3, 30, len(log_ratios_chosen)),
        -np.linspace(20, 5, len(log_ratios_chosen)),
    )
    return {
        "chosen_logps": reference[0] + log_ratios_chosen,
        "rejected_logps": reference[1] + log_ratios_rejected,
        "reference_chosen_logps": reference[0],
        "reference_rejected_logps": reference[1],
    }


# ---- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", MARGIN, ids=label)
def test_margin_losses_against_their_papers(x64, loss):
    rng = np.random.default_rng(0)
    chosen, rejected = rng.uniform(-1, 1, (2, 50))  # so that no margin is in Exponential's tail
    for name, score in oracle.SCORES.items():
        value, _ = objectives.preference(
            **pairs(chosen, rejected), divergence=dv.get(name), loss=loss, beta=0.3
        )
        margin = 0.3 * (score(np.exp(chosen)) - score(np.exp(rejected)))
        expected = oracle.MARGIN_LOSSES[label(loss)](margin, 0.3)
        np.testing.assert_allclose(value.mean(), np.mean(expected), rtol=1e-12)


@pytest.mark.parametrize("loss", ABSOLUTE, ids=label)
def test_absolute_losses_against_their_papers(x64, loss):
    chosen, rejected = np.random.default_rng(1).uniform(-4, 4, (2, 50))
    value, _ = objectives.preference(**pairs(chosen, rejected), loss=loss, beta=0.3)
    expected = oracle.ABSOLUTE_LOSSES[label(loss)](chosen, rejected, 0.3)
    np.testing.assert_allclose(value.mean(), np.mean(expected), rtol=1e-12)


@pytest.mark.parametrize("loss", MARGIN, ids=label)
def test_least_expected_loss_is_at_the_stated_margin(x64, loss):
    for p in (0.55, 0.65, 0.75, 0.85):
        expected = jax.jit(
            lambda d, p: p * loss.of_margin(d, 0.3) + (1 - p) * loss.of_margin(-d, 0.3)
        )
        grid = np.linspace(-8, 8, 160001)
        best = grid[np.argmin(np.asarray(expected(grid, p)))]
        if label(loss) == "Hinge":
            assert best == pytest.approx(1.0, abs=2e-4)
            continue
        tolerance = 6e-3 if label(loss) == "DiscoPop" else 2e-4
        assert best == pytest.approx(oracle.MINIMISERS[label(loss)](p), abs=tolerance)


def test_robust_loss_is_the_clean_loss_in_expectation(x64):
    margins = np.linspace(-5, 5, 101)
    noisy = objectives.RobustLogistic(flip=0.2)
    mean = 0.8 * noisy.of_margin(margins, 1.0) + 0.2 * noisy.of_margin(-margins, 1.0)
    np.testing.assert_allclose(mean, oracle.logistic(margins), rtol=1e-12)


def test_discopop_pushes_the_wrong_way_at_the_start(x64):
    slope = jax.grad(lambda d, t: objectives.DiscoPop(temperature=t).of_margin(d, 1.0))
    assert float(slope(0.0, 0.05)) == pytest.approx(0.784, abs=1e-3)
    assert float(slope(0.0, 1.0)) == pytest.approx(-0.673, abs=1e-3)


def test_soft_labels_offsets_and_lengths(x64):
    rng = np.random.default_rng(2)
    chosen, rejected = rng.uniform(-2, 2, (2, 7))
    arrays = pairs(chosen, rejected)
    probs, gap = rng.uniform(0, 1, 7), rng.uniform(0, 2, 7)
    lengths = rng.integers(1, 40, (2, 7))

    def mean(**options):
        return float(objectives.preference(**arrays, beta=0.3, **options)[0].mean())

    margin = 0.3 * (chosen - rejected)
    soft = probs * oracle.logistic(margin) + (1 - probs) * oracle.logistic(-margin)
    assert mean(label_probs=probs) == pytest.approx(np.mean(soft), rel=1e-12)
    smoothed = 0.9 * oracle.logistic(margin) + 0.1 * oracle.logistic(-margin)
    assert mean(label_probs=0.9) == pytest.approx(np.mean(smoothed), rel=1e-12)
    assert mean(margin_offset=gap) == pytest.approx(
        np.mean(oracle.logistic(margin - gap)), rel=1e-12
    )
    per_token = 0.3 * (chosen / lengths[0] - rejected / lengths[1])
    assert mean(chosen_lengths=lengths[0], rejected_lengths=lengths[1]) == pytest.approx(
        np.mean(oracle.logistic(per_token)), rel=1e-12
    )


def test_beta_normalize_makes_every_link_start_alike(x64):
    step = 1e-6
    for name in ("reverse_kl", "jensen_shannon", "jeffreys", "chi2_kl(0.5)"):
        value, _ = objectives.preference(
            **pairs(np.array([step]), np.array([-step])),
            divergence=dv.get(name),
            beta=1.0,
            beta_normalize=True,
        )
        assert float(np.log(2) - value.mean()) / step == pytest.approx(1.0, rel=1e-5)


def test_loss_sums_are_weighted_sums(x64):
    chosen, rejected = np.random.default_rng(3).uniform(-4, 4, (2, 9))
    mixed = 0.8 * objectives.Logistic() + 0.2 * objectives.BcoPair()
    value, _ = objectives.preference(**pairs(chosen, rejected), loss=mixed, beta=0.3)
    expected = 0.8 * oracle.logistic(0.3 * (chosen - rejected))
    expected += 0.2 * oracle.ABSOLUTE_LOSSES["BcoPair"](chosen, rejected, 0.3)
    np.testing.assert_allclose(value.mean(), np.mean(expected), rtol=1e-12)


# ---- the closed form -----------------------------------------------------------------------------------------


def tabular_minimiser(divergence, rewards, log_reference, beta):
    """Minimises the population f-DPO loss over all policies, by SciPy on the library's gradient."""
    n = len(rewards)
    winner, loser = np.where(~np.eye(n, dtype=bool))
    prefers = oracle.sigmoid(rewards[winner] - rewards[loser])

    @jax.jit
    def value_and_grad(logits):
        def risk(logits):
            logps = jax.nn.log_softmax(logits)
            return objectives.preference(
                chosen_logps=logps[winner],
                rejected_logps=logps[loser],
                reference_chosen_logps=log_reference[winner],
                reference_rejected_logps=log_reference[loser],
                divergence=divergence,
                beta=beta,
                weights=prefers,
                tail=80.0,
            )[0].mean()

        return jax.value_and_grad(risk)(logits)

    fit = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(part, float) for part in value_and_grad(x)),
        log_reference,
        jac=True,
        method="BFGS",
        options={"gtol": 1e-11, "maxiter": 5000},
    )
    return np.exp(np.asarray(jax.nn.log_softmax(fit.x)))


@pytest.mark.parametrize("name", [*oracle.SCORES, "alpha(0.3)", "alpha(0.7)"])
def test_population_f_dpo_finds_the_regularised_optimum(x64, name):
    rng = np.random.default_rng(4)
    rewards, log_reference = rng.normal(size=5), np.log(rng.dirichlet(np.ones(5)))
    divergence = dv.get(name)
    best = dv.regularized_argmax(rewards, log_reference, divergence, 0.7)
    found = tabular_minimiser(divergence, rewards, log_reference, 0.7)
    assert 0.5 * np.abs(found - np.exp(best.log_probs)).sum() < 1e-6


# ---- numerics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADMISSIBLE)
def test_no_log_ratio_kills_or_explodes_a_gradient(name):
    divergence = dv.get(name)
    grid = np.concatenate([-np.geomspace(1e4, 1e-6, 60), [0], np.geomspace(1e-6, 1e4, 60)])
    log_ratios = jnp.asarray(grid, jnp.float32)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda s: objectives.score(divergence, s))))(
        log_ratios
    )
    assert bool(jnp.all(jnp.isfinite(value)))
    assert bool(jnp.all(jnp.isfinite(slope)))
    assert bool(jnp.all(slope > 0))
    assert bool(jnp.all(jnp.diff(value) >= 0))
    assert float(value[60]) == 0


@pytest.mark.parametrize("loss", [*MARGIN, *ABSOLUTE], ids=label)
def test_extreme_pairs_are_finite(loss):
    grid = np.array([-1e4, -100, -95, -20, -5, 0, 5, 20, 100, 1e4], np.float32)
    chosen, rejected = (a.ravel() for a in np.meshgrid(grid, grid))
    names = ["reverse_kl"] if loss in ABSOLUTE else ["forward_kl", "chi2_kl(0.5)"]
    for name in names:

        def risk(chosen, rejected, name=name):
            return objectives.preference(
                chosen_logps=chosen,
                rejected_logps=rejected,
                reference_chosen_logps=jnp.zeros_like(chosen),
                reference_rejected_logps=jnp.zeros_like(rejected),
                divergence=dv.get(name),
                loss=loss,
            )[0].total

        value, grads = jax.jit(jax.value_and_grad(risk, (0, 1)))(chosen, rejected)
        assert np.isfinite(value)
        assert all(np.isfinite(grad).all() for grad in grads)


def test_equal_ratios_give_log_two_however_large():
    for s in (-1e4, -100.0, 0.0, 100.0):
        value, metrics = objectives.preference(
            chosen_logps=jnp.array([s]),
            rejected_logps=jnp.array([s]),
            reference_chosen_logps=jnp.zeros(1),
            reference_rejected_logps=jnp.zeros(1),
            divergence=dv.ForwardKL(),
        )
        assert float(value.mean()) == pytest.approx(np.log(2), rel=1e-6)
        assert float(metrics["rewards/accuracies"].mean()) == 0.5


def test_score_derivatives_by_finite_differences(x64):
    points = np.array([-12.0, -9.9, -3.0, -1e-3, 0.4, 3.0, 9.9, 12.0])
    f = objectives.score
    slope = jax.jit(jax.vmap(jax.grad(f, 1), (None, 0)))
    bend = jax.jit(jax.vmap(jax.grad(jax.grad(f, 1), 1), (None, 0)))
    h = 1e-6
    for name in ("jensen_shannon", "alpha(0.3)"):
        div = dv.get(name)
        first = (f(div, points + h) - f(div, points - h)) / (2 * h)
        np.testing.assert_allclose(slope(div, points), first, rtol=1e-7, atol=1e-10)
        second = (slope(div, points + h) - slope(div, points - h)) / (2 * h)
        np.testing.assert_allclose(bend(div, points), second, rtol=1e-6, atol=1e-9)


def test_hyper_parameters_are_differentiable_and_share_one_compilation(x64):
    arrays = pairs(np.array([1.0, -12.0, 0.5]), np.array([-1.0, 2.0, 11.0]))
    traces = []

    @jax.jit
    def risk(alpha, beta, flip, tail):
        traces.append(1)
        return objectives.preference(
            **arrays,
            divergence=dv.Alpha(alpha=alpha),
            loss=objectives.RobustLogistic(flip=flip),
            beta=beta,
            tail=tail,
        )[0].mean()

    point = np.array([0.4, 0.2, 0.1, 10.0])
    gradient = jax.grad(risk, (0, 1, 2, 3))(*point)
    for index in range(4):
        step = np.zeros(4)
        step[index] = 1e-6
        numeric = (risk(*(point + step)) - risk(*(point - step))) / 2e-6
        assert float(gradient[index]) == pytest.approx(float(numeric), rel=1e-6, abs=1e-9)
    assert len(traces) == 1


# ---- what must have no influence -------------------------------------------------------------------------------


def test_no_gradient_reaches_what_is_held_fixed():
    arrays: dict[str, Any] = {
        name: jnp.asarray(value) for name, value in pairs(np.ones(3), -np.ones(3)).items()
    }
    held = {
        "reference_chosen_logps": arrays.pop("reference_chosen_logps"),
        "reference_rejected_logps": arrays.pop("reference_rejected_logps"),
        "label_probs": jnp.full(3, 0.8),
        "margin_offset": jnp.full(3, 0.3),
    }
    grads = jax.grad(lambda held: objectives.preference(**arrays, **held)[0].mean())(held)
    assert all(bool(jnp.all(grad == 0)) for grad in grads.values())


def test_pairs_of_weight_zero_have_no_influence():
    arrays: dict[str, Any] = {
        name: jnp.asarray(value) for name, value in pairs(np.ones(4), -np.ones(4)).items()
    }
    bad = {name: value.at[1].set(np.nan).at[3].set(-np.inf) for name, value in arrays.items()}
    weights = jnp.array([1.0, 0.0, 2.0, 0.0])
    offset = jnp.array([0.1, np.nan, 0.2, np.inf])
    for aggregate in (
        objectives.pair_mean,
        objectives.OptimisticMean(),
        objectives.PessimisticMean(),
        objectives.TailMean(),
    ):

        def risk(arrays, offset, aggregate=aggregate):
            loss, metrics = objectives.preference(
                **arrays, weights=weights, margin_offset=offset, aggregate=aggregate
            )
            return loss.mean(), metrics

        compiled = jax.jit(jax.value_and_grad(risk, has_aux=True))
        (clean, _), clean_grads = compiled(arrays, jnp.nan_to_num(offset, posinf=0))
        (value, metrics), grads = compiled(bad, offset)
        assert float(value) == float(clean)
        assert all(bool(jnp.all(jnp.isfinite(grads[name]))) for name in grads)
        assert all(bool(jnp.all(grads[name] == clean_grads[name])) for name in grads)
        assert all(np.isfinite(metric.mean()) for metric in metrics.values())


def test_an_empty_batch_of_pairs_is_zero():
    arrays: dict[str, Any] = {name: jnp.full(2, np.nan) for name in pairs(np.ones(2), np.ones(2))}

    @partial(jax.jit, static_argnums=1)
    def risk(arrays, aggregate):
        none = jnp.zeros(2)
        return objectives.preference(**arrays, weights=none, aggregate=aggregate)[0].mean()

    for aggregate in (
        objectives.pair_mean,
        objectives.OptimisticMean(),
        objectives.PessimisticMean(),
        objectives.TailMean(),
    ):
        value, grads = jax.value_and_grad(risk)(arrays, aggregate)
        assert float(value) == 0
        assert all(bool(jnp.all(grad == 0)) for grad in grads.values())


# ---- aggregates ------------------------------------------------------------------------------------------------


def test_aggregates_against_closed_forms(x64):
    rng = np.random.default_rng(5)
    losses, weights = rng.exponential(size=12), rng.integers(0, 3, 12).astype(float)
    share = weights / weights.sum()
    optimistic = -0.4 * np.log(np.sum(share * np.exp(-losses / 0.4)))
    assert float(
        objectives.OptimisticMean(temperature=0.4)(losses, weights).mean()
    ) == pytest.approx(optimistic, rel=1e-12)
    pessimistic = 0.4 * np.log(np.sum(share * np.exp(losses / 0.4)))
    assert float(
        objectives.PessimisticMean(temperature=0.4)(losses, weights).mean()
    ) == pytest.approx(pessimistic, rel=1e-9)
    # CVaR by its dual: least over c of c + E(l − c)₊ / share.
    thresholds = losses[:, None]
    dual = np.min(losses + np.sum(share[:, None] * np.maximum(thresholds - losses, 0), 0) / 0.3)
    assert float(objectives.TailMean(share=0.3)(losses, weights).mean()) == pytest.approx(
        dual, rel=1e-12
    )


def test_direction_of_robustness(x64):
    losses = np.array([0.1, 1.0, 3.0])

    def weights(aggregate):
        return np.asarray(jax.grad(lambda x: aggregate(x, jnp.ones(3)).mean())(losses))

    assert np.all(np.diff(weights(objectives.OptimisticMean())) < 0)
    for pessimist in (
        objectives.PessimisticMean(),
        objectives.PessimisticMean(divergence=dv.ReverseChi2()),
    ):
        assert np.all(np.diff(weights(pessimist)) > 0)
    np.testing.assert_allclose(
        weights(objectives.TailMean(share=0.5)), [0, 1 / 3, 2 / 3], rtol=1e-12
    )


# ---- metrics ---------------------------------------------------------------------------------------------------


def test_metrics_by_definition(x64):
    chosen, rejected = np.array([1.0, -2.0, 0.5, 12.0]), np.array([-1.0, 0.0, 0.5, 0.0])
    _, metrics = objectives.preference(
        **pairs(chosen, rejected), divergence=dv.ForwardKL(), beta=0.5
    )
    means = {name: float(value.mean()) for name, value in metrics.items()}
    tail_score = 1 - np.exp(-10) + np.exp(-10) * 2
    scores = [np.append(1 - np.exp(-chosen[:3]), tail_score), 1 - np.exp(-rejected)]
    assert means["rewards/chosen"] == pytest.approx(0.5 * scores[0].mean(), rel=1e-12)
    assert means["rewards/margins"] == pytest.approx(
        0.5 * (scores[0] - scores[1]).mean(), rel=1e-12
    )
    assert means["rewards/accuracies"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert means["mean_log_ratio/chosen"] == pytest.approx(chosen.mean())
    assert means["chosen_drop"] == 0.25
    assert means["tail"] == 0.125
    assert means["saturation"] == 0.125
    brier = (1 - oracle.sigmoid(0.5 * (scores[0] - scores[1]))) ** 2
    assert means["brier"] == pytest.approx(brier.mean(), rel=1e-12)


# ---- wrong input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reverse_chi2", "triangular", "alpha(-1)", "total_variation"])
def test_inadmissible_divergences_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=r"not admissible|kink"):
        objectives.preference(**pairs(np.ones(2), np.ones(2)), divergence=dv.get(name))


def test_combinations_without_meaning_are_refused():
    arrays = pairs(np.ones(2), np.zeros(2))
    free: dict[str, Any] = {name: arrays[name] for name in ("chosen_logps", "rejected_logps")}
    js = dv.JensenShannon()
    with pytest.raises(
        ValueError, match=r"reads each reward by itself.*only reverse_kl.*jensen_shannon"
    ):
        objectives.preference(**arrays, divergence=js, loss=objectives.NcaPair())
    with pytest.raises(ValueError, match="reads each reward by itself"):
        objectives.preference(
            **arrays, divergence=js, loss=objectives.Logistic() + objectives.ApoZero()
        )
    with pytest.raises(ValueError, match="reference is a constant, which only reverse_kl"):
        objectives.preference(**free, divergence=js)
    with pytest.raises(ValueError, match="length rescales"):
        objectives.preference(
            **arrays, divergence=js, chosen_lengths=np.ones(2), rejected_lengths=np.ones(2)
        )
    with pytest.raises(ValueError, match="has no margin"):
        objectives.preference(**arrays, loss=objectives.SppoHard(), label_probs=0.9)
    with pytest.raises(TypeError, match="not an f-divergence"):
        objectives.preference(**arrays, divergence=dv.get("renyi(0.5)"))
    with pytest.raises(TypeError, match="pair loss such as Logistic"):
        objectives.preference(**arrays, loss=objectives.Logistic)  # type: ignore[arg-type]


def test_wrong_numbers_and_shapes():
    arrays = pairs(np.ones(2), np.zeros(2))
    with pytest.raises(ValueError, match="beta=0 must be positive"):
        objectives.preference(**arrays, beta=0)
    with pytest.raises(
        ValueError, match=r"rejected_logps must have one number per row, \(2,\), got \(3,\)"
    ):
        objectives.preference(**{**arrays, "rejected_logps": np.ones(3)})
    with pytest.raises(ValueError, match="one summed log-prob per pair"):
        objectives.preference(chosen_logps=np.ones((2, 3)), rejected_logps=np.ones((2, 3)))
    with pytest.raises(ValueError, match="needs reference_rejected_logps beside it"):
        objectives.preference(**{**arrays, "reference_rejected_logps": None})
    with pytest.raises(ValueError, match=r"flip=0.5 must lie in \[0, 0.5\)"):
        objectives.RobustLogistic(flip=0.5)
    with pytest.raises(ValueError, match=r"floor=0 must lie in"):
        objectives.ExoPair(floor=0)
    with pytest.raises(ValueError, match=r"label_probs=2 must lie in \[0, 1\]"):
        objectives.preference(**arrays, label_probs=2)


def test_without_reference_the_reverse_kl_is_unchanged_by_a_constant(x64):
    arrays: dict[str, Any] = {
        "chosen_logps": np.array([-4.0, -3.0]),
        "rejected_logps": np.array([-5.0, -2.0]),
    }
    free, _ = objectives.preference(**arrays)
    constant, _ = objectives.preference(
        **arrays, reference_chosen_logps=np.full(2, -3.0), reference_rejected_logps=np.full(2, -3.0)
    )
    assert float(free.mean()) == pytest.approx(float(constant.mean()), rel=1e-12)
