"""Real text without a download: bytes, split by document into training and validation."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from divax.trainers.batch import Batch
from divax.trainers.errors import RunError

VOCAB_SIZE = 256
#: Stands between two documents; text has no such byte.
SEPARATOR = b"\x00"
#: Two topics are kept on one side of the split if they share a line this long or longer.
_SHARED_LINE = 50


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Bytes to train on and bytes to measure on, from different documents.

    Attributes:
        train: `[N]` uint8.
        validation: `[M]` uint8.
        fingerprint: hexadecimal digest of both, which a run's configuration records.

    Example:
        >>> corpus = python_topics()
        >>> corpus.train.size > 8 * corpus.validation.size > 300_000
        True
    """

    train: np.ndarray
    validation: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of both sides."""
        both = self.train.tobytes() + b"|" + self.validation.tobytes()
        return hashlib.blake2b(both, digest_size=8).hexdigest()


def python_topics(validation_fraction: float = 0.1) -> Corpus:
    """The help topics that ship with CPython: about 0.46 MB of technical English.

    Some topics repeat passages of others, so whole groups of topics that share a line of 50
    characters or more go to one side: no validation passage is ever trained on.

    Args:
        validation_fraction: at most this share of the bytes is kept for validation.

    Example:
        >>> b"compound statement" in python_topics().train.tobytes()
        True
    """
    from pydoc_data.topics import topics

    documents = [topics[name] for name in sorted(topics)]
    return _split(_linked(documents), validation_fraction)


def text_file(path: Path, validation_fraction: float = 0.1) -> Corpus:
    """A file of plain text, or of JSON lines with a field `text` (suffix `.jsonl`).

    JSON lines are documents and are split as such; of a plain text the last part validates.

    Args:
        path: the file.
        validation_fraction: at most this share of the bytes is kept for validation.

    Raises:
        RunError: the file is missing, not UTF-8, malformed or empty; file and line are named.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_text("0123456789")
        >>> text_file(path).validation.tobytes()
        b'9'
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    lines = [_decode(path, number, line) for number, line in enumerate(raw.split(b"\n"), 1)]
    if path.suffix == ".jsonl":
        documents = [_text_field(path, n, line) for n, line in enumerate(lines, 1) if line.strip()]
    else:
        documents = ["\n".join(lines)]
    if not any(documents):
        raise RunError(f"{path}: holds no text")
    if len(documents) == 1:
        data = np.frombuffer(documents[0].encode(), np.uint8)
        cut = data.size - int(data.size * validation_fraction)
        return Corpus(data[:cut], data[cut:])
    return _split([[document] for document in documents], validation_fraction)


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise RunError(f"{path}:{number}: not UTF-8 text ({error.reason})") from error


def _text_field(path: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise RunError(f"{path}:{number}: not JSON: {error.msg}") from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise RunError(f"{path}:{number}: expected an object with a string field 'text'")
    return record["text"]


def _linked(documents: list[str]) -> list[list[str]]:
    """Groups of documents, such that no long line stands in two groups."""
    group = list(range(len(documents)))
    owner: dict[str, int] = {}

    def root(i):
        while group[i] != i:
            i = group[i]
        return i

    for i, document in enumerate(documents):
        for line in document.splitlines():
            line = " ".join(line.split())
            if len(line) >= _SHARED_LINE:
                group[root(i)] = root(owner.setdefault(line, i))
    members: dict[int, list[str]] = {}
    for i, document in enumerate(documents):
        members.setdefault(root(i), []).append(document)
    return list(members.values())


def _split(groups: list[list[str]], validation_fraction: float) -> Corpus:
    """Groups in the order of their digests go to validation while they fit its budget."""
    texts = [[document.encode() for document in group] for group in groups]
    texts.sort(key=lambda group: hashlib.blake2b(SEPARATOR.join(group)).digest())
    budget = validation_fraction * sum(len(document) for group in texts for document in group)
    train: list[bytes] = []
    validation: list[bytes] = []
    for group in texts:
        size = sum(len(document) + 1 for document in group)
        if size <= budget:
            validation += group
            budget -= size
        else:
            train += group
    return Corpus(_joined(train), _joined(validation))


def _joined(documents: Iterable[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(document + SEPARATOR for document in documents), np.uint8)


def random_windows(
    data: np.ndarray, *, batch_size: int, length: int, seed: int
) -> Callable[[int], Batch]:
    """Training batches as a pure function of the step: random windows of the data.

    A counter-based generator (Philox) is keyed by (seed, step), so the data's position is the
    step, and resuming needs no other state.

    Args:
        data: `[N]` uint8.
        batch_size: rows.
        length: tokens per row.
        seed: nonnegative.

    Example:
        >>> batches = random_windows(np.arange(99, dtype=np.uint8), batch_size=2, length=4, seed=0)
        >>> bool((batches(7).tokens == batches(7).tokens).all()), batches(7).tokens.shape
        (True, (2, 4))
    """
    windows = np.lib.stride_tricks.sliding_window_view(data, length)

    def batch(step: int) -> Batch:
        generator = np.random.Generator(np.random.Philox(key=[seed, step]))
        return Batch(tokens=windows[generator.integers(len(windows), size=batch_size)].astype("i4"))

    return batch


def consecutive_windows(data: np.ndarray, *, batch_size: int, length: int) -> list[Batch]:
    """All of the data once, in rows of `length`; the last rows are filled up and masked.

    Args:
        data: `[N]` uint8.
        batch_size: rows per batch.
        length: tokens per row.

    Example:
        >>> batches = consecutive_windows(np.arange(9, dtype=np.uint8), batch_size=2, length=4)
        >>> [int(batch.mask.sum()) for batch in batches]
        [8, 1]
    """
    size = batch_size * length
    count = -(-data.size // size)
    tokens = np.zeros(count * size, np.int32)
    mask = np.zeros(count * size, np.float32)
    tokens[: data.size], mask[: data.size] = data, 1
    shape = (count, batch_size, length)
    return [Batch(t, m) for t, m in zip(tokens.reshape(shape), mask.reshape(shape), strict=True)]
