"""The documents agree with the code: the members' table is generated, every paper cited has its row."""

import importlib.util
import re
from pathlib import Path

from divax import divergences as dv

ROOT = Path(__file__).parents[1]
PAPERS = (ROOT / "docs/papers.md").read_text(encoding="utf-8")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def generator():
    """`docs/members.py`, which is no module of the package."""
    spec = importlib.util.spec_from_file_location("docs_members", ROOT / "docs/members.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_members_is_what_the_code_generates():
    committed = (ROOT / "docs/members.md").read_text(encoding="utf-8")
    assert generator().document() == committed, "run: python docs/members.py"
    rows = re.findall(r"^\| `(\w+)` \|", committed, re.MULTILINE)
    assert rows[: len(dv.names())] == list(dv.names())


def test_every_paper_cited_by_a_divergence_or_an_objective_has_a_row():
    cited = {
        (number, path.name)
        for package in ("divergences", "objectives")
        for path in (ROOT / package).glob("*.py")
        for number in ARXIV.findall(path.read_text(encoding="utf-8"))
    }
    assert cited
    listed = set(ARXIV.findall(PAPERS))
    assert sorted(one for one in cited if one[0] not in listed) == []


def test_what_shows_a_paper_exists():
    shown = set(re.findall(r"`((?:tests|notebooks)/[\w/.]+)`", PAPERS))
    assert shown
    assert [path for path in shown if not (ROOT / path).is_file()] == []


def test_no_paper_has_two_rows():
    # The first number of a row is the row's own; others are mentioned beside it.
    own = [found[1] for line in PAPERS.splitlines() if (found := ARXIV.search(line))]
    assert sorted(own) == sorted(set(own))
