"""What the guide leaves to scikit-learn: its script, word for word, on features that `embed` wrote."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tests.places import ROOT
from training import cli

GUIDE = (ROOT / "training" / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_a_probe_and_search_by_image(
    checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [script] = re.findall(r"```python\n([^`]*sklearn.*?)```", GUIDE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes").symlink_to(folder)
    for split in ("train", "val"):
        words = ["--images", f"classes/{split}", "--out", f"{split}.parquet"]
        assert cli.main(["embed", str(checkpoint), *words]) == 0
        assert " ".join(words[:2]) in " ".join(GUIDE.split()) or split == "val"
    names: dict[str, object] = {}
    exec(script, names)
    probe, search = capsys.readouterr().out.splitlines()
    assert float(probe.removeprefix("linear probe: top-1 ").removesuffix("%")) > 60, "colours tell the classes"
    (features, classes) = names["val"]  # type: ignore[misc]
    similar = features @ features.T - 9 * np.eye(len(features))
    assert search == f"search by image: R@1 {np.mean(classes[similar.argmax(1)] == classes):.1%}"
