"""Routed experts as one grouped matrix product, and the plain loop beside it.

Tokens are sorted by expert, multiplied group by group, unsorted, and summed over their K choices in a fixed order,
so the result does not depend on scheduling (an index_add would).

A product with only a few rows is computed another way than a larger one and rounds differently. So the groups of
experts with few tokens can be filled up: then a token's result has the same bits whatever else is in the batch.

T tokens  D width  E experts  K chosen experts  F expert width  N = T * K
P rows sorted by expert: N of them, more where groups are filled up
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mull.ops.permute import combine, dispatch, inverse
from mull.ops.swiglu import swiglu


def routed(
    x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, floor: int = 0
) -> Tensor:
    """sum_k weight[t, k] * SwiGLU_expert[t, k](x[t]), [T, D]. Groups of 1 to `floor` rows are filled up to `floor`."""
    chosen = expert_TK.shape[1]
    expert_N = expert_TK.flatten()
    order_P = expert_N.argsort(stable=True)
    back_N = inverse(order_P)
    count_E = torch.bincount(expert_N, minlength=gate_up_E2FD.shape[0])
    weight_P = weight_TK.flatten()[order_P]
    if floor:
        order_P, back_N, weight_P, count_E = _filled(order_P, back_N, weight_P, count_E, expert_N, floor)
    ends_E = count_E.cumsum(0).to(torch.int32)
    x_PD = dispatch(x_TD, order_P, back_N, chosen)
    both_P2F = F.grouped_mm(x_PD, gate_up_E2FD.transpose(1, 2), offs=ends_E)
    # weights go in before the last product, where rows are narrower: the same sum, less to multiply and to keep
    hidden_PF = swiglu(both_P2F, weight_P[:, None])
    y_PD = F.grouped_mm(hidden_PF, down_EDF.transpose(1, 2), offs=ends_E)
    return combine(y_PD, order_P, back_N, chosen)


def _filled(
    order_N: Tensor, back_N: Tensor, weight_N: Tensor, count_E: Tensor, expert_N: Tensor, floor: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same sorted rows with every group that has any brought to `floor` rows, the new ones of weight zero.

    Returns order [P], back [N], weight [P] and count [E]. A row of weight zero has no result and no gradient but that
    of its weight, a constant; its input is the first row's.
    """
    filled_E = torch.where(count_E > 0, count_E.clamp_min(floor), 0)
    shift_E = (filled_E - count_E).cumsum(0) - (filled_E - count_E)  # how many new rows stand before each group
    back_N = back_N + shift_E[expert_N]
    rows = int(filled_E.sum())
    place_N = back_N[order_N]
    order_P = order_N.new_zeros(rows).index_copy(0, place_N, order_N)
    return order_P, back_N, weight_N.new_zeros(rows).index_copy(0, place_N, weight_N), filled_E


def routed_plain(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor) -> Tensor:
    """The twin of `routed`: one expert after another."""
    out_TD = torch.zeros_like(x_TD)
    for expert, (gate_up_2FD, down_DF) in enumerate(zip(gate_up_E2FD.unbind(), down_EDF.unbind(), strict=True)):
        token, choice = (expert_TK == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x_TD[token], gate_up_2FD).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, down_DF) * weight_TK[token, choice, None].to(x_TD.dtype)
        out_TD = out_TD.index_add(0, token, y)
    return out_TD
