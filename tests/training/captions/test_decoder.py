"""The decoder: a caption is read back, nothing later is seen, and beam search finds what a search of all finds."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.captions.decoder import BEGIN, END, PAD, CaptionerConfig, Decoder, Vocabulary, beam_search, normal_caption
from training.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = CaptionerConfig(width=16, layers=2, heads=2, ffn=32, dropout=0.5, max_characters=3)


def decoder(characters: int = 3, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    built = Decoder(CONFIG, 6, characters + 4).eval()
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.6)  # far from even: the best caption is no matter of rounding
    return built


def regions(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    present = torch.ones(images, 4, dtype=torch.bool)
    present[-1, 2:] = False
    return torch.randn(images, 4, 6, generator=torch.Generator().manual_seed(1)), present


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_captions_are_read_back_from_their_ids(captions: list[str]) -> None:
    vocabulary = Vocabulary.of(captions)
    for caption in captions:
        ids = vocabulary.encode(caption, 1000)
        assert (ids[0], ids[-1]) == (BEGIN, END)
        assert vocabulary.decode(ids) == normal_caption(caption)
        assert max(ids) < len(vocabulary)


def test_a_rare_character_is_unknown_and_a_long_caption_is_cut() -> None:
    vocabulary = Vocabulary.of(["红船红", "船"], min_count=2)
    assert vocabulary.characters == "红船"
    assert vocabulary.decode(vocabulary.encode("红鸟船", 9)) == "红船"
    assert vocabulary.decode(vocabulary.encode("红船红船", 3)) == "红船红"


def test_a_character_depends_on_those_before_it_and_on_regions_that_exist() -> None:
    model, (regions_BRW, present_BR) = decoder(), regions(2)
    ids_BL = torch.tensor([[BEGIN, 4, 5, 6], [BEGIN, 6, 5, PAD]])
    scores = model(ids_BL, regions_BRW, present_BR)
    changed_ids, changed_regions = ids_BL.clone(), regions_BRW.clone()
    changed_ids[:, 3] = 4
    changed_regions[1, 2:] = 9.0  # of the second image these are padding
    again = model(changed_ids, changed_regions, present_BR)
    assert torch.allclose(scores[:, :3], again[:, :3], atol=1e-5)
    changed_regions[0, 0] = 9.0
    assert not torch.allclose(scores[0, 0], model(ids_BL, changed_regions, present_BR)[0, 0], atol=1e-3)


def every_caption(model: Decoder, regions_RW: torch.Tensor, present_R: torch.Tensor) -> dict[tuple[int, ...], float]:
    """Log-probability of every caption of 1 to 3 characters, each by a forward of its own."""
    found, vocabulary = {}, model.characters.num_embeddings
    for length in range(1, CONFIG.max_characters + 1):
        for caption in itertools.product(range(4, vocabulary), repeat=length):
            ids = torch.tensor([[BEGIN, *caption, END]])
            log = model(ids[:, :-1], regions_RW[None], present_R[None]).log_softmax(-1)[0]
            found[caption] = float(log.gather(1, ids[0, 1:, None]).sum())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "length_power"), [(0, 0.0), (1, 1.0)])
@torch.no_grad()
def test_a_beam_as_wide_as_all_captions_finds_the_best_of_all(seed: int, length_power: float) -> None:
    model, (regions_BRW, present_BR) = decoder(seed=seed), regions(2)
    found = beam_search(model, regions_BRW, present_BR, beams=60, length_power=length_power)  # 39 captions and ends
    for image, of_image in enumerate(found):
        every = every_caption(model, regions_BRW[image], present_BR[image])
        assert {tuple(ids) for ids, _ in of_image} == set(every)
        for ids, score in of_image:
            assert score == pytest.approx(every[tuple(ids)], abs=1e-4)
        best = max(every, key=lambda ids: every[ids] / (len(ids) + 1) ** length_power)
        assert tuple(of_image[0][0]) == best


@torch.no_grad()
def test_one_beam_is_greedy_search() -> None:
    model, (regions_BRW, present_BR) = decoder(5), regions(3)
    for image, [(ids, _)] in enumerate(beam_search(model, regions_BRW, present_BR, beams=1, length_power=1.0)):
        greedy = [BEGIN]
        while greedy[-1] != END and len(greedy) <= CONFIG.max_characters:
            some = regions_BRW[image][None], present_BR[image][None]
            scores = model(torch.tensor([greedy]), *some)[0, -1]
            scores[[PAD, BEGIN, 3]] = -torch.inf
            if len(greedy) == 1:
                scores[END] = -torch.inf
            greedy.append(int(scores.argmax()))
        assert ids == [number for number in greedy[1:] if number != END]


@pytest.mark.slow
@given(st.floats(-50, 50), st.floats(0.01, 50))
@settings(max_examples=10, deadline=None)
def test_where_regions_lie_and_how_far_apart_makes_no_difference(shift: float, scale: float) -> None:
    one, other = decoder(), decoder()
    regions_BRW, present_BR = regions(3)
    one.standardise(regions_BRW.flatten(0, 1))
    other.standardise(regions_BRW.flatten(0, 1) * scale + shift)
    ids_BL = torch.tensor([[BEGIN, 4, 5]] * 3)
    with torch.no_grad():
        expected = one(ids_BL, regions_BRW, present_BR)
        assert torch.allclose(other(ids_BL, regions_BRW * scale + shift, present_BR), expected, atol=1e-2, rtol=1e-2)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^heads: the width 10 is not a multiple of 4 heads$"):
        CaptionerConfig(width=10, heads=4)
