"""Unpaired, reference-free, token-level and supervised relatives of f-DPO, against closed forms and tabular optima."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from divax import divergences as dv
from divax import objectives
from tests.oracles.preference import logistic, sigmoid

RNG = np.random.default_rng(0)
LOGPS, REFERENCE = -RNG.uniform(1, 9, (2, 12))
RATIOS = LOGPS - REFERENCE
GOOD = RNG.random(12) < 0.5
LENGTHS = RNG.integers(1, 20, (2, 12))
pytestmark = pytest.mark.usefixtures("x64")


def single(objective, **options):
    labels = {"is_data": GOOD} if objective is objectives.ddo else {"desirable": GOOD}
    loss, _ = objective(logps=LOGPS, reference_logps=REFERENCE, **labels, **options)
    return float(loss.mean())


def minimise(risk, logits):
    """Minimises a jitted risk of logits by SciPy; the log-probs that it ends at."""
    compiled = jax.jit(jax.value_and_grad(risk))
    fit = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(part, float) for part in compiled(x)),
        logits,
        jac=True,
        method="BFGS",
        options={"gtol": 1e-11, "maxiter": 5000},
    )
    return np.asarray(jax.nn.log_softmax(fit.x))


# ---- single completions -----------------------------------------------------------------------------------------


def test_unpaired_losses_against_their_papers():
    r = 0.3 * RATIOS
    z = 0.3 * max(0, np.mean([0.4, -0.1, 0.9]))
    kto = np.where(GOOD, 1.2 * (1 - sigmoid(r - z)), 0.8 * (1 - sigmoid(z - r))).mean()
    options = {"desirable_weight": 1.2, "undesirable_weight": 0.8, "beta": 0.3}
    got = single(objectives.kto, mismatched_log_ratios=np.array([0.4, -0.1, 0.9]), **options)
    assert got == pytest.approx(kto, rel=1e-12)
    c = r.mean()
    bco = np.where(GOOD, logistic(r - c), logistic(c - r)).mean()
    assert single(objectives.unpaired_bco, beta=0.3) == pytest.approx(bco, rel=1e-12)
    ddo = logistic(RATIOS[GOOD]).mean() + 0.7 * logistic(-RATIOS[~GOOD]).mean()
    assert single(objectives.ddo, reference_weight=0.7) == pytest.approx(ddo, rel=1e-12)
    kldo = -r[GOOD].mean() + np.log(np.exp(r[~GOOD]).mean())
    assert single(objectives.kldo, beta=0.3) == pytest.approx(kldo, rel=1e-12)


def test_negative_only_against_its_paper():
    own, own_reference = -RNG.uniform(1, 9, (2, 12, 5))
    loss, _ = objectives.negative_only(
        rejected_logps=LOGPS,
        rejected_reference_logps=REFERENCE,
        own_logps=own,
        own_reference_logps=own_reference,
        beta=0.3,
        rejected_beta=0.2,
    )
    expected = logistic(0.3 * (own - own_reference).mean(1) - 0.2 * RATIOS).mean()
    assert float(loss.mean()) == pytest.approx(expected, rel=1e-12)


def tabular(seed, n=5):
    """Log-probs of a reference, of desirable and of undesirable completions, over n completions."""
    return np.log(np.random.default_rng(seed).dirichlet(np.ones(n), 3))


def test_ddo_finds_the_data_and_kldo_its_tilted_reference():
    reference, data, bad = tabular(1)
    both = np.arange(5).tolist() * 2
    kinds = np.arange(10) < 5

    def risk(objective, second, label):
        weights = np.exp(np.concatenate([data, second]))

        def of(logits):
            logps = jax.nn.log_softmax(logits)[np.array(both)]
            options = (
                {"is_data": kinds} if label == "is_data" else {"desirable": kinds, "beta": 0.5}
            )
            loss, _ = objective(
                logps=logps, reference_logps=reference[both], weights=weights, **options
            )
            return loss.mean()

        return of

    found = minimise(risk(objectives.ddo, reference, "is_data"), reference)
    assert 0.5 * np.abs(np.exp(found) - np.exp(data)).sum() < 1e-7
    found = minimise(risk(objectives.kldo, bad, "desirable"), reference)
    tilted = np.exp(reference + (data - bad) / 0.5)
    assert 0.5 * np.abs(np.exp(found) - tilted / tilted.sum()).sum() < 1e-7


def test_what_is_held_fixed_gets_no_gradient():
    def total(objective, held):
        label: dict[str, Any] = (
            {"is_data": GOOD} if objective is objectives.ddo else {"desirable": GOOD}
        )
        options = {"mismatched_log_ratios": held} if objective is objectives.kto else {}
        loss, _ = objective(logps=LOGPS, reference_logps=REFERENCE + held, **label, **options)
        return loss.mean()

    for objective in (objectives.kto, objectives.unpaired_bco, objectives.ddo, objectives.kldo):
        assert not np.any(jax.grad(lambda x, o=objective: total(o, x))(jnp.zeros(12)))
    # The batch's mean reward is an anchor: it must not be moved by the loss.
    grad = jax.grad(
        lambda x: objectives.unpaired_bco(logps=x, reference_logps=REFERENCE, desirable=GOOD)[
            0
        ].mean()
    )(jnp.asarray(LOGPS))
    r = 0.1 * RATIOS
    c = r.mean()
    expected = 0.1 * np.where(GOOD, -sigmoid(c - r), sigmoid(r - c)) / 12
    np.testing.assert_allclose(grad, expected, rtol=1e-10)


def test_completions_of_weight_zero_have_no_influence():
    weights = (np.arange(12) % 3 != 0).astype(float)
    bad = np.where(weights == 0, np.nan, LOGPS)
    for objective in (objectives.kto, objectives.unpaired_bco, objectives.ddo, objectives.kldo):
        label: dict[str, Any] = (
            {"is_data": GOOD} if objective is objectives.ddo else {"desirable": GOOD}
        )
        if objective is objectives.kto:
            label["mismatched_log_ratios"] = None

        @jax.jit
        def both(logps, objective=objective, label=label):
            return jax.value_and_grad(
                lambda x: objective(logps=x, reference_logps=REFERENCE, weights=weights, **label)[
                    0
                ].mean()
            )(logps)

        value, grad = both(bad)
        clean, clean_grad = both(LOGPS)
        assert float(value) == float(clean)
        np.testing.assert_array_equal(grad, clean_grad)
        nothing, _ = objective(
            logps=bad * np.nan, reference_logps=REFERENCE, weights=np.zeros(12), **label
        )
        assert float(nothing.mean()) == 0


# ---- without reference ------------------------------------------------------------------------------------------

PAIR = {"chosen_logps": LOGPS, "rejected_logps": REFERENCE}
SIZED = {**PAIR, "chosen_lengths": LENGTHS[0], "rejected_lengths": LENGTHS[1]}


def value(objective, **arguments):
    return float(objective(**arguments)[0].mean())


def test_reference_free_losses_against_their_papers():
    nll = -LOGPS.sum() / LENGTHS[0].sum()
    cpo = logistic(0.2 * RATIOS).mean() + 0.5 * nll
    got = value(objectives.cpo, **PAIR, chosen_lengths=LENGTHS[0], beta=0.2, nll_weight=0.5)
    assert got == pytest.approx(cpo, rel=1e-12)
    means = LOGPS / LENGTHS[0], REFERENCE / LENGTHS[1]
    simpo = logistic(2.5 * (means[0] - means[1]) - 0.6).mean()
    got = value(objectives.simpo, **SIZED, beta=2.5, target_margin=0.6)
    assert got == pytest.approx(simpo, rel=1e-12)
    for alpha in (-0.3, 1e-5, 0.25):
        shaped = [(1 - np.exp(mean) ** -alpha) / alpha for mean in means]
        expected = logistic(2.5 * (shaped[0] - shaped[1]) - 0.6).mean()
        got = value(objectives.simpo, **SIZED, beta=2.5, target_margin=0.6, alpha=alpha)
        assert got == pytest.approx(expected, rel=1e-9 if alpha > 1e-4 or alpha < 0 else 1e-8)
    odds = [np.log(np.exp(mean) / (1 - np.exp(mean))) for mean in means]
    orpo = nll + 0.1 * logistic(odds[0] - odds[1]).mean()
    assert value(objectives.orpo, **SIZED) == pytest.approx(orpo, rel=1e-12)
    errors = RNG.uniform(0.01, 2, (2, 12))
    phi = 0.5 * errors / (np.exp(0.5 * errors) - 1)
    mapo = errors[0].mean() + 0.1 * logistic(1000 * (phi[0] - phi[1])).mean()
    got = value(objectives.mapo, chosen_losses=errors[0], rejected_losses=errors[1])
    assert got == pytest.approx(mapo, rel=1e-12)


def test_extremes_of_reference_free_losses_are_finite():
    extreme = np.array([0.0, -1e-9, -1e-3, -1.0, -88.0, -1e4], np.float32)
    chosen, rejected = (x.ravel() for x in np.meshgrid(extreme, extreme))
    lengths = np.ones(36)
    for objective, options in (
        (objectives.orpo, {}),
        (objectives.simpo, {"alpha": 0.01}),
    ):

        def risk(chosen, rejected, objective=objective, options=options):
            return objective(
                chosen_logps=chosen,
                rejected_logps=rejected,
                chosen_lengths=lengths,
                rejected_lengths=lengths,
                **options,
            )[0].mean()

        with jax.enable_x64(False):
            loss, grads = jax.value_and_grad(risk, (0, 1))(
                jnp.asarray(chosen), jnp.asarray(rejected)
            )
        assert np.isfinite(loss)
        assert all(np.isfinite(grad).all() for grad in grads)


def test_simpo_in_the_table():
    """Without a target margin the optimum of all pairs is exp(|y|(r − c)/β), c by normalisation."""
    rewards, lengths = RNG.normal(size=5), np.array([1.0, 2, 3, 2, 1])
    winner, loser = np.where(~np.eye(5, dtype=bool))
    prefers = sigmoid(rewards[winner] - rewards[loser])

    def risk(logits):
        logps = jax.nn.log_softmax(logits)
        return objectives.simpo(
            chosen_logps=logps[winner],
            rejected_logps=logps[loser],
            chosen_lengths=lengths[winner],
            rejected_lengths=lengths[loser],
            target_margin=0.0,
            weights=prefers,
        )[0].mean()

    c: Any = scipy.optimize.brentq(lambda c: np.exp(lengths * (rewards - c) / 2).sum() - 1, -30, 30)
    found = np.exp(minimise(risk, np.zeros(5)))
    assert 0.5 * np.abs(found - np.exp(lengths * (rewards - c) / 2)).sum() < 1e-6


def test_h_dpo_in_the_table():
    rewards, log_reference = RNG.normal(size=5), tabular(2)[0]
    winner, loser = np.where(~np.eye(5, dtype=bool))

    def risk(logits):
        logps = jax.nn.log_softmax(logits)
        return objectives.entropy_preference(
            chosen_logps=logps[winner],
            rejected_logps=logps[loser],
            reference_chosen_logps=log_reference[winner],
            reference_rejected_logps=log_reference[loser],
            entropy_share=0.8,
            beta=0.5,
            weights=sigmoid(rewards[winner] - rewards[loser]),
        )[0].mean()

    tilted = np.exp(log_reference / 0.8 + rewards / (0.8 * 0.5))
    found = np.exp(minimise(risk, log_reference))
    assert 0.5 * np.abs(found - tilted / tilted.sum()).sum() < 1e-6


# ---- anchors ----------------------------------------------------------------------------------------------------


def test_anchors_against_their_formulas():
    rows = objectives.ChosenDropPenalty(weight=3.0).rows(RATIOS, RATIOS, 0.1)
    np.testing.assert_allclose(rows, 3 * np.maximum(0, -RATIOS), rtol=1e-12)
    rows = objectives.DecoupledLogistic(rejected_share=0.2).rows(LOGPS, REFERENCE, 0.1)
    np.testing.assert_allclose(rows, logistic(0.1 * (LOGPS - 0.2 * REFERENCE)), rtol=1e-12)


def test_imitation_losses_are_the_conjugates_that_the_paper_lists():
    small = 0.05 * RATIOS
    x = 0.5 * small
    listed = {
        "reverse_chi2": -x + x**2 / 4,
        "squared_hellinger": 0.5 * (-2 * x / (1 + 2 * x)),  # H² here is half of (√u − 1)²
        "reverse_kl": np.exp(-x) - 1,  # centred: the paper's exp(−x − 1) at V = 1, less V
    }
    for name, expected in listed.items():
        loss, _ = objectives.implicit_reward_sft(
            logps=REFERENCE + small,
            reference_logps=REFERENCE,
            divergence=dv.get(name),
            beta=0.5,
        )
        assert float(loss.mean()) == pytest.approx(expected.mean(), rel=1e-9)


@pytest.mark.parametrize("name", ["reverse_kl", "reverse_chi2"])
def test_imitation_solves_the_problem_that_it_is_the_dual_of(name):
    """min over π of D(π‖expert) + β KL(π‖ref) = max over π and V of −E_expert f*(−βs − V) − V."""
    reference, expert, _ = tabular(3)

    def primal(logits):
        logps = jax.nn.log_softmax(logits)
        return dv.get(name)(expert, logps) + 0.4 * dv.ReverseKL()(reference, logps)

    best = minimise(primal, reference)

    def dual(arguments):
        logps = jax.nn.log_softmax(arguments[:-1])
        loss, _ = objectives.implicit_reward_sft(
            logps=logps,
            reference_logps=reference,
            divergence=dv.get(name),
            beta=0.4,
            baseline=arguments[-1],
            weights=np.exp(expert),
        )
        return loss.total

    compiled = jax.jit(jax.value_and_grad(dual))
    fit = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(part, float) for part in compiled(x)),
        np.append(reference, 0.0),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-11},
    )
    assert -fit.fun == pytest.approx(float(primal(best)), abs=1e-8)


# ---- wrong input ------------------------------------------------------------------------------------------------


def test_wrong_input_is_one_clear_line():
    with pytest.raises(ValueError, match=r"logps must be \[B\]"):
        objectives.kldo(logps=np.ones((2, 2)), reference_logps=np.ones(2), desirable=np.ones(2))
    with pytest.raises(ValueError, match="the labels must have one number per row"):
        objectives.unpaired_bco(logps=np.ones(2), reference_logps=np.ones(2), desirable=np.ones(3))
    with pytest.raises(ValueError, match="beta=0 must be positive"):
        objectives.simpo(**SIZED, beta=0)
    with pytest.raises(ValueError, match="beta=-1 must be positive"):
        objectives.negative_only(
            rejected_logps=np.ones(2),
            rejected_reference_logps=np.ones(2),
            own_logps=np.ones((2, 1)),
            own_reference_logps=np.ones((2, 1)),
            beta=-1,
        )
    with pytest.raises(ValueError, match=r"own_logps must be \[B, K\]"):
        objectives.negative_only(
            rejected_logps=np.ones(2),
            rejected_reference_logps=np.ones(2),
            own_logps=np.ones(2),
            own_reference_logps=np.ones(2),
        )
    with pytest.raises(ValueError, match=r"rejected_share=2 must lie in \[0, 1\]"):
        objectives.DecoupledLogistic(rejected_share=2)
    with pytest.raises(ValueError, match=r"share=0 must lie in \(0, 1\]"):
        objectives.TailRisk(share=0)
    with pytest.raises(ValueError, match="n=0 must be at least 1"):
        objectives.best_of_n(np.zeros(2), np.zeros(2), 0)
    with pytest.raises(ValueError, match="is no loss of the margin"):
        objectives.token_preference(
            chosen_logps=LOGPS,
            rejected_logps=LOGPS,
            reference_chosen_logps=LOGPS,
            reference_rejected_logps=LOGPS,
            chosen_risk=LOGPS,
            rejected_risk=LOGPS,
            loss=objectives.NcaPair(),  # type: ignore[arg-type]
        )
    with pytest.raises(TypeError, match="must be an f-divergence"):
        objectives.flat(
            good_logps=np.ones((1, 1)),
            forget_logps=np.ones((1, 1)),
            good_mask=np.ones((1, 1)),
            forget_mask=np.ones((1, 1)),
            divergence=dv.get("renyi(0.5)"),
        )
