"""Region features of a split: those of the image tower, once, with what cannot be read left out."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from training.captions.regions import open_captioned
from training.errors import ConfigError, InputError
from training.weights.load import Loaded, load

pytestmark = pytest.mark.usefixtures("one_thread")

MakeShards = Callable[..., Path]


@pytest.fixture(scope="module")
def loaded(towers: Path) -> Loaded:
    return load(towers, "cpu")


def test_regions_are_what_the_mean_of_the_tower_is_of(loaded: Loaded, pictures: Path, tmp_path: Path) -> None:
    found = open_captioned(loaded, [f"folder:{pictures / 'test'}"], "val", tmp_path)
    assert found is not None
    assert len(found) == 8
    files = sorted((pictures / "test").glob("*.jpg"))
    images = [loaded.open_image(path, None) for path in files]
    batch = loaded.opened_batch(images)
    with torch.inference_mode():
        features = loaded.model.encode_image(batch)
    assert np.allclose(found.features_ND, features.numpy(), atol=1e-5)
    regions_BRW, present_BR = found.regions(range(8))
    head = loaded.model.image_query.trunk.head
    with torch.inference_mode():
        mean_BW = (regions_BRW * present_BR[..., None]).sum(1) / present_BR.sum(1, keepdim=True)
        again = torch.nn.functional.normalize(head.fc2(torch.relu(head.fc1(mean_BW))), dim=-1)
    assert torch.allclose(again, features, atol=5e-3), "float16 in the cache"
    assert found.captions == tuple(
        tuple(path.with_suffix(".txt").read_text(encoding="utf-8").split("\n")) for path in files
    )


def test_a_split_is_computed_once_for_a_checkpoint(
    loaded: Loaded, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [str(make_shards(train=(5,), dev=(3,)))]
    first = open_captioned(loaded, data, "train", tmp_path)
    monkeypatch.setattr(loaded.model.image_query, "seen_regions", None)  # whoever computes them again fails
    again = open_captioned(loaded, data, "train", tmp_path)
    assert first is not None
    assert again is not None
    assert np.array_equal(first.regions_NRW, again.regions_NRW)
    assert first.digest == again.digest
    with pytest.raises(TypeError):
        open_captioned(loaded, data, "dev", tmp_path)
    assert open_captioned(loaded, data, "val", tmp_path) is None


def test_what_cannot_be_read_is_left_out_with_its_captions(
    loaded: Loaded, make_shards: MakeShards, tmp_path: Path
) -> None:
    data = [str(make_shards(train=(4, 3), damage={1: b"\xff\xd8 no image", 5: b"\xff\xd8\xff"}))]
    found = open_captioned(loaded, data, "train", tmp_path)
    whole = open_captioned(loaded, [str(make_shards(train=(4, 3), name="whole"))], "train", tmp_path)
    assert found is not None
    assert whole is not None
    assert (found.corrupt, len(found), len(whole)) == (2, 5, 7)
    kept = [0, 2, 3, 4, 6]
    assert found.captions == tuple(whole.captions[number] for number in kept)
    assert np.allclose(found.features_ND, whole.features_ND[kept], atol=1e-5)
    nothing = [str(make_shards(train=(1,), name="nothing", damage={0: b"\xff\xd8 no image"}))]
    with pytest.raises(InputError, match=r"none of its images can be read \(1 tried\)$"):
        open_captioned(loaded, nothing, "train", tmp_path)


def test_the_primary_text_is_the_caption_where_no_text_is_one(
    loaded: Loaded, make_shards: MakeShards, tmp_path: Path
) -> None:
    found = open_captioned(loaded, [str(make_shards(train=(2,)))], "train", tmp_path)
    assert found is not None
    assert [len(captions) for captions in found.captions] == [1, 1]
    assert all(captions[0].endswith("图") for captions in found.captions), "its alt text"


def test_an_image_tower_without_regions_is_refused(
    loaded: Loaded, make_shards: MakeShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.model.image_query, "seen_regions", lambda batch: None)
    line = r"^image.encoder: cnn_regions does not compute regions, which a captioner needs$"
    with pytest.raises(ConfigError, match=line):
        open_captioned(loaded, [str(make_shards(train=(2,)))], "train", tmp_path)


def test_tars_of_the_same_names_are_not_taken_for_one_another(
    loaded: Loaded, make_shards: MakeShards, tmp_path: Path
) -> None:
    found = []
    for name, first in (("one", 0), ("other", 20)):
        folder = make_shards(train=(3,), name=name, first=first).parent
        with tarfile.open(folder / "train-000000.tar") as old, tarfile.open(folder / "00000.tar", "w") as plain:
            for number, member in enumerate(old.getmembers()):
                data = old.extractfile(member)
                member.name = f"{number // 3:09d}.{member.name.rpartition('.')[2]}"
                plain.addfile(member, data)
        found.append(open_captioned(loaded, [str(folder / "00000.tar")], "train", tmp_path))
    one, other = found
    assert one is not None
    assert other is not None
    assert one.captions != other.captions
    assert not np.array_equal(one.features_ND, other.features_ND)
    assert one.digest != other.digest


def test_what_a_killed_process_left_of_the_features_is_removed(
    loaded: Loaded, make_shards: MakeShards, tmp_path: Path
) -> None:
    data = [str(make_shards(train=(5,)))]
    first = open_captioned(loaded, data, "train", tmp_path)
    assert first is not None
    place = tmp_path / "captions"
    shutil.rmtree(place / first.digest)
    left = place / f".{first.digest}.4194305.tmp"  # of a process whose number no other has
    left.mkdir()
    (left / "regions.npy").write_bytes(bytes(1000))
    assert open_captioned(loaded, data, "train", tmp_path) is not None
    assert not left.exists()


@pytest.mark.parametrize("name", ["regions.npy", "about.json", "features.npy"])
def test_damaged_features_in_the_cache_are_one_line(
    name: str, loaded: Loaded, make_shards: MakeShards, tmp_path: Path
) -> None:
    data = [str(make_shards(train=(2,)))]
    first = open_captioned(loaded, data, "train", tmp_path)
    assert first is not None
    file = tmp_path / "captions" / first.digest / name
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"damaged features in the cache \(.*\); delete it and they are computed"):
        open_captioned(loaded, data, "train", tmp_path)
    shutil.rmtree(file.parent)
    assert open_captioned(loaded, data, "train", tmp_path) is not None
