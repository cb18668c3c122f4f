"""Plain next-token training."""

import optax
from jax.sharding import Mesh

from divax.divergences.fused_linear import Implementation
from divax.objectives import DistillationRows, LabelCrossEntropy, token_mean
from divax.objectives.reduction import Reduction
from divax.trainers.evaluation import prediction_sums, summarise_tokens
from divax.trainers.hidden_distillation import HiddenDistillation
from divax.trainers.implementation import check_states
from divax.trainers.model import Model, predict
from divax.trainers.step import make_step
from divax.trainers.trainer import Trainer, make_trainer


def language_model(
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    mesh: Mesh | None = None,
    reduction: Reduction = token_mean,
    vocab_size: int | None = None,
    implementation: Implementation | None = None,
) -> Trainer:
    """Trains a model to predict the next token, by cross-entropy (nats).

    Args:
        model: the model.
        optimizer: any Optax transformation.
        micro_batches: parts that a batch is split into; the update does not depend on it.
        mesh: a JAX mesh; see `divax.trainers.sharding`.
        reduction: tokens to a loss, of `divax.objectives`.
        vocab_size: the tokenizer's size, where the logits are padded.
        implementation: of a model that exposes `hidden` and `head`, for the step and for `evaluate`:
            "fast" and "lean" as in `divergences.fused_linear`, where the logits never exist for all
            tokens at once; "reference" computes them. Default: "reference" up to 4 million logits
            of a device.

    Returns:
        A `Trainer` on `Batch`es; `evaluate` gives `perplexity`, `accuracy` and `ece`.

    Raises:
        ValueError: "fast" or "lean", and the model exposes no states or no head.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divax import trainers as tr
        >>> table = tr.Model(
        ...     init=lambda key: jnp.zeros((4, 4)), apply=lambda params, tokens: params[tokens]
        ... )
        >>> trainer = tr.language_model(model=table, optimizer=optax.sgd(1.0))
        >>> batch = tr.Batch(tokens=jnp.array([[0, 1, 2, 3]]))
        >>> state, metrics = trainer.step(trainer.init(jax.random.key(0)), batch)
        >>> round(float(metrics["loss"]), 4), trainer.evaluate(state, [batch])["accuracy"]
        (1.3863, 1.0)
    """
    check_states(model, implementation, "model")
    hidden = HiddenDistillation(model, vocab_size, mesh, implementation)
    objective = LabelCrossEntropy(vocab_size=vocab_size, reduction=reduction)

    def loss_fn(params, batch, key):
        del key
        unread = hidden.unread(params, batch, None)
        if unread is not None:
            return hidden.loss(objective, unread, batch, hidden.how(params, batch))
        labels, mask = batch.targets()
        logits = predict(model, params, batch)
        return objective(DistillationRows(logits, None, labels, mask))

    def sums(state, batch):
        unread = hidden.unread(state.params, batch, None)
        if unread is not None:
            return hidden.sums(unread, batch)
        return prediction_sums(predict(model, state.params, batch), batch, vocab_size)

    return make_trainer(
        init_params=model.init,
        step=make_step(loss_fn, optimizer, micro_batches),
        sums=sums,
        summarise=summarise_tokens,
        optimizer=optimizer,
        mesh=mesh,
    )
