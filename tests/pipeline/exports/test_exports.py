"""What all exports have in common: the samples of the dataset, whole or not at all, without what is taken down."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_specs.build import SpecError
from data_specs.shard import SPLITS
from pipeline import cli, exports
from pipeline.errors import StoreError
from pipeline.exports import ExportData, export
from pipeline.publish import release
from pipeline.rows.records import sha256_hex
from pipeline.store import build_json
from pipeline.store.dataset import Dataset

pytestmark = pytest.mark.slow  # all begin with a build

EVERY = exports.names()


def images(out: Path, to: str) -> Iterator[tuple[str, bytes]]:
    """(key, JPEG) of every sample of an export, read as the format says and without our code."""
    if to in ("brivl-jsonl", "csv"):
        yield from ((path.stem, path.read_bytes()) for path in sorted((out / "images").iterdir()))
    elif to in ("energon", "hf"):
        for path in sorted(out.rglob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.endswith(".jpg"):
                        file = tar.extractfile(member)
                        assert file is not None
                        yield member.name.removesuffix(".jpg"), file.read()
    elif to == "chinese-clip":
        for path in sorted(out.glob("*_imgs.tsv")):
            keys = dict(
                line.split("\t") for line in path.with_name(path.name.replace("imgs", "keys")).read_text().splitlines()
            )
            for line in path.read_text().splitlines():
                number, data = line.split("\t")
                yield keys[number], base64.urlsafe_b64decode(data)
    elif to == "parquet":
        for path in sorted(out.glob("*.parquet")):
            yield from ((row["key"], row["image"]["bytes"]) for row in pq.read_table(path).to_pylist())
    else:
        lance = pytest.importorskip("lance", reason="pylance is not installed")
        for path in sorted(out.glob("*.lance")):
            yield from ((row["key"], row["image"]) for row in lance.dataset(str(path)).to_table().to_pylist())


def bytes_of(out: Path) -> dict[str, str]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def truth(shards_of: Path) -> dict[str, bytes]:
    """key -> stored JPEG, by the standard library."""
    images = {}
    for path in sorted(shards_of.glob("*.tar")):
        with tarfile.open(path) as tar:
            images |= {m.name[:-4]: tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")}  # type: ignore[union-attr]
    return images


@pytest.mark.parametrize("to", EVERY)
def test_every_sample_is_in_it_once_with_its_stored_image(
    to: str, shards_of: Path, truth: dict[str, bytes], tmp_path: Path
) -> None:
    dataset = Dataset.open(shards_of)
    if to == "lance":
        pytest.importorskip("lance", reason="pylance is not installed")
    counts = export(dataset, to, tmp_path / "out", SPLITS)
    assert counts == dataset.manifest.samples
    exported = list(images(tmp_path / "out", to))
    assert len(exported) == len(truth)
    assert dict(exported) == truth
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp-")] == []


@pytest.mark.parametrize("to", sorted(set(EVERY) - {"lance"}))
def test_the_same_dataset_gives_the_same_bytes(to: str, shards_of: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(Dataset.open(shards_of), to, tmp_path / name)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b") != {}


def test_what_was_taken_down_is_in_no_export(
    synthetic_build: Any, shards_of: Path, truth: dict[str, bytes], tmp_path: Path
) -> None:
    """Also where the takedown has not reached the shards yet: STORE's list decides of the stream of all formats."""
    to = "hf"
    row = pq.read_table(next(shards_of.glob("train-*.parquet"))).to_pylist()[0]
    hashes = {"hashes": [sha256_hex(row["image_url"])]}
    synthetic_build.store.folder.write_json("forgotten/one.json", hashes)
    (shards_of.parent / "build.json").write_text(
        json.dumps({"version": build_json.VERSION, "store": synthetic_build.store.url})
    )
    counts = export(Dataset.open(shards_of), to, tmp_path / "out", SPLITS)
    assert sum(counts.values()) == len(truth) - 1
    assert dict(images(tmp_path / "out", to)) == {key: data for key, data in truth.items() if key != row["key"]}
    whole = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert row["key"].encode() not in whole


def test_a_copy_has_no_store_and_may_be_given_one(
    synthetic_build: Any, shards_of: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = pq.read_table(next(shards_of.glob("val-*.parquet"))).to_pylist()[0]
    store = synthetic_build.store.url
    build_json.note(synthetic_build)
    words = ["release", "copy", "synthetic", "--store", store, "--out", str(tmp_path / "copy")]
    assert cli.main(words) == 0
    synthetic_build.store.folder.write_json("forgotten/one.json", {"hashes": [row["sha256"]]})
    whole = export(Dataset.open(tmp_path / "copy"), "csv", tmp_path / "a")
    without = export(Dataset.open(tmp_path / "copy"), "csv", tmp_path / "b", store=store)
    assert whole["val"] - without["val"] == 1
    unchecked = "takedowns were not checked: a copy does not know its STORE; give --store DIR"
    for place, given, checked in (("copy", [], False), ("copy", ["--store", store], True)):
        capsys.readouterr()
        assert cli.main(["verify", str(tmp_path / place), "--json", *given]) == (1 if checked else 0)
        said = capsys.readouterr()
        assert json.loads(said.out.splitlines()[-1])["takedowns_checked"] is checked
        assert (unchecked in said.err) is not checked
    release_path = f"{store}/datasets/synthetic/latest.json"
    assert cli.main(["verify", release_path]) == 1
    assert "taken down, but still present" in capsys.readouterr().err
    assert export(Dataset.open(release_path), "csv", tmp_path / "c") == without, "a release lies in its STORE"


@pytest.mark.drill(4)
def test_a_release_of_several_builds_is_exported_as_one(weeks: Any, tmp_path: Path) -> None:
    for snapshot, pictures in (("2024-01-01", range(12)), ("2024-01-08", range(6, 20))):
        release.publish(weeks.build(snapshot, list(pictures)))
    counts = export(Dataset.open(f"{weeks.store}/datasets/weekly"), "csv", tmp_path / "out")
    assert sum(counts.values()) == 20
    assert len(list((tmp_path / "out/images").iterdir())) == 20


def test_only_the_splits_that_are_asked_for(shards_of: Path, tmp_path: Path) -> None:
    counts = export(Dataset.open(shards_of), "csv", tmp_path / "out", ["val"])
    assert counts == {"val": Dataset.open(shards_of).manifest.samples["val"]}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["images", "val.csv"]


def test_an_export_of_nothing_is_an_error(
    synthetic_build: Any, shards_of: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for path in shards_of.glob("val-*.parquet") for row in pq.read_table(path).to_pylist()]
    synthetic_build.store.folder.write_json("forgotten/all.json", {"hashes": [row["sha256"] for row in rows]})
    for to in ("hf", "csv"):
        words = ["export", str(shards_of), "--to", to, "--out", str(tmp_path / to), "--split", "val"]
        assert cli.main([*words, "--store", synthetic_build.store.url]) == 1
        assert "has no samples to export in val; choose other splits with --split" in capsys.readouterr().err
        assert not (tmp_path / to).exists()


def test_nothing_is_overwritten(shards_of: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(SpecError, match="already exists; delete it, or give"):
        export(Dataset.open(shards_of), "csv", tmp_path / "out")
    assert cli.main(["export", str(shards_of), "--to", "csv", "--out", str(tmp_path / "out")]) == 2
    assert "give another --out" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_export_that_fails_leaves_nothing(shards_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: ExportData, out: Path) -> dict[str, int]:
        (out / "half").write_text("".join(stored.key for stored in itertools.islice(source.of("train"), 3)))
        raise OSError(28, "No space left on device", "half")

    monkeypatch.setattr(exports, "find", lambda name: broken)
    with pytest.raises(OSError, match="No space left"):
        export(Dataset.open(shards_of), "csv", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build", "store"]


def test_where_it_goes_is_asked_for_where_there_is_no_folder(
    shards_of: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = str(shards_of / "manifest.json")
    assert cli.main(["export", manifest, "--to", "csv"]) == 2
    assert "--out DIR is required" in capsys.readouterr().err
    assert cli.main(["export", manifest, "--to", "csv", "--out", "s3://bucket/x"]) == 2
    assert "must be a local folder" in capsys.readouterr().err


def test_every_format_says_what_it_is() -> None:
    titles = exports.titles()
    assert list(titles) == EVERY
    assert all(title.endswith(".") and len(title) > 30 for title in titles.values())


def test_a_tar_that_ends_early_is_named(shards_of: Path, tmp_path: Path) -> None:
    tar = next(shards_of.glob("train-*.tar"))
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(Exception, match=rf"{tar.name}: truncated before the sample [0-9a-f]{{32}}"):
        export(Dataset.open(shards_of), "csv", tmp_path / "out")


def test_a_key_that_leads_out_of_the_export_is_refused(shards_of: Path, tmp_path: Path, edit: Any, reseal: Any) -> None:
    """A stranger's dataset, whose digests hold: what writes a file for each key must not write `../../x.jpg`."""

    def climb(rows: list[dict[str, Any]]) -> None:
        rows[0]["key"] = "../../climbed"

    for path in (shards_of / "train-000000.parquet", *shards_of.glob("regions/*/train-000000.parquet")):
        edit(path, climb)
    reseal(shards_of)
    with pytest.raises(Exception, match=r"\.\./\.\./climbed: not the key of a sample"):
        export(Dataset.open(shards_of), "csv", tmp_path / "a/b/out")
    assert not list(tmp_path.rglob("*climbed*"))


def test_an_empty_folder_may_be_named_by_a_link(shards_of: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    export(Dataset.open(shards_of), "csv", tmp_path / "link", ["val"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "linked/val.csv").is_file()


def test_a_folder_that_cannot_be_replaced_is_refused_before_anything_is_written(
    shards_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mounted", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mounted")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SpecError, match="mounted: is a mount point, which cannot be replaced; give a folder inside it"):
        export(Dataset.open(shards_of), "csv", tmp_path / "mounted")
    with pytest.raises(SpecError, match="is the current folder"):
        export(Dataset.open(shards_of), "csv", Path())
    assert not list((tmp_path / "here").iterdir())


def test_a_store_that_is_none_lets_no_export_pass(shards_of: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="mistyped: not a STORE"):
        export(Dataset.open(shards_of), "csv", tmp_path / "out", store=str(tmp_path / "mistyped"))
    assert not (tmp_path / "out").exists()


def test_what_is_taken_down_during_an_export_is_in_none(
    synthetic_build: Any, shards_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = synthetic_build.store, exports.find("csv")
    store.check()
    (shards_of.parent / "build.json").write_text(json.dumps({"version": build_json.VERSION, "store": store.url}))

    def while_somebody_forgets(source: ExportData, out: Path) -> Any:
        counts = write(source, out)
        store.folder.write_json("forgotten/one.json", {"hashes": ["f" * 64]})
        return counts

    with monkeypatch.context() as patch:
        patch.setattr(exports, "find", lambda _: while_somebody_forgets)
        with pytest.raises(StoreError, match="takedown happened during the export; run the same command again"):
            export(Dataset.open(shards_of), "csv", tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".tmp-", "out"))]
    export(Dataset.open(shards_of), "csv", tmp_path / "out")
