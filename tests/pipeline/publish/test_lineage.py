"""openlineage.json, also as OpenLineage's own client takes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.publish import release
from pipeline.store.build import Build

Run = Callable[[Build, str], None]


def test_an_event_for_a_data_catalogue_is_written_where_the_spec_wants_it(
    tmp_path: Path, synthetic: Any, run_stage: Run
) -> None:
    build, _ = synthetic.make(tmp_path, publish={"lineage": True})
    run_stage(build, "shard")
    manifest = release.publish(build)
    event = json.loads((Path(build.out) / "shards/openlineage.json").read_bytes())
    [output] = event["outputs"]
    assert output["facets"]["version"]["datasetVersion"] == manifest.content_digest
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 30
    read = {i["name"]: i["inputFacets"]["inputStatistics"]["rowCount"] for i in event["inputs"]}
    assert read == {"pages": 36, "table": 18}
    client = pytest.importorskip("openlineage.client.event_v2")
    client.RunEvent(eventType=client.RunState.COMPLETE, eventTime=event["eventTime"],
                    run=client.Run(**event["run"]), job=client.Job(**event["job"]))  # fmt: skip
