"""What is built from the tree is the whole package under one import name, and it imports."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import divax

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "divergences", "objectives", "trainers")
SHELL = ("pyproject.toml", "README.md", "LICENSE")
# The build backend overwrites sys.argv.
BUILD = "import sys; out = sys.argv[1]; from setuptools import build_meta as b; "


def run(*command, cwd):
    """Runs a Python command away from the checkout, and returns what it printed."""
    process = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def expected_files():
    modules = {
        f"divax/{package}/{path.name}"
        for package in PACKAGES
        for path in (ROOT / package).iterdir()
        if path.suffix == ".py" or path.name == "py.typed"
    }
    return modules | {"divax/__init__.py", "divax/py.typed"}


def package_files(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    return {name for name in names if ".dist-info/" not in name}


@pytest.fixture(scope="module", params=["checkout", "without symlinks"])
def built(request, tmp_path_factory):
    """A wheel and an sdist, from a copy of the tree; a GitHub zip has no symlinks in it."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SHELL:
        shutil.copy(ROOT / name, tree)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=ignore)
    if request.param == "checkout":
        shutil.copytree(ROOT / "src", tree / "src", symlinks=True, ignore=ignore)
    else:
        (tree / "src/divax").mkdir(parents=True)
        for name in ("__init__.py", "py.typed"):
            shutil.copy(ROOT / "src/divax" / name, tree / "src/divax")
    out = tmp_path_factory.mktemp("dist")
    run("-c", BUILD + "b.build_sdist(out); b.build_wheel(out)", str(out), cwd=tree)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_wheel_holds_every_module_under_divax_and_nothing_else(built):
    assert package_files(built[0]) == expected_files()


def test_wheel_carries_licence_readme_and_command(built):
    wheel = zipfile.ZipFile(built[0])
    texts = {name.split("/", 1)[1]: wheel.read(name).decode() for name in wheel.namelist()
             if ".dist-info/" in name}  # fmt: skip
    assert texts["licenses/LICENSE"] == (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in texts["licenses/LICENSE"]
    assert "divax = divax.trainers.cli:main" in texts["entry_points.txt"]
    assert f"\nVersion: {divax.__version__}\n" in texts["METADATA"]
    assert "# Divax" in texts["METADATA"]
    assert "License-Expression: Apache-2.0" in texts["METADATA"]


def test_sdist_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    tree = next(tmp_path.iterdir())
    run("-c", BUILD + "b.build_wheel(out)", str(tmp_path), cwd=tree)
    assert package_files(next(tmp_path.glob("*.whl"))) == expected_files()


def test_the_wheel_imports_without_the_checkout(built, tmp_path):
    zipfile.ZipFile(built[0]).extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import divax.divergences, divax.objectives, divax.trainers\n"
        "print(*sorted({m.__file__ for n, m in sys.modules.items() if n.startswith('divax')}), sep='\\n')"
    )
    files = run("-c", code, str(tmp_path), cwd=tmp_path).split()
    assert len(files) > 10
    assert all(Path(file).is_relative_to(tmp_path) for file in files)
