"""jieba, loaded quietly: its dictionary is read once per process (0.8 s) and cached in the temporary folder.

rjieba is jieba in Rust, with the dictionary compiled in (0.1 s).
"""

from __future__ import annotations

import functools
import logging
from typing import Any


@functools.cache
def segmenter() -> Any:
    """The module jieba, initialised."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and pkg_resources in jieba's own source
        import jieba

        jieba.setLogLevel(logging.CRITICAL)  # it prints the traceback of a cache that it cannot write, and goes on
        jieba.initialize()
    return jieba


def rust_segmenter() -> Any:
    """The module rjieba: `cut(text, hmm)` with the segmenter that it makes when it is imported."""
    import rjieba

    return rjieba
