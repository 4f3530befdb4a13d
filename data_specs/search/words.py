"""Search by words: BM25 over the texts of the rows, kept by SQLite's FTS5.

Texts are folded (`data_specs.folding.even`: width, case, traditional and other variants) and cut into words as jieba
does for a search engine: 中华人民共和国 is also 中华, 人民, 共和国. A word of one character is looked for among all
characters, so that 猫 finds 小猫咪; a longer one among the words. A row that has any of the words is a hit, and BM25
(k1 1.2, b 0.75, FTS5's own) ranks it: rare words count most, and short texts.

Texts are cut when a part is written, in whichever process embeds it, and kept with its rows. rjieba cuts them, which is
jieba in Rust: the same words in a twentieth of the time, for which the towers beside it wait. Of 500 words one differs,
mostly numbers with letters, so that an index whose words jieba has cut is searched as well. The inverted index over all
parts is made from the words at the end (15 s a million captions), and anew by a takedown: then it holds nothing of what
was removed. It keeps no text, and is opened read-only, page by page.

Limits: a word that very many rows have takes a second or more per million of them.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sqlite3
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.folding import even
from data_specs.segmenter import rust_segmenter

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

MOST_WORDS = 64
"""Words of a query that are looked for: more is no query, but a text."""

_WORD = re.compile(r"[^\W_]+")
"""A run of letters and digits: exactly what FTS5's tokenizer `ascii` takes for one token."""

_TABLE = "CREATE VIRTUAL TABLE texts USING fts5(words, characters, content = '', tokenize = 'ascii')"


def words_of(text: str) -> list[str]:
    """Words of a text as the index has them, those within longer ones too."""
    cut = rust_segmenter().cut_for_search(even(text), True)
    return [word for piece in cut for word in _WORD.findall(piece)]


def cut_rows(rows: pa.Table) -> list[str]:
    """Words of all texts of each row, with a space between two; a text that is there twice counts once."""
    columns = (rows[name].to_pylist() for name in ("caption", "texts"))
    return [
        " ".join(word for text in dict.fromkeys([caption, *(t["text"] for t in texts)]) for word in words_of(text))
        for caption, texts in zip(*columns, strict=True)
    ]


def write(path: Path, parts: Iterable[Iterable[str]]) -> None:
    """Write the inverted index of all rows to a path: for each part what `cut_rows` returned. Raises OSError."""
    try:
        _write(path, parts)
    except sqlite3.OperationalError as e:  # so SQLite calls a full disk
        raise OSError(errno.EIO, f"SQLite: {e}") from e


def _write(path: Path, parts: Iterable[Iterable[str]]) -> None:
    # Nobody else sees the file yet: neither journal nor patience is needed.
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        connection.execute(_TABLE)
        numbered = enumerate(words for part in parts for words in part)
        rows = ((row, words, " ".join(_characters(words))) for row, words in numbered)
        connection.executemany("INSERT INTO texts(rowid, words, characters) VALUES (?, ?, ?)", rows)
        connection.execute("INSERT INTO texts(texts) VALUES ('optimize')")
        connection.execute("COMMIT")


def _characters(words: str) -> list[str]:
    """Characters of the words that have more than one, Latin letters and digits aside."""
    return [c for word in words.split(" ") if len(word) > 1 for c in word if not c.isascii()]


class WordSearch:
    """The inverted index, open for reading by any thread. As many connections as searches at once, closed with it."""

    def __init__(self, path: Path) -> None:
        self._path, self._idle = path, list[sqlite3.Connection]()
        weakref.finalize(self, _close, self._idle)

    def ranked(self, words: str, allowed_N: npt.NDArray[np.bool_]) -> tuple[Rows, Floats]:
        """Rows that have any of the words and are allowed, and their BM25: best first, ties by row."""
        asked = _query(words)
        if not asked:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        with self._connection() as connection:
            found = connection.execute("SELECT rowid, bm25(texts) FROM texts WHERE texts MATCH ?", (asked,)).fetchall()
        pairs = np.array(found, np.float64).reshape(-1, 2)
        rows = pairs[:, 0].astype(np.int64)
        scores = -pairs[:, 1].astype(np.float32)  # FTS5's BM25 is negative: the best is the least
        stays = allowed_N[rows]
        rows, scores = rows[stays], scores[stays]
        order = np.lexsort((rows, -scores))
        return rows[order], scores[order]

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._opened()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    def _opened(self) -> sqlite3.Connection:
        # immutable: files of an index never change, so that SQLite need not lock them, or write beside them
        address = f"{self._path.absolute().as_uri()}?mode=ro&immutable=1"
        connection = sqlite3.connect(address, uri=True, check_same_thread=False)
        connection.execute("PRAGMA trusted_schema = OFF")  # an index may be a stranger's
        connection.execute(f"PRAGMA mmap_size = {1 << 40}")
        return connection


def _close(connections: list[sqlite3.Connection]) -> None:
    while connections:
        connections.pop().close()


def _query(words: str) -> str:
    """A query in FTS5's language: any of the words, one of a single character among the characters too."""
    cut = list(dict.fromkeys(words_of(words)))[:MOST_WORDS]
    return " OR ".join(f'"{word}"' if len(word) == 1 else f'words : "{word}"' for word in cut)
