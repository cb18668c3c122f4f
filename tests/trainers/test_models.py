"""Any pytree of parameters trains: Flax Linen and plain dictionaries."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import trainers as tr


class Bigram(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 16)(tokens)
        return nn.Dense(7)(nn.tanh(nn.Dense(32)(x)))


def linen():
    net = Bigram()
    return tr.Model(init=lambda key: net.init(key, jnp.zeros((1, 4), jnp.int32)), apply=net.apply)


def dictionary():
    return tr.Model(
        init=lambda key: {"in": jax.random.normal(key, (7, 8)), "out": jnp.zeros((8, 7))},
        apply=lambda params, tokens: params["in"][tokens] @ params["out"],
    )


@pytest.mark.parametrize("make", [linen, dictionary])
def test_it_learns_its_teacher(make, teacher, batches, key, adam):
    trainer = tr.distillation(student=make(), teacher=teacher, optimizer=adam(3e-2))
    fresh = trainer.evaluate(trainer.init(key), [batches(10**6)])
    state = tr.fit(trainer, batches, steps=150, key=key)
    measured = trainer.evaluate(state, [batches(10**6)])
    assert fresh["forward_kl"] > 0.2
    assert measured["forward_kl"] < 0.01
    assert measured["agreement"] > 0.9


def test_packed_batches_need_a_model_that_reads_segments(table, decoder, key):
    ids = np.zeros((2, 4), np.int32)
    packed = tr.Batch(tokens=ids, segment_ids=ids)
    assert tr.predict(decoder, decoder.init(key), packed).shape == (2, 4, 7)
    with pytest.raises(ValueError, match="has segment_ids, but the model's apply"):
        tr.predict(table, table.init(key), packed)
