"""Divax: divergences for JAX that drive distillation, f-DPO and regularised policy gradients.

Three packages, imported one way only, trainers → objectives → divergences:

- `divax.divergences`: pure functions of distributions (JAX and NumPy only),
- `divax.objectives`: pure functions of logits and log-probabilities to `(loss, metrics)`,
- `divax.trainers`: models, data, jitted steps, the run loop and the command line.

Nothing is imported here, so that `import divax.divergences` stays light.
"""

__version__ = "0.1.0"
