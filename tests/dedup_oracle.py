"""Dedup by its definition, word by word: every two images and every two texts are compared, and nothing is looked up.

Slow and in memory. The passes of dedup must decide the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_specs.build import BuildSpec
from data_specs.text.folding import normals, text_id
from pipeline.matching import image_comparison
from pipeline.matching.contexts import file_stem
from pipeline.matching.image_comparison import (
    Details,
    SignatureArrays,
    coarse_of,
    families,
    fine_of,
    hashes_of,
    signatures_of,
)
from pipeline.matching.sketches import are_same, sketch
from pipeline.pictures.signatures import of_one_tone
from pipeline.rows.records import OWN_WORDS, split_of

Matrix = npt.NDArray[np.bool_]


def alike(radius: int, threshold: float, phash: Any, signature: Any, details: Details, turned: bool = False) -> Matrix:
    """[N, N] which images look like which; turned: as mirrored and turned copies, too."""
    signed, found = SignatureArrays(signature, details), np.zeros((len(phash), len(phash)), np.bool_)
    hashed = {False: coarse_of(phash, signature, turned), True: fine_of(details, turned)}
    for family in families(radius, turned):
        own = hashed[family.fine]
        for part in family.parts:
            asks, codes = own.codes[:, family.asks], own.codes[:, part]
            near = np.bitwise_count(asks[:, None] ^ codes[None, :]) <= family.radius
            one, other = np.nonzero(near & (asks[:, None] != 0) & (codes[None, :] != 0))
            parts = np.full_like(one, family.asks), np.full_like(one, part)
            tones = (own.tones[rows, family.toned(of)] for rows, of in zip((one, other), parts, strict=True))
            toned = of_one_tone(*tones, family.blocks)
            one, other, parts = one[toned], other[toned], (parts[0][toned], parts[1][toned])
            images = own.images[one], own.images[other]
            match = image_comparison.alike(
                signed, images[0], parts[0], signed, images[1], parts[1], (family, threshold)
            )
            found[images[0][match], images[1][match]] = True
    both: Matrix = found | found.T
    return both


def equal_texts(texts: list[str], threshold: float) -> Matrix:
    """[N, N] which texts, in their normal forms, are the same: by a shared band and by their shingles."""
    own, size = sketch(texts, threshold), len(texts)
    one, other = (of.ravel() for of in np.indices((size, size)))
    shared = (own.keys[one] == own.keys[other]).any(axis=1)
    match: Matrix = (are_same(own, one, own, other, threshold) & shared).reshape(size, size)
    return match | (np.array(texts, object)[:, None] == np.array(texts, object)[None, :])


def bond(one: dict[str, Any], other: dict[str, Any]) -> int:
    """0 for two pictures that look alike: they stand on one page, have different words of their own, or are without
    texture and stand on one host without words in common.

    Not if their pixels are the same (4), or their files are variants of one (3). Else 2 if they share words, or 1.
    """
    stems = {file_stem(row["image_url"]) for row in (one, other)}
    pixels = {(row["pixels"], row["width"], row["height"]) for row in (one, other)}
    if len(pixels) == 1 and one["pixels"]:
        return 4
    if len(stems) == 1 and "" not in stems:
        return 3
    words = [_own_words(row["texts"]) for row in (one, other)]
    of_one_page = one["page_url"] and one["page_url"] == other["page_url"]
    plain = all(row["details"] is not None for row in (one, other))
    hosts = {urlsplit(row["page_url"]).netloc for row in (one, other)}
    of_one_host = plain and len(hosts) == 1 and "" not in hosts
    if of_one_page or ((all(words) or of_one_host) and not words[0] & words[1]):
        return 0
    return 2 if words[0] & words[1] else 1


def ranks_of(texts: list[dict[str, str]]) -> list[int]:
    """By kind as a spec has them, a surrounding text just before the title behind it, and never less than before it."""
    kinds, ranks = [text["kind"] for text in texts], list[int]()
    order = BuildSpec.model_fields["text_kinds"].default
    for at, kind in enumerate(kinds):
        beside = kind == "surrounding" and "title" in kinds[at:]
        ranks.append(max([2 * order.index("title") - 1 if beside else 2 * order.index(kind), *ranks[-1:]]))
    return ranks


def _own_words(texts: list[dict[str, str]]) -> set[str]:
    first = {kind: [text["text"] for text in texts if text["kind"] == kind][:1] for kind in ("alt", "caption")}
    return set(normals([text for of_kind in first.values() for text in of_kind])) - {""}


@dataclass
class Item:
    """A pair, and what became of it."""

    row: dict[str, Any]
    dataset: str
    reasons: list[str] = field(default_factory=list)
    leader: Item | None = None
    earlier: bool = False
    split: str = ""
    placeholder: bool = False
    texts: list[tuple[str, str]] = field(default_factory=list)
    """(text, its leader in its normal form), of a kept pair."""

    @property
    def name(self) -> str:
        return str(self.row["image_url"]).rpartition("/")[2]

    def normal(self, most: int | None = None) -> list[str]:
        return normals([text["text"] for text in self.row["texts"]])[:most]


def words(row: dict[str, Any]) -> tuple[int, int, bool]:
    """How good the words of a pair are; the best come first."""
    kind = row["texts"][0]["kind"]
    own = 0 if kind in (*OWN_WORDS, "content") else {"surrounding": 1, "title": 2}.get(kind, 3)
    return own, min(row["text_rank"], 7), row["shown"] == "listed"


@dataclass
class Published:
    """What one build kept: pairs by rank, texts that lead with their splits, and which splits clusters have."""

    dataset: str
    kept: list[Item]
    texts: list[tuple[str, str]]


class Oracle:
    """Decides about builds, one after the other."""

    def __init__(self) -> None:
        self.published: list[Published] = []

    def decide(self, spec: BuildSpec, rows: list[dict[str, Any]]) -> dict[str, Item]:
        """Pairs by the name of their picture. `publish` then makes them earlier ones."""
        rules, apart = spec.dedup, spec.shards.apart == "texts"
        items = [Item(row, spec.name) for row in rows]
        items.sort(
            key=lambda item: (words(item.row), -item.row["width"] * item.row["height"], item.row["candidate_id"])
        )
        before = [(item, True) for of in self.published for item in of.kept]
        everything = [item for item, _ in before] + items
        looks_like, number = self._matrix(rules, everything), {id(item): at for at, item in enumerate(everything)}
        led = [text for of in self.published for text, _ in of.texts]
        texts = list(dict.fromkeys(led + [text for item in items for text in item.normal()]))
        equal, at = equal_texts(texts, rules.text_similarity), {text: n for n, text in enumerate(texts)}
        leading = list(dict.fromkeys(led))
        cluster = {t: s for of in self.published if of.dataset == spec.name for t, s in reversed(of.texts)}

        def leader_of(text: str) -> str | None:
            if text in leading:
                return text
            return next((other for other in leading if equal[at[other], at[text]]), None)

        kept: list[Item] = [item for item, _ in before]
        by_text = Counter(item.texts[0][1] for item in kept)
        began: list[tuple[str, str]] = []
        for item in items:
            same_bytes = [k for k in kept if k.row["sha256"] == item.row["sha256"]]
            near = [k for k in kept if looks_like[number[id(k)], number[id(item)]] and bond(k.row, item.row)]
            if same_bytes or near:
                # of near ones the first with the strongest bond
                item.leader = same_bytes[0] if same_bytes else max(near, key=lambda k, item=item: bond(k.row, item.row))
                item.earlier = number[id(item.leader)] < len(before)
                item.reasons.append("same_image" if same_bytes else "near_image")
                if item.earlier and item.leader.placeholder:
                    item.reasons.insert(0, "placeholder")
            own = item.normal(rules.max_texts)
            first = leader_of(own[0])
            if first is not None and by_text[first] >= rules.max_pairs_per_text:
                item.reasons.append("cap_per_text")
            if item.reasons:
                continue
            kept.append(item)
            shares = spec.shards.dev_share, spec.shards.val_share
            item.split = split_of(item.row["sha256"], spec.seed, *shares)
            leaders = []
            new = []
            for text in own:
                leader = leader_of(text)
                if leader is None:
                    leading.append(text)
                    new.append(text)
                leaders.append(text if leader is None else leader)
            by_text[leaders[0]] += 1
            stay = [True] * len(own)
            if apart:
                item.split = next((cluster[leader] for leader in leaders if leader in cluster), item.split)
                stay = [cluster.get(leader, item.split) == item.split for leader in leaders]
                cluster |= {leader: item.split for leader, stays in zip(leaders, stay, strict=True) if stays}
            began += [(text, item.split) for text in new]
            given = [text["text"] for text in item.row["texts"]]
            item.texts = [(t, leader) for t, leader, stays in zip(given, leaders, stay) if stays]  # noqa: B905
            item.row = {**item.row, "primary": leaders[0]}
            if not any(stay):
                item.reasons.append("other_split")
        self._began = began
        self._kept = [item for item in items if item.split]
        self._take_over(spec, items, leader_of, leading, cluster)
        return {item.name: item for item in items}

    def _take_over(self, spec: BuildSpec, items: list[Item], leader_of: Any, leading: list[str], cluster: Any) -> None:
        rules, copies = spec.dedup, dict[int, list[Item]]()
        for item in items:
            if item.leader is not None and not item.earlier:
                copies.setdefault(id(item.leader), []).append(item)
        owners = [item for item in items if id(item) in copies]
        for item in sorted(owners, key=lambda own: (own.row["order_key"], own.row["candidate_id"])):
            primary = {own.normal()[0] for own in (item, *copies[id(item)])}
            if 0 < rules.placeholder_texts < len(primary):
                item.placeholder = True
                for one in (item, *copies[id(item)]):
                    one.reasons.insert(0, "placeholder")
                continue
            known, counted = set(item.normal(rules.max_texts)), len(item.normal(rules.max_texts))
            rank_of = dict(zip([text["text"] for text in item.row["texts"]], ranks_of(item.row["texts"]), strict=True))
            for copy in copies[id(item)] if rules.merge_texts else ():
                for text, normal, rank in zip(
                    copy.row["texts"], copy.normal(), ranks_of(copy.row["texts"]), strict=True
                ):
                    rank_of.setdefault(text["text"], rank)
                    if normal in known or counted >= rules.max_texts:
                        continue
                    known.add(normal)
                    counted += 1
                    leader = leader_of(normal)
                    if leader is None:
                        leading.append(normal)
                        leader = normal
                    if spec.shards.apart != "texts" or cluster.get(leader) == item.split:
                        item.texts.append((text["text"], leader))
            item.texts.sort(key=lambda text, rank_of=rank_of: rank_of[text[0]])

    def publish(self, dataset: str) -> None:
        """What was decided last comes before what is decided from now on."""
        for item in self._kept:
            item.texts = [(item.texts[0][0] if item.texts else "", item.row["primary"])]
        self.published.append(Published(dataset, self._kept, self._began))

    def _matrix(self, rules: Any, items: list[Item]) -> Matrix:
        fields = ("phash", "signature", "details")
        types = {"phash": pa.list_(pa.uint64()), "signature": pa.binary(), "details": pa.binary()}
        table = pa.table({name: pa.array([item.row[name] for item in items], types[name]) for name in fields})
        if not len(items):
            return np.zeros((0, 0), np.bool_)
        own = hashes_of(table), signatures_of(table["signature"]), Details.of_table(table)
        return alike(rules.image_distance, rules.image_signature, *own, rules.image_turned)


def rows_of(build: Any) -> list[dict[str, Any]]:
    """The pairs of a build, rows of its stage filter with what measure knows of their images."""
    measured, filtered = (build.stage(name) for name in ("measure", "filter"))
    images = {row["sha256"]: row for record in measured.records() for row in measured.table(record).to_pylist()}
    return [
        {**images[row["sha256"]], **row} for record in filtered.records() for row in filtered.table(record).to_pylist()
    ]


def decisions_of(kept: dict[str, dict[str, Any]], dropped: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What `tests.deduped.after` returns, as `expected` says it."""
    found: dict[str, Any] = {
        name: (row["split"], [(t["text"], leader) for t, leader in zip(row["texts"], row["text_leaders"], strict=True)])
        for name, row in kept.items()
    }
    return found | {
        name: (
            [reason for reason in row["reasons"] if reason != "known"],
            row["duplicate_of"],
            "known" in row["reasons"],
        )
        for name, row in dropped.items()
    }


def expected(decided: dict[str, Item], dataset: str) -> dict[str, Any]:
    """The decisions of an oracle."""
    found: dict[str, Any] = {}
    for name, item in decided.items():
        if not item.reasons:
            found[name] = item.split, [(text, text_id(leader)) for text, leader in item.texts]
            continue
        leader = item.leader
        known = leader is not None and item.earlier and leader.dataset == dataset and "placeholder" not in item.reasons
        found[name] = item.reasons, leader.row["candidate_id"] if leader else "", known
    return found
