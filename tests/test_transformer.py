"""The whole model: documents keep to themselves, prediction ahead shifts rightly, seeds decide everything."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small import MOE, SHAPES, examples_of, model_of, tokens_of

from mull.data.batch import collate
from mull.model.config import PRESETS, ModelConfig
from mull.model.layers import SwiGLU
from mull.model.moe import MoE
from mull.model.transformer import Transformer, count_parameters
from mull.ops.attention import Documents

LENGTHS = [7, 1, 19, 12]


@pytest.mark.parametrize("name", SHAPES)
def test_packed_documents_equal_one_by_one(name: str) -> None:
    model = model_of(SHAPES[name])
    rows = [tokens_of(n, i) for i, n in enumerate(LENGTHS)]
    with torch.inference_mode():
        packed = model(torch.tensor([t for row in rows for t in row]), Documents(LENGTHS)).split(LENGTHS)
        for row, states in zip(rows, packed, strict=True):
            alone = model(torch.tensor(row), Documents([len(row)]))
            torch.testing.assert_close(states, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mla", "qwen2", "moe", "moe, two mtp layers"])
def test_changing_one_document_leaves_the_others_alone(name: str) -> None:
    """Same place, other contents. Dense models to the bit; mixtures regroup tokens, so within rounding."""
    model = model_of(SHAPES[name])
    tokens, documents = torch.tensor(tokens_of(sum(LENGTHS))), Documents(LENGTHS)
    other = torch.where(documents.index_T == 2, (tokens + 17) % 290 + 5, tokens)
    kept = documents.index_T != 2
    with torch.inference_mode():
        before, after = model(tokens, documents), model(other, documents)
        if model.cfg.experts:
            torch.testing.assert_close(before[kept], after[kept], atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(before[kept], after[kept])
        assert not torch.allclose(before[~kept], after[~kept])
        pairs = zip(
            model.predict_ahead(tokens, before, documents), model.predict_ahead(other, after, documents), strict=True
        )
    for a, b in pairs:
        torch.testing.assert_close(a[kept], b[kept], atol=1e-6, rtol=1e-5)


def test_prediction_ahead_reads_the_next_token_and_the_state() -> None:
    """Entry d at token i is the MTP block over [norm(embedding of i + d + 1), norm(state of i)], in that order."""
    model = model_of(SHAPES["moe, two mtp layers"])
    tokens, documents = torch.tensor(tokens_of(12)), Documents([12])
    with torch.inference_mode():
        hidden = model(tokens, documents)
        states = model.predict_ahead(tokens, hidden, documents)
        assert len(states) == 2
        for depth, layer in enumerate(model.mtp, 1):
            read = model.embed(torch.cat((tokens[depth:], tokens[-1:].expand(depth))))
            both = torch.cat((layer.embed_norm(read), layer.hidden_norm(hidden)), dim=-1)
            hidden = layer.norm(layer.block(layer.project(both), model.where(documents)))
            torch.testing.assert_close(states[depth - 1], hidden)


def test_prediction_ahead_uses_only_what_is_known_at_the_token() -> None:
    """The state at i that predicts token i + 2 depends on tokens up to i + 1, and does depend on i + 1."""
    model = model_of(MOE)
    tokens, documents = torch.tensor(tokens_of(12)), Documents([12])

    def ahead(changed: int) -> torch.Tensor:
        other = tokens.clone()
        other[changed] = 5 + (int(other[changed]) + 3) % 290
        with torch.inference_mode():
            return model.predict_ahead(other, model(other, documents), documents)[0]

    base = model.predict_ahead(tokens, model(tokens, documents), documents)[0].detach()
    torch.testing.assert_close(ahead(8)[:7], base[:7], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ahead(8)[7], base[7])


@pytest.mark.parametrize(("lengths", "learnt"), [((9, 3, 14, 2), 0.6), ((9,), 1.0), ((5, 5), 1.0)], ids=str)
def test_targets_ahead_are_of_the_same_document_and_learnt(lengths: tuple[int, ...], learnt: float) -> None:
    """A single document too: its end must not meet its own beginning."""
    batch = collate(examples_of(*lengths, learnt=learnt))
    for depth in (1, 2, 3):
        at, target = batch.ahead(depth)
        want = [
            i
            for i in range(batch.tokens - depth)
            if batch.documents.index_T[i] == batch.documents.index_T[i + depth] and batch.mask_T[i + depth]
        ]
        assert at.tolist() == want
        assert torch.equal(target, batch.tokens_T[at + depth])
    assert torch.equal(batch.ahead(1)[0], batch.predict_N)
    assert torch.equal(batch.ahead(1)[1], batch.target_N)


def test_weights_are_a_function_of_the_seed() -> None:
    a, b, c = (Transformer(MOE).initialise(seed) for seed in (1, 1, 2))
    for (name, x), y, z in zip(a.state_dict().items(), b.state_dict().values(), c.state_dict().values(), strict=True):
        assert torch.equal(x, y), name
        if x.ndim >= 2:
            assert not torch.equal(x, z), name
            assert float(x.std()) == pytest.approx(MOE.init_std, rel=0.2), name


@pytest.mark.parametrize("name", SHAPES)
def test_a_step_down_the_gradient_lowers_the_loss(name: str) -> None:
    """And every parameter takes part: none is left without a gradient."""
    model = model_of(SHAPES[name], std=0.1).train()
    batch = collate(examples_of(15, 25))

    def loss() -> torch.Tensor:
        hidden = model(batch.tokens_T, batch.documents)
        states = [hidden, *model.predict_ahead(batch.tokens_T, hidden, batch.documents)]
        targets = [batch.ahead(depth) for depth in range(1, len(states) + 1)]
        return sum(
            (F.cross_entropy(model.logits(s[at]), t) for s, (at, t) in zip(states, targets, strict=True)),
            torch.zeros(()),
        )

    before = loss()
    before.backward()
    for name_, p in model.named_parameters():
        assert p.grad is not None, name_
        assert bool(p.grad.any()), name_
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad
    assert float(loss().detach()) < float(before.detach())


def test_tied_models_have_one_table() -> None:
    model = model_of(SHAPES["moe, tied"])
    assert model.head.weight is model.embed.weight
    assert count_parameters(model) == sum(p.numel() for p in set(model.parameters()))


def test_layers_are_dense_or_mixtures_as_configured() -> None:
    model = Transformer(MOE.model_copy(update={"layers": 4, "dense_layers": 2, "mtp_layers": 2}))
    assert [type(b.ffn) for b in model.blocks] == [SwiGLU, SwiGLU, MoE, MoE]
    assert [type(m.block.ffn) for m in model.mtp] == [MoE, MoE]
    dense = Transformer(MOE.model_copy(update={"experts": 0}))
    assert {type(b.ffn) for b in dense.blocks} == {SwiGLU}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name: str) -> None:
    cfg = PRESETS[name]
    assert ModelConfig(**cfg.model_dump()) == cfg
    model = Transformer(cfg).initialise(0)
    with torch.inference_mode():
        logits = model.logits(model(torch.tensor(tokens_of(6, vocab=cfg.vocab)), Documents([6])))
    assert logits.shape == (6, cfg.vocab)
    assert logits.dtype == torch.float32
