"""Drops what does not describe an image: furniture, covers in lists, endless pages, too many images of a host.

Judged over the candidates of one partition of `extract`, a WARC file; alts and captions over a group of admit.sort,
neighbouring WARC files with 200,000 candidates: a small host has few pages in each file of an archive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_specs.shard import Text
from pipeline.pages.lines import says_something
from pipeline.rows.decisions import Decision, DropReason, drop, drop_capture
from pipeline.rows.records import OWN_WORDS, REMOVED, Candidate, RemovedText, text_of

REPEATED_ON_PAGES = 5
"""A surrounding text, abstract or title on so many pages of one host in a partition, with other images on each, is
furniture of the site. The title of an article in lists stands there with the article's image each time."""

REPEATED_ON_IMAGES = 10
"""An alt or caption of so many different images of one host in a group is furniture of the site."""

SHOWN_ON_PAGES = 20
"""An image on so many pages of a partition is a logo or a button, whatever it is called."""

LIST_IMAGES, LIST_SHARE = 6, 0.8
"""A page with so many images, of which so many stand on a page with at most half as many, is a list of those pages."""


def is_about_image(texts: Iterable[Text]) -> bool:
    """True if one of an image's texts is about the image itself: not only the title of its page, say."""
    return any(t.kind in OWN_WORDS or (t.kind == "surrounding" and says_something(t.text, 1)) for t in texts)


def without_traps(candidates: list[Candidate], wordings: Mapping[str, str]) -> tuple[list[Candidate], list[Decision]]:
    """Drop trap pages (TRAP): pages of a host, SHOWN_ON_PAGES or more, that differ in their numbers only, and that have
    no image of their own.

    A calendar without end that shows a site's real pictures would else turn them into furniture, or into as many
    candidates. The pages of a gallery are alike too, but each has its own picture. wordings: `wording_of` by page.
    """
    alike: dict[tuple[str, str], set[str]] = {}
    for page in {candidate.page_url for candidate in candidates}:
        alike.setdefault((urlsplit(page).netloc, wordings.get(page, page)), set()).add(page)
    crowded = set[str]().union(*(pages for pages in alike.values() if len(pages) >= SHOWN_ON_PAGES))
    if not crowded:
        return candidates, []
    pages_of: dict[str, set[str]] = {}
    for candidate in candidates:
        pages_of.setdefault(candidate.image_url, set()).add(candidate.page_url)
    traps = crowded - {page for pages in pages_of.values() if len(pages) == 1 for page in pages}
    remaining = [candidate for candidate in candidates if candidate.page_url not in traps]
    source = candidates[0].source
    evidence = f"its URL differs only in numbers from {SHOWN_ON_PAGES} pages or more, and no image is unique to it"
    return remaining, [drop_capture(page, source, "extract", DropReason.TRAP, evidence) for page in sorted(traps)]


def cap_per_host(candidates: list[Candidate], most: int) -> tuple[list[Candidate], list[Decision]]:
    """Keeps the first `most` candidates on the pages of each host, in the order of the pages, and drops the others."""
    if len(candidates) <= most:
        return candidates, []
    counts: Counter[str] = Counter()
    kept, dropped = [], []
    for candidate in candidates:
        host = urlsplit(candidate.page_url).netloc
        counts[host] += 1
        if counts[host] <= most:
            kept.append(candidate)
        else:
            dropped.append(drop(candidate, "extract", DropReason.CAP_PER_HOST, f"{host} has more than {most} images"))
    return kept, dropped


def without_list_covers(candidates: list[Candidate]) -> tuple[list[Candidate], list[Decision]]:
    """Drop the images of lists that a page of their own has as well (LIST_COVER): its texts are about them, those of a
    list, its title above all, about the list. An image that stands in lists alone stays.
    """
    by_image: dict[str, dict[str, Candidate]] = {}  # by image, by page
    sizes: Counter[str] = Counter()
    for candidate in candidates:
        by_image.setdefault(candidate.image_url, {})[candidate.page_url] = candidate
        sizes[candidate.page_url] += 1
    covers: Counter[str] = Counter()
    for pages in by_image.values():
        fewest = min(sizes[page] for page in pages)
        covers.update(page for page in pages if 2 * fewest <= sizes[page])
    lists = {page for page, size in sizes.items() if size >= LIST_IMAGES and covers[page] >= LIST_SHARE * size}
    if not lists:
        return candidates, []
    kept, dropped = [], []
    for candidate in candidates:
        own_pages = sorted(by_image[candidate.image_url].keys() - lists, key=lambda page: (sizes[page], page))
        if candidate.page_url in lists and own_pages:
            leader = by_image[candidate.image_url][own_pages[0]].candidate_id
            evidence = f"cover in a list; its own page is {own_pages[0]}"
            dropped.append(drop(candidate, "extract", DropReason.LIST_COVER, evidence, duplicate_of=leader))
        else:
            kept.append(candidate)
    return kept, dropped


def without_furniture(candidates: list[Candidate]) -> tuple[list[Candidate], list[Decision]]:
    """Drop images that stand on very many pages (SPACER), and remove surrounding texts, abstracts and titles that
    stand on many pages of one host; a candidate without any other text goes too (NO_TEXT).
    """
    pages_of: dict[str, set[str]] = {}
    images: dict[tuple[str, str], dict[str, str]] = {}  # by host and text: each image, and its first page with it
    for candidate in candidates:
        page, host = candidate.page_url, urlsplit(candidate.page_url).netloc
        pages_of.setdefault(candidate.image_url, set()).add(page)
        for text in candidate.texts:
            if text.kind not in OWN_WORDS:
                first_pages = images.setdefault((host, text.text), {})
                first_pages[candidate.image_url] = min(page, first_pages.get(candidate.image_url, page))
    counts = {key: len(set(first_pages.values())) for key, first_pages in images.items()}
    kept, dropped = [], []
    for candidate in candidates:
        count = len(pages_of[candidate.image_url])
        if count >= SHOWN_ON_PAGES:
            dropped.append(drop(candidate, "extract", DropReason.SPACER, f"repeated on {count} pages"))
            continue
        host = urlsplit(candidate.page_url).netloc
        texts, removed = list[Text](), list[RemovedText]()
        for text in candidate.texts:
            count = 0 if text.kind in OWN_WORDS else counts[host, text.text]
            if count >= REPEATED_ON_PAGES:
                removed.append(RemovedText.of(text, DropReason.BOILERPLATE, f"repeated on {count} pages of {host}"))
            else:
                texts.append(text)
        if texts:
            kept.append(replace(candidate, texts=tuple(texts), removed=tuple(removed)) if removed else candidate)
        else:
            dropped.append(drop(candidate, "extract", DropReason.NO_TEXT, "only texts that are repeated on many pages"))
    return kept, dropped


def without_repeated_words(candidates: pa.Table) -> pa.Table:
    """A table of candidates with the alts and captions of very many different images of a host among their removed
    texts. A candidate can be left without a text: `admit` drops it.
    """
    texts, rows = pc.list_flatten(candidates["texts"]), pc.list_parent_indices(candidates["texts"])
    own = pc.is_in(pc.struct_field(texts, "kind"), pa.array(OWN_WORDS))
    rows, texts = rows.filter(own), pc.struct_field(texts, "text").filter(own)
    hosts = pa.array([urlsplit(page).netloc for page in candidates["page_url"].to_pylist()], pa.string()).take(rows)
    words = pa.table([rows, hosts, texts, candidates["image_url"].take(rows)], ["row", "host", "text", "image"])
    counts = words.group_by(["host", "text"]).aggregate([("image", "count_distinct")])
    counts = counts.filter(pc.field("image_count_distinct") >= REPEATED_ON_IMAGES)
    found = words.join(counts, ["host", "text"], join_type="inner").to_pydict()
    images = zip(found["image_count_distinct"], found["host"], strict=True)
    whys = (f"repeated with {count} images of {host}" for count, host in images)
    repeated = dict(zip(zip(found["row"], found["text"], strict=True), whys, strict=True))
    changed = sorted(set(found["row"]))
    if not changed:
        return candidates
    own_rows = candidates.take(changed).to_pylist()
    for at, row in zip(changed, own_rows, strict=True):
        said, row["texts"] = row["texts"], []
        for text in said:
            why = repeated.get((at, text["text"])) if text["kind"] in OWN_WORDS else None
            if why is None:
                row["texts"].append(text)
            else:
                row[REMOVED].append(asdict(RemovedText.of(text_of(text), DropReason.BOILERPLATE, why)))
    others = np.delete(np.arange(len(candidates)), changed)
    mixed = pa.concat_tables([candidates.take(others), pa.Table.from_pylist(own_rows, candidates.schema)])
    return mixed.take(np.argsort(np.concatenate([others, changed])))
