"""Search by words: BM25 over the texts of all rows, by SQLite's FTS5.

Texts are folded (`fold_characters`: width, case, traditional and other variants) and cut into words as jieba does for
a search engine: 中华人民共和国 is also 中华, 人民, 共和国. rjieba cuts them, jieba in Rust: of 500 words one differs,
at a twentieth of the time. A word of one character is looked for among all characters, so that 猫
finds 小猫咪; a longer one among the words. A row that has any of the words is a hit, ranked by FTS5's BM25
(k1 1.2, b 0.75).

Texts are cut when a part is written, in the process that embeds it; the table over all parts is made from the words
when the index changes (15 s a million captions), so that it holds nothing of removed rows. It keeps no text.

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

from data_specs.text.folding import fold_characters

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

MOST_WORDS = 64
"""Words of a query that are looked for: more is a text, not a query."""

_WORD = re.compile(r"[^\W_]+")
"""A run of letters and digits: exactly one token of FTS5's tokenizer `ascii`."""

_TABLE = "CREATE VIRTUAL TABLE texts USING fts5(words, characters, content = '', tokenize = 'ascii')"


def words_of(text: str) -> list[str]:
    """Words of a text as the index has them, those within longer ones too."""
    import rjieba

    cut = rjieba.cut_for_search(fold_characters(text), True)
    return [word for piece in cut for word in _WORD.findall(piece)]


def cut_rows(rows: pa.Table) -> list[str]:
    """Words of all texts of each row, separated by spaces; a text that a row has twice counts once."""
    columns = (rows[name].to_pylist() for name in ("caption", "texts"))
    return [
        " ".join(word for text in dict.fromkeys([caption, *(t["text"] for t in texts)]) for word in words_of(text))
        for caption, texts in zip(*columns, strict=True)
    ]


def write(path: Path, words_N: Iterable[str]) -> None:
    """Write the table to a path, from what `cut_rows` returned for all rows. Raises OSError."""
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            # no other process has the file yet: neither journal nor flush is needed
            connection.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN; {_TABLE}")
            rows = ((row, words, " ".join(_characters(words))) for row, words in enumerate(words_N))
            connection.executemany("INSERT INTO texts(rowid, words, characters) VALUES (?, ?, ?)", rows)
            connection.execute("INSERT INTO texts(texts) VALUES ('optimize')")
            connection.execute("COMMIT")
    except sqlite3.OperationalError as e:  # SQLite's error for a full disk
        raise OSError(errno.EIO, f"SQLite: {e}") from e


def _characters(words: str) -> list[str]:
    """Characters of the words that have more than one, Latin letters and digits aside."""
    return [c for word in words.split(" ") if len(word) > 1 for c in word if not c.isascii()]


class WordSearch:
    """The table, open for reading by any thread. As many connections as searches at once, closed with it."""

    def __init__(self, path: Path) -> None:
        # immutable: files of an index never change, so SQLite need not lock them or write beside them
        self._address, self._idle = f"{path.absolute().as_uri()}?mode=ro&immutable=1", list[sqlite3.Connection]()
        weakref.finalize(self, _close, self._idle)

    def ranked(self, words: str, allowed_N: npt.NDArray[np.bool_]) -> tuple[Rows, Floats]:
        """Allowed rows that have any of the words, and their BM25: best first, ties by row. Raises sqlite3.Error."""
        asked = _query(words)
        by_bm25 = "SELECT rowid, bm25(texts) FROM texts WHERE texts MATCH ?"
        with self._connection() as connection:
            found = connection.execute(by_bm25, (asked,)).fetchall() if asked else []
        pairs = np.array(found, np.float64).reshape(-1, 2)
        pairs = pairs[allowed_N[pairs[:, 0].astype(np.int64)]]
        rows, scores = pairs[:, 0].astype(np.int64), -pairs[:, 1].astype(np.float32)  # FTS5's best is the least
        order = np.lexsort((rows, -scores))
        return rows[order], scores[order]

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = sqlite3.connect(self._address, uri=True, check_same_thread=False)
            connection.execute("PRAGMA trusted_schema = OFF")  # an index may come from anywhere
            connection.execute(f"PRAGMA mmap_size = {1 << 40}")
        try:
            yield connection
        finally:
            self._idle.append(connection)


def _close(connections: list[sqlite3.Connection]) -> None:
    while connections:
        connections.pop().close()


def _query(words: str) -> str:
    """A query in FTS5's language: any of the words, one of a single character among the characters too."""
    cut = list(dict.fromkeys(words_of(words)))[:MOST_WORDS]
    return " OR ".join(f'"{word}"' if len(word) == 1 else f'words : "{word}"' for word in cut)
