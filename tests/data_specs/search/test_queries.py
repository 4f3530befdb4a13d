"""queries: the text tower of an index says of a text what the checkpoint that made it says."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_specs.search.folder import IndexFault
from data_specs.search.onnx_file import TowerFault
from data_specs.search.picture_tower import PictureTower, grid_boxes
from data_specs.search.queries import TextQuery
from tests import towered
from tests.drawn import blobs, encoded
from tests.exported import Exported

TEXTS = ["一只猫", "红烧肉的做法，ＡＢＣ", "", "长" * 90, "sky 蓝天"]


PICTURES = [blobs(1, (90, 70)), blobs(2, (64, 64)), blobs(3, (130, 200))]


@pytest.fixture(scope="module")
def index(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an index that has the checkpoint's text tower."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "queries").mkdir()
    shutil.copy(exported.folder / "m.text.onnx", folder / "queries" / "text.onnx")
    return folder


@pytest.mark.slow
def test_a_text_has_the_vector_of_the_checkpoint(exported: Exported, index: Path) -> None:
    from training.use.embed import text_features
    from training.weights.load import load

    loaded, query = load(exported.checkpoint, "cpu"), TextQuery.open(index)
    expected = text_features(loaded, TEXTS).numpy()
    assert np.abs(query.encode(TEXTS) - expected).max() < 1e-4
    assert np.abs(query.encode([TEXTS[1]]) - expected[1]).max() < 1e-4
    assert query.encode([]).shape == (0, expected.shape[1])
    alone = np.concatenate([query.encode([text]) for text in TEXTS])
    assert np.abs(query.encode(TEXTS) - alone).max() < 1e-6, "no vector depends on what it is encoded with"
    many = query.encode(["船"] * 130)
    assert many.shape == (130, expected.shape[1])
    assert query.towers.sha256 == loaded.checkpoint.sealed.files["towers.safetensors"]
    assert query.towers.recipe == "tiny"


@pytest.mark.slow
def test_a_picture_has_the_vector_of_the_checkpoint(exported: Exported, index: Path) -> None:
    from training.data.transforms import input_boxes
    from training.use.embed import image_features
    from training.weights.load import load

    loaded, tower = load(exported.checkpoint, "cpu"), PictureTower.open(exported.folder / "m.image.onnx", threads=1)
    files = [(f"{n}", encoded(Image.fromarray(picture), "png")) for n, picture in enumerate(PICTURES)]
    expected = image_features(loaded, files, [None] * 3).numpy()
    features = tower.encode(PICTURES)
    assert (features * expected).sum(1) == pytest.approx(np.ones(3), abs=1e-4)  # Pillow resizes within a grey level
    assert np.abs(features - np.concatenate([tower.encode([picture]) for picture in PICTURES])).max() < 1e-6
    assert np.array_equal(grid_boxes(64, 10), input_boxes(None, 90, 70, 64, 10))
    query = TextQuery.open(index, threads=1)
    assert tower.towers == query.towers
    assert tower.width == query.width
    with pytest.raises(TowerFault, match=r"text.onnx: is not an image tower made by wenlan-train export"):
        PictureTower.open(index / "queries" / "text.onnx")


@pytest.mark.slow
def test_no_torch_is_imported_for_it(index: Path) -> None:
    import subprocess

    code = "import sys; from pathlib import Path; from data_specs.search.queries import TextQuery\n"
    code += (
        "print(TextQuery.open(Path(sys.argv[1])).encode(['猫']).shape, {'torch', 'transformers'} & set(sys.modules))"
    )
    words = [sys.executable, "-c", code, str(index)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 32) set()"


@pytest.mark.slow
def test_the_image_tower_is_no_text_tower(exported: Exported) -> None:
    with pytest.raises(IndexFault, match=r"m.image.onnx: is not a text tower made by wenlan-train export --to onnx"):
        TextQuery.open(exported.folder / "m.image.onnx")


def test_what_is_no_tower_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(IndexFault, match=r"text.onnx: is missing; .*--checkpoint.*embed again with --onnx"):
        TextQuery.open(tmp_path)
    with pytest.raises(IndexFault, match=r"x.onnx: is missing; wenlan-train export CHECKPOINT --to onnx writes it$"):
        TextQuery.open(tmp_path / "x.onnx")
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(IndexFault, match=r"x.onnx: cannot be read \(") as raised:
        TextQuery.open(tmp_path / "x.onnx")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "about",
    [
        {"max_tokens": "1"},
        {"max_tokens": "100000000000"},  # of memory, for a text that is padded to it
        {"feature_dim": "5"},
        {"config": "[]"},
        {"config": "[" * 5_000},
        {"vocabulary": ""},
    ],
)
def test_a_tower_whose_metadata_are_nonsense_is_one_line(tmp_path: Path, about: dict[str, str]) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(towered.own_text_tower().SerializeToString())
    assert TextQuery.open(path).encode(["红绿", "图"]).shape == (2, 3)
    path.write_bytes(towered.own_text_tower(**about).SerializeToString())
    with pytest.raises(IndexFault, match=r"x.onnx: its metadata cannot be used \(") as raised:
        TextQuery.open(path)
    assert "\n" not in str(raised.value)


def test_a_tower_of_others_gets_padded_ids_one_by_one_where_its_file_says_so(tmp_path: Path) -> None:
    towered.written(tmp_path)
    query = TextQuery.foreign(tmp_path / "text.onnx", tmp_path / "vocab.txt", towered.TOKENS)
    assert query.width == 3
    red, both, long = query.encode(["红", "红绿", "绿" * 30])
    assert red == pytest.approx([1, 0.007, 0.007], abs=1e-3)
    assert both[0] == pytest.approx(both[1])
    assert long == pytest.approx([0, 1, 0], abs=2e-3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "vocab.txt: is not UTF-8 text"),
        (b"{}", "vocab.txt: not a tokenizer.json"),
        (b"[PAD]\n", "vocab.txt: not a BERT vocabulary"),
    ],
)
def test_what_is_no_vocabulary_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    towered.written(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(TowerFault, match=said) as raised:
        TextQuery.foreign(tmp_path / "text.onnx", tmp_path / "vocab.txt", towered.TOKENS)
    assert "\n" not in str(raised.value)
