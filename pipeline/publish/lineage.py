"""openlineage.json: one event for a data catalogue, written if the spec asks for it (publish.lineage)."""

from __future__ import annotations

import importlib.metadata
import uuid
from typing import Any

from data_specs.build import BuildSpec
from data_specs.shard import Manifest
from pipeline.report.funnel import Funnel

_PRODUCER = f"urn:wenlan:{importlib.metadata.version('wenlan')}"
_FACETS = "https://openlineage.io/spec/facets"


def lineage(spec: BuildSpec, manifest: Manifest, candidates: Funnel) -> dict[str, Any]:
    """A RunEvent of OpenLineage 2-0-2 (https://openlineage.io/spec/): the sources this revision was made from.

    A catalogue accepts it by POST to its `/api/v1/lineage`; nothing is sent from here.
    """
    job = {"namespace": "wenlan", "name": spec.name}
    size = sum(shard.tar.bytes for shard in manifest.shards)
    statistics = {"rowCount": sum(manifest.samples.values()), "size": size, "fileCount": len(manifest.shards)}
    version = {"_producer": _PRODUCER, "_schemaURL": f"{_FACETS}/1-0-0/DatasetVersionDatasetFacet.json"}
    output = {"_producer": _PRODUCER, "_schemaURL": f"{_FACETS}/1-0-2/OutputStatisticsOutputDatasetFacet.json"}
    entered = {"_producer": _PRODUCER, "_schemaURL": f"{_FACETS}/1-0-0/InputStatisticsInputDatasetFacet.json"}
    return {
        "eventType": "COMPLETE",
        "eventTime": manifest.created_at,
        "producer": _PRODUCER,
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{manifest.build_id}/{manifest.revision}"))},
        "job": job,
        "inputs": [
            {
                "namespace": f"wenlan/{spec.name}/sources",
                "name": ref.name,
                "inputFacets": {"inputStatistics": {**entered, "rowCount": candidates.of_source(ref.name).total}},
            }
            for ref in spec.sources
        ],
        "outputs": [
            {
                "namespace": "wenlan",
                "name": spec.name,
                "facets": {"version": {**version, "datasetVersion": manifest.content_digest}},
                "outputFacets": {"outputStatistics": {**output, **statistics}},
            }
        ],
    }
