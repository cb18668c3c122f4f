"""The same losses in PyTorch: plainly, by Liger-Kernel's chunked losses, and by TRL's."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from divax.benchmarks.measure import clocked
from divax.benchmarks.peer_arrays import SEQUENCES, arrays


def tensors(quick: bool, tokens: int = 512) -> tuple[Any, dict[str, Any]]:
    """PyTorch and the arrays in its layout: heads are `[V, H]`."""
    import torch

    of = arrays(quick, tokens)._asdict()
    made = {name: torch.from_numpy(np.array(x)) for name, x in of.items()}
    for head in ("w", "tw"):
        made[head] = made[head].T.contiguous()
    made["labels"] = made["labels"].long()
    return torch, made


def plain(beta: float, torch: Any, h: Any, w: Any, a: dict[str, Any]) -> Any:
    """Jensen–Shannon at beta 1/2, KL(p‖q) at 0, of all logits."""
    log_softmax = torch.nn.functional.log_softmax
    log_q, log_p = log_softmax(h @ w.T, -1), log_softmax(a["th"] @ a["tw"].T, -1)
    if beta == 0:
        return torch.mean(torch.sum(log_p.exp() * (log_p - log_q), -1))
    log_m = torch.logaddexp(log_q, log_p) - float(np.log(2))
    terms = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return 0.5 * torch.mean(torch.sum(terms, -1))


def liger(beta: float, torch: Any, h: Any, w: Any, a: dict[str, Any]) -> Any:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False, chunk_size=256
    )
    return loss(h, w, a["th"], a["tw"], a["labels"])


def liger_grpo(torch: Any, h: Any, w: Any, a: dict[str, Any]) -> Any:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    rows = {name: a[name].reshape(SEQUENCES, -1) for name in ("labels", "old", "reference")}
    return LigerFusedLinearGRPOLoss(compiled=False)(
        h.reshape(SEQUENCES, -1, h.shape[1]),
        w,
        rows["labels"],
        torch.ones_like(rows["old"]),
        a["advantages"],
        ref_per_token_logps=rows["reference"],
        old_per_token_logps=rows["old"],
    )[0]


def liger_dpo(torch: Any, h: Any, w: Any, a: dict[str, Any]) -> Any:
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    states, reference = (x.reshape(SEQUENCES, -1, x.shape[1]) for x in (h, a["th"]))
    labels = a["labels"].reshape(SEQUENCES, -1)
    loss = LigerFusedLinearDPOLoss(beta=0.1, compiled=False)
    return loss(w, states, labels, ref_input=reference, ref_weight=a["tw"])[0]


def trl(beta: float, torch: Any, h: Any, w: Any, a: dict[str, Any]) -> Any:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    rows, _ = ChunkedDivergenceFunction.apply(h, w, None, a["th"], a["tw"], None, beta)
    return torch.mean(rows)


def trl_log_probs(torch: Any, h: Any, w: Any, a: dict[str, Any]) -> Any:
    from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    found = ChunkedLogProbFunction.apply(
        h, w, None, a["labels"], 1.0, VOCAB_CHUNK_SIZE, None, 1.0, ()
    )
    weights = torch.repeat_interleave(a["advantages"], len(h) // SEQUENCES)
    return -torch.mean(found[0] * weights)


Loss = Callable[..., Any]
LOSSES: dict[str, Loss] = {
    f"{member} {name}": functools.partial(of, beta)
    for member, beta in (("js", 0.5), ("kl", 0.0))
    for name, of in (("torch", plain), ("liger", liger), ("trl", trl))
} | {"grpo liger": liger_grpo, "dpo liger": liger_dpo, "log-probs trl": trl_log_probs}


def run(name: str, quick: bool, tokens: int = 512) -> dict[str, float]:
    """Value and gradients by the model's states and head."""
    torch, a = tensors(quick, tokens)
    h, w = a["h"].requires_grad_(), a["w"].requires_grad_()

    def call():
        loss = LOSSES[name](torch, h, w, a)
        return [x.detach().numpy() for x in (loss, *torch.autograd.grad(loss, (h, w)))]

    return clocked(call)


def run_of_logits(quick: bool) -> dict[str, float]:
    """TRL's Jensen–Shannon given logits."""
    torch, a = tensors(quick)
    from trl.experimental.gold.gold_trainer import GOLDTrainer

    target = a["th"] @ a["tw"].T
    model = (a["h"] @ a["w"].T).requires_grad_()

    def call():
        loss = GOLDTrainer.generalized_jsd_loss(model[None], target[None], reduction="sum")
        loss = loss / len(model)
        return [x.detach().numpy() for x in (loss, *torch.autograd.grad(loss, model))]

    return clocked(call)
