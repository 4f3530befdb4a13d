"""Cheap look at a page before a DOM is built: most pages of a web crawl hold no Chinese, and some no picture.

Both looks may only err towards reading the page: text that a browser would make Chinese (numeric character references,
the escapes of JSON-LD) counts as Chinese, and anything that may be a picture as one. A walk over the DOM costs
milliseconds, a look a tenth of one.

Limits: a page in another language with one Han character, such as a link 中文, is read whole.
"""

from __future__ import annotations

import re

from pipeline.texts.characters import HAN

_NO_HAN_BEGINS = bytes(set(range(256)) - set(range(0xE3, 0xEA)) - {0xF0})
"""Bytes of UTF-8 with which the encoding of no Han character begins. Deleting them is much faster than a search."""
_PART = 1 << 12
"""Bytes that are looked at at a time: a Chinese page is known by its first ones."""
_REFERENCE = re.compile("&#0*(?:[1-9][0-9]{4}|[xX]0*(?:[3-9a-fA-F][0-9a-fA-F]{3}|[1-9a-fA-F][0-9a-fA-F]{4}))")
"""A numeric character reference to what may be a Han character: from U+3000, if decimal from U+2710."""
_ESCAPE = re.compile(r"\\u(?:[3-9][0-9a-fA-F]|[dD][89abAB])[0-9a-fA-F]{2}")
"""The same as JSON-LD may write it; beyond U+FFFF as two surrogates."""
_PICTURES = [re.compile(sign) for sign in ("og:", "OG:", "Og:", r"ld\+", r"LD\+")]
"""Each a pattern without a choice: such a one is found twice as fast as by `in`."""
_IMAGE = re.compile("<[iI][mM]")
_OTHER_SIGNS = r"<amp-img <picture <object <embed <iframe poster= background= url\( type=.?image"
_OTHERS = [re.compile(sign) for signs in (_OTHER_SIGNS, _OTHER_SIGNS.upper()) for sign in signs.split()]
_OPT_OUT = re.compile("<[mM][eE][tT][aA][^<>]{0,1000}?(?i:noai|noimage|noindex|noml|none|tdm-)")


def is_without_han(html: str, encoded: bytes | None = None) -> bool:
    """Returns whether a page cannot contain a Han character, however written. encoded: the page in UTF-8, if known."""
    if not html.isascii():
        encoded = html.encode("utf-8", "replace") if encoded is None else encoded
        parts = (encoded[at : at + _PART].translate(None, _NO_HAN_BEGINS) for at in range(0, len(encoded), _PART))
        if any(parts) and HAN.search(html):
            return False
    # one character is found at once, and two by a pattern three times as fast as by `in`
    if "&" in html and _REFERENCE.search(html):
        return False
    return not ("\\" in html and _ESCAPE.search(html))


def is_without_pictures(html: str) -> bool:
    """True if a page has no <img> or <image>, no og:image and no JSON-LD."""
    return not _IMAGE.search(html) and not any(sign.search(html) for sign in _PICTURES)


def may_show_others(html: str) -> bool:
    """True if a page may have a picture in another element (`unread_pictures`), in the usual spelling."""
    return any(sign.search(html) for sign in _OTHERS)


def may_opt_out(html: str) -> bool:
    """True if a meta tag may say that the page is not to be used."""
    return _OPT_OUT.search(html) is not None
