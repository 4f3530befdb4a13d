"""queries: the text tower of an index says of a text what the checkpoint that made it says."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from data_specs.search.folder import IndexFault
from data_specs.search.queries import TextQuery
from tests.training.conftest import moved_checkpoint

TEXTS = ["一只猫", "红烧肉的做法，ＡＢＣ", "", "长" * 90, "sky 蓝天"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and an index's folder with its text tower."""
    pytest.importorskip("onnxscript")
    from training.use.export import export

    folder = tmp_path_factory.mktemp("exported")
    checkpoint = moved_checkpoint(folder / "run")
    export(checkpoint, "onnx", folder / "m")
    (folder / "index" / "queries").mkdir(parents=True)
    (folder / "m.text.onnx").rename(folder / "index" / "queries" / "text.onnx")
    return checkpoint, folder / "index"


@pytest.mark.slow
def test_a_text_has_the_vector_of_the_checkpoint(exported: tuple[Path, Path]) -> None:
    from training.use.embed import text_features
    from training.use.load import load

    checkpoint, index = exported
    loaded, query = load(checkpoint, "cpu"), TextQuery.open(index)
    expected = text_features(loaded, TEXTS).numpy()
    assert np.abs(query.encode(TEXTS) - expected).max() < 1e-4
    assert np.abs(query.encode([TEXTS[1]]) - expected[1]).max() < 1e-4
    assert query.encode([]).shape == (0, expected.shape[1])
    many = query.encode(["船"] * 130)
    assert many.shape == (130, expected.shape[1])
    assert query.towers.sha256 == loaded.checkpoint.sealed.files["towers.safetensors"]
    assert query.towers.recipe == "tiny"


@pytest.mark.slow
def test_no_torch_is_imported_for_it(exported: tuple[Path, Path]) -> None:
    import subprocess

    code = "import sys; from pathlib import Path; from data_specs.search.queries import TextQuery\n"
    code += (
        "print(TextQuery.open(Path(sys.argv[1])).encode(['猫']).shape, {'torch', 'transformers'} & set(sys.modules))"
    )
    words = [sys.executable, "-c", code, str(exported[1])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 32) set()"


@pytest.mark.slow
def test_the_image_tower_is_no_text_tower(exported: tuple[Path, Path]) -> None:
    with pytest.raises(IndexFault, match=r"m.image.onnx: is no text tower of wenlan-train export --to onnx"):
        TextQuery.open(exported[1].parent / "m.image.onnx")


def test_what_is_no_tower_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(IndexFault, match=r"text.onnx: is missing; wenlan-train export CHECKPOINT --to onnx writes it"):
        TextQuery.open(tmp_path)
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(IndexFault, match=r"x.onnx: cannot be read \(") as raised:
        TextQuery.open(tmp_path / "x.onnx")
    assert "\n" not in str(raised.value)
