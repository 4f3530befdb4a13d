"""Stage lead: the leader pass over all pairs of the build, in which the pairs that earlier builds kept come first.

Its only partition, "all", is the only step of a build that must go in order. It is a Ray task that reads the runs of
`rank` as one sequence, block by block, and holds a few blocks: what the pass remembers is in holders
(`pipeline.matching.holders`), in this process where it fits (`pairs_per_holder`), otherwise in actors. Where much is to
be compared, the stages `deal` and `meet` have found before, in parallel, which images and texts are like no other one,
of the build or of what earlier builds kept: these are compared with nothing and not remembered, and pairs of nothing
else are decided in bulk (`pipeline.dedup.decided`). Of what earlier builds kept only what they found is remembered
then, otherwise all of it (`pipeline.dedup.earlier_builds`). Verdicts are spilled by
run as they come and sorted back to the run's own order at the end; `pipeline.stages.dedup` applies them in parallel.

After the pass, leaders take over the texts of their duplicates, within `max_texts`. These texts are placed last, in the
order of their leaders, and do not lead in later builds: whether a pair is kept does not depend on what was merged. A
leader under more than `placeholder_texts` different primary texts is a placeholder. It is dropped with all its copies,
and remembered in STORE: later builds drop it at sight. Texts are counted within a build; what an earlier build has
published stays.

Kept pairs get their splits here, by `pipeline.dedup.splits`.

Limits: a placeholder has taken its place under the caps before it is known as one, and that place is not given back.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_specs.build import BuildSpec, Dedup
from data_specs.text.folding import normals
from pipeline import pulse
from pipeline.dedup import earlier_builds, handed_on, ranked_runs
from pipeline.dedup.decided import (
    VERDICT_SCHEMA,
    Decided,
    Pairs,
    copy_rows,
    decide,
    image_rows,
    new_text_rows,
    text_ids,
    verdict_rows,
)
from pipeline.dedup.overlap import read_ahead, writing_behind
from pipeline.dedup.spill import Rows, Spill
from pipeline.dedup.splits import Placed, Splits
from pipeline.dedup.taken_texts import TakenTexts
from pipeline.features import feature_id
from pipeline.files.digests import DIGEST, rows_of
from pipeline.filters import text_filters
from pipeline.matching import text_rows
from pipeline.matching.holders import Holders
from pipeline.matching.leader_pass import BLOCK, LeaderPass
from pipeline.store.build import Build
from pipeline.store.identities import (
    DETAILS,
    IMAGE_SCHEMA,
    PLACED_TEXT_SCHEMA,
    PLACEHOLDER_SCHEMA,
    SIGNATURES,
    TEXT_SCHEMA,
    Identities,
)
from pipeline.store.partitions import Attempt, Record, StageDir
from pipeline.store.stage import Pass, PassFile

MERGED_SCHEMA = pa.schema(
    [
        ("position", pa.int32()),
        ("kind", pa.string()),
        ("text", pa.string()),
        ("original", pa.string()),  # not in files of an older wenlan
        ("text_leader", DIGEST),
    ]
)
"""Texts that a leader takes over: `position` is the leader's."""

READ = 4 * BLOCK
"""Pairs read at once where most of them are free (`pipeline.dedup.decided`)."""


def token(build: Build) -> Any:
    spec = build.spec
    return {
        "dedup": spec.dedup.model_dump(mode="json", exclude={"pairs_per_holder"}),
        "seed": spec.seed,
        "shares": [spec.shards.dev_share, spec.shards.val_share],
        **({"apart": spec.shards.apart} if spec.shards.apart != "images" else {}),
        "features": feature_id(),
        "identities": build.identity_revision,
        **({"splits": [own.identities for own in build.made_from]} if build.made_from else {}),
        **({"originals": True} if _keeps_originals(spec) else {}),
    }


def _keeps_originals(spec: BuildSpec) -> bool:
    """Whether a filter keeps what a text was before it was rewritten: an older wenlan lost that from here on."""
    if not any(hasattr(f, "keep_original") for f in text_filters(spec)):
        return False
    filters = (f for source in spec.sources for f in text_filters(spec, source))  # which may have options of their own
    return any(getattr(f, "keep_original", False) for f in filters)


def partitions(build: Build) -> list[str]:
    return [ranked_runs.ALL]


def run_partition(build: Build, partition: str) -> None:
    """Verdicts of every run, texts that leaders take over, and what this build adds to STORE's identities."""
    runs = build.stage("dedup.rank").records()
    pairs = sum(record.counts["pairs"] for record in runs)
    with contextlib.ExitStack() as opened:
        alone = handed_on.Alone(build, opened)
        # where nobody has looked which of them matter, all images that earlier builds kept are held as well
        kept = _kept_earlier(build)
        held = pairs + kept if pairs and not alone.known else pairs
        holders = -(-max(1, held) // build.spec.dedup.pairs_per_holder)
        memory = opened.enter_context(Holders(build.spec.dedup, holders))
        splits = opened.enter_context(Splits(build, memory, holders))
        attempt = opened.enter_context(build.stage("dedup.lead").attempt(partition))
        pulse.expect(pairs)
        earlier = _learn_earlier(build, memory, alone) if build.identities and pairs else {"earlier": kept}
        leader_pass = LeaderPass(build.spec.dedup, memory, earlier=bool(build.identities) and not alone.known)
        counts = _Sequence(build, attempt, runs, leader_pass, splits, alone).run()
        info = {"features": feature_id(), "sketch": text_rows.sketch_id(build.spec.dedup.text_similarity)}
        counted = {"pairs": pairs, **counts, **splits.counts, **earlier, "holders": holders}
        attempt.commit(counted, info)


def _kept_earlier(build: Build) -> int:
    """How many images the builds that this one reads have kept."""
    identities = Identities(build.store)
    return sum(identities.count(identities.read(name), "images.parquet") for name in build.identities)


def _learn_earlier(build: Build, holders: Holders, alone: handed_on.Alone) -> dict[str, int]:
    """Enter what the builds that this one reads have kept; returns counts, "earlier" of all images that they kept."""
    rules, features, splits = build.spec.dedup, feature_id(), build.spec.shards.apart == "texts"
    if alone.known:
        domains = _column(build.stage("dedup.rank"), "domain") if rules.max_pairs_per_domain else iter(())
        return earlier_builds.learn_met(holders, build, alone.earlier(), features, domains, splits=splits)
    identities, names, dataset = Identities(build.store), build.identities, build.spec.name
    columns = _column(build.stage("dedup.rank"), "sketches.list.element.keys")
    keys = (text_rows.keys_of(column.flatten().field("keys")) for column in columns)
    images = earlier_builds.learn(holders, identities, names, dataset, rules, features, keys, splits=splits)
    return {"earlier": images}


def _column(stage: StageDir, name: str) -> Iterator[pa.Array]:
    """A column of the runs, a batch of pairs at a time."""
    for record in stage.records():
        with stage.file(record, "parquet") as path, pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=50_000, columns=[name]):
                yield batch.column(0)


class _Files(contextlib.ExitStack):
    """What is written as the pass goes on: what STORE gets, by rank, and what `dedup` needs, spilled by run."""

    def __init__(self, attempt: Attempt, rules: Dedup, texts_apart: bool) -> None:
        super().__init__()
        self._text_schema = PLACED_TEXT_SCHEMA if texts_apart else TEXT_SCHEMA
        self._gathers_texts = rules.merge_texts or rules.placeholder_texts > 0
        scratch = attempt.folder("spill")
        self.verdicts, self.copies = Spill(scratch, "verdicts"), Spill(scratch, "merges")
        with contextlib.ExitStack() as opened:  # closes them if not all can be opened
            self._images, self._texts, self.placeholders = (
                opened.enter_context(Rows(attempt.path(f"{name}.parquet"), schema))
                for name, schema in (
                    ("images", IMAGE_SCHEMA),
                    ("texts", self._text_schema),
                    ("placeholders", PLACEHOLDER_SCHEMA),
                )
            )
            self._signatures, self._details = (
                opened.enter_context(attempt.path(name).open("wb")) for name in (SIGNATURES, DETAILS)
            )
            self.push(opened.pop_all())

    def write(self, pairs: Pairs, decided: Decided, kept: pa.Table, placed: Placed, leaders: int) -> None:
        """What was decided about some pairs; kept: rows of those that are, leaders: how many were before them."""
        self.verdicts.add(pairs.run_of_row, verdict_rows(pairs, decided, placed))
        if self._gathers_texts:
            self.copies.add(*copy_rows(pairs, decided))
        self._images.add(image_rows(kept, decided, placed.splits))
        self._signatures.write(pairs.signatures(decided.kept).data)
        pairs.details(decided.kept).moved(leaders).write(self._details)
        self._texts.add(new_text_rows(pairs, decided, placed, self._text_schema))


class _Sequence:
    """The pass over a build's runs in order, and the files that it writes.

    While a block is decided the next one is read, and what was decided of the last one written: in threads, since
    nothing else of a build can go on meanwhile.
    """

    def __init__(
        self,
        build: Build,
        attempt: Attempt,
        runs: list[Record],
        leader_pass: LeaderPass,
        splits: Splits,
        alone: handed_on.Alone,
    ) -> None:
        self._build, self._attempt, self._runs, self._pass, self._splits = build, attempt, runs, leader_pass, splits
        self._rules, self._stage = build.spec.dedup, build.stage("dedup.rank")
        self._counts: Counter[str] = Counter()
        self._alone, self._bulk = alone, not splits.texts_apart

    def run(self) -> Counter[str]:
        alone, capped = self._alone, self._rules.max_pairs_per_domain > 0
        size = READ if alone.known else BLOCK
        blocks = ranked_runs.merged(self._stage, self._runs, size, ordered=alone.ordered)
        with _Files(self._attempt, self._rules, self._splits.texts_apart) as files:
            with writing_behind() as later:
                for table, run_of_row in read_ahead(blocks):
                    pairs = Pairs(table, run_of_row, self._rules.max_texts, alone)
                    free = pairs.free(capped) if self._bulk else np.zeros(len(pairs), np.bool_)
                    decided = decide(pairs, self._pass, free)
                    kept = table.drop_columns(["texts", "sketches"]).take(pa.array(decided.kept))
                    placed = self._splits.of(kept, decided.lists, pairs.splits(decided.kept))
                    later(partial(files.write, pairs, decided, kept, placed, self._counts["leaders"]))
                    for name, own in (("alone", pairs.alone), ("alone_texts", pairs.alone_texts), ("free", free)):
                        self._counts[name] += 0 if own is None else int(own.sum())
                    self._counts["leaders"] += len(decided.kept)
                    self._counts["text_clusters"] += len(decided.new_texts)
                    pulse.advance(table.num_rows)
            for number, run in enumerate(self._runs):
                self._finish(number, run, files)
        return self._counts

    def _finish(self, number: int, run: Record, files: _Files) -> None:
        """Write what `dedup` needs of a run: its verdicts by position, and the texts that its leaders take over."""
        copies = files.copies
        table = pa.concat_tables([VERDICT_SCHEMA.empty_table(), *files.verdicts.read(number)]).sort_by("position")
        self._attempt.write_table(f"{run.partition}.verdicts", table)
        leading = {position for part in copies.read(number) for position in part["position"].to_pylist()}
        taken = TakenTexts(self._rules, self._own_texts(run, leading) if leading else {})
        for part in copies.read(number):
            taken.add(part)
        ids = self._candidates(run, taken.placeholders)
        files.placeholders.add(pa.table({"candidate_id": pa.array(ids, DIGEST)}))
        split_at = dict(zip(table["position"].to_pylist(), table["split"].to_pylist(), strict=True))
        merged: list[tuple[int, str, str, str, bytes]] = []
        texts = taken.texts()
        for start in range(0, len(texts), BLOCK):
            some = texts[start : start + BLOCK]
            leaders = self._leaders_of([text for _, _, text, _ in some])
            admitted = self._splits.admits(leaders, [split_at[position] for position, *_ in some])
            merged += ((*text, leader) for text, leader, in_ in zip(some, leaders, admitted, strict=True) if in_)
        columns = [list(values) for values in zip(*merged, strict=True)] if merged else [[], [], [], [], []]
        rows = dict(zip(MERGED_SCHEMA.names, columns, strict=True))
        self._attempt.write_table(f"{run.partition}.merged", pa.table(rows, schema=MERGED_SCHEMA))
        self._counts["merged_texts"] += len(merged)
        self._counts["placeholders"] += len(ids)

    def _leaders_of(self, texts: list[str]) -> list[bytes]:
        """The text leader of each text, after all texts that were placed before; equal texts are placed once."""
        rows = text_rows.made(normals(texts), self._rules.text_similarity)
        first = {name: at for at, name in reversed(list(enumerate(rows_of(rows.ids))))}
        distinct = rows.take(sorted(first.values()))
        leader_of = dict(zip(rows_of(distinct.ids), self._pass.place(distinct), strict=True))
        return [leader_of[name] for name in rows_of(rows.ids)]

    def _own_texts(self, run: Record, positions: set[int]) -> dict[int, list[bytes]]:
        """Text ids of the run's pairs at the given positions."""
        # ParquetFile reads one field of a nested column; pq.read_table would read the sketches, too
        with self._stage.file(run, "parquet") as path, pq.ParquetFile(path) as file:
            table = file.read(columns=["position", "sketches.list.element.id"])
        table = table.filter(pc.is_in(table["position"], pa.array(sorted(positions), pa.int32())))
        return dict(zip(table["position"].to_pylist(), text_ids(table).to_pylist(), strict=True))

    def _candidates(self, run: Record, positions: set[int]) -> list[bytes]:
        """candidate_id of the pairs at the given positions of a run, in that order."""
        if not positions:
            return []
        rows = self._stage.table(run, columns=["position", "candidate_id"], filters=[("position", "in", positions)])
        ids: list[bytes] = rows.sort_by("position")["candidate_id"].to_pylist()
        return ids


PASS = Pass(
    name="dedup.lead",
    over=partitions,
    reads=("dedup.rank", "dedup.deal", "dedup.meet"),
    run=run_partition,
    token=token,
    files=(
        PassFile("*.verdicts", VERDICT_SCHEMA),
        PassFile("*.merged", MERGED_SCHEMA),
        PassFile("images.parquet", IMAGE_SCHEMA, kind="identities"),
        PassFile(SIGNATURES, kind="identities"),
        PassFile(DETAILS, kind="identities"),
        PassFile("texts.parquet", TEXT_SCHEMA, kind="identities"),
        PassFile("placeholders.parquet", PLACEHOLDER_SCHEMA, kind="identities"),
    ),
    unit="pairs",
    done=("pairs",),
)
