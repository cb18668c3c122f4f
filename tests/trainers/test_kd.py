"""`divax kd` from end to end in tiny size, and each of its complaints."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from divax.trainers.cli import main
from divax.trainers.kd_config import KdConfig
from divax.trainers.kd_experiment import Experiment

TINY = [
    "--steps", "6", "--teacher-steps", "8",
    "--student.layers", "1", "--student.width", "8", "--student.heads", "2",
    "--teacher.layers", "1", "--teacher.width", "16", "--teacher.heads", "2",
    "--training.batch-size", "4", "--training.sequence-length", "32",
    "--training.evaluate-every", "3", "--training.checkpoint-every", "4",
]  # fmt: skip


def divax(*arguments):
    command = [sys.executable, "-m", "divax.trainers.cli", "kd", *map(str, arguments)]
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "words.jsonl"
    words = np.random.default_rng(0).choice(["alpha", "beta", "gamma", "delta"], size=(60, 12))
    path.write_text("".join(json.dumps({"text": " ".join(row)}) + "\n" for row in words))
    return path


@pytest.fixture(scope="module")
def first(text, tmp_path_factory):
    output = tmp_path_factory.mktemp("kd") / "out"
    return output, divax(*TINY, "--data", text, "--output", output)


def test_the_first_run(first):
    output, done = first
    assert done.returncode == 0, done.stderr
    rows = json.loads((output / "results.json").read_text())
    assert list(rows) == ["teacher", "student alone", "forward_kl"]
    for line in done.stdout.splitlines()[1:4]:
        name = next(name for name in rows if line.startswith(name))
        assert f"{rows[name]['perplexity']:.3f}" in line
    assert rows["teacher"]["agreement"] == 1
    assert all(1 < row["perplexity"] < 1000 for row in rows.values())
    assert rows["forward_kl"]["parameters"] == rows["student alone"]["parameters"]
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in ("teacher", "student_alone", "forward_kl"):
        assert (output / name / "metrics.jsonl").stat().st_size > 0
        assert (output / name / "config.json").exists()
        assert (output / name / "checkpoints").is_dir()


def test_the_next_run_reuses_what_is_finished(first, text):
    output, _ = first
    before = contents(output)
    specs = ["--divergence", "forward_kl", "--divergence", "0.5*forward_kl + 0.5*reverse_kl"]
    done = divax(*TINY, "--data", text, "--output", output, *specs)
    assert done.returncode == 0, done.stderr
    after = contents(output)
    for path, content in before.items():
        if path.startswith(("teacher", "student_alone", "forward_kl")):
            assert after[path] == content, path
    rows = json.loads((output / "results.json").read_text())
    earlier = json.loads(before["results.json"])
    assert {name: rows[name] for name in earlier} == earlier
    new = set(rows) - set(earlier)
    assert len(new) == 1
    assert new.pop() in done.stdout


def test_other_settings_of_the_distillation_reuse_the_teacher(first, text, capsys):
    output, _ = first
    before = contents(output / "teacher")
    settings = ["--temperature", "2", "--distill-weight", "0.5"]
    # Optax and Flax promote implicitly.
    with jax.numpy_dtype_promotion("standard"):
        assert main(["kd", *TINY, "--data", str(text), "--output", str(output), *settings]) == 0
    assert "forward_kl, temperature 2, distill_weight 0.5" in capsys.readouterr().out
    assert contents(output / "teacher") == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--seed", "1"], "holds a run with seed = 0, and this one has seed = 1"),
        (["--steps", "7"], "holds a run with steps = 6, and this one has steps = 7"),
        (["--data", __file__], "holds a run with data = "),
    ],
)
def test_another_experiment_is_refused(first, text, changed, message, capsys):
    output, _ = first
    before = contents(output)
    assert main(["kd", *TINY, "--data", str(text), "--output", str(output), *changed]) == 2
    error = capsys.readouterr().err
    assert error.startswith("divax kd: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert contents(output) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--divergence", "forwardkl"], "forward_kl"),
        (["--divergence", "alpha(beta=2)"], "alpha"),
        (["--data", "/nonexistent/file"], "/nonexistent/file: cannot be read"),
        (["--output", "/dev/null"], "/dev/null: not a directory"),
        (["--output", "/dev/null/below"], "cannot be used as a run directory"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be in [0, 2**32), got -1"),
        (["--temperature", "0"], "--temperature must be positive, got 0.0"),
        (["--distill-weight", "2"], "--distill-weight must be in [0, 1], got 2.0"),
        (["--student.width", "9"], "width 9 does not divide into 4 heads"),
        (["--training.micro-batches", "3"], "micro-batches must divide"),
        (["--sed", "3"], "Unrecognized options: --sed, 3; did you mean --seed?"),
        (["--seed", "x"], "--seed: invalid literal for int()"),
        (["words"], "Unrecognized options: words"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments, message, capsys, tmp_path):
    default = [] if "--output" in arguments else ["--output", str(tmp_path / "out")]
    assert main(["kd", *arguments, *default]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("divax kd: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_too_small_names_it(tmp_path, capsys):
    path = tmp_path / "short.txt"
    path.write_text("brief")
    assert main(["kd", "--data", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "short.txt: too small: 5 bytes are left for training" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_foreign_directory_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["kd", "--output", str(tmp_path)]) == 2
    assert "holds files but no config.json" in capsys.readouterr().err
    assert contents(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_loss_that_is_not_finite_is_one_line_too(text, tmp_path, capsys):
    wild = ["--training.teacher-learning-rate", "1e30", "--output", str(tmp_path / "out")]
    with jax.numpy_dtype_promotion("standard"):
        assert main(["kd", *TINY, "--data", str(text), *wild]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(
        r"divax kd: error: step \d+: (loss|grad_norm) is (nan|inf); stopped; .*\n", error
    )
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_divergence_asked_for_twice_is_run_once():
    config = KdConfig(divergence=("forward_kl", "alpha(0.5)", "forward_kl"))
    assert list(Experiment.prepare(config).students) == ["forward_kl", "alpha(0.5)"]


def test_a_cached_teacher_of_an_earlier_run(first, text, tmp_path, capsys):
    """The rows of the cache in place of the teacher: no student of the live one, but near it."""
    output, _ = first
    cache, out = tmp_path / "cache", tmp_path / "out"
    arguments = [*TINY, "--data", str(text), "--from", str(output), "--output", str(out)]
    with jax.numpy_dtype_promotion("standard"):
        made = ["cache-teacher", "--from", str(output), "--data", str(text), "--output", str(cache)]
        assert main([*made, "--top-k", "32"]) == 0
        assert main(["kd", *arguments, "--teacher-cache", str(cache)]) == 0
        capsys.readouterr()
        # At another temperature, or beside samples, a cache has no meaning.
        for wrong, message in (
            (["--temperature", "2"], "was written at temperature 1, and the loss has 2"),
            (["--on-policy", "0.5"], "is to learn from samples as well"),
            (["--training.sequence-length", "16"], "holds rows of 32 tokens"),
        ):
            before = contents(out)
            assert main(["kd", *arguments, "--teacher-cache", str(cache), *wrong]) == 2
            assert message in capsys.readouterr().err
            assert contents(out) == before
        alone = ["--teacher-cache", str(cache), "--output", str(tmp_path / "new")]
        assert main(["kd", *TINY, "--data", str(text), *alone]) == 2
        assert "add --from RUN" in capsys.readouterr().err
    rows = json.loads((out / "results.json").read_text())
    assert list(rows) == ["teacher", "student alone", "forward_kl, cache cache"]
    earlier = json.loads((output / "results.json").read_text())
    assert rows["teacher"] == pytest.approx(earlier["teacher"], rel=1e-5)
    assert not (out / "teacher").exists()


def test_students_of_their_own_samples(first, text, tmp_path, capsys):
    output, _ = first
    arguments = [
        *TINY, "--data", str(text), "--from", str(output), "--output", str(tmp_path / "out"),
        "--sampling.prompt-length", "8", "--sampling.replay", "8",
    ]  # fmt: skip
    students = ["--objective", "minillm", "--objective", "distillm2"]
    with jax.numpy_dtype_promotion("standard"):
        assert main(["kd", *arguments, *students]) == 0
        assert main(["kd", *arguments, "--on-policy", "adaptive"]) == 0
        again = [*arguments, *students, "--sampling.fresh", "0.5"]
        assert main(["kd", *again]) == 2
    assert "sampling.fresh = 0.25, and this one has sampling.fresh = 0.5" in capsys.readouterr().err
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(rows)[2:] == [
        "minillm, replay 8", "distillm2, replay 8", "forward_kl, on_policy adaptive, replay 8",
    ]  # fmt: skip
    log = [
        json.loads(line)
        for line in (tmp_path / "out" / "minillm_replay_8" / "metrics.jsonl")
        .read_text()
        .splitlines()
    ]
    # It starts as the student alone, far from the 256 of an untrained one.
    first_eval = next(record for record in log if record["kind"] == "eval")
    alone = rows["student alone"]["perplexity"]
    assert abs(first_eval["perplexity"] - alone) < 0.1 * alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "minilm"], "unknown objective 'minilm'; did you mean minillm"),
        (["--objective", "dkd(bet=2)"], "dkd has no parameter 'bet'; did you mean beta?"),
        (["--objective", "gkd(compat=tlr)"], "gkd: compat must be paper or trl, got tlr"),
        (["--objective", "gkd(beta=2)"], "gkd(beta=2): "),
        (["--objective", "minillm", "--on-policy", "1"], "leave --on-policy out"),
        (["--on-policy", "often"], "--on-policy must be a share in [0, 1] or 'adaptive'"),
        (["--on-policy", "1", "--sampling.prompt-length", "200"], "leaves nothing to write"),
        (["--sampling.replay", "8"], "nothing is sampled: add --on-policy SHARE"),
        (["--sampling.prompt-length", "0"], "--sampling.prompt-length must be at least 1, got 0"),
        (["--sampling.max-age", "-1"], "--sampling.max-age must be at least 0, got -1"),
        (["--sampling.fresh", "2"], "--sampling.fresh must be in [0, 1], got 2.0"),
        (["--from", "/nowhere"], "/nowhere: not the output of a divax kd"),
        (["--teacher-cache", "/nowhere"], "/nowhere: holds no teacher cache"),
        (["--task", "digts"], "digts"),
    ],
)
def test_wrong_methods_are_one_line_and_exit_code_2(arguments, message, capsys, tmp_path):
    assert main(["kd", *arguments, "--output", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("divax kd: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_explains_the_flags(capsys):
    assert main(["kd", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in ("--divergence", "--output", "--data", "--seed", "--steps", "--temperature"):
        assert flag in out
    assert "may be repeated" in " ".join(out.split())
