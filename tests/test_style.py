"""Rules of the house that no linter knows."""

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("divergences", "objectives", "trainers")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]

# Imports point one way: what each package may import besides the standard library.
ALLOWED = {
    "divergences": {"jax", "numpy", "divax.divergences"},
    "objectives": {"jax", "numpy", "divax.divergences", "divax.objectives"},
}


def relative(path):
    return str(path.relative_to(ROOT))


def imported_names(path):
    """Every absolute module name that a file imports; a relative import is given as '.'."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "divax" and not node.level:
            yield from (f"divax.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level or node.module is None else node.module


def functions(path):
    """The name and length of each function, its docstring not counted."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None and len(node.body) > 1
            first = node.body[1] if documented else node.body[0]
            yield node.name, (node.end_lineno or 0) - first.lineno + 1


def test_the_rules_see_the_sources():
    assert {path.parent.name for path in MODULES} >= set(PACKAGES)
    assert "jax" in set(imported_names(ROOT / "objectives/distillation.py"))
    assert dict(functions(ROOT / "objectives/weighted.py"))["mean"] == 1


def test_no_file_is_longer_than_500_lines():
    long = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in SOURCES}
    assert {relative(f): lines for f, lines in long.items() if lines > 500} == {}


def test_no_function_is_longer_than_40_lines():
    found = [(relative(f), name, lines) for f in MODULES for name, lines in functions(f)]
    assert [one for one in found if one[2] > 40] == []


def test_packages_are_imported_absolutely_and_under_divax():
    """Under a bare name every class would exist twice."""
    found = [(relative(f), name) for f in SOURCES for name in imported_names(f)]
    assert [one for one in found if one[1].split(".")[0] in {*PACKAGES, ""}] == []


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    def allowed(name):
        home = ".".join(name.split(".")[: 2 if name.startswith("divax.") else 1])
        return home in ALLOWED[package] or home in sys.stdlib_module_names

    files = [path for path in MODULES if path.is_relative_to(ROOT / package)]
    found = [(relative(f), name) for f in files for name in imported_names(f)]
    assert [one for one in found if not allowed(one[1])] == []


def public_names(module):
    """What the package's `__init__` offers, submodules aside."""
    return getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_docstring_is_a_table_of_contents(package):
    module = importlib.import_module(f"divax.{package}")
    names = public_names(module)
    assert names
    assert [name for name in names if f"`{name}`" not in (module.__doc__ or "")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_function_and_class_has_an_example(package):
    module = importlib.import_module(f"divax.{package}")
    values = {name: getattr(module, name) for name in public_names(module)}
    things = {n: v for n, v in values.items() if inspect.isclass(v) or inspect.isfunction(v)}
    assert [n for n, v in things.items() if ">>>" not in (inspect.getdoc(v) or "")] == []
