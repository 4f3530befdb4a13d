"""Advice on refused addresses: which key of the spec to change, by reason. Printed by `plan` and by gates."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from urllib.parse import urlsplit

from pipeline.rows.decisions import DropReason

_REFUSED = re.compile(r"(\S+) port (\d+) is not a public address")

_ADVICE = {
    DropReason.ROBOTS_DISALLOWED: "start from a page that robots.txt allows (egress.obey_robots is for your own sites)",
    DropReason.ROBOTS_UNREACHABLE: "the server must answer for robots.txt, even if with 404; check the URL",
    DropReason.NOT_HTML: "start must list HTML pages; images and files are found on them",
    DropReason.TOO_LARGE: "raise egress.max_page_bytes or egress.max_image_bytes",
    DropReason.OPT_OUT: "the owner forbids this use",
    DropReason.FORGOTTEN: "it was taken down in STORE",
    DropReason.DNS: "check the host's name; if it is right, the DNS of this machine may be out of order",
    DropReason.TIMEOUT: "raise egress.timeout_s",
    DropReason.NOT_STORED: "set egress.network: allowed to download what the archives lack",
}


def advice_for(reason: DropReason, evidence: str) -> str:
    """Returns the key of the spec to change to allow an address, or what else is wrong with it; "" if unknown."""
    if reason is DropReason.EGRESS_REFUSED:
        named = _REFUSED.search(evidence)
        with contextlib.suppress(ValueError):  # a name
            if named is not None and ipaddress.ip_address(named[1]).is_loopback:
                host = f"[{named[1]}]" if ":" in named[1] else named[1]
                return f"to allow it, set egress.allow: ['{host}:{named[2]}']"
        return "only public addresses are allowed, and loopback addresses listed in egress.allow"
    if reason is DropReason.HTTP_STATUS and evidence.endswith("outside the site"):
        target = urlsplit(evidence.partition(" to ")[2].removesuffix(", outside the site")).netloc
        return f"start from there, or set hosts: [{target}]"
    return _ADVICE.get(reason, "")
