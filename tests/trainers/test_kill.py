"""Killed by SIGKILL at any moment and started again, a run ends with the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from divax import trainers as tr

SCRIPT = Path(__file__).with_name("killed_run.py")


def start(run_dir, final):
    # One device and the library's own settings: what a user's process has.
    environment = {**os.environ, "XLA_FLAGS": ""}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(run_dir), str(final)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(run_dir, final):
    process = start(run_dir, final)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    with np.load(final) as arrays:
        leaves = [arrays[name] for name in arrays.files]
    records = tr.MetricsLog(run_dir / "metrics.jsonl").read()
    return leaves, [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def last_step(run_dir):
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return len([line for line in lines if '"train"' in line])


def is_writing(run_dir):
    """Orbax writes under a temporary name, which is renamed when the checkpoint is complete."""
    return any(run_dir.glob("checkpoints/*orbax-checkpoint-tmp*"))


def kill_when(condition, run_dir, final):
    process = start(run_dir, final)
    deadline = time.monotonic() + 200
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    return finish(directory / "run", directory / "final.npz")


def test_killed_again_and_again(never_killed, tmp_path):
    """Before the first step, between checkpoints, and while checkpoints are being written."""
    run, final = tmp_path / "run", tmp_path / "final.npz"
    kill_when(lambda: (run / "config.json").exists(), run, final)
    assert last_step(run) == 0
    kill_when(lambda: last_step(run) >= 5, run, final)
    kill_when(lambda: last_step(run) >= 8 and is_writing(run), run, final)
    # Torn as by a power cut: half a line, as if the system had lost the rest.
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 17, "kind": "tr')
    kill_when(lambda: last_step(run) >= 17 and is_writing(run), run, final)
    leaves, log = finish(run, final)

    expected_leaves, expected_log = never_killed
    assert log == expected_log
    assert len(leaves) == len(expected_leaves)
    for found, expected in zip(leaves, expected_leaves, strict=True):
        assert found.tobytes() == expected.tobytes()


def test_sigterm_saves_and_the_rest_is_the_same(never_killed, tmp_path):
    run, final = tmp_path / "run", tmp_path / "final.npz"
    process = start(run, final)
    while last_step(run) < 7:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"the same command resumes there" in errors
    assert 7 <= tr.MetricsLog(run / "metrics.jsonl").read()[-1]["step"] < 24
    leaves, log = finish(run, final)
    assert log == never_killed[1]
    for found, expected in zip(leaves, never_killed[0], strict=True):
        assert found.tobytes() == expected.tobytes()
