"""jieba, loaded quietly: its dictionary is read once per process (0.8 s) and cached in the temporary folder.

rjieba is jieba in Rust, with the dictionary compiled in (0.1 s).
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
from typing import Any

CACHE_ROOM = 64 << 20
"""Bytes free in the temporary folder from which on jieba may keep its dictionary there, which takes 9 MB."""


@functools.cache
def segmenter() -> Any:
    """The module jieba, initialised."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and pkg_resources in jieba's own source
        import jieba

        jieba.setLogLevel(logging.CRITICAL)  # it prints the traceback of a cache that it cannot write, and goes on
        if shutil.disk_usage(tempfile.gettempdir()).free < CACHE_ROOM:
            jieba.dt.tmp_dir = os.devnull  # no folder: what it had written of a cache when the disk was full would stay
        jieba.initialize()
    return jieba


def rust_segmenter() -> Any:
    """The module rjieba: `cut(text, hmm)` with the segmenter that it makes when it is imported."""
    import rjieba

    return rjieba
