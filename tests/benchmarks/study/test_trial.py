"""One run: arms of a seed begin alike, the same seed gives the same figures, and what learns beats chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.study.arms import ARMS, BASE, Setting, chosen, config_of
from tests.benchmarks.study.corpus import Corpus, Stream
from tests.benchmarks.study.trial import Trial, TwoTowers, build_model, packed, run, unpacked


def _arm(name):
    return chosen([name], ARMS)[0]


@pytest.mark.drill(2)
def test_arms_of_a_seed_begin_with_the_same_weights():
    base = build_model(config_of(BASE, Setting(), 0, 90)).state_dict()
    for arm in ARMS:
        if arm.objective == "matching":
            continue
        other = build_model(config_of(arm, Setting(temperature=0.03), 0, 90)).state_dict()
        towers = [name for name in other if name.startswith(("image_query", "text_query", "image_key", "text_key"))]
        assert len(towers) > 20
        assert all(torch.equal(other[name], base[name]) for name in towers), arm.name
    again = build_model(config_of(BASE, Setting(), 1, 90)).state_dict()
    assert not torch.equal(again["image_query.trunk.project.weight"], base["image_query.trunk.project.weight"])


@pytest.mark.drill(8)
@pytest.mark.parametrize("name", ["moco", "clip", "single-tower"])
def test_the_same_seed_gives_the_same_figures(corpus: Corpus, name: str) -> None:
    first, again = (run(_arm(name), 4, Setting(), 160, corpus) for _ in range(2))
    assert _figures(first) == _figures(again)
    other = run(_arm(name), 5, Setting(), 160, corpus, dev_only=True).points[-1]
    same = next(point for point in first.points if point.samples == other.samples == 160)
    assert (other.loss, other.i2t) != (same.loss, {name: same.i2t[name] for name in other.i2t})


def _figures(trial: Trial) -> list[object]:
    return [(p.samples, p.loss, p.i2t, p.t2i) for p in trial.points]


@pytest.mark.drill(15)
def test_training_learns_and_shuffled_pairs_teach_nothing(corpus: Corpus) -> None:
    learnt, shuffled = (run(_arm(name), 0, Setting(), 2400, corpus).points[-1] for name in ("moco", "shuffled"))
    chance = 1 / len(next(g for g in corpus.galleries if g.name == "style").emoji_M)
    assert learnt.i2t["style"] > 0.5
    assert shuffled.i2t["style"] < 8 * chance
    assert learnt.i2t["style"] > shuffled.i2t["style"] + 0.2


@pytest.mark.slow
def test_without_a_queue_the_only_negatives_are_the_batch(corpus: Corpus) -> None:
    """The loss of an arm with K = 0 is that of the batch's keys, worked out here by hand."""
    arm = _arm("moco-k0")
    stream = Stream(corpus, 0)
    towers = TwoTowers(arm, config_of(arm, Setting(), 0, len(corpus.tokenizer.vocabulary)), stream)
    for number in range(3):
        towers.step(stream.batch(16 * number, 16), number, 16 * number)
    towers.model.eval()
    batch = stream.batch(48, 16)
    with torch.no_grad():
        features = towers.model.features(batch)
        loss = towers.model.loss(features).loss
    same = batch.image_ids_B[:, None] == batch.image_ids_B
    same |= batch.text_ids_B[:, None] == batch.text_ids_B
    wrong = same & ~torch.eye(16, dtype=torch.bool)
    expected = torch.zeros(())
    for queries, keys in (
        (features.image_BD, features.text_keys_BD),
        (features.text_BD, features.image_keys_BD),
    ):
        logits = (queries @ keys.T / 0.07).masked_fill(wrong, -torch.inf)
        expected = expected + torch.nn.functional.cross_entropy(logits, torch.arange(16))
    assert torch.allclose(loss, expected, atol=1e-5)


@pytest.mark.drill(5)
def test_a_cheaper_arm_goes_on_to_equal_compute(corpus: Corpus) -> None:
    clip = run(_arm("clip"), 0, Setting(), 320, corpus)
    assert 1.2 < clip.ratio < 1.6  # key towers cost a forward beside the forward and backward of the query towers
    assert clip.points[-1].samples == pytest.approx(320 * clip.ratio, abs=16)
    assert any(p.samples == 320 for p in clip.points)
    moco = run(BASE, 0, Setting(), 320, corpus)
    assert (moco.ratio, moco.points[-1].samples) == (1.0, 320)


@pytest.mark.drill(5)
def test_a_larger_batch_goes_on_to_equal_steps(corpus: Corpus) -> None:
    clip = run(_arm("clip-b64"), 0, Setting(), 320, corpus)
    assert clip.points[-1].samples == 4 * 320
    assert any(p.samples == 320 for p in clip.points)
    (tuned,) = run(_arm("clip-b64"), 0, Setting(), 320, corpus, dev_only=True).points
    assert tuned.samples == 4 * 320


@given(st.integers(1, 70), st.data())
def test_hits_are_packed_and_unpacked(names: int, data: st.DataObject) -> None:
    hits = np.array(data.draw(st.lists(st.booleans(), min_size=2 * names, max_size=2 * names))).reshape(2, names)
    assert (unpacked(packed(hits), names) == hits).all()


@pytest.mark.drill(2)
def test_the_figures_are_those_of_the_hits(corpus: Corpus) -> None:
    point = run(_arm("clip"), 1, Setting(), 160, corpus).points[-1]
    for name, texts in point.hits.items():
        (gallery,) = (g for g in corpus.galleries if g.name == name)
        styles = gallery.by_style()
        both = np.mean([unpacked(t, len(s.emoji_M)).mean(1) for t, s in zip(texts, styles, strict=True)], axis=0)
        assert (point.i2t[name], point.t2i[name]) == pytest.approx(tuple(both))
    assert set(point.hits) == {"style", "names"}
