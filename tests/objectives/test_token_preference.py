"""Token-level risks, process rewards, unlearning, ensembles and best-of-n, against closed forms and enumeration."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import divergences as dv
from divax import objectives
from tests.oracles.preference import logistic, sigmoid

RNG = np.random.default_rng(0)
LOGPS, REFERENCE = -RNG.uniform(1, 9, (2, 12))
RATIOS = LOGPS - REFERENCE
pytestmark = pytest.mark.usefixtures("x64")


def logits(seed, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(3, 4, 6))


def test_risks_of_a_step():
    policy, reference = logits(1), logits(2)
    reference[0, 0, 2] = -np.inf
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], float)
    q = np.exp(reference - np.logaddexp.reduce(reference, -1, keepdims=True))
    gap = np.log(np.where(q > 0, q, 1)) - (policy - np.logaddexp.reduce(policy, -1, keepdims=True))

    def tail(share):
        out = np.zeros((3, 4))
        for index in np.ndindex(3, 4):
            x, p = gap[index], q[index]
            x, p = x[p > 0], p[p > 0]
            # The dual of Rockafellar and Uryasev: least over c of c + E(x − c)₊/share.
            out[index] = min(c + p @ np.maximum(x - c, 0) / share for c in x)
        return out

    expected: dict[Any, np.ndarray] = {
        objectives.expected: np.sum(q * np.where(q > 0, gap, 0), -1),
        objectives.TailRisk(share=0.3): tail(0.3),
        objectives.TailRisk(share=1.0): np.sum(q * np.where(q > 0, gap, 0), -1),
        objectives.EntropicRisk(aversion=0.7): np.log(np.sum(q * np.exp(0.7 * gap), -1)) / 0.7,
    }
    for risk, steps in expected.items():
        got = objectives.sequential_risk(
            policy_logits=policy, reference_logits=reference, mask=mask, risk=risk
        )
        np.testing.assert_allclose(got, (mask * steps).sum(-1), rtol=1e-12)
        grads = jax.grad(
            lambda x, r: objectives.sequential_risk(
                policy_logits=x,
                reference_logits=r,
                mask=mask,
                risk=risk,  # noqa: B023
            ).sum(),
            (0, 1),
        )(jnp.asarray(policy), jnp.asarray(reference))
        assert np.isfinite(grads[0]).all()
        assert not np.any(grads[1])
        assert not np.any(np.asarray(grads[0])[mask == 0])


def test_token_preference_in_both_forms():
    risks = RNG.uniform(0, 2, (2, 12))
    sides = {
        "chosen_logps": LOGPS,
        "rejected_logps": REFERENCE,
        "reference_chosen_logps": LOGPS - 1,
        "reference_rejected_logps": REFERENCE + 0.5,
    }

    def loss(chosen_risk, rejected_risk, weight):
        return objectives.token_preference(
            **sides,
            chosen_risk=chosen_risk,
            rejected_risk=rejected_risk,
            risk_weight=weight,
            beta=0.2,
        )[0].mean()

    first = logistic(0.2 * (1.5 - (risks[1] - risks[0]))).mean()
    assert float(loss(risks[0], risks[1], None)) == pytest.approx(first, rel=1e-12)
    second = logistic(0.2 * (1.5 - 0.5 * (risks[1] - risks[0]))).mean()
    assert float(loss(risks[0], risks[1], 0.5)) == pytest.approx(second, rel=1e-12)
    held, moved = jax.grad(loss, (0, 1))(*map(jnp.asarray, risks), 0.5)
    assert not np.any(held)
    assert np.all(np.asarray(moved) != 0)


def test_process_rewards_are_soft_values():
    """At the KL optimum of an outcome reward, Q_t = V(prefix) − V(prompt), by enumeration of 3³ completions."""
    beta, n = 0.5, 3
    rng = np.random.default_rng(5)
    step = [np.log(rng.dirichlet(np.ones(n), size=(n,) * t)) for t in range(3)]
    outcome = rng.normal(size=(n,) * 3)
    joint = step[0][:, None, None] + step[1][:, :, None] + step[2]
    soft = [beta * np.log(np.exp(joint + outcome / beta).sum())]
    for t in (1, 2, 3):
        prefix = joint.reshape(n**t, -1) if t < 3 else joint.reshape(n**3, 1)
        log_prefix = np.logaddexp.reduce(prefix, -1, keepdims=True)
        values = np.logaddexp.reduce(prefix - log_prefix + outcome.reshape(n**t, -1) / beta, -1)
        soft.append((beta * values).reshape((n,) * t))
    for y in np.ndindex(n, n, n):
        prefix_values = [soft[0], soft[1][y[0]], soft[2][y[:2]], soft[3][y]]
        # π(y_t|prefix)/ref = exp((V_t − V_{t−1})/β), the optimal policy's own conditional.
        ratios = np.diff(prefix_values) / beta
        rewards = objectives.process_rewards(
            token_log_ratios=ratios[None], mask=np.ones((1, 3)), beta=beta
        )
        np.testing.assert_allclose(
            np.cumsum(rewards), np.array(prefix_values[1:]) - prefix_values[0], atol=1e-12
        )
    rewards = objectives.process_rewards(
        token_log_ratios=np.array([[1.0, 2, 3, 4, np.nan]]),
        mask=np.array([[1, 1, 1, 1, 0]]),
        step_ids=np.array([[0, 0, 1, 1, 1]]),
        beta=0.5,
    )
    np.testing.assert_allclose(rewards, [[0, 1.5, 0, 3.5, 0]])


def test_implicit_process_reward_is_a_classifier():
    labels = RNG.random(12)
    loss, metrics = objectives.implicit_process_reward(
        logps=LOGPS, reference_logps=REFERENCE, correct=labels, beta=0.3
    )
    r = 0.3 * RATIOS
    expected = labels * logistic(r) + (1 - labels) * logistic(-r)
    assert float(loss.mean()) == pytest.approx(expected.mean(), rel=1e-12)
    assert float(metrics["brier"].mean()) == pytest.approx(((sigmoid(r) - labels) ** 2).mean())


# ---- unlearning, ensembles, best of n ---------------------------------------------------------------------------


def test_flat_is_minus_a_bound():
    good, forget = -RNG.uniform(0.1, 3, (2, 8, 5))
    mask = (RNG.random((8, 5)) < 0.7) | (np.arange(5) == 0)
    p, q = ((np.exp(x) * mask).sum(1) / mask.sum(1) for x in (good, forget))
    arrays = {
        "good_logps": np.where(mask, good, np.nan),
        "forget_logps": np.where(mask, forget, np.nan),
        "good_mask": mask,
        "forget_mask": mask,
    }
    loss, metrics = objectives.flat(**arrays)
    assert float(loss.mean()) == pytest.approx(-(np.tanh(p) - np.tanh(q)).mean() / 2, rel=1e-12)
    assert float(metrics["forget"].mean()) == pytest.approx(q.mean(), rel=1e-12)
    # KL(good‖forget): f = u log u − u + 1, T = f′(e^P) = P, f*(T) = e^T − 1.
    loss, _ = objectives.flat(**arrays, divergence=dv.ForwardKL())
    assert float(loss.mean()) == pytest.approx(-(p.mean() - (np.exp(q) - 1).mean()), rel=1e-12)


def test_ensembles():
    rewards = RNG.normal(size=(5, 7))
    np.testing.assert_array_equal(objectives.worst_case_reward(rewards), rewards.min(0))
    expected = rewards.mean(0) - 0.5 * rewards.var(0)
    np.testing.assert_allclose(objectives.uncertainty_weighted_reward(rewards), expected)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_best_of_n_is_its_definition(n):
    base = np.random.default_rng(7).dirichlet(np.full(6, 0.4))
    rewards = np.array([0.3, -1.0, 0.3, 2.0, 0.0, 1.0])
    got = np.exp(objectives.best_of_n(np.log(base), rewards, n))
    below = np.array([base[rewards < r].sum() for r in rewards])
    upto = np.array([base[rewards <= r].sum() for r in rewards])
    tied = np.array([base[rewards == r].sum() for r in rewards])
    np.testing.assert_allclose(got, (upto**n - below**n) * base / tied, rtol=1e-9)
    assert got.sum() == pytest.approx(1, rel=1e-12)
    kl = float(dv.ReverseKL()(np.log(base), np.log(got)))
    assert kl <= objectives.best_of_n_kl(n) + 1e-12


def test_best_of_n_bound_is_tight_for_many_equally_likely_completions():
    n, size = 4, 4000
    policy = objectives.best_of_n(np.zeros(size), np.arange(size, dtype=float), n)
    kl = float(dv.ReverseKL()(np.zeros(size), policy))
    assert kl == pytest.approx(np.log(4) - 0.75, abs=1e-3)


def test_best_of_n_leaves_out_the_impossible():
    policy = objectives.best_of_n(np.array([0.0, -np.inf, 0.0]), np.array([0.0, 9.0, 1.0]), 2)
    np.testing.assert_allclose(np.exp(policy), [0.25, 0, 0.75], rtol=1e-12)
