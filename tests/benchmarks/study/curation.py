"""Does the loop help? Data Filtering Networks (arXiv 2309.17425) on real pairs of which 30% have another one's caption.

    all      every pair, as it came
    loop     train on the strictest subset, score all, keep a share, train again
    oracle   the pairs whose captions were left alone
    random   as many pairs as the loop keeps, drawn by lot

The loop sees no label. Strict is what others agree with: the pairs are cut into FOLDS, each is scored by a model that
was trained on the others, and the best STRICT of them are the strictest subset. Models that are trained on that, again
fold by fold, score all pairs; the best KEEP of them are kept. A pair is never scored by a model that has seen it: after
a few epochs a model knows its pairs by heart, the wrong ones too (`seen` in the figures says how well it still tells
them apart then). On a web of pairs that are seen once or twice, nothing is known by heart and one model will do.

What trains is small, so that five seeds take minutes: a layer on the cached features of the picture, turned to
their first COMPONENTS principal components, and the mean of embeddings of the text's characters; in-batch InfoNCE,
equal samples for every arm. Two pairs with one caption are no negatives for each other. Drawings have no emoji's
number, which would tell which caption is the right one.

Limits: emoji; several drawings share a name, so that agreement is easily found, as where many pages tell of one thing.
The strict share and the share that is kept are that of the right captions, which nobody knows of the web; `shares`
tells of others. What the second round trains on was chosen by models that had seen the pairs it scores. All seeds are
of one corpus: intervals speak of the shuffling and the training, not of other data.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.study.corpus import Corpus, Ids, Pictures
from tests.benchmarks.study.trial import one_thread
from training.evaluation.hits import Captions
from training.evaluation.retrieval import figures, rank

BATCH, TEMPERATURE, RATE = 256, 0.07, 2e-3

COMPONENTS, WIDTH = 256, 128
"""Principal components that the image head sees; width of the joint space."""

SHUFFLED = 0.3
"""Share of the pairs whose captions are those of other pairs among them."""

FOLDS = 5

STRICT = 0.7
"""Share of the pairs that are the strictest subset."""

KEEP = 0.7
"""Share of the pairs that the loop keeps."""

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of which the figures say how many shuffled pairs would be kept."""

SCORER_SAMPLES, SAMPLES = 128_000, 128_000
"""Samples of a run that scores, and of one that is compared."""

ARMS = ("all", "loop", "oracle", "random")

VERSION = 2
"""Raised when the same packages and seed give other figures."""

Scores = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Inputs:
    """Input of the heads: pictures [P, COMPONENTS] and texts [T, L], of which each emoji has some.

    A text is the ids of its characters, padded with 0. The name of emoji e is text first_E[e]; its name with one of its
    keywords is one of the texts after that, up to first_E[e + 1].
    """

    corpus: Corpus
    images_PC: Tensor
    row_of: dict[tuple[int, int], int]
    texts_TL: Tensor
    first_E: Ids

    @staticmethod
    def of(corpus: Corpus) -> Inputs:
        seen = corpus.select("train", "train")
        images = _features(corpus, corpus.pictures)
        mean = _features(corpus, seen).mean(0)
        _, _, components = torch.linalg.svd(_features(corpus, seen) - mean, full_matrices=False)
        turned = F.normalize((images - mean) @ components[:COMPONENTS].T) * COMPONENTS**0.5
        places = zip(corpus.pictures.style_N.tolist(), corpus.pictures.row_N.tolist(), strict=True)
        texts, first = list[str](), [0]
        for emoji in corpus.emoji:
            texts += [emoji.name, *(f"{emoji.name}，{keyword}" for keyword in emoji.keywords)]
            first.append(len(texts))
        ids_TL, _ = corpus.tokens(texts)
        marks = (ids_TL == ids_TL[0, 0]) | (ids_TL == corpus.tokens([corpus.emoji[0].name])[0][0, -1])
        row_of = {place: row for row, place in enumerate(places)}
        return Inputs(corpus, turned, row_of, ids_TL.masked_fill(marks, 0), np.array(first, np.int64))

    def images(self, pictures: Pictures) -> Tensor:
        places = zip(pictures.style_N.tolist(), pictures.row_N.tolist(), strict=True)
        return self.images_PC[[self.row_of[place] for place in places]]

    def names(self, emoji_M: Ids) -> Tensor:
        return self.texts_TL[self.first_E[emoji_M]]


def _features(corpus: Corpus, pictures: Pictures) -> Tensor:
    """[N, C] features of the pictures, of length one: the mean of those of the grid and of the whole."""
    rows = [corpus.styles[s].regions_NRC[r] for s, r in zip(pictures.style_N, pictures.row_N, strict=True)]
    regions_NRC = torch.from_numpy(np.stack(rows).astype(np.float32))
    return F.normalize(F.normalize(regions_NRC, dim=2).mean(1))


class Heads(nn.Module):
    """Two small towers: pictures [B, COMPONENTS] and texts [B, L] to unit rows [B, WIDTH]."""

    def __init__(self, components: int, vocabulary: int) -> None:
        super().__init__()
        self.image = nn.Linear(components, WIDTH)
        self.text = nn.EmbeddingBag(vocabulary, WIDTH, mode="mean", padding_idx=0)

    def images(self, images_BC: Tensor) -> Tensor:
        return F.normalize(self.image(images_BC))

    def texts(self, texts_BL: Tensor) -> Tensor:
        return F.normalize(self.text(texts_BL))


@dataclass(frozen=True)
class Noisy:
    """All training drawings of a corpus [N], what their captions tell of, and which captions were shuffled."""

    pictures: Pictures
    told_N: Ids
    wrong_N: Mask

    @staticmethod
    def of(corpus: Corpus, seed: int, share: float = SHUFFLED) -> Noisy:
        pictures = corpus.select("train", "train")
        rng = np.random.default_rng((seed, 7))
        some = rng.permutation(len(pictures))[: round(share * len(pictures))]
        told = pictures.emoji_N.copy()
        told[some] = told[rng.permutation(some)]
        return Noisy(pictures, told, told != pictures.emoji_N)  # some got a caption of their own emoji back

    def take(self, which: Mask) -> tuple[Pictures, Ids]:
        rows = np.flatnonzero(which).astype(np.int64)
        return self.pictures.take(rows), self.told_N[rows]


@dataclass(frozen=True)
class Round:
    """A round of scoring: how well it finds the shuffled pairs, and how well the plain cosine would; the share of
    shuffled pairs among those kept, by the share that is kept."""

    auc: float
    cosine_auc: float
    kept_wrong: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """The figures of one seed. recall: by arm, gallery and direction. seen: area under the curve by a model that was
    trained on the pairs it scores."""

    seed: int
    pairs: int
    wrong: float
    rounds: tuple[Round, ...]
    seen: float
    kept: int
    kept_wrong: float
    recall: dict[str, dict[str, float]]


def trained(inputs: Inputs, pictures: Pictures, told_N: Ids, samples: int, seed: int) -> Heads:
    """Heads after `samples` samples of the pairs. Half of the time a text is the name, else with a keyword."""
    torch.manual_seed(seed)
    heads = Heads(inputs.images_PC.shape[1], len(inputs.corpus.tokenizer.vocabulary))
    optimizer = torch.optim.Adam(heads.parameters(), lr=RATE)
    images_NC, rng = inputs.images(pictures), np.random.default_rng((seed, 3))
    order = np.concatenate([rng.permutation(len(told_N)) for _ in range(-(-samples // len(told_N)))])[:samples]
    first_N, more_N = inputs.first_E[told_N], inputs.first_E[told_N + 1] - inputs.first_E[told_N] - 1
    told = torch.from_numpy(told_N)
    for low in range(0, len(order), BATCH):
        rows = order[low : low + BATCH]
        draws = rng.random((2, len(rows)))
        keyword = np.where(draws[0] < 0.5, 0, np.minimum(1 + (draws[1] * more_N[rows]).astype(np.int64), more_N[rows]))
        images = heads.images(images_NC[rows])
        texts = heads.texts(inputs.texts_TL[first_N[rows] + keyword])
        logits_BB = images @ texts.T / TEMPERATURE
        same_BB = told[rows][:, None] == told[rows][None, :]
        same_BB.fill_diagonal_(False)
        logits_BB = logits_BB.masked_fill(same_BB, -torch.inf)
        target = torch.arange(len(rows))
        loss = F.cross_entropy(logits_BB, target) + F.cross_entropy(logits_BB.T, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return heads


@torch.no_grad()
def fits(heads: Heads, inputs: Inputs, pictures: Pictures, told_N: Ids, names: Ids) -> tuple[Scores, Scores]:
    """(how likely each drawing and the name that it is told belong together, their cosine).

    How likely: the log of the softmax over all names, plus that over all these drawings. A cosine is higher for some
    drawings and names than for others, whatever they are put beside; this takes it out.
    """
    cosines_NM = heads.images(inputs.images(pictures)) @ heads.texts(inputs.names(names)).T
    told = torch.from_numpy(np.searchsorted(names, told_N))[:, None]
    logits_NM = cosines_NM / TEMPERATURE
    both = (logits_NM.log_softmax(1) + logits_NM.log_softmax(0)).gather(1, told)[:, 0]
    return both.numpy().astype(np.float64), cosines_NM.gather(1, told)[:, 0].numpy().astype(np.float64)


def cross_scores(inputs: Inputs, noisy: Noisy, among: Mask, samples: int, seed: int) -> tuple[Scores, Scores]:
    """([N] in (0, 1): where each pair stands among those of its fold, by a model trained on the others among `among`;
    the same by the plain cosine)."""
    fold_N = np.random.default_rng((seed, 8)).permutation(len(among)) % FOLDS
    places_2N, names = np.zeros((2, len(among)), np.float64), np.unique(noisy.told_N)
    for fold in range(FOLDS):
        mine = fold_N == fold
        heads = trained(inputs, *noisy.take(among & ~mine), samples, seed)
        for places, own in zip(places_2N, fits(heads, inputs, *noisy.take(mine), names), strict=True):
            places[mine] = (np.argsort(np.argsort(own, kind="stable"), kind="stable") + 0.5) / len(own)
    return places_2N[0], places_2N[1]


def best(scores_N: Scores, share: float) -> Mask:
    """The best share of the pairs, of equal ones the first."""
    kept = np.zeros(len(scores_N), np.bool_)
    kept[np.argsort(-scores_N, kind="stable")[: round(share * len(scores_N))]] = True
    return kept


def area(scores_N: Scores, wrong_N: Mask) -> float:
    """Area under the curve of finding the wrong pairs by a low score: the chance that a right one scores higher."""
    from scipy.stats import rankdata

    ranks, wrong = rankdata(scores_N), int(wrong_N.sum())
    right = len(ranks) - wrong
    return float((ranks[~wrong_N].sum() - right * (right + 1) / 2) / (right * wrong))


def outcome(inputs: Inputs, seed: int, scorer_samples: int = SCORER_SAMPLES, samples: int = SAMPLES) -> Outcome:
    """The loop and the four arms, of one seed. The same arguments give the same figures."""
    with one_thread():
        corpus = inputs.corpus
        noisy = Noisy.of(corpus, seed)
        every = np.ones(len(noisy.wrong_N), np.bool_)
        first, by_cosine = cross_scores(inputs, noisy, every, scorer_samples, seed)
        second, by_cosine_too = cross_scores(inputs, noisy, best(first, STRICT), scorer_samples, seed)
        kept = best(second, KEEP)
        drawn = best(np.random.default_rng((seed, 9)).random(len(kept)), KEEP)
        recall, seen = {}, 0.0
        for name, which in zip(ARMS, (every, kept, ~noisy.wrong_N, drawn), strict=True):
            heads = trained(inputs, *noisy.take(which), samples, seed)
            recall[name] = _recall(heads, inputs)
            if name == "all":
                own, _ = fits(heads, inputs, noisy.pictures, noisy.told_N, np.unique(noisy.told_N))
                seen = area(own, noisy.wrong_N)
    pairs = ((first, by_cosine), (second, by_cosine_too))
    rounds = tuple(_round(scores, cosines, noisy.wrong_N) for scores, cosines in pairs)
    wrong = float(noisy.wrong_N.mean())
    return Outcome(
        seed, len(kept), wrong, rounds, seen, int(kept.sum()), float(noisy.wrong_N[kept].mean()), recall,
    )  # fmt: skip


@torch.no_grad()
def _recall(heads: Heads, inputs: Inputs) -> dict[str, float]:
    """R@1 on the galleries of an unseen style and of unseen names, both ways, and the mean of the four."""
    found: dict[str, list[float]] = {}
    for gallery in inputs.corpus.galleries:
        if gallery.name in ("style", "names"):
            images, texts = heads.images(inputs.images(gallery.pictures)), heads.texts(inputs.names(gallery.emoji_M))
            text_P = np.searchsorted(gallery.emoji_M, gallery.pictures.emoji_N)
            hits = Captions(len(images), len(texts), np.arange(len(text_P)), text_P)
            own = figures(rank(images.numpy(), texts.numpy(), hits))
            found.setdefault(f"{gallery.name}.i2t", []).append(own.image_to_text.recall[1])
            found.setdefault(f"{gallery.name}.t2i", []).append(own.text_to_image.recall[1])
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {**means, "mean": float(np.mean(list(means.values())))}


def _round(scores_N: Scores, cosines_N: Scores, wrong_N: Mask) -> Round:
    kept_wrong = {f"{share:g}": float(wrong_N[best(scores_N, share)].mean()) for share in SHARES}
    return Round(area(scores_N, wrong_N), area(cosines_N, wrong_N), kept_wrong)


def known(folder: Path, key: str, seed: int) -> Outcome | None:
    """The outcome of a seed from its file; None where there is none that was made of the same."""
    try:
        values = json.loads((folder / f"seed{seed}.json").read_text(encoding="utf-8"))
        own = values["outcome"]
        return Outcome(**{**own, "rounds": tuple(Round(**r) for r in own["rounds"])}) if values["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record(folder: Path, inputs: Inputs, key: str, seed: int) -> Outcome:
    """Compute the outcome of a seed, and write its file."""
    made = outcome(inputs, seed)
    path = folder / f"seed{seed}.json"
    folder.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"key": key, "outcome": asdict(made)}, ensure_ascii=False, indent=1), encoding="utf-8")
    new.replace(path)
    return made
