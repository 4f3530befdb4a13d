"""Plain webdataset tars, ours and those of others, read as a dataset."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data_specs.shard import ContractError
from training.data.index import open_dataset
from training.data.transforms import decode

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
