"""P14 and more: losses and gradients against PyTorch, Liger-Kernel, TRL, Tunix and Optax (extra `bench-peers`)."""

import functools

from divax.benchmarks import peer_arrays, torch_losses
from divax.benchmarks.measure import Asked, apart

MANY = 2048
CASES = (
    {
        f"many-js {who}": functools.partial(run, f"js {who}", tokens=MANY)
        for who, run in (
            ("divax", peer_arrays.run),
            ("torch", torch_losses.run),
            ("liger", torch_losses.run),
        )
    }
    | {name: functools.partial(peer_arrays.run, name) for name in peer_arrays.LOSSES}
    | {name: functools.partial(torch_losses.run, name) for name in torch_losses.LOSSES}
    | {
        "js-of-logits divax": peer_arrays.run_of_logits,
        "js-of-logits trl": torch_losses.run_of_logits,
    }
)
WHAT = {
    "many-js": f"JS from {MANY} hidden states",
    "js": "JS from hidden states",
    "kl": "KL from hidden states",
    "grpo": "GRPO from hidden states",
    "dpo": "DPO from hidden states",
    "log-probs": "log-probs from hidden states",
    "kd": "KL at T=2 and cross-entropy",
    "ce": "cross-entropy from hidden states",
    "js-of-logits": "JS given logits",
}
WHO = {"torch": "PyTorch", "liger": "Liger", "trl": "TRL", "tunix": "Tunix", "optax": "Optax"}


def _asked(case: str) -> tuple[Asked, ...]:
    loss, who = case.split()
    mine, what = f"{loss} divax", f"{WHAT[loss]}, {WHO[who]}"
    id, target = ("P14" if loss == "many-js" else "peers"), (2 if case == "many-js liger" else None)
    return (
        Asked(id, f"{what}: times as fast", case, mine, target=target, asked="at least"),
        Asked(id, f"{what}: its peak memory over ours", case, mine, "rss"),
        Asked(id, f"{what}: difference of the values", case, mine, "value", 1e-4, of=apart),
    )


BARS = tuple(bar for case in CASES if not case.endswith("divax") for bar in _asked(case))
