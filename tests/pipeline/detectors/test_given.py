"""given: boxes that a table brings become the regions of a build."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.stages import run_stage


@pytest.mark.slow
def test_given_boxes_become_the_regions_of_a_build(fetched_build: Any, got: Any, tmp_path: Path) -> None:
    """Through extract and detect, over two fetch partitions; what the stages between do is not of interest here."""
    pictures, rows = [], []
    for i in range(6):
        out = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(out, "PNG")
        pictures.append(got(f"{i}", out.getvalue(), f"第{i}张"))
        boxes = [[10 * i, 0, 10 * i + 50, 500], [1.5, 2, 3.5, 80]] if i else None
        rows.append({"url": pictures[-1].url, "zh": f"第{i}张", "boxes": boxes})
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    columns = {"image_url": "url", "texts": {"alt": "zh"}, "bbox": "boxes"}
    table = {"kind": "url_table", "name": "table", "source_kind": "library", "path": str(tmp_path / "t.jsonl")}
    build = fetched_build(pictures, parts=2, filters=[], regions={"detectors": [{"name": "given"}]})
    spec = build.spec.model_validate({**build.spec.model_dump(), "sources": [{**table, "columns": columns}]})
    build = type(build)(**{**{f: getattr(build, f) for f in build.__dataclass_fields__}, "spec": spec})
    run_stage(build, "extract", "admit.sort", "measure", "filter", "dedup", "detect")
    boxes_of = {}
    for record in build.stage("detect").records():
        (suffix,) = (name for name in record.files if name.startswith("given"))
        table_rows = build.stage("detect").table(record, suffix).to_pylist()
        boxes_of |= {row["sha256"]: np.array(row["boxes"]).reshape(-1, 4).tolist() for row in table_rows}
    import hashlib

    for i, picture in enumerate(pictures):
        expected = [[10 * i, 0, 10 * i + 50, 90], [1.5, 2, 3.5, 80]] if i else []
        assert boxes_of[hashlib.sha256(picture.data).hexdigest()] == expected
