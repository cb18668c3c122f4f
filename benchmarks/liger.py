"""P14: Jensen–Shannon from hidden states against Liger-Kernel's chunked loss in PyTorch (extra `bench-peers`)."""

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax.benchmarks.measure import Bar, Results, clocked, over, timed


def sizes(quick):
    """Tokens, width, vocabulary."""
    return (256, 128, 8192) if quick else (2048, 512, 32768)


def divax(quick):
    tokens, width, vocabulary = sizes(quick)
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(tokens, width), (width, vocabulary)] * 2
    h, w, th, tw = (jax.random.normal(k, s) * 0.1 for k, s in zip(keys, shapes, strict=True))

    def loss(h, w):
        found = dv.fused_linear(
            dv.JensenShannon(), model_hidden=h, model_head=w, target_hidden=th, target_head=tw
        )
        return found.total / jnp.maximum(found.count, 1)

    return timed(jax.value_and_grad(loss, (0, 1)), h, w)


def liger(quick):
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    tokens, width, vocabulary = sizes(quick)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator) * 0.1  # noqa: E731
    h, w = draw(tokens, width).requires_grad_(), draw(vocabulary, width).requires_grad_()
    th, tw = draw(tokens, width), draw(vocabulary, width)
    labels = torch.zeros(tokens, dtype=torch.long)
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=False, chunk_size=256
    )

    def call():
        h.grad = w.grad = None
        loss(h, w, th, tw, labels).backward()

    return clocked(call, 2 if quick else 3)


CASES = {"divax": divax, "liger": liger}


def bars(found: Results) -> list[Bar]:
    what = "JS from hidden states: times as fast as Liger's chunked"
    return over("P14", what, found, "liger", "divax", "wall", target=2, asked="at least")
