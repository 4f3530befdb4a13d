"""Parts of objectives (`training.objectives`): queries, their candidates, logits, InfoNCE with its source.

Shapes: B queries of one rank, N candidates that all of them share, M = 1 + N: column 0 is a query's own key, the other
half of its pair. Not every candidate counts for every query (`counted_BM`): some slots are empty, some candidates are
the query's own image or text again. Why one table of cosines for all losses: objectives then differ in one line each.

Limits: everything here wants float32 or wider; the caller keeps autocast out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.config import MocoConfig
from training.errors import ConfigError


@dataclass(frozen=True)
class Candidates:
    """Candidates of B queries. `positive_BM` is within `counted_BM`; column 0 is in both."""

    own_BD: Tensor
    others_ND: Tensor
    counted_BM: Tensor
    positive_BM: Tensor

    def similar(self, queries_BD: Tensor) -> Tensor:
        """Cosines [B, M] of unit queries."""
        own_B1 = (queries_BD * self.own_BD).sum(-1, keepdim=True)
        return torch.cat([own_B1, queries_BD @ self.others_ND.T], dim=1)


class Logits(nn.Module):
    """Cosine -> logit: cosine / T, or cosine / T + bias; T fixed or learned as log(1/T) (CLIP, 2103.00020).

    A learned T is a parameter without dimensions, so that no weight decay falls on it.
    """

    def __init__(self, moco: MocoConfig, learned: bool, biased: bool) -> None:
        """Raises ConfigError for a learned temperature that begins outside of its range."""
        super().__init__()
        low, high = moco.temperature_range
        if learned and not low <= moco.temperature <= high:
            raise ConfigError("moco.temperature", f"{moco.temperature} is outside moco.temperature_range")
        self.scale = 1 / moco.temperature
        self.limits = tuple(math.log(1 / t) for t in reversed(moco.temperature_range))
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.scale))) if learned else None
        self.bias = nn.Parameter(torch.tensor(moco.bias)) if biased else None

    def forward(self, similar: Tensor) -> Tensor:
        logits = similar * (self.scale if self.log_scale is None else self.log_scale.exp())
        return logits if self.bias is None else logits + self.bias

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Clip a learned temperature to its range: outside of it training was seen to become unstable."""
        if self.log_scale is not None:
            self.log_scale.clamp_(*self.limits)

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """temperature and bias, where they are learned."""
        learned_values = {} if self.log_scale is None else {"temperature": (-self.log_scale).exp()}
        return learned_values if self.bias is None else {**learned_values, "bias": self.bias.detach().clone()}


def info_nce(logits_BM: Tensor, counted_BM: Tensor, targets_BM: Tensor) -> Tensor:
    """- sum_j t_j log( exp(l_j) / sum over counted k of exp(l_k) ) of each query: [B].

    With all of the target on column 0 this is InfoNCE (arXiv 1807.03748; MoCo, 1911.05722); with an even one over
    several positives, the outer form of supervised contrast (2004.11362); targets sum to 1 and fall on what counts.
    """
    partition_B = torch.logsumexp(torch.where(counted_BM, logits_BM, -torch.inf), dim=1)
    return partition_B - (targets_BM * logits_BM).sum(1)


def even_targets(positive_BM: Tensor, like: Tensor) -> Tensor:
    """Targets with the same share for every positive: [B, M] in the type of `like`."""
    shares_BM = positive_BM.to(like.dtype)
    return shares_BM / shares_BM.sum(1, keepdim=True)


def contrast(logits: Logits, queries_BD: Tensor, keys_BD: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor]:
    """InfoNCE of each query [B], with an even target over its positives, and its cosines [B, M]."""
    similar_BM = candidates.similar(queries_BD)
    targets_BM = even_targets(candidates.positive_BM, similar_BM)
    return info_nce(logits(similar_BM), candidates.counted_BM, targets_BM), similar_BM


@torch.no_grad()
def describe(losses_B: Tensor, similar_BM: Tensor, candidates: Candidates, valid_B: Tensor) -> dict[str, Tensor]:
    """Means over valid samples.

    `loss`; `accuracy`: the own key is nearer than every negative; `positive` and `negative`: cosines of the own key and
    of the negatives; `excluded`: share of the other candidates that do not count.
    """
    count = valid_B.sum().clamp(min=1)
    own_B, others_BN = similar_BM[:, 0], similar_BM[:, 1:]
    counted_BN = candidates.counted_BM[:, 1:]
    negative_BN = counted_BN & ~candidates.positive_BM[:, 1:] & valid_B[:, None]
    hardest_B = torch.where(negative_BN, others_BN, -torch.inf).max(1).values
    return {
        "loss": torch.where(valid_B, losses_B, 0.0).sum() / count,
        "accuracy": ((own_B > hardest_B) & valid_B).sum() / count,
        "positive": torch.where(valid_B, own_B, 0.0).sum() / count,
        "negative": torch.where(negative_BN, others_BN, 0.0).sum() / negative_BN.sum().clamp(min=1),
        "excluded": (~counted_BN & valid_B[:, None]).sum() / (count * counted_BN.shape[1]),
    }
