"""Strict JAX for every test: silent promotion, rank broadcasting and warnings are failures."""

import importlib.metadata
import os

# Nearly all the time of the suite is the compilation of small programs, which these halve: machine code without
# optimisation, in one piece, and (where jaxlib still has them) by XLA's older emitters. A flag that is set already stays
# as it is: XLA_FLAGS="--xla_backend_optimization_level=3" tests the code that users run.
FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_backend_optimization_level": "0",
    "--xla_cpu_parallel_codegen_split_count": "1",
}
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"  # unknown to later ones, which would abort
given = os.environ.get("XLA_FLAGS", "")
added = [f"{flag}={value}" for flag, value in FLAGS.items() if flag not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *added])

import jax  # noqa: E402 (reads XLA_FLAGS)
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """What takes longest to compile, such as a trainer's step, is compiled once, here and by commands that tests start."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.03,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # else what was compiled by imports has decided that there is none
        yield


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """What a module's tests have traced goes with them: gigabytes that Python's collector would walk again and again."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    """The one key that tests start from."""
    return jax.random.key(20260817)


@pytest.fixture
def x64():
    """Runs the test in double precision."""
    with jax.enable_x64(True):
        yield
