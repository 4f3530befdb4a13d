"""Canonical URLs, so that a picture whose URL is spelled in two ways is one candidate and is fetched once.

w3lib does the work (RFC 3986: dot segments, escapes, IDNA, order of query arguments, no fragment). Three things are
ours: default ports are cut; only http and https with a host and without credentials are canonical; and a query that is
no list of `key=value` keeps its spelling, because image servers of Qiniu and others read `?imageView2/2/w/600` and
answer 400 to the `?imageView2%2F2%2Fw%2F600=` that sorting makes of it.

Beside it: what an address tells without a request (hosts and their parent domains, session ids, paths without end,
loopback `host:port` pairs of a spec).

User names and passwords are cut from a URL wherever it is written (`without_userinfo`, `shown`). What is asked for
keeps them: fsspec needs them in a source's path, and those of an image's URL are kept apart from it (`split_userinfo`),
since they do not belong to its identity.

Limits: names of hosts are compared as they are; `www.` and mirrors count as other hosts.
"""

from __future__ import annotations

import base64
import functools
import ipaddress
import os
import re
from collections.abc import Sequence
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urljoin, urlsplit, urlunsplit

from data_specs.errors import SpecError

MAX_URL = 2048
"""Characters of the longest address that is accepted: beyond it servers and proxies disagree."""

MAX_WRITTEN = 16 * MAX_URL
"""Characters of an address as written, whose steps up and default parts may make it shorter."""

MAX_PARTS, MAX_SAME_PARTS = 20, 3
"""Parts of a path, and equal ones among them, above which a page address is endless."""

_DEFAULT_PORTS = {"http": 80, "https": 443}

_PART = r"(?!\.)(?:[\w.~!,@+=()-]++|%(?:20|[89A-F][\dA-F]))++"
_QUERY_OF_ONE = r"(?:\?[\w.~-]+=[\w.~-]*+)?"
_PLAINLY_CANONICAL = re.compile(
    r"https?://[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})*(?::(?!80/|443/)(?:[1-5]\d{4}|[1-9]\d{0,3}))?"
    rf"/(?:{_PART}/)*(?:{_PART})?{_QUERY_OF_ONE}",
    re.A,
)
"""Addresses, most images' among them, that are canonical at first sight: w3lib takes 0.1 ms to come to that."""

_PLAINLY_RELATIVE = re.compile(rf"(/|(?:\.\./)*)((?:{_PART}/)*{_PART}{_QUERY_OF_ONE})", re.A)
"""Relative addresses without anything to decide: a slash or steps up (group 1), then a path (group 2)."""


_QUERY = re.compile("[?#]")

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character: JSON may hold it (`"\\ud83d"`), UTF-8 and Parquet cannot."""


def canonical_url(url: str, base: str = "") -> str:
    """The canonical address; `base` resolves a relative one. Raises ValueError with a short reason.

    Idempotent: canonical_url(canonical_url(u)) == canonical_url(u).
    """
    absolute = base.partition("//")[0] + url if url[:2] == "//" else url
    if _PLAINLY_CANONICAL.fullmatch(absolute) and len(absolute) <= MAX_URL:
        return absolute
    url = with_slashes("".join(url.split("\n")).replace("\t", "").replace("\r", "").strip())
    if not url:
        raise ValueError("empty address")
    if len(url) > MAX_WRITTEN:
        raise ValueError(f"address of {len(url)} characters")
    relative = _PLAINLY_RELATIVE.fullmatch(url)
    place = _split_plain(base) if relative is not None and len(base) <= MAX_URL else None
    if relative is not None and place is not None:  # what urljoin would answer, without its general case
        host, folders = place
        # "../" has three characters; a slash leads up to the host
        up, path = len(folders) if relative[1] == "/" else len(relative[1]) // 3, relative[2]
        url = "/".join((host, *folders[: max(0, len(folders) - up)], path))
        if len(url) <= MAX_URL:  # of plain parts
            return url
    elif base:
        url = urljoin(base, url)
    if _PLAINLY_CANONICAL.fullmatch(url) and len(url) <= MAX_URL:
        return url
    if not url.isascii() and SURROGATE.search(url):
        raise ValueError("URL with a lone surrogate")
    parts = urlsplit(url)
    if parts.scheme.lower() not in _DEFAULT_PORTS:
        raise ValueError(f"scheme {parts.scheme[:20]!r} is not http or https" if parts.scheme else "relative address")
    if not parts.hostname:
        raise ValueError("no host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("address with credentials")
    canonical = _canonical_of(parts)
    if not urlsplit(canonical).hostname:  # nothing remains of a host of control characters
        raise ValueError("no host")
    if len(canonical) > MAX_URL:
        raise ValueError(f"address of {len(canonical)} characters")
    return canonical


def with_slashes(url: str) -> str:
    """An address whose backslashes before its query are slashes, as browsers read them (WHATWG URL, 4.4)."""
    if "\\" not in url:
        return url
    end = _QUERY.search(url)
    path = len(url) if end is None else end.start()
    return url[:path].replace("\\", "/") + url[path:]


@functools.lru_cache(maxsize=1024)  # the addresses on a page have one base
def _split_plain(base: str) -> tuple[str, tuple[str, ...]] | None:
    """(scheme and host, folders) of an address that is canonical at first sight, else None."""
    if not _PLAINLY_CANONICAL.fullmatch(base):
        return None
    scheme, empty, host, *folders, _ = base.split("/")  # the last part is the page itself
    return f"{scheme}/{empty}/{host}", tuple(folders)


def _canonical_of(parts: SplitResult) -> str:
    """Canonical spelling of a checked address."""
    from w3lib.url import canonicalize_url, safe_url_string  # here: the command line starts without the extra pipeline

    port = parts.port
    if port == _DEFAULT_PORTS[parts.scheme.lower()]:
        parts = parts._replace(netloc=parts.netloc.rpartition(":")[0])
    elif port is None and parts.netloc.endswith(":"):
        parts = parts._replace(netloc=parts.netloc[:-1])
    is_list = all("=" in argument for argument in parts.query.split("&"))
    if not parts.query or is_list:
        return str(canonicalize_url(urlunsplit(parts)))
    bare = str(canonicalize_url(urlunsplit(parts._replace(query="", fragment=""))))
    query = urlsplit(safe_url_string(urlunsplit(parts._replace(fragment="")))).query  # escaped, but not sorted
    return f"{bare}?{query}" if query else bare  # nothing remains of a query of control characters


_SESSION = re.compile(
    r"(?:^|(?<=&))(?:jsessionid|phpsessid|aspsessionid\w*|sessionid|session_id|sid|utm_\w+)=[^&]*(?:&|$)", re.I
)
_SESSION_IN_PATH = re.compile(r";jsessionid=[^/?#]*", re.I)


# Both take time that grows with the text and no faster: a log line of 40 kB without any URL once took ten seconds. So a
# scheme is known by its last character, and names of parameters are looked at for 64 characters each way.
_USER_INFO = re.compile(r"((?:(?<=[a-z0-9+.-]:)|(?<![^\s\"'(=<]))//)[^\s/?#\"'<>\\]*@", re.I)
_LEADING_USER_INFO = re.compile(r"((?:https?:)?//)([^/?#\\]*)@(?=[^/?#\\])", re.I)
_TOKEN = re.compile(
    r"([?&;](?:[\w.~-]{0,64}(?:token|secret|signature|credential|passw(?:or)?d|session|apikey|api[_-]key|access[_-]?key)"
    r"[\w.~-]{0,64}|auth|key|pwd|sig|sign|sid)=)[^&#;\s\"'<>\\]+",
    re.I,
)
HIDE_TOKENS = "WENLAN_HIDE_TOKENS"
"""Environment variable: 1 to hide the values of query parameters that look like tokens wherever a URL is shown."""


def without_userinfo(text: str) -> str:
    """A URL, or a text with URLs in it, without their user names and passwords: `http://a:b@c/` is `http://c/`."""
    return _USER_INFO.sub(r"\1", text) if "@" in text else text


def split_userinfo(url: str) -> tuple[str, str]:
    """(a web URL without its user info, the user info as it was written): `http://a:b@c/` is `http://c/` and `a:b`.

    ("" for none.) Up to the last @ before the path, as browsers read it (WHATWG URL, authority state).
    """
    if "@" not in url:
        return url, ""
    plain = url.replace("\n", "").replace("\t", "").replace("\r", "").strip()  # as `canonical_url` does
    match = _LEADING_USER_INFO.match(plain)
    return (match[1] + plain[match.end() :], match[2]) if match else (url, "")


def origin_of(url: str) -> tuple[str, str, int]:
    """(scheme, host, port) of a web URL: what credentials are for (RFC 6454). Raises ValueError."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)


def basic_authorization(userinfo: str) -> str:
    """The value of the header Authorization for the user info of a URL, "" for none (RFC 7617)."""
    if not userinfo:
        return ""
    user, _, password = userinfo.partition(":")
    return "Basic " + base64.b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password)).decode()


def shown(text: str) -> str:
    """Returns a text that may be shown: its URLs without user info and, with HIDE_TOKENS, without tokens.

    For what is read by people (messages, log lines, the report). What is asked for, and what rows are found by, keeps
    its query.
    """
    text = without_userinfo(text)
    return _TOKEN.sub(r"\1...", text) if os.environ.get(HIDE_TOKENS, "") not in ("", "0") else text


def place(url: str) -> str:
    """The file that an address of a source stands for, as people know it; "" for a web address.

    `folder:///photos/%E4%BA%91.jpg` is `云.jpg` of the source `photos`.
    """
    scheme, _, rest = url.partition(":///")
    return unquote(rest.partition("/")[2]) if rest and scheme not in ("http", "https") else ""


def without_session(url: str) -> str:
    """A canonical page address without session ids and campaign marks, which make one page look like many."""
    parts = urlsplit(url)
    if "=" not in url:
        return url
    path = _SESSION_IN_PATH.sub("", parts.path)
    query = _SESSION.sub("", parts.query).rstrip("&")
    return urlunsplit(parts._replace(path=path, query=query))


def is_endless(url: str) -> bool:
    """True if a page's path looks as if it grew for ever: many parts, or the same part again and again."""
    parts = [part for part in urlsplit(url).path.split("/") if part]
    return len(parts) > MAX_PARTS or any(parts.count(part) > MAX_SAME_PARTS for part in parts if not part.isdigit())


MAX_LABELS = 127
"""Labels of a host name at most (RFC 1035: 255 octets)."""


def host_names(url: str) -> list[str]:
    """The host of a URL and its parent domains, longest first: `a.b.cn` -> a.b.cn, b.cn. Empty without a host.

    An IP address is without parents. A host with a port is listed with the port first. A dot at the end, which makes a
    name absolute (RFC 1034, 3.1), is ignored: `a.cn.` is the host `a.cn`.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return []
    if not host:
        return []
    labels = host.split(".")
    is_address = ":" in host or labels[-1].isdigit()
    # a name of 40,000 labels, which DNS does not know, would take seconds
    first = max(1, len(labels) - MAX_LABELS)
    parents = [] if is_address else [".".join(labels[i:]) for i in range(first, len(labels) - 1)]
    return [*([f"{host}:{port}"] if port else []), host, *parents]


def loopback_pairs(allow: Sequence[str]) -> frozenset[tuple[str, int]]:
    """(IP address, port) of each entry of a spec's `egress.allow`; `localhost` stands for 127.0.0.1 and ::1.

    Raises SpecError that names the entry which is not a loopback host:port.
    """
    pairs: set[tuple[str, int]] = set()
    for i, entry in enumerate(allow):
        where = f"egress.allow[{i}]: {entry!r}"
        try:
            parts = urlsplit(f"//{entry}")
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, port = "", None
        if not port or not host:
            raise SpecError([f"{where}: not host:port"])
        for address in ("127.0.0.1", "::1") if host == "localhost" else (host,):
            try:
                literal = ipaddress.ip_address(address)
            except ValueError:
                raise SpecError([f"{where}: the host must be localhost or a loopback address"]) from None
            if not literal.is_loopback:
                raise SpecError([f"{where}: {address} is not a loopback address; only those are allowed here"])
            pairs.add((str(literal), port))
    return frozenset(pairs)
