"""The one model: trainer and engine run this class, so that "sampler and trainer agree" is an assertion, not a hope.

Tokens come as one flat stream: packed documents in training, cached rows in decoding (`Where` tells which). Everything
but attention treats tokens one by one and never sees the difference.

T tokens  D width  V vocabulary
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mull.dist import row_floor, unrounded
from mull.model.attention import GQA, MLA, Where, Window, attention
from mull.model.config import ModelConfig
from mull.model.layers import Linear, Packed, RMSNorm, Rotary, SwiGLU
from mull.model.moe import MoE, Router, Trace
from mull.ops.attention import Documents
from mull.ops.linear import PACKED_FLOOR, linear, packable


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, cfg: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.attention_norm = RMSNorm(cfg.width, cfg.eps)
        self.attention = attention(cfg)
        self.ffn_norm = RMSNorm(cfg.width, cfg.eps)
        self.ffn = MoE(cfg) if cfg.is_moe(layer) else SwiGLU(cfg.width, cfg.ffn)

    def forward(self, x_TD: Tensor, where: Where, trace: Trace | None = None) -> Tensor:
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), where, self.layer)
        h_TD = self.ffn_norm(x_TD)
        if isinstance(self.ffn, MoE):
            return x_TD + self.ffn(h_TD, where.documents, trace)
        return x_TD + self.ffn(h_TD)


class MTPLayer(nn.Module):
    """Multi-token prediction (arXiv 2412.19437, 2.2): from state i and token i+1, the state that predicts i+2."""

    def __init__(self, cfg: ModelConfig, layer: int):
        super().__init__()
        self.embed_norm = RMSNorm(cfg.width, cfg.eps)
        self.hidden_norm = RMSNorm(cfg.width, cfg.eps)
        self.project = Linear(2 * cfg.width, cfg.width, bias=False)
        self.block = Block(cfg, layer)
        self.norm = RMSNorm(cfg.width, cfg.eps)

    def forward(self, next_TD: Tensor, hidden_TD: Tensor, where: Where, trace: Trace | None = None) -> Tensor:
        both = torch.cat((self.embed_norm(next_TD), self.hidden_norm(hidden_TD)), dim=-1)  # in that order
        return self.norm(self.block(self.project(both), where, trace))


class Transformer(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        # no numbers are drawn: on the meta device that loads torch's compiler, which takes a second
        self.embed = nn.Embedding.from_pretrained(torch.zeros(cfg.vocab, cfg.width), freeze=False)
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.layers))
        self.norm = RMSNorm(cfg.width, cfg.eps)
        self.head = Linear(cfg.width, cfg.vocab, bias=False)
        self.mtp = nn.ModuleList(MTPLayer(cfg, cfg.layers + depth) for depth in range(cfg.mtp_layers))
        self.rotary = Rotary(cfg)
        self.exact = False
        if cfg.tied:
            self.head.weight = self.embed.weight

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def initialise(self, seed: int) -> Transformer:
        """Normal weights of cfg.init_std, drawn from `seed` alone and on the CPU: the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding | Router):
                matrices = [module.weight]
            elif isinstance(module, MoE):
                matrices = [module.gate_up, module.down]
            else:
                continue
            for weight in matrices:
                with torch.no_grad():
                    weight.copy_(torch.empty(weight.shape).normal_(0.0, self.cfg.init_std, generator=generator))
        return self

    def exactly(self, exact: bool = True) -> Transformer:
        """From now on a token's result has the same bits however it is batched, packed, decoded or padded; or not.

        Costs speed, and differs by rounding from what the fast kernels give (docs/numerics.md).
        """
        self.exact = exact
        for module in self.modules():
            if isinstance(module, MoE | Router | Linear):
                module.exact = exact
        return self

    def packed(self) -> Transformer:
        """From now on it only answers, faster: weights go into the order in which oneDNN reads them.

        On a CPU in fp32; else nothing changes. Its state dict is of no use any more. In exact mode an answer still has
        the same bits in any company, but no longer the trainer's; only models of plain matrices are packed then.
        """
        if not packable(self.embed.weight, always=True) or (self.exact and not self._plain):
            return self
        for module in self.modules():
            if isinstance(module, GQA | MLA | SwiGLU):
                module.pack(self.exact)
            elif isinstance(module, MTPLayer):
                module.project.packed = Packed.of(module.project, always=self.exact)
        self.head.packed = Packed.of(self.head, keep=self.cfg.tied, always=self.exact)
        return self.requires_grad_(False)

    @property
    def _plain(self) -> bool:
        """Whether all of its products with weights can be packed: no experts, no latent attention."""
        return not self.cfg.latent and not any(self.cfg.is_moe(layer) for layer in range(self.cfg.layers))

    @property
    def least_rows(self) -> int:
        """Tokens that a pass must have, so that each has the bits it has in any other: 0 where that is not wanted."""
        if not self.exact:
            return 0
        return row_floor() if self.head.packed is None else PACKED_FLOOR

    def where(self, documents: Documents) -> Where:
        cos, sin = self.rotary(documents.positions_T, self.embed.weight.dtype)
        return Where(cos, sin, documents=documents, exact=self.exact)

    def forward(self, tokens_T: Tensor, documents: Documents, trace: Trace | None = None) -> Tensor:
        """Packed documents -> final hidden states [T, D], normed; `head` makes logits of those that are needed."""
        assert not self.exact or len(tokens_T) >= row_floor()  # whoever has fewer adds some that nobody reads
        return self._run(tokens_T, self.where(documents), trace)

    def extend(self, tokens_T: Tensor, positions_T: Tensor, window: Window, trace: Trace | None = None) -> Tensor:
        """New tokens of cached rows (row after row) -> hidden states [T, D]; the cache grows by them."""
        cos, sin = self.rotary(positions_T, self.embed.weight.dtype)
        return self._run(tokens_T, Where(cos, sin, window=window, exact=self.exact), trace)

    def extend_ahead(self, next_T: Tensor, hidden_TD: Tensor, positions_T: Tensor, window: Window) -> Tensor:
        """As `predict_ahead` of the first MTP layer, over a cache: from states and the tokens behind them the states
        that predict the tokens behind those."""
        cos, sin = self.rotary(positions_T, self.embed.weight.dtype)
        return self.mtp[0](self.embed(next_T), hidden_TD, Where(cos, sin, window=window, exact=self.exact))

    def _run(self, tokens_T: Tensor, where: Where, trace: Trace | None) -> Tensor:
        x_TD = self.embed(tokens_T)
        for block in self.blocks:
            x_TD = block(x_TD, where, trace)
        return self.norm(x_TD)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """[T, V] in fp32, whatever the model's dtype and under autocast too: log-probabilities must not round."""
        if (lacking := self.least_rows - hidden_TD.shape[0]) > 0:
            return self.logits(F.pad(hidden_TD, (0, 0, 0, lacking)))[:-lacking]
        if self.head.packed is not None:
            return self.head.packed(hidden_TD)
        with unrounded(hidden_TD.device):
            return linear(hidden_TD.float(), self.head.weight.float(), plain=self.exact)

    def predict_ahead(
        self, tokens_T: Tensor, hidden_TD: Tensor, documents: Documents, trace: Trace | None = None
    ) -> list[Tensor]:
        """States of the MTP layers: entry d at token i predicts token i + d + 2 of the same document.

        The states of a document's last d + 1 tokens have no next token to read; the loss leaves them out.
        """
        where, states = self.where(documents), []
        inside_T = documents.index_T == documents.index_T.roll(-1)
        inside_T[-1] = False
        for layer in self.mtp:
            # a document's last token stands in for the one it lacks: the neighbour's would leak into the experts' load
            tokens_T = torch.where(inside_T, tokens_T.roll(-1), tokens_T)
            hidden_TD = layer(self.embed(tokens_T), hidden_TD, where, trace)
            states.append(hidden_TD)
        return states


def count_parameters(model: Transformer) -> int:
    """All parameters, MTP included, tied ones once."""
    return sum(p.numel() for p in model.parameters())
