"""Which samples a loader gives, in which order, and what it does with data that is broken."""

from __future__ import annotations

import io
import json
import logging
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from data_specs.shard import ContractError
from training.config import DataConfig
from training.data.colour import recolour
from training.data.index import Row, RowText, open_dataset
from training.data.batch_maker import short_id
from training.data.loader import Loader, Share
from training.data.text_choice import choose_text, is_boilerplate
from training.data.tokenizer import load_tokenizer
from training.data.transforms import UnreadableImage, decode, input_boxes, picture, square
from training.errors import ConfigError, RunError
from training.resolve import resolve

MakeShards = Callable[..., Path]
CONFIG = replace(resolve("tiny").data, window_shards=2)


def loader(manifest: Path, share: Share, *, train: bool = True, config: DataConfig = CONFIG, **more: Any) -> Loader:
    split = "train" if train else "val"
    data = open_dataset([str(manifest)], split, detector=config.detector)  # type: ignore[arg-type]
    return Loader(data, config, load_tokenizer("gb2312"), share, seed=3, train=train, **more)


def ids(source: Loader, start: int, stop: int) -> list[int]:
    return [int(i) for batch in source.batches(start, stop) for i in batch.sample_ids_B]


@pytest.mark.parametrize(("world", "accumulate", "workers"), [(1, 1, 2), (2, 1, 0), (3, 1, 0), (2, 3, 2), (1, 4, 0)])
def test_the_order_is_the_same_at_every_world_size_and_number_of_workers(
    make_shards: MakeShards, world: int, accumulate: int, workers: int
) -> None:
    manifest = make_shards(train=(7, 5, 9))
    expected = ids(loader(manifest, Share(12)), 0, 48)  # two epochs and more: batches straddle them
    config = replace(CONFIG, num_workers=workers)
    ranks = [loader(manifest, Share(12, rank, world, accumulate), config=config) for rank in range(world)]
    slices = zip(*(source.batches(0, 48) for source in ranks), strict=True)
    found = [int(i) for of_ranks in slices for batch in of_ranks for i in batch.sample_ids_B]
    assert found == expected
    assert Counter(expected[:21]).most_common(1)[0][1] == 1


def test_resume_gives_exactly_what_would_have_come(make_shards: MakeShards) -> None:
    manifest = make_shards()
    whole = list(loader(manifest, Share(6)).batches(0, 60))
    rest = list(loader(manifest, Share(6)).batches(36, 60))
    for before, after in zip(whole[6:], rest, strict=True):
        assert torch.equal(before.images_B3HW, after.images_B3HW)  # colours are changed alike, too
        assert torch.equal(before.token_ids_BL, after.token_ids_BL)
        assert torch.equal(before.sample_ids_B, after.sample_ids_B)


def test_evaluation_sees_every_sample_once_over_the_ranks_unchanged(make_shards: MakeShards) -> None:
    manifest = make_shards(val=(5, 6))
    data = open_dataset([str(manifest)], "val")
    batches = [b for rank in range(2) for b in loader(manifest, Share(8, rank, 2), train=False).once()]
    found = torch.cat([b.sample_ids_B for b in batches]).tolist()
    assert sorted(found) == sorted(short_id(data.row(i).candidate_id) for i in range(11))
    first = data.row(0)
    where = found.index(short_id(first.candidate_id))
    pixels = torch.cat([b.images_B3HW for b in batches])[where]
    assert torch.equal(pixels, square(decode(data.image(first)), CONFIG.image_size))


def test_a_batch_that_cannot_be_shared_is_named() -> None:
    with pytest.raises(ConfigError, match=r"run.batch_size: 8 cannot be shared by 3 ranks x 1"):
        Share(8, 0, 3)


def test_a_corrupt_sample_leaves_its_slot_and_is_named_once(
    make_shards: MakeShards, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make_shards(name="whole")
    hurt = make_shards(name="hurt", damage={4: b"\xff\xd8\xff\xe0 cut", 9: b"\xff\xd8"})
    source = loader(hurt, Share(7))
    expected = list(loader(whole, Share(7)).batches(0, 42))
    with caplog.at_level(logging.WARNING):
        found = list(source.batches(0, 42))
    assert sum(int((~b.valid_B).sum()) for b in found) == 4  # two samples, two epochs
    for before, after in zip(expected, found, strict=True):
        assert torch.equal(before.sample_ids_B, after.sample_ids_B)
        assert torch.equal(before.images_B3HW[after.valid_B], after.images_B3HW[after.valid_B])
        assert int(after.n_boxes_B.min()) >= 1
    assert source.corrupt == 2
    data = open_dataset([str(hurt)], "train")
    for number in (4, 9):
        assert sum(data.row(number).key in r.getMessage() for r in caplog.records) == 1


def test_too_many_corrupt_samples_are_all_named_and_stop_the_run_in_one_short_line(
    make_shards: MakeShards, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = make_shards(damage=dict.fromkeys((1, 2, 3), b"\xff\xd8 no"))
    keys = [open_dataset([str(manifest)], "train").row(n).key for n in (1, 2, 3)]
    with pytest.raises(RunError, match="3 corrupt samples, more than 2") as e:
        list(loader(manifest, Share(7), max_corrupt=2).batches(0, 21))
    assert f"3 of {manifest.parent}/train-000000.tar" in str(e.value)
    assert all(sum(key in record.getMessage() for record in caplog.records) == 1 for key in keys)


def test_a_cut_tar_is_named_at_the_start(make_shards: MakeShards) -> None:
    manifest = make_shards()
    tar = manifest.parent / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-2000])
    with pytest.raises(ContractError, match=r"train-000001.tar: \d+ bytes, the manifest says \d+") as e:
        open_dataset([str(manifest)], "train")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_tar_cut_while_it_is_read_stops_the_run_with_one_line(make_shards: MakeShards, workers: int) -> None:
    manifest = make_shards(train=(9,))
    source = loader(manifest, Share(9), config=replace(CONFIG, num_workers=workers))
    (manifest.parent / "train-000000.tar").write_bytes(b"")
    with pytest.raises(ContractError, match=r"train-000000.tar: ends before the image of") as e:
        list(source.batches(0, 9))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000000.parquet"])
def test_a_missing_file_is_named(make_shards: MakeShards, name: str) -> None:
    manifest = make_shards()
    (manifest.parent / name).unlink()
    with pytest.raises(ContractError, match=f"{name}: missing"):
        open_dataset([str(manifest)], "train")


def test_a_changed_parquet_is_named(make_shards: MakeShards) -> None:
    manifest = make_shards()
    shutil.copy(manifest.parent / "train-000001.parquet", manifest.parent / "train-000000.parquet")
    with pytest.raises(ContractError, match=r"train-000000.parquet: its sha256 is not"):
        open_dataset([str(manifest)], "train")


def test_a_newer_manifest_is_refused_with_the_way_out(make_shards: MakeShards) -> None:
    manifest = make_shards()
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"schema_version": 2}))
    with pytest.raises(ContractError, match=r"manifest.json: schema version 2 is newer .* pip install -U wenlan"):
        open_dataset([str(manifest)], "train")


def test_no_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"manifest.json: cannot be read"):
        open_dataset([str(tmp_path)], "train")


def test_a_manifest_cannot_point_outside(make_shards: MakeShards) -> None:
    manifest = make_shards()
    manifest.write_text(manifest.read_text().replace('"train-000000.tar"', '"../train-000000.tar"'))
    with pytest.raises(ContractError, match="leaves the shard folder"):
        open_dataset([str(manifest)], "train")


def test_regions_are_scaled_cut_and_followed_by_the_whole_image(make_shards: MakeShards) -> None:
    manifest = make_shards(detector="yolo")
    batch = next(loader(manifest, Share(4)).batches(0))
    scaled = torch.tensor([[0, 0, 32, 32], [16, 12.8, 64, 64], [0, 0, 64, 64]])  # 40x30 to 64x64
    assert torch.allclose(batch.boxes_BR4, scaled.expand(4, 3, 4))
    assert batch.n_boxes_B.tolist() == [3] * 4
    batch = next(loader(manifest, Share(4), config=replace(CONFIG, max_boxes=1)).batches(0))
    assert torch.allclose(batch.boxes_BR4, scaled[[0, 2]].expand(4, 2, 4))


def _replace_regions(manifest: Path, table: pa.Table) -> None:
    """Put other regions into the folder, with a manifest that vouches for them."""
    import hashlib

    path = manifest.parent / "regions/yolo/train-000000.parquet"
    pq.write_table(table, path)
    content = json.loads(manifest.read_text())
    digest = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    content["shards"][0]["regions"]["yolo"] |= digest
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize("column", ["key", "sha256"])
def test_regions_of_other_samples_stop_the_run(make_shards: MakeShards, column: str) -> None:
    manifest = make_shards(detector="yolo")
    table = pq.read_table(manifest.parent / "regions/yolo/train-000000.parquet")
    values = table[column].to_pylist()
    values[2] = "f" * len(values[2])
    changed = table.set_column(table.schema.get_field_index(column), column, pa.array(values))
    _replace_regions(manifest, changed)
    with pytest.raises(ContractError, match=f"regions/yolo/train-000000.parquet: row 2 has {column} ffff"):
        open_dataset([str(manifest)], "train")


def test_regions_of_fewer_rows_stop_the_run(make_shards: MakeShards) -> None:
    manifest = make_shards(detector="yolo")
    table = pq.read_table(manifest.parent / "regions/yolo/train-000000.parquet")
    _replace_regions(manifest, table.slice(1))
    with pytest.raises(ContractError, match="6 rows for a shard of 7 samples"):
        open_dataset([str(manifest)], "train")


def test_an_unknown_detector_is_named_with_those_there(make_shards: MakeShards) -> None:
    manifest = make_shards(detector="yolo")
    with pytest.raises(ContractError, match="no regions of detector 'rcnn'; it has: yolo"):
        open_dataset([str(manifest)], "train", detector="rcnn")


def test_without_regions_boxes_are_a_grid_and_that_is_said(
    make_shards: MakeShards, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        batch = next(loader(make_shards(), Share(4)).batches(0))
    assert batch.boxes_BR4[0].tolist() == [
        [0, 0, 32, 32],
        [32, 0, 64, 32],
        [0, 32, 32, 64],
        [32, 32, 64, 64],
        [0, 0, 64, 64],
    ]
    assert sum("grid" in record.getMessage() for record in caplog.records) == 1


def test_boxes_are_clipped_and_empty_ones_left_out() -> None:
    found = input_boxes([-5, 0, 20, 50, 10, 10, 10, 30], 40, 40, 80, 36)
    assert found.tolist() == [[0, 0, 40, 80], [0, 0, 80, 80]]


def _row(key: str, *kinds: str) -> Row:
    texts = tuple(RowText(kind, f"{kind}{i}", "") for i, kind in enumerate(kinds))
    return Row("x.tar", key, "", "news", 0, 0, texts, "", 0, 0, None)


def test_texts_are_taken_by_the_probabilities_of_the_source_kind() -> None:
    kinds = {"news": {"alt": 1.0, "surrounding": 3.0, "title": 5.0}, "wechat": {"alt": 1.0}}
    config = replace(CONFIG, text_kinds=kinds)
    rows = [_row(str(i), "alt", "surrounding", "surrounding", "content") for i in range(4000)]
    found = Counter(choose_text(row, config, 0, 0).text for row in rows)
    assert set(found) == {"alt0", "surrounding1", "surrounding2"}
    assert abs(found["alt0"] / 4000 - 0.25) < 0.03
    assert abs(found["surrounding1"] / 4000 - 0.375) < 0.03
    again = [choose_text(row, config, 0, 0) for row in rows]
    assert again == [choose_text(row, config, 0, 0) for row in rows]
    assert again != [choose_text(row, config, 0, 1) for row in rows]


@pytest.mark.parametrize("kinds", ["primary", {}, {"news": {"content": 1.0}}, {"wechat": {"title": 1.0}}])
def test_the_primary_text_is_taken_where_no_kind_fits(kinds: str | dict[str, dict[str, float]]) -> None:
    assert choose_text(_row("k", "alt", "title"), replace(CONFIG, text_kinds=kinds), 0, 0).text == "alt0"


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


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"text"])
def test_bytes_that_are_no_image_are_unreadable_in_the_same_words_each_time(data: bytes) -> None:
    words = set()
    for copy in (data, bytes(bytearray(data)) + b""):
        with pytest.raises(UnreadableImage) as e:
            decode(copy)
        words.add(str(e.value))
    assert len(words) == 1
    assert "0x" not in words.pop()


def test_pixels_are_those_of_pillow() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (320, 240), Image.Resampling.BICUBIC
    )
    data = io.BytesIO()
    smooth.save(data, "JPEG", quality=95)
    expected = np.asarray(Image.open(data).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR), dtype=float)
    found = square(decode(data.getvalue()), 64).permute(1, 2, 0).numpy().astype(float)
    assert np.abs(found - expected).mean() < 1.0


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_device_decodes_to_the_pixels_of_full_size_or_leaves_it_to_the_cpu(mode: str) -> None:
    """torchvision's decoder for a device, here for the CPU as a device: CUDA's has the same face."""
    data = io.BytesIO()
    Image.open(io.BytesIO(jpeg(300, 200))).convert(mode).save(data, "JPEG")
    image, *sides = picture(data.getvalue(), 64, device=torch.device("cpu"))
    assert sides == [300, 200]
    assert (image.int() - square(decode(data.getvalue()), 64).int()).abs().max() <= 1


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"GIF89a"])
def test_what_no_device_decodes_is_unreadable_in_the_words_of_the_cpu(data: bytes) -> None:
    said = []
    for device in (None, torch.device("cpu")):
        with pytest.raises(UnreadableImage) as e:
            picture(data, 64, device=device)
        said.append(str(e.value))
    assert said[0] == said[1]


def test_batches_of_a_device_are_those_of_the_cpu(make_shards: MakeShards) -> None:
    manifest = make_shards()
    there = loader(manifest, Share(4), decode_on=torch.device("cpu"))
    for mine, theirs in zip(there.batches(0, 12), loader(manifest, Share(4)).batches(0, 12), strict=True):
        assert torch.equal(mine.sample_ids_B, theirs.sample_ids_B)
        assert torch.equal(mine.boxes_BR4, theirs.boxes_BR4)
        assert (mine.images_B3HW.int() - theirs.images_B3HW.int()).abs().max() <= 2


def test_colours_follow_from_the_generator_alone() -> None:
    image = torch.arange(3 * 16 * 16, dtype=torch.uint8).reshape(3, 16, 16)

    def changed(seed: int, p_gray: float = 0.0) -> torch.Tensor:
        return recolour(image, (0.4, 0.4, 0.4, 0.1), 1.0, p_gray, torch.Generator().manual_seed(seed))

    assert torch.equal(changed(1), changed(1))
    assert not torch.equal(changed(1), changed(2))
    gray = changed(1, p_gray=1.0)
    assert torch.equal(gray[0], gray[1])
    assert gray.dtype == torch.uint8


def jpeg(width: int, height: int) -> bytes:
    """Smooth, with an edge at every 50 pixels."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    for at in range(0, width, 50):
        pixels.paste((at % 256, 90, 200), (at, 0, at + 9, height))
    data = io.BytesIO()
    pixels.save(data, "JPEG", quality=90)
    return data.getvalue()


@pytest.mark.parametrize(
    ("size", "near"), [((317, 1003), 1.0), ((256, 290), 1.0), ((1021, 773), 0.5), ((255, 640), 0.0), ((64, 64), 0.0)]
)
def test_a_large_picture_is_decoded_reduced_with_nearly_the_same_pixels(size: tuple[int, int], near: float) -> None:
    full, *sides = picture(jpeg(*size), 64, full=True)
    found, *same = picture(jpeg(*size), 64)
    assert tuple(sides) == tuple(same) == size
    assert full.shape == found.shape == (3, 64, 64)
    assert torch.equal(full, square(decode(jpeg(*size)), 64))
    difference = (full.float() - found.float()).abs().mean()
    assert (0 < difference < near) if near else not difference


def test_a_large_picture_that_ends_early_is_unreadable_as_a_small_one() -> None:
    with pytest.raises(UnreadableImage):
        picture(jpeg(1200, 900)[:-2000], 64)


@pytest.mark.parametrize("seed", range(20))
def test_colours_are_those_of_torchvision_on_floats(seed: int) -> None:
    """Its functions by the same draws; on uint8 it would round after each."""
    noise = torch.randint(0, 256, (3, 9, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    image = functional.resize(noise, [40, 48])
    image[:, :5] = image[:1, :5]  # pixels without a hue
    strength = (0.4, 0.4, 0.4, 0.1)
    draws = torch.rand(6, generator=(generator := torch.Generator().manual_seed(seed))).tolist()
    expected = image / 255
    for which in torch.randperm(4, generator=generator).tolist():
        name = ("brightness", "contrast", "saturation", "hue")[which]
        middle = 0.0 if name == "hue" else 1.0
        factor = middle + strength[which] * (2 * draws[1 + which] - 1)
        expected = getattr(functional, f"adjust_{name}")(expected, factor)
    found = recolour(image, strength, 1.0, 0.0, torch.Generator().manual_seed(seed))
    assert (found - 255 * expected).abs().max() < 0.51


def test_a_picture_whose_colours_stay_is_the_same() -> None:
    image = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    assert recolour(image, (0.4, 0.4, 0.4, 0.1), 0.0, 0.0, torch.Generator().manual_seed(1)) is image


def test_short_ids_are_the_first_64_bits_signed() -> None:
    assert short_id("ff" * 32) == -1
    assert short_id("00" * 7 + "01" + "ff" * 24) == 1


def test_unmasked_towers_get_every_text_padded_to_the_full_length(make_shards: MakeShards) -> None:
    share = Share(4)
    padded = next(loader(make_shards(), share, as_released=True).batches(0))
    plain = next(loader(make_shards(name="again"), share).batches(0))
    assert padded.token_ids_BL.shape == (4, CONFIG.max_tokens)
    length = plain.token_ids_BL.shape[1]
    assert length < CONFIG.max_tokens
    assert torch.equal(padded.token_ids_BL[:, :length], plain.token_ids_BL)
    assert not padded.token_ids_BL[:, length:].any()
    assert torch.equal(padded.n_tokens_B, plain.n_tokens_B)


@pytest.mark.parametrize("damage", [b"", b"ARROW1", b"x" * 500])
def test_a_damaged_index_in_the_cache_is_one_line(make_shards: MakeShards, tmp_path: Path, damage: bytes) -> None:
    manifest = make_shards(detector="tiles")
    for pattern, detector in (("*-*.arrow", "tiles"), ("[!-]" * 64 + ".v1.arrow", "grid")):
        data = open_dataset([str(manifest)], "train", detector=detector, cache=tmp_path / "index")
        data.row(0)
        broken = sorted((tmp_path / "index").glob(pattern))
        assert broken
        for path in broken:
            path.write_bytes(damage)
        with pytest.raises(ContractError, match=r"\.arrow: damaged index in the cache .*; remove it") as caught:
            open_dataset([str(manifest)], "train", detector=detector, cache=tmp_path / "index").row(0)
        assert "\n" not in str(caught.value)
        for path in broken:
            path.unlink()
        open_dataset([str(manifest)], "train", detector=detector, cache=tmp_path / "index").row(0)


def test_easy_and_first_are_made_of_the_surrounding_text() -> None:
    texts = (RowText("alt", "红船", "a"), RowText("surrounding", "山下有湖。" + "水" * 200, "s"))
    row = replace(_row("k"), texts=texts)

    def chosen(kind: str) -> RowText:
        return choose_text(row, replace(CONFIG, text_kinds={"news": {kind: 1.0}}), 0, 0)

    assert chosen("easy") == RowText("easy", "山下有湖。" + "水" * 123, "s")
    assert chosen("first") == RowText("first", "山下有湖", "s")
    with pytest.raises(ConfigError, match=r"data.text_kinds: unknown kind 'esay'; did you mean easy"):
        resolve("tiny", ['data.text_kinds={"news": {"esay": 1}}'])
    with pytest.raises(ConfigError, match=r"data.text_kinds: unknown kind 'new'; did you mean news"):
        resolve("tiny", ['data.text_kinds={"new": {"alt": 1}}'])


@pytest.mark.parametrize(
    "text", ["查看源网页", "图片来自网络", " 点击查看大图！", "IMG_1234.jpg", "000.jpg", "20240102", "…"]
)
def test_what_stands_under_any_picture_is_boilerplate(text: str) -> None:
    assert is_boilerplate(text)


@pytest.mark.parametrize("text", ["图片里的红船", "第3号展厅", "2008年奥运会", "IMG 海边的猫", "查看地图的游客"])
def test_what_tells_of_a_picture_is_not(text: str) -> None:
    assert not is_boilerplate(text)


def test_boilerplate_is_left_out_by_its_probability_unless_there_is_nothing_else() -> None:
    texts = (RowText("alt", "查看源网页", "a"), RowText("surrounding", "山下有湖", "s"))
    rows = [replace(_row(str(i)), texts=texts) for i in range(1000)]

    def share(dropout: float) -> float:
        found = [choose_text(row, replace(CONFIG, boilerplate_dropout=dropout), 0, 0).kind for row in rows]
        return found.count("surrounding") / 1000

    assert (share(0.0), share(1.0)) == (0.0, 1.0)
    assert abs(share(0.3) - 0.3) < 0.05
    assert choose_text(replace(rows[0], texts=texts[:1]), CONFIG, 0, 0).text == "查看源网页"


def test_weights_after_the_names_mix_datasets(make_shards: MakeShards) -> None:
    one, two = make_shards(train=(30,), name="one"), make_shards(train=(0, 40), name="two")
    data = open_dataset([f"{one}@3", str(two)], "train")
    assert data.weights == (3.0, 1.0)
    source = Loader(data, CONFIG, load_tokenizer("gb2312"), Share(64), seed=0, train=True)
    found = Counter(ids(source, 0, 640))  # the two share the samples 0 to 29
    only_second = {short_id(data.row(number).candidate_id) for number in range(60, 70)}
    assert {found[i] for i in only_second} == {4}
    assert source.epochs(640) == pytest.approx({"epoch": 640 / 70, "epoch.0": 480 / 30, "epoch.1": 160 / 40}, abs=0.1)
    assert open_dataset([str(one), str(two)], "train").weights == ()
    with pytest.raises(ConfigError, match="a weight of 0"):
        open_dataset([f"{one}@0"], "train")
