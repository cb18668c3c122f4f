"""What a run writes: its directory, its log, its checkpoints."""

import json
import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divax import trainers as tr
from divax.trainers.run_directory import claim


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_a_directory_is_claimed_once_per_configuration(tmp_path):
    directory = tmp_path / "deep" / "run"
    claim(directory, {"seed": 1, "sizes": (2, 3)})
    before = contents(directory)
    claim(directory, {"sizes": [2, 3], "seed": 1})
    assert contents(directory) == before
    assert json.loads((directory / "config.json").read_text())["config"]["sizes"] == [2, 3]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed": 2}, "holds a run with seed = 1, and this one has seed = 2; choose another"),
        ({}, "holds a run with seed = 1, and this one has no seed"),
        ({"seed": 1, "lr": 0.5}, "holds a run with no lr, and this one has lr = 0.5"),
    ],
)
def test_another_configuration_is_refused(tmp_path, config, message):
    claim(tmp_path, {"seed": 1})
    before = contents(tmp_path)
    with pytest.raises(tr.RunError, match=message):
        claim(tmp_path, config)
    assert contents(tmp_path) == before


def test_of_nested_settings_the_one_that_differs_is_named(tmp_path):
    claim(tmp_path, {"model": {"layers": 2, "width": 8}})
    with pytest.raises(
        tr.RunError, match=r"with model.width = 8, and this one has model.width = 9"
    ):
        claim(tmp_path, {"model": {"layers": 2, "width": 9}})


@pytest.mark.parametrize("marker", ['{"name": "somebody"}', "not json", '{"divax_run": 1}', "[]"])
def test_a_foreign_config_is_refused(tmp_path, marker):
    (tmp_path / "config.json").write_text(marker)
    with pytest.raises(tr.RunError, match="not written by divax"):
        claim(tmp_path, {"seed": 1})
    assert contents(tmp_path) == {"config.json": marker.encode()}


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(tr.RunError, match=r"holds files but no config.json"):
        claim(tmp_path, {"seed": 1})
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(tr.RunError, match="file: not a directory"):
        claim(tmp_path / "file", {})
    with pytest.raises(tr.RunError, match="cannot be used as a run directory: Not a directory"):
        claim(tmp_path / "file" / "below", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_refused(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(tr.RunError, match="cannot be used as a run directory: Permission denied"):
        claim(tmp_path, {})


def test_a_torn_claim_is_taken_over(tmp_path):
    (tmp_path / "config.json.partial").write_text('{"divax_')
    claim(tmp_path, {"seed": 1})
    assert list(contents(tmp_path)) == ["config.json"]


def test_the_log_drops_what_is_past_a_step_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = tr.MetricsLog(path)
    for step in range(1, 5):
        log.append({"step": step, "kind": "train", "loss": step / 7})
    kept = path.read_text().splitlines(keepends=True)[:2]
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert [record["step"] for record in log.read()] == [1, 2, 3, 4]
    log.rewind(2)
    assert path.read_text() == "".join(kept)
    log.append({"step": 3, "kind": "eval"})
    assert [record["step"] for record in log.read()] == [1, 2, 3]


def test_the_log_is_strict_json(tmp_path):
    log = tr.MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1, "reverse_kl": float("inf"), "x": float("nan"), "y": 1e-30})
    line = (tmp_path / "metrics.jsonl").read_text()

    def refuse(name):
        raise AssertionError(name)

    assert json.loads(line, parse_constant=refuse)["reverse_kl"] == "inf"
    assert float(log.read()[0]["reverse_kl"]) == float("inf")
    assert log.read()[0]["y"] == 1e-30


def test_a_spoilt_log_is_named_with_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nspoilt\n{"step": 2}\n')
    with pytest.raises(tr.RunError, match=r"metrics.jsonl:2: not a metrics record"):
        tr.MetricsLog(path).rewind(2)
    assert path.read_text() == '{"step": 1}\nspoilt\n{"step": 2}\n'


def train_state(decoder, optimizer, seed):
    params = decoder.init(jax.random.key(seed))
    return tr.TrainState.create(params, optimizer, jax.random.key(seed + 1))


def test_a_checkpoint_gives_back_every_bit(tmp_path, decoder, same):
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adamw)(1e-3)
    )
    saved = train_state(decoder, optimizer, 1)
    with tr.Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(tr.RunError, match="holds no checkpoint"):
            checkpoints.restore(saved)
        for step in (3, 5, 9):
            checkpoints.save(step, saved)
        checkpoints.wait()
    with tr.Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 9
        found = checkpoints.restore(train_state(decoder, optimizer, 7))
    same(found, saved)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["5", "9"]


def test_a_checkpoint_outlives_the_donation_of_what_it_saved(tmp_path):
    """The writer is asynchronous and a CPU array's NumPy view shares its memory."""
    increment = jax.jit(lambda x: x + 1, donate_argnums=0)
    array = jnp.zeros(1 << 20)
    with tr.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, [array])
        for _ in range(20):
            array = increment(array)
        checkpoints.wait()
        assert float(checkpoints.restore([array])[0].max()) == 0


def test_a_checkpoint_comes_back_onto_another_mesh(tmp_path):
    def array(mesh, spec):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        return jax.device_put(jnp.arange(64.0).reshape(8, 8), sharding)

    one = array(jax.make_mesh((8,), ("data",)), ("data",))
    two = array(jax.make_mesh((2, 4), ("a", "b")), (None, "b"))
    with tr.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, [one])
        checkpoints.wait()
        found = checkpoints.restore([jnp.zeros_like(two, device=two.sharding)])[0]
    np.testing.assert_array_equal(found, two)
    assert found.sharding.is_equivalent_to(two.sharding, 2)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": jnp.zeros((2, 4))}, r"\['w'\] is float32\[2,3\] there and float32\[2,4\] here"),
        ({"w": jnp.zeros((2, 3), jnp.bfloat16)}, r"is float32\[2,3\] there and bfloat16\[2,3\]"),
        ({"v": jnp.zeros((2, 3))}, r"\['v'\] is missing there and float32\[2,3\] here"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, other, message):
    with tr.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones((2, 3))})
        checkpoints.wait()
        with pytest.raises(tr.RunError, match=message):
            checkpoints.restore(other)
        assert float(checkpoints.restore({"w": jnp.zeros((2, 3))})["w"].sum()) == 6
