"""Plain webdataset tars, ours and those of others, read as a dataset."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data_specs.shard import ContractError
from training.data.batch_maker import choose_text
from training.data.index import open_dataset
from training.data.transforms import decode
from training.resolve import resolve

MakeShards = Callable[..., Path]


def test_plain_tars_give_the_same_images_and_texts_as_the_manifest(make_shards: MakeShards) -> None:
    manifest = make_shards(train=(7, 5))
    ours = open_dataset([str(manifest)], "train")
    plain = open_dataset([str(manifest.parent / "train-{000000..000001}.tar")], "train")
    assert len(plain) == len(ours) == 12
    for number in range(12):
        mine, theirs = ours.row(number), plain.row(number)
        assert ours.image(mine) == plain.image(theirs)
        assert [(t.kind, t.text) for t in mine.texts] == [(t.kind, t.text) for t in theirs.texts]
    only = open_dataset([str(manifest.parent / "train-000000.tar")], "dev", plain_tars=False)
    assert len(only) == 0


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_the_digest_is_that_of_images_and_texts_and_not_of_names(tmp_path: Path) -> None:
    def digest(folder: str, *texts: str, colour: int = 0) -> str:
        """Of a tar that img2dataset might have written: its name, and the keys in it, are those of any other."""
        png = io.BytesIO()
        Image.new("RGB", (8, 8), (colour, 0, 0)).save(png, "PNG")
        (tmp_path / folder).mkdir()
        with tarfile.open(tmp_path / folder / "00000.tar", "w") as tar:
            for number, text in enumerate(texts):
                _add(tar, f"{number:09d}.png", png.getvalue())
                _add(tar, f"{number:09d}.txt", text.encode())
        opened = open_dataset([str(tmp_path / folder)], "train", cache=tmp_path / "cache")
        (found,) = opened.content_digests
        return found

    first = digest("first", "山\n水", "云")
    assert digest("again", "山\n水", "云") == first
    others = [digest("text", "山\n水", "雨"), digest("image", "山\n水", "云", colour=9), digest("cut", "山", "水\n云")]
    assert len({first, *others}) == 4


def test_plain_tars_of_others_are_read(tmp_path: Path) -> None:
    png = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(png, "PNG")
    with tarfile.open(tmp_path / "x-0.tar", "w") as tar:
        _add(tar, "a/1.png", png.getvalue())
        _add(tar, "a/1.json", '{"caption": "红色小船"}'.encode())
        _add(tar, "2.png", png.getvalue())
        _add(tar, "2.txt", "山水".encode())
        _add(tar, "3.txt", b"no image")
        _add(tar, "4.png", png.getvalue())
    data = open_dataset([str(tmp_path / "x-0.tar")], "train")
    assert [(data.row(i).key, data.row(i).texts[0].text) for i in range(len(data))] == [
        ("a/1", "红色小船"),
        ("2", "山水"),
    ]
    assert bool((decode(data.image(data.row(0))) == 255).all())  # alpha lies on white


def test_a_cut_plain_tar_is_named(tmp_path: Path, make_shards: MakeShards) -> None:
    whole = (make_shards().parent / "train-000000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 77])
    with pytest.raises(ContractError, match=r"cut.tar: not a readable tar"):
        open_dataset([str(tmp_path / "cut.tar")], "train")
    with pytest.raises(ContractError, match=r"none.tar: no such file"):
        open_dataset([str(tmp_path / "none.tar")], "train")


def _png() -> bytes:
    png = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(png, "PNG")
    return png.getvalue()


def _sparse(name: str, size: int) -> bytes:
    """A member in GNU's old sparse format: 1 byte of data, and `size` bytes when it is read."""
    info = tarfile.TarInfo(name)
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (size - 512, 512)  # one entry: offset and length
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"x" * 512


@pytest.mark.parametrize("suffix", ["jpg", "json"])
def test_a_sparse_member_is_passed_over_and_takes_no_memory(tmp_path: Path, suffix: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        _add(tar, "a.png", _png())
        _add(tar, "a.txt", "山水".encode())
    whole = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(_sparse(f"b.{suffix}", 6 << 30) + whole)
    tracemalloc.start()
    data = open_dataset([str(tmp_path / "x.tar")], "train")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert [data.row(i).key for i in range(len(data))] == ["a"]
    (tmp_path / "only.tar").write_bytes(_sparse(f"b.{suffix}", 6 << 30) + bytes(1024))
    with pytest.raises(ContractError, match=r"only.tar: no sample with both"):
        open_dataset([str(tmp_path / "only.tar")], "train")


def _header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    header = bytearray(512)
    header[: len(name)], header[124 : 124 + len(size)], header[156:157] = name, size, kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


HUGE = b"\x80" + (2**62).to_bytes(11, "big")
BELOW = b"\xff" + (2**88 - 512).to_bytes(11, "big")  # -512: the next header would be this one
BROKEN = {
    "pax header of 4 EB": _header(b"p", HUGE, b"x"),
    "long name of 4 EB": _header(b"l", HUGE, b"L"),
    "member of 4 EB": _header(b"a.png", HUGE),
    "member of negative size": _header(b"a.png", BELOW),
    "folder of negative size": _header(b"a", BELOW, b"9"),
    "long names within each other": _header(b"l", b"00000000001\0", b"L").ljust(1024, b"\0") * 5000,
    "pax header of no sense": _header(b"p", b"00000000014\0", b"x") + b"12 size=9e9\n".ljust(512, b"\0"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.timeout(120)
def test_a_tar_of_hostile_headers_is_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.tar").write_bytes(BROKEN[kind] + bytes(1024))
    with pytest.raises(ContractError, match=r"x.tar: (not a readable tar|no sample)") as caught:
        open_dataset([str(tmp_path / "x.tar")], "train")
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(120)
def test_a_pipe_is_no_tar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(ContractError, match=r"x.tar: not a regular file"):
        open_dataset([str(tmp_path / "x.tar")], "train")
    (tmp_path / "y.tar").mkdir()
    with pytest.raises(ContractError, match=r"y.tar: not a regular file"):
        open_dataset([str(tmp_path / "y.tar")], "train")


SOUND = {"schema": 1, "candidate_id": "a" * 64, "source": "s", "source_kind": "news", "page_url": "", "image_url": ""}
SOUND |= {"sha256": "b" * 64, "width": 8, "height": 8}


@pytest.mark.parametrize(
    "record",
    [
        "[" * 100_000,
        '{"caption": ' + "9" * 5000 + "}",
        '{"caption": "\\ud83d"}',
        json.dumps(SOUND | {"texts": [{"kind": "alt", "text": 5}]}),
        json.dumps(SOUND | {"texts": []}),
        json.dumps(SOUND | {"texts": "no list"}),
        json.dumps(SOUND | {"texts": [], "schema": "x"}),
    ],
)
def test_a_json_of_no_sense_costs_its_own_sample_only(tmp_path: Path, record: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for key, text in (("a", record), ("b", '{"caption": "山水"}')):
            _add(tar, f"{key}.png", _png())
            _add(tar, f"{key}.json", text.encode())
    data = open_dataset([str(tmp_path / "x.tar")], "train")
    assert [data.row(i).key for i in range(len(data))] == ["b"]


def test_a_name_that_is_not_utf_8_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        _add(tar, "\xff.png", _png())
        _add(tar, "\xff.txt", "山水".encode())
    data = open_dataset([str(tmp_path / "x.tar")], "train")
    assert [data.row(i).key for i in range(len(data))] == ["\\xff"]


def _pair(tar: Path, key: str, text: bytes, name: str = "txt") -> None:
    with tarfile.open(tar, "a") as file:
        _add(file, f"{key}.png", _png())
        _add(file, f"{key}.{name}", text)


def _keys(*data: str) -> list[str]:
    dataset = open_dataset(data, "train")
    return [dataset.row(i).key for i in range(len(dataset))]


def test_tars_are_named_by_a_glob_by_braces_or_by_their_folder(tmp_path: Path) -> None:
    for number in (0, 1, 10):
        _pair(tmp_path / f"x-{number:02d}.tar", str(number), "山水".encode())
    (tmp_path / "x-00_stats.json").write_text("{}")
    (tmp_path / "x-00.parquet").write_bytes(b"")  # as img2dataset leaves them beside
    assert _keys(f"{tmp_path}/x-*.tar") == ["0", "1", "10"]
    assert _keys(f"{tmp_path}/x-0?.tar", f"{tmp_path}/x-1[0-9].tar") == ["0", "1", "10"]
    assert _keys(f"{tmp_path}/x-{{00,10}}.tar") == ["0", "10"]
    assert _keys(str(tmp_path)) == _keys(f"{tmp_path}/") == _keys(f"file://{tmp_path}/*.tar") == ["0", "1", "10"]
    odd = tmp_path / "a[1].tar"
    _pair(odd, "odd", "山水".encode())
    assert _keys(str(odd)) == ["odd"], "a file of that very name is no glob"
    with pytest.raises(ContractError, match=r"y-\*.tar: no file matches"):
        open_dataset([f"{tmp_path}/y-*.tar"], "train")
    with pytest.raises(ContractError, match=r"\*/manifest.json: a glob matches plain tars and must end in .tar"):
        open_dataset([f"{tmp_path}/*/manifest.json"], "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ContractError, match=r"empty: no manifest\.json there; give one, or its folder: a build has it once"
    ):
        open_dataset([str(tmp_path / "empty")], "train")


def test_a_folder_with_a_manifest_is_that_dataset_and_an_unpublished_build_is_none(make_shards: MakeShards) -> None:
    manifest = make_shards(train=(3,), val=(2,))
    assert len(open_dataset([str(manifest.parent)], "train")) == 3
    manifest.unlink()
    with pytest.raises(ContractError, match=r"belongs to an unpublished build \(manifest.json is missing\)"):
        open_dataset([str(manifest.parent)], "train")


def test_compressed_tars_are_refused_with_the_reason_by_name_in_a_folder_and_by_their_bytes(tmp_path: Path) -> None:
    _pair(tmp_path / "x.tar", "a", "山水".encode())
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "x.tar.gz").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    (tmp_path / "called.tar").write_bytes((packed / "x.tar.gz").read_bytes())
    for argument in (packed / "x.tar.gz", packed / "*.tar.gz", packed, tmp_path / "called.tar", "x-{0,1}.tgz"):
        with pytest.raises(
            ContractError, match=r": a compressed tar; decompress it first .* images are read by offset"
        ):
            open_dataset([str(argument)], "train")


def test_each_line_of_a_text_is_a_caption_and_the_text_choice_takes_one(tmp_path: Path) -> None:
    _pair(tmp_path / "x.tar", "a", "\ufeff红色小船\r\n\n山水\u2028画\n红色小船\n".encode())
    _pair(tmp_path / "x.tar", "b", json.dumps({"caption": ["飞鸟", " ", "白云"]}).encode(), "json")
    data = open_dataset([str(tmp_path / "x.tar")], "train")
    texts = [[(text.kind, text.text) for text in data.row(i).texts] for i in range(2)]
    assert texts == [
        [("caption", "红色小船"), ("caption", "山水\u2028画")],
        [("caption", "飞鸟"), ("caption", "白云")],
    ]
    first = resolve("tiny").data
    drawn = resolve("tiny", ['data.text_kinds={"library": {"caption": 1}}']).data
    assert {choose_text(data.row(1), first, 0, epoch).text for epoch in range(20)} == {"飞鸟"}
    assert {choose_text(data.row(1), drawn, 0, epoch).text for epoch in range(20)} == {"飞鸟", "白云"}


def test_links_in_a_tar_are_no_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        image = io.BytesIO()
        Image.new("RGB", (4, 4)).save(image, "JPEG")
        _add(tar, "a.jpg", image.getvalue())
        _add(tar, "a.txt", "云".encode())
        for kind, name, target in [
            (tarfile.SYMTYPE, "b.jpg", "/etc/passwd"),
            (tarfile.LNKTYPE, "b.txt", "/etc/passwd"),
            (tarfile.SYMTYPE, "c.txt", "a.txt"),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    data = open_dataset([str(tmp_path / "x.tar")], "train")
    assert [data.row(i).key for i in range(len(data))] == ["a"]


def test_a_tar_that_was_replaced_after_it_was_indexed_is_not_read_beside_its_old_index(make_shards: MakeShards) -> None:
    """Its pictures would be trained on with the texts of others."""
    old, new = (make_shards(train=(3,), name=n, first=f).parent / "train-000000.tar" for n, f in (("a", 0), ("b", 50)))
    dataset = open_dataset([str(old)], "train")
    row = dataset.row(0)
    first = dataset.image(row)
    dataset.close()
    assert dataset.image(row) == first
    dataset.close()
    length = max(old.stat().st_size, new.stat().st_size)
    new.write_bytes(new.read_bytes().ljust(length, b"\0"))
    new.replace(old)
    with pytest.raises(ContractError, match=r"after it was indexed; put the earlier file back and run the same"):
        dataset.image(row)
