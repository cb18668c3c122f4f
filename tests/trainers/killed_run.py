"""A run to be killed by test_kill.py: `python killed_run.py RUN_DIRECTORY FINAL.npz`."""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from divax import trainers as tr

STEPS = 24


def main(run_dir, final):
    model = tr.Model(
        init=lambda key: {
            "logits": jax.random.normal(key, (7, 7)),
            # Large enough that writing a checkpoint takes a while.
            "ballast": jnp.zeros((1 << 20,)),
        },
        apply=lambda params, tokens: params["logits"][tokens] + params["ballast"][0],
    )
    teacher = tr.LiveTeacher(model, model.init(jax.random.key(1)))
    trainer = tr.distillation(student=model, teacher=teacher, optimizer=optax.adam(0.05))

    def batches(step):
        time.sleep(0.03)
        tokens = np.random.default_rng([7, step]).integers(7, size=(4, 6))
        return tr.Batch(tokens=tokens.astype(np.int32))

    state = tr.fit(
        trainer,
        batches,
        steps=STEPS,
        key=jax.random.key(0),
        run_dir=run_dir,
        config={"run": "killed"},
        evaluate_every=5,
        eval_batches=[batches(10**6)],
        checkpoint_every=3,
    )
    leaves = [np.asarray(x) for x in jax.tree.leaves((state.params, state.opt_state, state.step))]
    np.savez(final, *leaves, jax.random.key_data(state.key))


if __name__ == "__main__":
    main(*sys.argv[1:])
