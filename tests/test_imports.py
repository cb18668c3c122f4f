"""The two lower packages load JAX and NumPy and nothing else; `divax bench --only import` says how quickly."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# JAX first, so that what is counted is what the package adds to it.
PROBE = """
import sys
import jax, jax.numpy, numpy
before = {name.split(".")[0] for name in sys.modules}
import %s
added = {name.split(".")[0] for name in sys.modules} - before
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized(), *sorted(added - sys.stdlib_module_names))
"""


@pytest.mark.parametrize("package", ["divax.divergences", "divax.objectives"])
def test_a_fresh_import_adds_divax_alone_and_starts_no_backend(package):
    process = subprocess.run(
        [sys.executable, "-c", PROBE % package],
        cwd=ROOT / "src",
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    started, *added = process.stdout.split()
    # Not even what JAX may have loaded by itself: flax, optax, orbax, tyro, tqdm, matplotlib,
    # chex and scipy would all be in the list.
    assert added == ["divax"]
    # A backend started at import, by an array or a compilation, would take time, and fix the platform before the user's
    # own configuration.
    assert started == "False"


def test_the_heavy_libraries_are_not_loaded_by_jax_itself():
    """Otherwise the test above would not see them."""
    code = "import sys, jax, jax.numpy, numpy; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"flax", "optax", "orbax", "tyro", "tqdm", "matplotlib", "chex", "scipy"}
    assert not heavy & {name.split(".")[0] for name in process.stdout.split()}


def test_no_module_is_loaded_under_two_names():
    """Doctests are collected through symlinks; a second import would make every class twice."""
    folders = {ROOT / name for name in ("divergences", "objectives", "trainers")}
    names: dict[Path, list[str]] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and Path(file).resolve().parent in folders:
            names.setdefault(Path(file).resolve(), []).append(name)
    assert {path: found for path, found in names.items() if len(found) > 1} == {}
    assert all(name.startswith("divax.") for found in names.values() for name in found)
