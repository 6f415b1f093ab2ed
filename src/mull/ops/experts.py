"""Routed experts as one grouped matrix product, and the plain loop beside it.

Tokens are sorted by expert, multiplied group by group, unsorted, and summed over their K choices in a fixed order,
so the result does not depend on scheduling (an index_add would).

T tokens  D width  E experts  K chosen experts  F expert width  N = T * K
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mull.ops.permute import combine, dispatch, inverse


def routed(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor) -> Tensor:
    """sum_k weight[t, k] * SwiGLU_expert[t, k](x[t]), [T, D]."""
    chosen = expert_TK.shape[1]
    expert_N = expert_TK.flatten()
    order_N = expert_N.argsort(stable=True)
    count_E = torch.bincount(expert_N, minlength=gate_up_E2FD.shape[0])
    ends_E = count_E.cumsum(0).to(torch.int32)
    back_N = inverse(order_N)
    x_ND = dispatch(x_TD, order_N, back_N, chosen)
    gate_NF, up_NF = F.grouped_mm(x_ND, gate_up_E2FD.transpose(1, 2), offs=ends_E).chunk(2, dim=-1)
    # weights go in before the last product, where rows are narrower: the same sum, less to multiply and to keep
    hidden_NF = F.silu(gate_NF) * up_NF * weight_TK.flatten()[order_N, None].to(gate_NF.dtype)
    y_ND = F.grouped_mm(hidden_NF, down_EDF.transpose(1, 2), offs=ends_E)
    return combine(y_ND, order_N, back_N, chosen)


def routed_plain(x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor) -> Tensor:
    """The twin of `routed`: one expert after another."""
    out_TD = torch.zeros_like(x_TD)
    for expert, (gate_up_2FD, down_DF) in enumerate(zip(gate_up_E2FD.unbind(), down_EDF.unbind(), strict=True)):
        token, choice = (expert_TK == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x_TD[token], gate_up_2FD).chunk(2, dim=-1)
        y = F.linear(F.silu(gate) * up, down_DF) * weight_TK[token, choice, None].to(x_TD.dtype)
        out_TD = out_TD.index_add(0, token, y)
    return out_TD
