"""folder: a file appears whole or not at all, and a folder behind a URL is used like one on a disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_specs.storage.whole_files import sha256_of
from pipeline.errors import StoreError
from pipeline.files.folder import Folder, noted_in, place_in, place_of, read_url, root_of

names = st.sampled_from(["a", "b", "deep/c", "deep/d"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), names, st.binary(max_size=50)),
        st.tuples(st.just("take"), names, st.binary(max_size=50)),
        st.tuples(st.just("delete"), names, st.none()),
        st.tuples(st.just("move"), names, names),
    ),
    max_size=12,
)


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "it") if request.param == "disk" else f"memory://{tmp_path.name}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["disk", "memory"])
@given(steps=steps)
def test_a_folder_is_a_dictionary_of_files(
    tmp_path_factory: pytest.TempPathFactory, kind: str, steps: list[tuple[str, str, Any]]
) -> None:
    base = tmp_path_factory.mktemp("folder")
    folder = Folder(str(base / "it") if kind == "disk" else f"memory://{uuid.uuid4()}")
    files: dict[str, bytes] = {}
    for step, name, value in steps:
        if step == "write":
            folder.write(name, value)
            files[name] = value
        elif step == "take":
            (base / "local").write_bytes(value)
            folder.take(base / "local", name)
            files[name] = value
            assert not (base / "local").exists(), "it is moved, not copied"
        elif step == "delete":
            folder.delete(name)
            files.pop(name, None)
        elif name in files and name != value:
            folder.move(name, value)
            files[value] = files.pop(name)
        for known in ("a", "b", "deep/c", "deep/d"):
            assert folder.exists(known) == (known in files)
        for known, data in files.items():
            assert folder.read(known) == read_url(folder.at(known)) == data
            assert folder.read_range(known, 3, 10) == data[3:13]
            with folder.opened(known) as f:
                assert f.read() == data
            with folder.local(known) as path:
                assert path.read_bytes() == data
                assert sha256_of(path) == hashlib.sha256(data).hexdigest()
        assert {name for name in folder.names() if name != "deep"} == {name for name in files if "/" not in name}


def test_a_file_whose_making_fails_leaves_what_was_there_and_nothing_else(place: str) -> None:
    folder = Folder(place)
    folder.write("a", b"before")
    with contextlib.suppress(KeyError), folder.making("a") as f:
        f.write(b"half of")
        raise KeyError
    assert folder.read("a") == b"before"
    assert folder.names() == ["a"]


def test_a_link_that_leads_nowhere_is_named_with_its_target(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/nowhere/x")
    said = f"cannot be written ({tmp_path}/out is a link to /nowhere/x, which does not exist; "
    for folder in (Folder(str(tmp_path / "out")), Folder(str(tmp_path / "out/build"))):
        with pytest.raises(StoreError, match=re.escape(said)):
            folder.write("a", b"x")
        with pytest.raises(StoreError, match=re.escape(said)), folder.locked(0.0, lambda held: StoreError("", held)):
            pass


def test_what_cannot_be_read_is_named(place: str) -> None:
    folder = Folder(place)
    assert folder.names() == []
    with pytest.raises(StoreError, match=rf"{place}/none: cannot be read"):
        folder.read("none")
    with pytest.raises(StoreError, match=rf"{place}/none: cannot be read"), folder.opened("none"):
        pass
    with pytest.raises(FileNotFoundError):
        read_url(folder.at("none"))
    folder.write("odd.json", b"{")
    with pytest.raises(StoreError, match=r"odd\.json: invalid JSON"):
        folder.read_json("odd.json")
    folder.write_json("sound.json", {"字": [1, None]})
    assert folder.read_json("sound.json") == {"字": [1, None]}


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077, 0o027])
def test_files_have_the_mode_of_the_umask_and_private_ones_are_their_owners(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        folder = Folder(str(tmp_path))
        folder.write("open", b"x")
        (tmp_path / "scratch").write_bytes(b"x")
        folder.take(tmp_path / "scratch", "private", private=True)
        assert os.umask(umask) == umask, "asking changes nothing"
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"open": 0o666 & ~umask, "private": 0o600}


PARTS = st.lists(st.sampled_from(["a", "b", "link", "..", "c d"]), max_size=5)


@given(PARTS, PARTS)
def test_a_place_is_found_from_how_it_is_noted(
    tmp_path_factory: pytest.TempPathFactory, store: list[str], place: list[str]
) -> None:
    """Through links and `..` too; and below the root also after both were moved. Readers refuse notes with `..`."""
    base = tmp_path_factory.mktemp("places")
    (base / "a/b").mkdir(parents=True)
    (base / "link").symlink_to(base / "a/b")
    root = root_of("/".join((str(base), *store, "store")))
    url = "/".join((str(base), *place))
    noted = noted_in(root, url)
    assert place_of(place_in(root, noted)) == os.path.realpath(url)
    assert ".." not in noted.split("/")
    if f"{place_of(url)}/".startswith(f"{place_of(root)}/") and not noted.startswith("/"):
        assert place_in("/elsewhere", noted).startswith("/elsewhere")


def test_a_place_is_the_same_however_it_is_spelled_and_another_key_of_a_store_is_another(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    spelled = [f"{tmp_path}/real", f"{tmp_path}/link/", f"file://{tmp_path}/real", f"{tmp_path}/none/../real"]
    assert {place_of(url) for url in spelled} == {str((tmp_path / "real").resolve())}
    assert place_of("s3a://bucket/a/") == place_of("S3://bucket/a") == "s3://bucket/a"
    assert len({place_of(url) for url in ("s3://bucket/a/b", "s3://bucket/a//b", "s3://bucket/a/../b")}) == 3
