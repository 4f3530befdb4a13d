"""Key towers: a key tower is made from a query trunk and follows it by a moving average, batch norms included.

A key tower is a copy of the query tower's trunk that no gradient trains: after every step it moves a little towards it
(MoCo, arXiv 1911.05722). If its batch norms used the statistics of the very batch that the queries came in, the pair
could be recognised by them. Two remedies: statistics averaged like the weights, in eval mode (EMAN, arXiv 2101.08482;
the default), or those of a batch shuffled over the ranks (`shuffled`, MoCo's own).

Limits: `shuffled` is for image towers; text towers do not have batch norms. With one rank it does not change results.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.method import distributed
from training.records import Batch


def key_trunk(trunk: nn.Module) -> nn.Module:
    """A copy that gradient does not train. Frozen parameters are not copied but shared."""
    shared = {id(p): p for p in trunk.parameters() if not p.requires_grad}
    return copy.deepcopy(trunk, shared).requires_grad_(False).eval()


@torch.no_grad()
def update_average(key: nn.Module, query: nn.Module, momentum: float) -> None:
    """key = m key + (1 - m) query for trained parameters and float buffers; integer buffers are copied.

    One fused call for all tensors: 25 times as fast as a loop over them at 373 million parameters on a CPU. Both must
    be float32 or wider: at m = 0.999 half precision would round most of the moves away.
    """
    pairs = [(k, q) for k, q in zip(key.parameters(), query.parameters(), strict=True) if k is not q]
    for k, q in zip(key.buffers(), query.buffers(), strict=True):
        if q.is_floating_point():
            pairs.append((k, q))  # type: ignore[arg-type]
        else:
            k.copy_(q)
    assert all(k.dtype in (torch.float32, torch.float64) and k.dtype == q.dtype for k, q in pairs)
    if pairs:
        torch._foreach_lerp_([k for k, _ in pairs], [q for _, q in pairs], 1 - momentum)


def statistics(trunk: nn.Module) -> list[Tensor]:
    """Float buffers that training moves; those of frozen modules stand still and are equal on all ranks."""
    trained = [m for m in trunk.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    return [b for m in trained for b in m.buffers(recurse=False) if b.is_floating_point()]


def use_batch_statistics(trunk: nn.Module, mode: bool) -> None:
    """Make the trained batch norms of a key trunk use their batch's statistics; all else stays in eval mode.

    They leave their averaged statistics alone: those follow the query tower's like any buffer.
    """
    trunk.train(mode)  # by the trunk's own rule, which leaves frozen batch norms in eval mode
    for module in trunk.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = not module.training
        else:
            module.training = False


@torch.no_grad()
def shuffled(trunk: nn.Module, prefix: Tensor, batch: Batch) -> Tensor:
    """Image keys [B, D] of this rank's samples, computed in a batch of other samples of all ranks.

    All of an image goes along, the number of its boxes too: the released code forgets the region mask. Sample ids
    are bits of a sha256, so their order is a shuffle on which the ranks agree.
    """
    size, world, rank = len(batch), distributed.world_size(), distributed.rank()
    order_N = torch.argsort(distributed.gather(batch.sample_ids_B), stable=True)
    mine_B = order_N[rank * size : (rank + 1) * size]
    most = int(distributed.gather(torch.tensor([batch.boxes_BR4.shape[1]], device=mine_B.device)).max())
    boxes_BR4 = F.pad(batch.boxes_BR4, (0, 0, 0, most - batch.boxes_BR4.shape[1]))
    others = replace(
        batch,
        images_B3HW=distributed.gather(batch.images_B3HW)[mine_B],
        boxes_BR4=distributed.gather(boxes_BR4)[mine_B],
        n_boxes_B=distributed.gather(batch.n_boxes_B)[mine_B],
        valid_B=distributed.gather(batch.valid_B)[mine_B],
    )
    keys_ND = distributed.gather(trunk(distributed.gather(prefix)[mine_B], others))
    # order_N[p] is the sample at place p of the shuffle; place_N, its inverse, brings keys back to their samples.
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(size * world, device=order_N.device)
    return keys_ND[place_N[rank * size : (rank + 1) * size]]
