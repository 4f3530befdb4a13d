"""Released weights in and out, against the release written plainly (tests/benchmarks/released.py)."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.training.conftest import BERT
from training import cli
from training.config import Config
from training.errors import CheckpointError
from training.moco import BriVL
from training.outputs.checkpoint import open_checkpoint
from training.records import Batch
from training.resolve import resolve
from training.use.export import export
from training.use.indexing import Inputs, embed_parquet
from training.weights.load import load
from training.weights.released import import_brivl, recognise, slots_of

pytestmark = pytest.mark.slow

State = dict[str, Tensor]
Arrays = dict[str, np.ndarray[Any, Any]]

SMALL = (*BERT, "image.frozen_stages=4", "image.layers=2", "data.image_size=96")


def small(*overrides: str) -> Config:
    """The released layout (what is frozen, what is trained) at a size for tests."""
    return resolve("tiny", [*SMALL, *overrides])


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    path = tmp_path / "vocab.txt"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(chr(0x4E00 + i) for i in range(55)), "##x"]
    path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return str(path)


def disturbed(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every tensor moved, so that key towers differ everywhere and no statistic is 0 or 1."""
    generator = torch.Generator().manual_seed(7)
    noise = 0.02 * torch.randn(100_003, generator=generator)
    for number, parameter in enumerate(model.parameters()):
        begin, count = 997 * number % 50_000, parameter.numel()  # each begins elsewhere in it
        source = noise if count < 50_000 else noise.repeat(count // len(noise) + 2)
        parameter.data += source[begin : begin + count].view(parameter.shape)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer += 0.1 * torch.rand(buffer.shape, generator=generator)
    return model.eval()


@pytest.fixture
def theirs(released_model: ModuleType) -> Any:
    torch.manual_seed(0)
    return disturbed(released_model.ReleasedBriVL(small()))


@pytest.fixture
def state(theirs: Any) -> State:
    return {name: tensor.clone() for name, tensor in theirs.learnable.state_dict().items()}


def saved(state: object, path: Path, **options: Any) -> Path:
    torch.save({"learnable": state}, path, **options)
    return path


def ready(size: int, vocab: int, boxes: int = 4, length: int = 11) -> Arrays:
    """Inputs of the towers: boxes from one to all, some beyond the right edge's last cell, texts of many lengths."""
    generator = torch.Generator().manual_seed(1)
    count = 5
    corners = torch.rand(count, boxes, 2, 2, generator=generator) * size
    boxes_BR4 = torch.cat([corners.amin(2), corners.amax(2)], -1)
    boxes_BR4[:, 0, 2:] = size
    n_boxes = torch.linspace(1, boxes, count).long()
    ids = torch.randint(4, vocab, (count, length), generator=generator)
    n_tokens = torch.linspace(length, 2, count).long()
    for row in range(count):
        boxes_BR4[row, n_boxes[row] - 1] = torch.tensor([0.0, 0.0, size, size])
        boxes_BR4[row, n_boxes[row] :] = 0
        ids[row, n_tokens[row] :] = 0
    images = torch.randn(count, 3, size, size, generator=generator)
    named = {"images": images, "boxes": boxes_BR4, "n_boxes": n_boxes, "input_ids": ids, "n_tokens": n_tokens}
    return {name: tensor.numpy() for name, tensor in named.items()}


def features_of_the_release(model: Any, arrays: Arrays) -> tuple[Any, Any]:
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with torch.no_grad():
        image = model.encode_image(given["images"], given["boxes"], given["n_boxes"])
        text = model.encode_text(given["input_ids"], given["n_tokens"])
    return image.numpy(), text.numpy()


def embedded(checkpoint: Path, arrays: Arrays) -> Arrays:
    """Features by a checkpoint, of normalised pixels and token ids."""
    given, loaded = {name: torch.from_numpy(array) for name, array in arrays.items()}, load(checkpoint, "cpu")
    pictures = Batch.of(images_B3HW=given["images"], boxes_BR4=given["boxes"], n_boxes_B=given["n_boxes"])
    texts = Batch.of(token_ids_BL=given["input_ids"], n_tokens_B=given["n_tokens"])
    with torch.inference_mode():
        image, text = loaded.model.encode_image(pictures), loaded.model.encode_text(texts)
    return {"image_features": image.float().numpy(), "text_features": text.float().numpy()}


def test_imported_weights_give_the_released_features(
    theirs: Any, state: State, tmp_path: Path, vocabulary: str
) -> None:
    read = import_brivl(saved(state, tmp_path / "a.pth"), tmp_path / "ck", config=small(), tokenizer=vocabulary)
    assert (read["compat"], read["key_towers"], read["tensors"]) == ("brivl-1.0", True, len(state))
    arrays = ready(96, 60)
    image, text = features_of_the_release(theirs, arrays)
    found = embedded(tmp_path / "ck", arrays)
    np.testing.assert_allclose(found["image_features"], image, atol=1e-5)
    np.testing.assert_allclose(found["text_features"], text, atol=1e-5)
    assert found["image_features"].dtype == np.float32


def test_without_compat_the_same_weights_give_other_features(
    theirs: Any, state: State, tmp_path: Path, vocabulary: str
) -> None:
    """Faults 2 and 3: what compat switches is what tells the two apart, so the test above could not pass by chance."""
    import_brivl(saved(state, tmp_path / "a.pth"), tmp_path / "ck", config=small(), tokenizer=vocabulary)
    opened = open_checkpoint(tmp_path / "ck")
    model = BriVL(replace(opened.config, compat=""), load_weights=False).eval()
    opened.load_towers(model)
    arrays = ready(96, 60)
    image, text = features_of_the_release(theirs, arrays)
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    from training.records import Batch

    images = Batch.of(images_B3HW=given["images"], boxes_BR4=given["boxes"], n_boxes_B=given["n_boxes"])
    texts = Batch.of(token_ids_BL=given["input_ids"], n_tokens_B=given["n_tokens"])
    assert np.abs(model.encode_image(images).numpy() - image).max() > 1e-4
    padded = given["n_tokens"].numpy() < given["input_ids"].shape[1]
    difference = np.abs(model.encode_text(texts).numpy() - text).max(1)
    assert (difference[padded] > 1e-4).all()
    assert (difference[~padded] < 1e-5).all()


def test_released_rows_are_read_as_the_release_reads_them(
    theirs: Any, state: State, tmp_path: Path, vocabulary: str
) -> None:
    """Boxes cut to the first, scaled, neither clipped nor dropped, the whole image last; texts padded to the full."""
    import_brivl(saved(state, tmp_path / "a.pth"), tmp_path / "ck", config=small(), tokenizer=vocabulary)
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxes = [[-5, 10, 150, 90], [20, 20, 20, 20], [0, 3, 96, 50], [7, 8, 30, 31], [1, 1, 90, 90]]
    row = {"image_id": "a.png", "sentences": [["sur_text", "一丁。"]], "bbox": boxes}
    one = {**row, "bbox": boxes[:1]}
    (tmp_path / "r.jsonl").write_text("\n".join(json.dumps(r) for r in (row, one)), encoding="utf-8")
    rows = Inputs(jsonl=str(tmp_path / "r.jsonl"), text_kind="first")
    embed_parquet(tmp_path / "ck", rows, tmp_path / "f.parquet", device="cpu")
    table = pq.read_table(tmp_path / "f.parquet")

    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image_3SS = ((pixels.transpose(2, 0, 1) / 255 - mean) / std).astype(np.float32)
    whole, none = [0, 0, 96, 96], [0, 0, 0, 0]
    ids = [2, 4, 5, 3] + [0] * 12
    arrays = {
        "images": np.stack([image_3SS] * 2),
        "boxes": np.array([[*boxes[:4], whole], [boxes[0], whole, none, none, none]], dtype=np.float32),
        "n_boxes": np.array([5, 2]),
        "input_ids": np.array([ids] * 2),
        "n_tokens": np.array([4, 4]),
    }
    image, text = features_of_the_release(theirs, arrays)
    np.testing.assert_allclose(np.array(table["image_features"].to_pylist()), image, atol=1e-5)
    np.testing.assert_allclose(np.array(table["text_features"].to_pylist()), text, atol=1e-5)


@pytest.mark.parametrize(
    ("prefix", "options"),
    [("", {}), ("module.", {"_use_new_zipfile_serialization": False})],
    ids=["zip", "DataParallel, legacy"],
)
def test_import_and_export_give_back_every_bit(
    state: State, tmp_path: Path, vocabulary: str, prefix: str, options: dict[str, Any]
) -> None:
    state["textencoder.backbone.bert.embeddings.position_ids"] = torch.arange(64)[None]
    state["imgencoder_mom.backbone.bn1.bias"] = -torch.zeros_like(state["imgencoder_mom.backbone.bn1.bias"])
    state["imgencoder.backbone.bn1.bias"] = torch.zeros_like(state["imgencoder.backbone.bn1.bias"])
    file = saved({f"{prefix}{name}": tensor for name, tensor in state.items()}, tmp_path / "a.pth", **options)
    import_brivl(file, tmp_path / "ck", config=small(), tokenizer=vocabulary)
    written = export(tmp_path / "ck", "brivl-1.0", tmp_path / "b.pth")
    back = torch.load(tmp_path / "b.pth", weights_only=True)
    assert list(back) == ["learnable"]
    assert back["learnable"].keys() == state.keys()
    assert written["tensors"] == len(state)
    for name, tensor in state.items():
        found = back["learnable"][name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert found.numpy().tobytes() == tensor.contiguous().numpy().tobytes(), name


def test_a_file_of_query_towers_only_says_so_and_stays_one(
    state: State, tmp_path: Path, vocabulary: str, caplog: pytest.LogCaptureFixture
) -> None:
    query = {name: tensor for name, tensor in state.items() if "_mom." not in name}
    file = saved(query, tmp_path / "a.pth")
    read = import_brivl(file, tmp_path / "ck", config=small(), tokenizer=vocabulary)
    assert not read["key_towers"]
    assert f"{file}: no key towers in it; they start as copies of the query towers" in caplog.text
    export(tmp_path / "ck", "brivl-1.0", tmp_path / "b.pth")
    assert torch.load(tmp_path / "b.pth", weights_only=True)["learnable"].keys() == query.keys()


def test_training_goes_on_from_it_with_its_key_towers_and_empty_queues(
    state: State, tmp_path: Path, vocabulary: str
) -> None:
    import_brivl(saved(state, tmp_path / "a.pth"), tmp_path / "ck", config=small(), tokenizer=vocabulary)
    opened = open_checkpoint(tmp_path / "ck")
    model = BriVL(opened.config, load_weights=False)
    opened.load_start(model)
    found = model.state_dict()
    for ours, their_name in (
        ("image_query.trunk.head.fc1.weight", "imgencoder.learnable.imgFC.fc1.weight"),
        ("image_key.head.fc1.weight", "imgencoder_mom.learnable.imgFC.fc1.weight"),
        ("image_key.backbone.blocks_3.0.bn1.running_var", "imgencoder_mom.backbone.blocks.3.0.bn1.running_var"),
        (
            "text_key.backbone.layer.0.output.dense.bias",
            "textencoder_mom.backbone.bert.encoder.layer.2.output.dense.bias",
        ),
    ):
        assert torch.equal(found[ours], state[their_name]), ours
    assert not model.image_queue.filled_K.any()
    assert not model.text_queue.filled_K.any()


@pytest.mark.drill(3)
def test_fit_obeys_the_compat_of_what_it_begins_from(
    state: State, tmp_path: Path, vocabulary: str, make_shards: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    import_brivl(saved(state, tmp_path / "a.pth"), tmp_path / "ck", config=small(), tokenizer=vocabulary)
    manifest = make_shards(train=(8,), val=(4,))
    fit = ["fit", "--recipe", "tiny", "--data", str(manifest), "--out", str(tmp_path / "run"), "--json"]
    fit += ["--init", str(tmp_path / "ck"), "--set", f"data.tokenizer={vocabulary}", "--set", "run.epochs=1"]
    for override in (*SMALL, "moco.queue_size=8", "moco.prefill=false", "optim.lr=1e-9"):
        fit += ["--set", override]
    assert cli.main(fit) == 0
    out, err = capsys.readouterr()
    assert "compat is 'brivl-1.0', and this run keeps it" in err
    opened = open_checkpoint(Path(json.loads(out)["checkpoint"]))
    assert opened.config.compat == "brivl-1.0"
    assert int(opened.tensors("queues.safetensors")["image_queue.filled_K"].sum()) == 8  # of this run only
    assert cli.main(fit) == 0  # the same command goes on, here at its end


@pytest.mark.parametrize("recipe", ["brivl_b5_base", pytest.param("brivl_b7_large", marks=pytest.mark.drill(5))])
def test_the_recipe_is_recognised_by_the_shapes(recipe: str, released_model: ModuleType) -> None:
    with torch.device("meta"):
        state = released_model.ReleasedBriVL(resolve(recipe)).learnable.state_dict()
    config, slots = recognise(Path("x"), state)
    assert config.recipe == recipe
    assert {n: (tuple(t.shape), t.dtype) for n, t in state.items()} == {
        n: (s.shape, s.dtype) for n, s in slots.items() if not s.optional
    }


def test_b5_base_has_the_keys_and_shapes_of_the_released_checkpoint() -> None:
    """The digest is of the list `key, shape, type` of the released file's query towers, sorted."""
    slots = slots_of(resolve("brivl_b5_base"))
    query = {n: s for n, s in slots.items() if "_mom." not in n and not s.optional}
    lines = [
        f"{name}\t{'x'.join(map(str, s.shape)) or 'scalar'}\t{str(s.dtype).removeprefix('torch.')}\n"
        for name, s in sorted(query.items())
    ]
    assert len(lines) == 1159
    assert (
        hashlib.sha256("".join(lines).encode()).hexdigest()
        == "cae90ed4e55db48df3fb663c25f80522177cc5bbe294e4fbbf9bf39e08ab3320"
    )


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def _code(state: State, path: Path) -> None:
    torch.save({"learnable": {**state, "x": _Payload(path.with_name("ran"))}}, path)


def _code_legacy(state: State, path: Path) -> None:
    saved({**state, "x": _Payload(path.with_name("ran"))}, path, _use_new_zipfile_serialization=False)


def _plain_pickle(state: State, path: Path) -> None:
    path.write_bytes(pickle.dumps({"learnable": _Payload(path.with_name("ran"))}, protocol=4))


def _cut(state: State, path: Path) -> None:
    saved(state, path)
    path.write_bytes(path.read_bytes()[:-5000])


def _nan(state: State, path: Path) -> None:
    state["textencoder.learnable.textFC.fc1.bias"][3] = float("nan")
    saved(state, path)


def _text_file(state: State, path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def _bare(state: State, path: Path) -> None:
    torch.save(state, path)


def _sparse(state: State, path: Path) -> None:
    saved({**state, "textencoder.learnable.textFC.fc1.bias": torch.zeros(64).to_sparse()}, path)


def _compressed(state: State, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 9999)


def _folder(state: State, path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (_code, r"refused: its pickle needs \w+.system, not a tensor; none of its code was run"),
        (_code_legacy, r"refused: its pickle needs \w+.system, not a tensor; none of its code was run"),
        (_plain_pickle, r"refused: it is not a set of tensors; none of its code was run"),
        (_cut, r"not a torch file, or cut short"),
        (_nan, r"textencoder.learnable.textFC.fc1.bias contains NaN or infinity"),
        (_text_file, r"refused: it is not a set of tensors; none of its code was run"),
        (_bare, r'not a BriVL-1.0 checkpoint: no tensors under "learnable" in it'),
        (_sparse, r"'textencoder.learnable.textFC.fc1.bias' under learnable is not a plain tensor"),
        (_compressed, r"a compressed archive; torch stores tensors uncompressed"),
        (_folder, r"a folder, but a BriVL-1.0 checkpoint is one file"),
    ],
)
def test_a_hostile_file_is_refused_in_one_sentence_and_leaves_nothing(
    state: State, tmp_path: Path, vocabulary: str, make: Callable[[State, Path], None], sentence: str
) -> None:
    file = tmp_path / "a.pth"
    make(state, file)
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(file))}: {sentence}") as caught:
        import_brivl(file, tmp_path / "ck", config=small(), tokenizer=vocabulary)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert not list(tmp_path.glob("*ck*"))


def test_what_does_not_fit_is_listed_by_name(
    state: State, tmp_path: Path, vocabulary: str, caplog: pytest.LogCaptureFixture
) -> None:
    del state["textencoder_mom.learnable.textFC.fc2.bias"]
    state["imgencoder.learnable.extra"] = torch.zeros(2, 3)
    state["imgencoder.learnable.max_pool.0.bias"] = torch.zeros(5)
    state["imgencoder.learnable.imgFC.fc1.bias"] = state["imgencoder.learnable.imgFC.fc1.bias"].half()
    file = saved(state, tmp_path / "a.pth")
    counts = "keys 1 missing, 1 extra, 1 of another shape, 1 of another type"
    with pytest.raises(CheckpointError, match=rf"does not match tiny: {counts}; the first: textencoder_mom.learnable"):
        import_brivl(file, tmp_path / "ck", config=small(), tokenizer=vocabulary)
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: missing: textencoder_mom.learnable.textFC.fc2.bias 32",
        f"{file}: extra: imgencoder.learnable.extra 2x3",
        f"{file}: of another shape: imgencoder.learnable.max_pool.0.bias is 5, not 32",
        f"{file}: of another type: imgencoder.learnable.imgFC.fc1.bias is float16, not float32",
    ]


def test_a_foreign_state_dict_is_not_listed_key_by_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = saved({f"layer{i}.weight": torch.zeros(2) for i in range(300)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"not a BriVL-1.0 checkpoint: none of its 300 keys is known"):
        import_brivl(file, tmp_path / "ck")
    assert not caplog.records


def test_long_lists_are_cut_with_a_count(
    state: State, tmp_path: Path, vocabulary: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = saved({n: t for n, t in state.items() if not n.startswith("imgencoder_mom.")}, tmp_path / "a.pth")
    missing = sum(n.startswith("imgencoder_mom.") for n in state)
    with pytest.raises(CheckpointError, match=f"keys {missing} missing; the first: imgencoder_mom"):
        import_brivl(file, tmp_path / "ck", config=small(), tokenizer=vocabulary)
    assert len(caplog.records) == 51
    assert caplog.records[-1].getMessage() == f"{file}: missing: and {missing - 50} more"


def test_nothing_but_an_earlier_checkpoint_is_overwritten(state: State, tmp_path: Path, vocabulary: str) -> None:
    file, out = saved(state, tmp_path / "a.pth"), tmp_path / "ck"
    for _ in range(2):
        import_brivl(file, out, config=small(), tokenizer=vocabulary)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    line = r"mine: already exists and is not an imported checkpoint; choose another --out"
    with pytest.raises(CheckpointError, match=line):
        import_brivl(file, mine, config=small(), tokenizer=vocabulary)
    assert [p.name for p in mine.iterdir()] == ["thesis.txt"]


def test_a_model_trained_here_goes_into_the_released_format(
    tmp_path: Path, released_model: ModuleType, vocabulary: str, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.checkpoints import save
    from training.data.tokenizer import load_tokenizer
    from training.outputs.checkpoint import RunState
    from training.run.optimizer import build_optimizer

    torch.manual_seed(3)
    config = small()
    model = BriVL(config, load_weights=False)
    state = RunState(1, 8, 0, (), (), "grid")
    save(tmp_path, model, build_optimizer(model, config.optim), config, load_tokenizer(vocabulary), state, 1)
    export(tmp_path, "brivl-1.0", tmp_path / "b.pth")
    theirs = released_model.ReleasedBriVL(config)
    theirs.learnable.load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True)["learnable"])
    assert "8 tensors of no effect on features, which this model lacks, are zeros" in caplog.text
    assert "trained without compat" in caplog.text


def test_towers_without_a_place_in_the_released_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"brivl-1.0 supports a timm EfficientNet and a BERT, not .* and char_text"
    ):
        slots_of(resolve("tiny"), "x")


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Path]:
    """A folder for gigabytes, which pytest would keep over three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.drill(20)
@pytest.mark.timeout(900)  # gigabytes through a busy machine's disk
def test_b5_base_from_file_to_features(
    roomy: Path, released_model: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """The released size and names, query towers (1.1 GB), random weights; through the command line."""
    torch.manual_seed(0)
    theirs = disturbed(released_model.ReleasedBriVL(resolve("brivl_b5_base"), key_towers=False))
    state = theirs.learnable.state_dict()
    file, out = saved(state, roomy / "brivl.pth"), roomy / "ck"
    assert cli.main(["import-brivl", str(file), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "brivl_b5_base"
    arrays = {n: a[3:] for n, a in ready(380, 21128, boxes=37, length=80).items()}
    image, text = features_of_the_release(theirs, arrays)
    found = embedded(out, arrays)
    np.testing.assert_allclose(found["image_features"], image, atol=1e-5)
    np.testing.assert_allclose(found["text_features"], text, atol=1e-5)
    assert load_file(out / "released.safetensors").keys() == {n for n in state if "classifier" in n or "pooler" in n}
