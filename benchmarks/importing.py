"""What an import costs: the CPU seconds that the two lower packages add to those of JAX and NumPy."""

import importlib
import subprocess
import sys

from divax.benchmarks.measure import Asked

PROBE = """
import time
def clock(*names):
    start = time.process_time()
    for name in names:
        importlib.import_module(name)
    return time.process_time() - start
import importlib
print(clock("jax", "jax.numpy", "numpy"), clock(%r))
"""


def imported(package):
    importlib.import_module(package)  # so that Python has compiled it
    done = subprocess.run(
        [sys.executable, "-c", PROBE % package], capture_output=True, text=True, check=True
    )
    jax, added = map(float, done.stdout.split())
    return {"added": added, "share": added / jax, "cpu": added}


PACKAGES = ("divax.divergences", "divax.objectives")
CASES = {name: lambda quick, name=name: imported(name) for name in PACKAGES}
BARS = tuple(
    bar
    for name in PACKAGES
    for bar in (
        Asked("import", f"{name}: CPU seconds", name, None, "added", 0.5),
        Asked("import", f"{name}: over those of JAX and NumPy", name, None, "share"),
    )
)
