"""The Python interface, on a small dataset of two builds: what it documents runs, its figures are those of others."""

from __future__ import annotations

import doctest
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

import wenlan
from data_specs.build import SpecError
from data_specs.command.extras import install
from data_specs.shard import ContractError
from pipeline import cli, opening
from pipeline.errors import StoreError
from pipeline.publish import release
from pipeline.rows.records import sha256_hex
from tests import synthetic
from tests.places import ROOT
from tests.stages import run_noted
from tests.weeks import Weeks
from training.errors import ConfigError
from training.use.indexing import Inputs, embed_index

pytestmark = pytest.mark.slow  # all begin with a build


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with builds/1, builds/2, store, copy, runs/1, index and photo.jpg: what the docstrings name."""
    folder = tmp_path_factory.mktemp("first")
    weeks = Weeks(folder, synthetic.encode, "report")
    for number, (snapshot, pictures) in enumerate([("2024-01-01", range(24)), ("2024-01-08", range(16, 32))], 1):
        spec = weeks.spec(list(pictures), shards={"samples_per_shard": 10, "dev_share": 0.15, "val_share": 0.15})
        build = opening.open_build(spec, str(folder / f"builds/{number}"), weeks.store, snapshot)
        release.publish(weeks.finish(build))
    words = ["release", "copy", "weekly", "--store", weeks.store, "--out", str(folder / "copy")]
    assert cli.main(words) == 0
    (folder / "photo.jpg").write_bytes(synthetic.encode("jpeg", 3, (120, 90)))
    _checkpoint(folder / "runs/1")
    inputs = Inputs(data=(str(folder / "builds/1/shards"),), cache=str(folder / "cache"))
    embed_index(folder / "runs/1", inputs, folder / "index", device="cpu")
    return folder


def _checkpoint(folder: Path) -> None:
    """A tiny model with random weights, as a run leaves it."""
    import torch

    from tests.checkpoints import save
    from training.data.tokenizer import load_tokenizer
    from training.moco import BriVL
    from training.outputs.checkpoint import RunState
    from training.resolve import resolve
    from training.run.optimizer import build_optimizer

    torch.manual_seed(0)
    config = resolve("tiny")
    model = BriVL(config)
    state = RunState(1, 8, 0, (), (), "grid")
    folder.mkdir(parents=True)
    save(folder, model, build_optimizer(model, config.optim), config, load_tokenizer("gb2312"), state, 1)


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_what_the_docstrings_say_runs(here: Path) -> None:
    pytest.importorskip("duckdb", reason="duckdb is not installed")
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.testmod(wenlan, extraglobs={"wenlan": wenlan}, optionflags=options)
    assert results.attempted > 20
    assert results.failed == 0


def test_importing_it_is_cheap_and_needs_no_heavy_package() -> None:
    heavy = ["pandas", "pyarrow", "torch", "ray", "PIL", "numpy", "pydantic", "pipeline", "training", "webdataset"]
    script = f"import sys, wenlan; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_missing_half_is_named_with_its_extra(place: Path) -> None:
    script = """import sys
class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {0!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden)
import wenlan
from data_specs.command.extras import install
wenlan.{1}
"""
    samples = f"open({str(place / 'builds/1')!r}).samples()"
    for package, call, extra in (("torch", "load('x')", "training"), ("pandas", samples, "pipeline")):
        words = [sys.executable, "-c", script.format(package, call)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.stderr.splitlines()[-1].endswith(f"install what is missing with: {install(extra)}")


def test_tables_are_those_of_the_parquet_files(here: Path) -> None:
    data = wenlan.open("builds/1")
    rows = [pq.read_table(path).to_pandas() for path in sorted(Path("builds/1/shards").glob("train-*.parquet"))]
    train = data.samples(split="train")
    pd.testing.assert_frame_equal(train.drop(columns=["build", "text"]), pd.concat(rows, ignore_index=True))
    assert set(train.build) == {"weekly-2024-01-01-" + train.build[0].rpartition("-")[2]}
    wide = data.samples(["key"], [("width", ">", 10_000)])
    assert len(wide) == 0
    assert list(wide.columns) == ["key"]
    by_expression = data.samples(["key"], pyarrow.dataset.field("key") == train.key[0])
    assert by_expression.key.tolist() == [train.key[0]]


def test_candidates_measures_and_decisions_belong_together(here: Path) -> None:
    data = wenlan.open("builds/2")
    decisions, candidates, measures = data.decisions(), data.candidates(), data.measures(columns=["sha256", "format"])
    assert set(decisions.id) == set(candidates.candidate_id)
    assert len(decisions) == len(candidates) == 16
    assert set(data.samples(["sha256"]).sha256) <= set(measures.sha256)
    assert decisions.reason.value_counts().to_dict() == {"known": 8, "": 8}


def whole_builds(data: wenlan.Data) -> list[str]:
    return sorted(set(data.samples(["build"]).build))


def test_samples_have_their_primary_text(here: Path) -> None:
    data = wenlan.open("builds/1")
    whole = data.samples()
    assert whole.text.tolist() == [texts[0]["text"] for texts in whole.texts]
    asked = ["text", "key"]
    pd.testing.assert_frame_equal(data.samples(asked), whole[asked])
    pd.testing.assert_frame_equal(pd.concat(data.iter_batches("samples", asked), ignore_index=True), whole[asked])
    assert "text" not in data.samples(["texts"])
    with pytest.raises(StoreError, match="no column 'text'"):
        data.candidates(["text"])


def test_batches_are_the_table_in_order(here: Path) -> None:
    data = wenlan.open("store/datasets/weekly/latest.json")
    whole = data.samples(["key", "width"])
    batches = list(data.iter_batches("samples", ["key", "width"], rows=7))
    assert max(map(len, batches)) <= 7
    pd.testing.assert_frame_equal(pd.concat(batches, ignore_index=True), whole)
    first = pyarrow.dataset.field("build") == whole_builds(data)[0]
    of_first = pd.concat(data.iter_batches("samples", filters=first), ignore_index=True)
    pd.testing.assert_frame_equal(of_first, data.samples(filters=first))
    with pytest.raises(StoreError, match="no column 'widht'"):
        next(data.iter_batches("samples", ["widht"]))
    regions = pd.concat(data.iter_batches("regions/grid", ["key"]), ignore_index=True)
    assert regions.key.tolist() == whole.key.tolist()


def test_duckdb_and_polars_query_a_table_without_a_copy(here: Path) -> None:
    data = wenlan.open("store/datasets/weekly")
    table, wide = data.arrow("samples"), int((data.samples(["width"]).width > 200).sum())
    polars = pytest.importorskip("polars", reason="polars is not installed")
    wide_rows = polars.scan_pyarrow_dataset(table).filter(polars.col("width") > 200).select("key", "build").collect()
    assert wide_rows.height == wide > 0
    assert set(wide_rows["build"]) == set(data.samples(["build"]).build)
    assert polars.scan_parquet(data.paths("samples")).select(polars.len()).collect().item() == 32
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    with duckdb.connect() as connection:
        connection.register("samples", table)
        assert connection.sql("select count(*) from samples where width > 200").fetchall() == [(wide,)]


def test_a_release_has_the_samples_and_the_decisions_of_its_builds(here: Path) -> None:
    data = wenlan.open("store/datasets/weekly")
    samples = data.samples(["key", "build"])
    assert len(data) == len(samples) == 32
    assert sorted(samples.build.value_counts()) == [8, 24]
    assert len(data.decisions(["id"])) == 24 + 16
    of_first = data.decisions(["id"], pyarrow.dataset.field("build") == samples.build[0])
    assert len(of_first) == 24
    assert len(wenlan.open("store/datasets/weekly/000001.json").samples(["key"])) == 24


def test_the_funnel_is_that_of_the_report(here: Path) -> None:
    funnel = wenlan.open("builds/2").funnel().drop(columns="build")
    report = json.loads(Path("builds/2/report/report.json").read_bytes())
    assert funnel.to_dict("records") == [{name: row[name] for name in funnel.columns} for row in report["funnel"]]
    assert (funnel.seen == funnel.kept + funnel.dropped + funnel.known).all()


def test_a_build_that_is_not_packed_yet_has_no_funnel(weeks: Any) -> None:
    build = weeks.open("2024-01-01", [1, 2, 3])
    run_noted(build, "crawl", "extract", "admit")
    data = wenlan.open(build.out)
    assert len(data.candidates(["candidate_id"])) == 3
    assert len(data.decisions(["id"])) == len(data) == 0
    with pytest.raises(StoreError, match="the funnel is not complete yet: stage shard has not finished"):
        data.funnel()
    with pytest.raises(StoreError, match=r"does not contain measures \(.*: stage measure is not finished"):
        data.measures()


def test_a_copy_has_samples_and_says_what_it_lacks(here: Path) -> None:
    data = wenlan.open("copy")
    assert len(data.samples(["key"])) == 32
    assert len(data.regions("grid", ["key"])) == 32
    with pytest.raises(StoreError, match=r"does not contain decisions \(.*: a copy contains samples only\)"):
        data.decisions()
    with pytest.raises(StoreError, match="does not contain candidates"):
        data.paths("candidates")


@pytest.fixture
def moved(place: Path, tmp_path: Path) -> Path:
    """The same dataset, to break: release manifests name builds by their path, so it is moved back afterwards."""
    shutil.copytree(place, tmp_path / "own", symlinks=True)
    for path in (tmp_path / "own").rglob("*.json"):
        path.write_text(path.read_text().replace(str(place), str(tmp_path / "own")))
    return tmp_path / "own"


def test_what_gc_has_deleted_is_left_out_with_a_warning(moved: Path) -> None:
    shutil.rmtree(moved / "builds/1/candidates")
    data = wenlan.open(moved / "store/datasets/weekly/000002.json")
    with pytest.warns(UserWarning, match=r"candidates of 1 of 2 builds are left out \(weekly-2024-01-01.*gc deletes"):
        assert len(data.candidates(["candidate_id"])) == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(data.samples(["key"])) == 32


def test_a_build_that_is_gone_is_named(moved: Path) -> None:
    (moved / "builds/1").rename(moved / "builds/elsewhere")
    data = wenlan.open(moved / "store/datasets/weekly/000002.json")
    with pytest.warns(UserWarning, match=r"builds/1: not a build"):
        assert len(data.decisions(["id"])) == 16
    with pytest.raises(StoreError, match=r"builds/1/shards/.*parquet: missing"):
        data.samples()


def test_a_file_that_is_not_whole_is_named(moved: Path) -> None:
    path = next((moved / "builds/1/shards").glob("train-*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    data = wenlan.open(moved / "builds/1")
    for read in (data.samples, lambda: list(data.iter_batches("samples"))):
        told = rf"{path.name}: \d+ bytes, but \d+ in its manifest; a takedown may have rewritten .* verify"
        with pytest.raises(StoreError, match=told):
            read()


def test_a_build_before_its_publish_can_be_looked_at(moved: Path) -> None:
    (moved / "builds/1/shards/manifest.json").unlink()
    data = wenlan.open(moved / "builds/1")
    assert repr(data).endswith("not published; 24 samples>")
    assert len(data.samples(["key"])) == len(data.decisions(["id"])) == 24
    assert data.image(data.samples(["key"]).key[0], boxes=True).mode == "RGB"
    with pytest.raises(ContractError, match="is not published"):
        data.torch("train")


def test_wrong_names_are_answered_with_the_right_ones(here: Path) -> None:
    data = wenlan.open("builds/1")
    with pytest.raises(StoreError, match="no column 'widht'; columns: key, "):
        data.samples(["widht"])
    with pytest.raises(StoreError, match="no table 'sample'; tables: candidates"):
        data.paths("sample")
    with pytest.raises(StoreError, match="no split 'test'; splits: train, dev, val"):
        data.samples(split="test")
    with pytest.raises(StoreError, match="no detector or several named 'yolo'; detectors: grid-"):
        data.regions("yolo")
    with pytest.raises(ContractError, match="nowhere"):
        wenlan.open("nowhere")
    with pytest.raises(KeyError, match="no such sample"):
        data.image("0" * 32)
    with pytest.raises(KeyError, match="at least 8 digits"):
        data.image("abc")


def test_an_image_is_the_stored_one_with_its_boxes_drawn(here: Path) -> None:
    data = wenlan.open("builds/1")
    row = data.samples().iloc[3]
    tar = next(path for path in Path("builds/1/shards").glob("*.tar") if row.key.encode() in path.read_bytes())
    stored = tar.read_bytes()[row.image_offset : row.image_offset + row.image_size]
    plain = np.asarray(data.image(row.key))
    assert (plain == np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))).all()
    drawn = np.asarray(data.image(row.key[:12], boxes="grid"))
    changed = (plain != drawn).any(axis=-1)
    assert changed[0].mean() > 0.9, "the first row of pixels is the border of boxes"
    assert changed.mean() < 0.3


def test_what_is_taken_down_is_shown_to_nobody(moved: Path) -> None:
    """A takedown that has not reached the shards yet."""
    key, url = wenlan.open(moved / "builds/1").samples(["key", "image_url"]).iloc[0]
    (moved / "store/forgotten").mkdir(exist_ok=True)
    (moved / "store/forgotten/one.json").write_text(json.dumps({"hashes": [sha256_hex(url)]}))
    for place in ("builds/1", "store/datasets/weekly/000002.json"):
        data = wenlan.open(moved / place)
        with pytest.raises(KeyError, match="no such sample"):
            data.image(key)
        assert key not in data._repr_html_()
        assert key not in {s["__key__"] for split in ("train", "dev", "val") for s in data.webdataset(split)}


def test_a_notebook_shows_thumbnails_and_escapes_texts(weeks: Any) -> None:
    build = weeks.open("2024-01-01", [1, 2, 3])
    source = Path(build.spec.sources[0].options["path"])
    (source / "001.txt").write_text('<script>alert("红")</script> & "引号"', encoding="utf-8")
    release.publish(weeks.build_again("2024-01-01", build.spec))
    html = wenlan.open(build.out)._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert html.count("data:image/jpeg;base64,") == 3
    assert "3 samples" in html
    assert len(html) < 100_000


def test_webdataset_joins_the_regions(here: Path) -> None:
    data = wenlan.open("store/datasets/weekly")
    boxes = {row.key: row.boxes for row in data.regions().itertuples()}
    samples = list(data.webdataset("train").decode("pil"))
    assert sorted(s["__key__"] for s in samples) == sorted(data.samples(["key"], split="train").key)
    for sample in samples:
        assert (sample["boxes.npy"].ravel() == boxes[sample["__key__"]]).all()
        assert sample["jpg"].size == (sample["json"]["width"], sample["json"]["height"])
        assert len(sample["scores.npy"]) == len(sample["boxes.npy"])


def test_the_loader_is_the_trainers_own(here: Path, tmp_path: Path) -> None:
    data = wenlan.open("store/datasets/weekly/latest.json")
    loader = data.torch("train", 8, image_size=64, num_workers=0, cache=tmp_path)
    batches = list(loader)
    assert sum(int(batch.valid_B.sum()) for batch in batches) == data.splits["train"]
    assert batches[0].images_B3HW.shape == (8, 3, 64, 64)

    with pytest.raises(ConfigError, match="image_sise"):
        data.torch("train", image_sise=64, cache=tmp_path)


@pytest.mark.drill(15)
def test_the_notebook_runs_from_its_first_cell_to_its_last(place: Path, tmp_path: Path) -> None:
    """By nbclient, in a kernel of its own; it is kept without outputs."""
    for package in ("nbclient", "ipykernel", "polars"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    script = """
import json, sys, nbclient, nbformat
book = nbformat.read(sys.argv[1], as_version=4)
assert not any(cell.get("outputs") for cell in book.cells)
nbclient.NotebookClient(book, timeout=240, resources={"metadata": {"path": sys.argv[2]}}).execute()
print(json.dumps([cell.outputs for cell in book.cells if cell.cell_type == "code"]))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    env |= {
        name: str(tmp_path) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")
    }
    words = [sys.executable, "-c", script, str(ROOT / "tests/notebooks/first_look.ipynb"), str(place)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outputs: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    last = [cell[-1].get("data", {}) for cell in outputs]
    assert "data:image/jpeg;base64," in "".join(last[0]["text/html"])
    assert "<table" in "".join(last[1]["text/html"])
    assert any("image/png" in shown for shown in last), "the picture with its boxes"
    assert "array" in "".join(last[-1]["text/plain"])
    assert not any(output["output_type"] == "error" for cell in outputs for output in cell)


def test_a_detector_that_looks_at_no_picture_makes_no_boxes(place: Path) -> None:
    """Every picture went without boxes, as if the grid had been asked for and had none."""
    with pytest.raises(SpecError, match="given: takes its boxes from the sources"):
        wenlan.load(place / "runs/1", detector="given")


def test_pictures_without_boxes_get_those_of_a_detector(place: Path) -> None:
    """The shipped one, run here beside it."""
    from data_specs.pictures.boxes import cleaned
    from pipeline.detectors._boxes import raw_boxes
    from pipeline.detectors.proposals import Proposals
    from training.errors import InputError

    photo = place / "photo.jpg"
    model = wenlan.load(place / "runs/1", "cpu", detector="proposals")
    pixels = np.asarray(Image.open(photo))
    detector = Proposals()
    boxes = cleaned(raw_boxes(detector, detector.load(), [pixels])[0], 120, 90, 1000)[0].tolist()
    assert len(boxes) > 1
    plain = wenlan.load(place / "runs/1", "cpu")
    assert (model.encode_image(photo) == plain.encode_image(photo, [boxes])).all()
    given = model.encode_image([photo, photo], [None, boxes[:1]])[1:]
    assert np.allclose(given, plain.encode_image(photo, [boxes[:1]]), atol=1e-6)
    assert not np.allclose(model.encode_image(photo), plain.encode_image(photo), atol=1e-3)
    with pytest.raises(InputError, match=r"images\[0\]: "):
        model.encode_image([b"no picture"])
