"""Members of a sample and the manifest: round trips, exact bytes, and one clear line for what is not ours."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.shard import (
    KEY_LENGTH,
    SCHEMA_VERSION,
    TEXT_KINDS,
    ContractError,
    FileDigest,
    Manifest,
    Sample,
    ShardFiles,
    SourceKind,
    Text,
    canonical_json,
    content_digest,
    decode_sample,
    encode_sample,
    parse_manifest,
    read_manifest,
    unsafe_place_reason,
)

JPEG = b"\xff\xd8\xff\xd9"
texts = st.text(min_size=1, max_size=20)
samples = st.builds(
    Sample,
    candidate_id=st.text("0123456789abcdef", min_size=64, max_size=64),
    source=texts,
    source_kind=st.sampled_from(get_args(SourceKind)),
    page_url=texts,
    image_url=texts,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    width=st.integers(1, 65_535),
    height=st.integers(1, 65_535),
    texts=st.lists(
        st.builds(Text, st.sampled_from(TEXT_KINDS), texts, st.just("") | texts), min_size=1, max_size=4
    ).map(tuple),
)


def _sample(**changes: Any) -> Sample:
    values: dict[str, Any] = {
        "candidate_id": "0123456789abcdef" * 4,
        "source": "handbook",
        "source_kind": "encyclopedia",
        "page_url": "https://example.org/页",
        "image_url": "https://example.org/a.png",
        "sha256": "f" * 64,
        "width": 3,
        "height": 2,
        "texts": (Text("alt", "番茄炒蛋"), Text("title", "做法")),
    }
    return Sample(**{**values, **changes})


@pytest.mark.slow
@given(samples)
def test_a_sample_comes_back_as_it_was(sample: Sample) -> None:
    members = dict(encode_sample(sample, JPEG))
    assert list(members) == [f"{sample.candidate_id[:KEY_LENGTH]}.{suffix}" for suffix in ("jpg", "txt", "json")]
    back = decode_sample(members[f"{sample.key}.json"], "x")
    normal = tuple(Text(t.kind, *(unicodedata.normalize("NFC", v) for v in (t.text, t.original))) for t in sample.texts)
    assert back == Sample(**{**{n: getattr(sample, n) for n in sample.__dataclass_fields__}, "texts": normal})
    assert members[f"{sample.key}.txt"].decode() == normal[0].text
    assert dict(encode_sample(back, JPEG)) == members, "encoding is canonical"


names = st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | names,
    lambda inner: st.dictionaries(names, inner, max_size=4) | st.lists(inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.slow
@given(values)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: Any) -> None:
    def turned(v: Any) -> Any:
        if isinstance(v, dict):
            return {k: turned(v[k]) for k in reversed(v)}
        return [turned(x) for x in v] if isinstance(v, list) else v

    assert canonical_json(turned(value)) == canonical_json(value)
    assert json.loads(canonical_json(value)) == value


def test_the_bytes_of_a_member_are_fixed() -> None:
    """A golden value: a change here changes every tar ever built and needs a new SCHEMA_VERSION."""
    members = encode_sample(_sample(), JPEG)
    assert [name for name, _ in members] == [f"{'0123456789abcdef' * 2}.{s}" for s in ("jpg", "txt", "json")]
    assert [data for _, data in members] == [
        JPEG,
        "番茄炒蛋".encode(),
        (
            '{"candidate_id":"' + "0123456789abcdef" * 4 + '","height":2,"image_url":"https://example.org/a.png",'
            '"page_url":"https://example.org/页","schema":1,"sha256":"' + "f" * 64 + '","source":"handbook",'
            '"source_kind":"encyclopedia","texts":[{"kind":"alt","text":"番茄炒蛋"},{"kind":"title","text":"做法"}],'
            '"width":3}'
        ).encode(),
    ]


def test_what_must_not_be_stored_is_refused_by_key() -> None:
    key = "0123456789abcdef" * 2
    with pytest.raises(ContractError, match=f"{key}: a sample needs at least one text"):
        encode_sample(_sample(texts=()), JPEG)
    with pytest.raises(ContractError, match=f"{key}: stored images are JPEG; got bytes 89504e47"):
        encode_sample(_sample(), b"\x89PNG")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "k.json: not a wenlan sample"),
        (b"[]", "k.json: not a wenlan sample"),
        (b"\xff", "k.json: not a wenlan sample"),
        (b'{"schema": 1}', "k.json: not a wenlan sample .*candidate_id"),
        (b'{"schema": 2}', r"k.json: schema 2 is newer than this wenlan reads \(1\)"),
    ],
)
def test_a_member_that_is_not_ours_is_named(data: bytes, said: str) -> None:
    with pytest.raises(ContractError, match=said):
        decode_sample(data, "k.json")


def test_additive_fields_keep_the_version() -> None:
    raw = json.loads(dict(encode_sample(_sample(), JPEG))[f"{_sample().key}.json"])
    assert decode_sample({**raw, "later": 1}, "x") == _sample()


def _manifest(**changes: Any) -> dict[str, Any]:
    file = {"path": "train-000000.tar", "bytes": 1, "sha256": "a" * 64}
    shard = {"split": "train", "samples": 1, "tar": file, "parquet": {**file, "path": "train-000000.parquet"}}
    return {
        "schema_version": SCHEMA_VERSION,
        "build_id": "b",
        "spec_digest": "d",
        "content_digest": "c",
        "created_at": "2024-01-01T00:00:00Z",
        "samples": {"train": 1},
        "detectors": [],
        "shards": [shard],
        **changes,
    }


def test_a_manifest_reads_back_with_fields_of_the_future(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(_manifest(later={"x": 1})), encoding="utf-8")
    manifest = read_manifest(tmp_path)
    assert manifest == read_manifest(tmp_path / "manifest.json")
    assert [shard.tar.path for shard in manifest.of_split("train")] == ["train-000000.tar"]
    assert manifest.of_split("val") == ()
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "{",
            "m.json: not a JSON manifest (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        ),
        ("[]", "m.json: schema_version is missing; is this a wenlan manifest.json?"),
        (
            json.dumps(_manifest(schema_version=SCHEMA_VERSION + 1)),
            "m.json: schema version 2 is newer than this wenlan reads (1); upgrade wenlan",
        ),
        (json.dumps({**_manifest(), "shards": [{"split": "train"}]}), "m.json: shards.0.samples: Field required"),
    ],
)
def test_a_manifest_that_cannot_be_used_gives_one_line(text: str, line: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_manifest(text, "m.json")
    assert str(caught.value) == line


def test_a_copy_of_a_release_with_other_folders_has_its_shards_there() -> None:
    build = {"build_id": "b", "revision": 0, "snapshot": "1", "folder": "/builds/b", "spec_digest": "", "samples": {}}
    file = {"path": "train-000000.tar", "bytes": 1, "sha256": "0"}
    shard = {"split": "train", "samples": 1, "tar": file, "parquet": file, "build": "b"}
    release = Manifest.model_validate(_manifest(builds=[{**build, "content_digest": ""}], shards=[shard]))
    assert release.folder_of(release.shards[0], "/datasets") == "/builds/b"
    moved = release.model_copy(update={"builds": (release.builds[0].model_copy(update={"folder": "b"}),)})
    assert moved.folder_of(moved.shards[0], "/copied") == "/copied/b"


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"manifest\.json: cannot be read \(No such file or directory\)"):
        read_manifest(tmp_path / "manifest.json")


def test_the_content_digest_is_over_the_tars_alone() -> None:
    def shard(name: str, tar: str, index: str) -> ShardFiles:
        files = {s: FileDigest(path=f"{name}.{s}", bytes=1, sha256=d) for s, d in (("tar", tar), ("parquet", index))}
        return ShardFiles(split="train", samples=1, **files)

    a, b = shard("train-000000", "1" * 64, "2" * 64), shard("train-000001", "3" * 64, "4" * 64)
    assert content_digest([a, b]) == content_digest([b, a])
    assert content_digest([a, b]) == content_digest([a, shard("train-000001", "3" * 64, "5" * 64)])
    assert content_digest([a, b]) != content_digest([a, shard("train-000001", "6" * 64, "4" * 64)])


def test_the_original_of_a_rewritten_text_is_in_the_json_only_where_there_is_one():
    sample = _sample(texts=(Text("alt", "台湾", "臺灣"), Text("title", "做法")))
    members = dict(encode_sample(sample, JPEG))
    assert json.loads(members[f"{sample.key}.json"])["texts"] == [
        {"kind": "alt", "text": "台湾", "original": "臺灣"},
        {"kind": "title", "text": "做法"},
    ]
    assert members[f"{sample.key}.txt"].decode() == "台湾"


_HOSTILE_JSON = [b"[" * 100_000, b'{"schema": ' * 100_000, b'{"schema": ' + b"9" * 5000 + b"}"]
_HOSTILE_JSON += [b'{"schema_version": ' + b"9" * 5000 + b"}", b"\xff\xfe\x00", b'{"schema_version": 1e999}']


@pytest.mark.parametrize("data", _HOSTILE_JSON, ids=lambda data: data[:24].decode("latin-1"))
def test_json_that_python_refuses_to_read_is_a_contract_error(data: bytes) -> None:
    """Deep nesting is a RecursionError of `json`, a number of more than 4,300 digits a plain ValueError."""
    with pytest.raises(ContractError, match=r"^m\.json: "):
        parse_manifest(data, "m.json")
    with pytest.raises(ContractError, match=r"^k\.json: "):
        decode_sample(data, "k.json")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["schema", "schema_version", "texts", "kind", "text", "candidate_id", "shards"]), inner
        )
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(st.binary(max_size=60) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_read_or_a_contract_error(data: bytes) -> None:
    for read in (parse_manifest, decode_sample):
        assert re.match(r"(m\.json: .|$)", fault_of(read, data))


def fault_of(read: Callable[[bytes, str], object], data: bytes) -> str:
    """The contract error of reading m.json; empty without one."""
    try:
        read(data, "m.json")
    except ContractError as e:
        return str(e)
    return ""


@pytest.mark.parametrize(
    "place",
    [
        "http://inside.example/x",
        "FTPS://inside.example/x",
        "sftp://inside.example/x",
        "ssh://inside.example/x",
        "smb://inside.example/x",
        "hf://datasets/some/body",
        "dask://x",
        "hdfs://other.example:9000/x",
        "simplecache::sftp://inside.example/x",
        "zip://a.tar::s3://bucket/a.zip",
        "github::/x",
    ],
)
def test_a_release_leads_to_no_server_that_fsspec_would_open(place: str) -> None:
    """A list of what is forbidden lacked most of them."""
    assert "a release may only refer to disks, object stores (" in unsafe_place_reason(
        place, "hdfs://own.example:9000/store/latest.json"
    )


@pytest.mark.parametrize(
    ("place", "manifest"),
    [
        ("/builds/1", "/store/latest.json"),
        ("file:///builds/1", "/store/latest.json"),
        ("builds/1/shards", "/copy/manifest.json"),
        ("s3://bucket/builds/1", "/store/latest.json"),
        ("gs://bucket/builds/1", "s3://bucket/latest.json"),
        ("abfss://box@account.example/1", "/store/latest.json"),
        ("oci://bucket@namespace/1", "oci://other@namespace/latest.json"),
        ("tos://bucket/1", "/store/latest.json"),
        ("simplecache::s3://bucket/1", "/store/latest.json"),
        ("https://data.example/1", "https://data.example/latest.json"),
        ("hdfs://own.example:9000/1", "hdfs://own.example:9000/store/latest.json"),
    ],
)
def test_a_release_leads_to_disks_object_stores_and_its_own_server(place: str, manifest: str) -> None:
    assert unsafe_place_reason(place, manifest) == ""


@pytest.mark.parametrize(
    ("folder", "base", "place"),
    [
        ("/builds/1/shards", "/store/datasets/a", "/builds/1/shards"),
        ("1", "/copy", "/copy/1"),
        ("../../../builds/1", "/data/store/datasets/a", "/data/builds/1"),
        ("../../../builds/1", "/store/datasets/a", "/builds/1"),
        ("../../../builds/1", "s3://bucket/x/store/datasets/a", "s3://bucket/x/builds/1"),
        ("../../../builds/1", "s3://bucket/store/datasets/a", "s3://bucket/builds/1"),
        ("../../../builds/1", "s3://bucket/datasets/a", "s3://bucket/builds/1"),
        ("", "/copy", ""),
    ],
)
def test_a_release_names_places_relative_to_itself(folder: str, base: str, place: str) -> None:
    build = {"build_id": "b", "revision": 0, "snapshot": "1", "spec_digest": "", "samples": {}, "content_digest": ""}
    text = json.dumps(_manifest(builds=[{**build, "folder": folder, "out": folder}]))
    [own] = parse_manifest(text, f"{base}/000001.json").builds
    assert (own.folder, own.out) == (place, place)


@pytest.mark.parametrize(
    ("folder", "manifest"),
    [
        ("../other", "/copy/manifest.json"),
        ("../../../builds/1", "/copy/manifest.json"),
        ("../../../../etc", "/data/store/datasets/a/000001.json"),
        ("../../../b/../../etc", "/data/store/datasets/a/000001.json"),
    ],
)
def test_a_relative_place_leads_out_of_no_copy_and_not_above_the_folder_of_store(folder: str, manifest: str) -> None:
    assert "which is outside its folder" in unsafe_place_reason(folder, manifest)
