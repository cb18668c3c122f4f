"""The data: disjoint sides, batches that depend on (seed, step) alone, clear complaints."""

import json
from pydoc_data.topics import topics

import numpy as np
import pytest

from divax import trainers as tr
from divax.trainers.text import SEPARATOR


def documents(side):
    return [text for text in side.tobytes().split(SEPARATOR) if text]


def test_topics_are_split_without_loss():
    corpus = tr.python_topics()
    train, validation = documents(corpus.train), documents(corpus.validation)
    assert sorted(train + validation) == sorted(text.encode() for text in topics.values())
    share = corpus.validation.size / (corpus.train.size + corpus.validation.size)
    assert 0.05 < share <= 0.1


def test_no_long_line_stands_on_both_sides():
    corpus = tr.python_topics()

    def long_lines(side):
        lines = (" ".join(line.split()) for line in side.tobytes().decode().splitlines())
        return {line for line in lines if len(line) >= 50}

    train, validation = long_lines(corpus.train), long_lines(corpus.validation)
    assert len(validation) > 200
    assert not train & validation


def test_the_fingerprint_is_of_the_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" * 100)
    one = tr.text_file(path).fingerprint
    assert tr.text_file(path).fingerprint == one
    path.write_text("x" * 99 + "y")
    assert tr.text_file(path).fingerprint != one


def test_json_lines_are_split_by_document(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = [f"document {i} is about ünï {i}" for i in range(40)]
    path.write_text("\n".join(json.dumps({"text": text, "id": 1}) for text in texts) + "\n\n")
    corpus = tr.text_file(path)
    found = documents(corpus.train) + documents(corpus.validation)
    assert sorted(found) == sorted(text.encode() for text in texts)
    assert len(documents(corpus.validation)) >= 2


def test_plain_text_validates_on_its_end(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(chr(65 + i % 26) for i in range(1000)))
    corpus = tr.text_file(path)
    assert (corpus.train.size, corpus.validation.size) == (900, 100)
    assert corpus.train.tobytes() + corpus.validation.tobytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "a.txt: cannot be read: No such file"),
        ("a.txt", b"", "a.txt: holds no text"),
        ("a.jsonl", b"\n\n", "a.jsonl: holds no text"),
        ("a.txt", b"fine\nfine\n\xff\xfe", "a.txt:3: not UTF-8 text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n{"txt": "a"}', "a.jsonl:3: expected an object with a str"),
        ("a.jsonl", b'{"text": 3}', "a.jsonl:1: expected an object with a string field 'text'"),
        ("a.jsonl", b'["text"]', "a.jsonl:1: expected an object"),
    ],
)
def test_unusable_files_are_named_with_the_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(tr.RunError, match=message):
        tr.text_file(tmp_path / name)


def test_a_directory_is_no_text(tmp_path):
    with pytest.raises(tr.RunError, match="cannot be read: Is a directory"):
        tr.text_file(tmp_path)


def test_windows_are_a_function_of_seed_and_step():
    data = np.random.default_rng(0).integers(256, size=5000).astype(np.uint8)

    def batches(seed):
        return tr.random_windows(data, batch_size=4, length=16, seed=seed)

    late_first = batches(3)
    tokens = [np.asarray(late_first(step).tokens) for step in (9, 0, 5)]
    again = [np.asarray(batches(3)(step).tokens) for step in (9, 0, 5)]
    np.testing.assert_array_equal(tokens, again)
    assert not np.array_equal(tokens[0], tokens[1])
    assert not np.array_equal(tokens[1], batches(4)(0).tokens)
    assert tokens[0].dtype == np.int32
    for row in tokens[0]:
        assert row.astype(np.uint8).tobytes() in data.tobytes()


def test_every_window_can_be_drawn():
    batches = tr.random_windows(np.arange(6, dtype=np.uint8), batch_size=64, length=4, seed=0)
    assert set(np.asarray(batches(0).tokens)[:, 0]) == {0, 1, 2}


def test_consecutive_windows_cover_everything_once():
    data = np.arange(50, dtype=np.uint8)
    batches = tr.consecutive_windows(data, batch_size=3, length=4)
    seen = np.concatenate([b.tokens[np.asarray(b.mask) > 0] for b in batches])
    np.testing.assert_array_equal(seen, data)
    assert {b.tokens.shape for b in batches} == {(3, 4)}
