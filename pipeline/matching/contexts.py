"""Contexts: what is known of a picture besides its looks, to tell apart two pictures that look alike.

Charts that differ in a curve, dialogs with another line and steps of an algorithm look more alike than many copies do,
and no threshold parts them. Their pages do: two pictures of one page are shown there because they are two, and so are
two with different words of their own, alt text or caption; and a manual shows many screens of one program, but hardly
one of them twice. So near copies are never merged if they stand on one page, have different words, or are drawn
(without texture, or in a format of drawings and screens) on the pages of one host and share no words, unless their
files are variants of one (`file_stem`) or their pixels are the same. One that may be a copy of several is one of that
with which it has the strongest bond (`bonds`).

A context is six 64-bit hashes, 0 for what a picture has not, so that what earlier builds kept carries no more.

Limits: a copy under other words is kept, and so is a second size of a picture on its page, or of a drawing on its host,
under another name. Words are compared in their normal forms (`data_specs.text.folding`): one character more is another
text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Context = npt.NDArray[np.uint64]
"""[N, WIDTH]"""

PAGE, HOST, ALT, CAPTION, FILE, PIXELS = range(6)
"""HOST is that of the page, of a picture that is drawn."""

WIDTH = 6

CONTEXT = pa.list_(pa.uint64(), WIDTH)

TWO, LOOKS_BOND, WORDS_BOND, FILE_BOND, PIXELS_BOND = range(5)
"""Bonds of pictures that look alike, ascending: they are two; they look alike and that is all; they share own words;
their files are variants of one; their pixels are the same."""

OWN = {"alt": ALT, "caption": CAPTION}
"""Kinds of texts that are a picture's own words; of several of a kind the first counts."""

_MIX = np.uint64(0x9E3779B97F4A7C15)


def contexts_of(
    pages: Sequence[str],
    urls: Sequence[str],
    words: Iterable[tuple[str, int, str]],
    pixels: npt.NDArray[np.uint64],
    sides: npt.NDArray[Any],
    drawn: npt.NDArray[np.int64],
) -> Context:
    """Contexts of pictures [N] from the URLs of pages and images, own words, digests of pixels, and [N, 2] sides.

    words: (kind, picture, text in its normal form), of each picture in the order of its texts. drawn: numbers of the
    pictures that are drawn.
    """
    found = np.zeros((len(pages), WIDTH), np.uint64)
    found[:, PAGE] = hashes_of(pages)
    found[drawn, HOST] = hashes_of([pages[picture].partition("://")[2].partition("/")[0] for picture in drawn.tolist()])
    found[:, FILE] = hashes_of([file_stem(url) for url in urls])
    own = dict[tuple[int, int], str]()
    for kind, picture, text in words:
        own.setdefault((picture, OWN[kind]), text)
    if own:
        rows, columns = np.array(list(own)).T
        found[rows, columns] = hashes_of(list(own.values()))
    width, height = np.ascontiguousarray(sides.T).astype(np.uint64)
    found[:, PIXELS] = np.where(pixels == 0, pixels, (pixels ^ width) * _MIX ^ height)
    return found


def contexts_in(column: pa.ChunkedArray) -> Context:
    """[N, WIDTH] from a column of CONTEXT."""
    flat: Context = pc.list_flatten(column).to_numpy().astype(np.uint64)
    return flat.reshape(-1, WIDTH)


def column_of(contexts: Context) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(contexts.ravel()), WIDTH)


def hashes_of(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """[N] the first 64 bits of a hash of each text, 0 of an empty one."""
    empty = bytes(8)
    digests = [
        hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest() if text else empty for text in texts
    ]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def bonds(one: Context, other: Context) -> npt.NDArray[np.int8]:
    """[N] the bonds of pictures that look alike, TWO to PIXELS_BOND.

    Both are [N, WIDTH], or one [WIDTH].
    """
    same = (one == other) & (one != 0)
    worded = (one[..., ALT] | one[..., CAPTION] != 0) & (other[..., ALT] | other[..., CAPTION] != 0)
    shared = same[..., ALT] | same[..., CAPTION]
    shared |= (one[..., ALT] == other[..., CAPTION]) & (one[..., ALT] != 0)
    shared |= (one[..., CAPTION] == other[..., ALT]) & (one[..., CAPTION] != 0)
    found = np.where(shared, WORDS_BOND, LOOKS_BOND).astype(np.int8)
    found[same[..., PAGE] | ((worded | same[..., HOST]) & ~shared)] = TWO
    found[same[..., FILE]] = FILE_BOND
    found[same[..., PIXELS]] = PIXELS_BOND
    return found


_IMAGE = r"\.(?:jpe?g|jfif|png|gif|a?webp|bmp|avif|heic|tiff?)"
_FILE = re.compile(rf"^(.*?)({_IMAGE})(?:[!@_~:$].*)?$")
"""A file's name, and what services that scale pictures write behind it: `a.jpg!small`, `a.png@320w.webp`."""

_SIZE = r"\d{2,5}x\d{1,5}|0x\d{2,5}|\d{2,4}px|\d{2,4}w"
_WORD = r"thumb(?:nail)?s?|scaled|small|medium|large|orig(?:inal)?|sm|md|lg|xl|big|hd"
_BEHIND = re.compile(rf"(?:[-_.@~!](?:{_SIZE}|{_WORD}|2x)|@[1-4](?:\.5)?x|_hu_?[0-9a-f]{{8,}}.*)$")
_BEFORE = re.compile(rf"^(?:(?:{_WORD})[-_.]|\d{{2,4}}px-)")
_FOLDER = re.compile(rf"^(?:{_SIZE}|{_WORD}|bmiddle|(?:mw|orj|thumb|wap|w|h|s)\d{{2,4}}|[a-z]{{1,2}}_[a-z0-9.:,_]*\d)$")
_SCALED = re.compile(
    r"^(?:w|h|s|q|width|height|size|sz|maxwidth|maxheight|resize|fit|quality|dpr|crop|scale|format|fm|auto|strip|wx_fmt"
    r"|tp|from|wxfrom|wx_lazy|x-oss-process|x-image-process|x-bce-process|image(?:view2|mogr2).*)(?:[=/]|$)"
)
"""Parameters of a query that choose a size or a format."""

_MARKS = 4
"""Marks of a size that are taken off a name, one after the other, at most."""

_LONG = 20
"""Characters of a name that no two files have by chance, wherever they lie."""

_OF_HASH = re.compile(r"^(.*[0-9a-f]{16})[-_](?:\d{3,4}w?|[a-z]{1,3})$")
"""A hash and a size: a name that is made of a file's content has another one for another file."""

_HASH = re.compile(r"^(?=(?:\D*\d){4})(?=(?:[^a-z]*[a-z]){3})[0-9a-z]{12,}$")


def file_stem(url: str) -> str:
    """The file that an image's URL is a variant of; "" for none.

    Variants differ in a size (-800x600, @2x, _thumb, -md, !small, HASH_720, a query or a folder of a size) or in the
    extension. Numbers are not sizes: `1.png` and `2.png` are two files. A name that is long, or a hash, is one file
    wherever it lies.
    """
    address, _, query = url.partition("#")[0].lower().partition("?")
    if "%" in address:
        address = unquote(address)
    folder, _, name = address.partition("://")[2].rpartition("/")
    last = folder.rpartition("/")[2]
    behind_hash = name.isdecimal() and len(name) < 5 and len(last) >= _LONG  # mmbiz_png/HASH/640
    if behind_hash or ("." in last and name.partition("px-")[2].startswith(last)):  # Name.jpg/300px-Name.jpg
        folder, _, name = folder.rpartition("/")
    match = _FILE.match(name)
    stem = match[1] if match else name.partition("~tplv-")[0].partition("!")[0]
    for _ in range(_MARKS):
        name, stem = stem, _BEFORE.sub("", _BEHIND.sub("", stem)) or stem
        if name == stem:
            break
    if of_hash := _OF_HASH.match(stem):
        stem = of_hash[1]
    asked = [part for part in query.split("&") if part and not _SCALED.match(part)] if query else []
    if not stem and not asked:
        return ""
    place = "" if len(stem) >= _LONG or _HASH.match(stem) else _folder_without_sizes(folder) + "/"
    return f"{place}{stem}?{'&'.join(sorted(asked))}" if asked else place + stem


@lru_cache(maxsize=1 << 14)  # pictures lie together
def _folder_without_sizes(folder: str) -> str:
    """Host and folders, without folders named after sizes."""
    host, *folders = folder.split("/")
    return "/".join([host, *(part for part in folders if part and not _FOLDER.match(part))])
