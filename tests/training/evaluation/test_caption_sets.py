"""Caption sets as training data: packed once, dev images held out by their bytes, read as any tar."""

from __future__ import annotations

import io
import multiprocessing
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.index import open_dataset
from training.errors import ConfigError, InputError
from training.evaluation.caption_sets import DEV_EVERY, pack_caption_sets

IMAGES = 60


def picture(number: int, kind: str = "JPEG") -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((48, 40), Image.Resampling.NEAREST).save(data, kind)
    return data.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty pictures with two captions each, in three formats; the last two are the same picture."""
    root = tmp_path / "set"
    root.mkdir()
    for number in range(IMAGES):
        suffix, kind = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))[number % 3]
        (root / f"{number:02d}.{suffix}").write_bytes(picture(number, kind))
        (root / f"{number:02d}.txt").write_text(f"第{number}张图\n又一句{number}\n", encoding="utf-8")
    (root / "58.webp").unlink(missing_ok=True)
    (root / "58.png").unlink(missing_ok=True)
    (root / "58.jpg").write_bytes((root / "57.jpg").read_bytes())
    return root


def rows(data: list[str], cache: Path) -> dict[str, tuple[str, ...]]:
    """The captions of each image, by its sha256."""
    dataset = open_dataset(data, "train", cache=cache)
    found = [dataset.row(number) for number in range(len(dataset))]
    assert all(len(dataset.image(row)) == row.image_size for row in found)
    return {row.image_leader: tuple(text.text for text in row.texts) for row in found}


def test_every_image_is_in_train_or_in_dev_with_its_captions(folder: Path, tmp_path: Path) -> None:
    data, cache = [f"folder:{folder}"], tmp_path / "cache"
    train, dev = (
        rows(pack_caption_sets(data, "train", cache), cache),
        rows(pack_caption_sets(data, "dev", cache), cache),
    )
    assert len(train) + len(dev) == IMAGES - 1, "two are the same picture, and on one side"
    assert not train.keys() & dev.keys()
    assert 0 < len(dev) < 3 * IMAGES / DEV_EVERY
    first = {captions[0] for captions in (*train.values(), *dev.values())} - {"第57张图", "第58张图"}
    assert first == {f"第{number}张图" for number in range(IMAGES) if number not in (57, 58)}
    assert all(len(captions) == 2 for captions in train.values())
    assert len(rows(pack_caption_sets(data, "val", cache), cache)) == IMAGES - 1, "it has one split: all of it"


def test_a_set_is_packed_once_wherever_it_lies_and_anew_when_it_has_changed(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    [first] = pack_caption_sets([f"folder:{folder}"], "train", cache)
    made = Path(first).stat().st_mtime_ns
    moved = folder.rename(tmp_path / "elsewhere")
    assert pack_caption_sets([f"folder:{moved}"], "train", cache) == [first]
    assert Path(first).stat().st_mtime_ns == made
    (moved / "00.txt").write_text("第0张画\n又一句0\n", encoding="utf-8")
    assert pack_caption_sets([f"folder:{moved}"], "train", cache) != [first]


def test_other_data_stays_as_it_is_and_plain_tars_are_no_dev_split(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    [tar] = pack_caption_sets([f"folder:{folder}"], "train", cache)
    manifest = "s3://bucket/manifest.json@2"
    for weight in ("3", "0.00001", "1234567.5"):
        assert pack_caption_sets([f"folder:{folder}@{weight}"], "train", cache) == [f"{tar}@{weight}"]
    assert pack_caption_sets([manifest, tar, f"folder:{folder}@3"], "train", cache) == [manifest, tar, f"{tar}@3"]
    [first, dev] = pack_caption_sets([manifest, tar, f"folder:{folder}"], "dev", cache)
    assert (first, dev) == (manifest, tar.replace("-train.tar", "-dev.tar"))


def test_a_set_without_a_dev_image_has_no_dev_split(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    (root / "a.jpg").write_bytes(picture(1))
    (root / "a.txt").write_text("一张图\n", encoding="utf-8")
    assert len(pack_caption_sets([f"folder:{root}"], "train", tmp_path / "cache")) == 1
    assert pack_caption_sets([f"folder:{root}"], "dev", tmp_path / "cache") == []


def test_what_no_reader_knows_is_left_out_and_a_set_of_nothing_else_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "bitmaps"
    root.mkdir()
    (root / "a.bmp").write_bytes(picture(1, "BMP"))
    (root / "a.txt").write_text("一张图\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"no images with captions in the train split"):
        pack_caption_sets([f"folder:{root}"], "train", tmp_path / "cache")
    assert "a.bmp: not a JPEG, PNG or WebP" in caplog.text
    assert not list((tmp_path / "cache" / "sets").glob("*.tar"))


def test_a_picture_that_cannot_be_read_is_left_out_as_an_evaluation_does(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "03.jpg").unlink()
    os.mkfifo(folder / "03.jpg")
    (folder / "04.png").unlink()
    (folder / "04.png").symlink_to("nowhere.png")
    data, cache = [f"folder:{folder}"], tmp_path / "cache"
    train, dev = (
        rows(pack_caption_sets(data, "train", cache), cache),
        rows(pack_caption_sets(data, "dev", cache), cache),
    )
    assert len(train) + len(dev) == IMAGES - 3
    assert "03.jpg: not a regular file" in caplog.text.replace(f"{folder}/", "")
    assert "04.png: No such file or directory" in caplog.text


def test_a_folder_per_class_is_a_set_whose_captions_are_the_classes(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split in ("train", "test"):
        for number, name in enumerate(("猫", "狗")):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                (root / split / name / f"{i}.jpg").write_bytes(picture(10 * number + i))
    data, cache = [f"classes:{root}"], tmp_path / "cache"
    [tar] = pack_caption_sets(data, "test", cache)
    assert sorted(rows([tar], cache).values()) == [("狗",), ("狗",), ("猫",), ("猫",)]
    with tarfile.open(tar) as opened:
        assert {member.mtime for member in opened} == {0}
    with pytest.raises(ConfigError, match=r"does not have a val split; it has train, test"):
        pack_caption_sets(data, "val", cache)


@pytest.mark.slow
def test_a_command_that_is_killed_between_the_two_tars_leaves_none_that_lacks_the_other(
    folder: Path, tmp_path: Path
) -> None:
    data, cache, replace = [f"folder:{folder}"], tmp_path / "cache", Path.replace

    def killed(self: Path, target: Path) -> None:
        replace(self, target)
        os._exit(9)

    def run() -> None:
        Path.replace = killed  # type: ignore[method-assign,assignment]
        pack_caption_sets(data, "train", cache)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(240)
    assert process.exitcode == 9
    assert len(list((cache / "sets").glob("*.tar"))) == 1
    assert len(pack_caption_sets(data, "train", cache) + pack_caption_sets(data, "dev", cache)) == 2
