"""`divax zoo`: its table says what the divergences are, its picture is drawn, its mistakes are one line."""

import numpy as np
import pytest
from members import f_member

from divax import divergences as dv
from divax.trainers import cli


def zoo(capsys, *arguments):
    code = cli.main(["zoo", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_member_has_a_row(capsys):
    code, out, err = zoo(capsys)
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()[1:]]
    assert [name.partition("(")[0] for name in names] == list(dv.names())


def test_a_row_states_the_measured_limits_and_range(capsys):
    _, out, _ = zoo(capsys, "--divergence", "alpha(0.3)", "--divergence", "reverse_chi2")
    header, alpha, chi2 = (line.split("  ") for line in out.splitlines())
    cells = [cell.strip() for cell in alpha if cell.strip()]
    # Disjoint supports reach the upper end; one-sided mismatches the two limits.
    t = np.array([0.0, -np.inf], np.float32)
    top = float(f_member("alpha(0.3)")(t, t[::-1]))
    assert cells[2] == f"[0, {top:.4g}]"
    assert [cell.strip() for cell in chi2 if cell.strip()][2:5] == ["[0, ∞)", "∞", "1"]
    assert "admissible" in [cell.strip() for cell in header]


def test_the_picture_is_drawn(capsys, tmp_path):
    path = tmp_path / "zoo.png"
    code, out, _ = zoo(capsys, "--plot", str(path))
    assert code == 0
    assert out.endswith(f"written: {path}\n")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--divergence", "forwardkl"], "unknown divergence 'forwardkl'; did you mean forward_kl"),
        (["--divergence", "alpha(beta=1)"], "alpha has no parameter 'beta'"),
        (["--divergence", "sinkhorn", "--plot", "x.png"], "none is listed"),
        (["--plot", "/no/such/folder/zoo.png"], "cannot write the picture /no/such/folder/zoo.png"),
        (["--plt", "x.png"], "--plot"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(capsys, arguments, message):
    code, _, err = zoo(capsys, *arguments)
    assert code == 2
    assert err.startswith("divax zoo: error: ")
    assert message in err
    assert err.count("\n") == 1
