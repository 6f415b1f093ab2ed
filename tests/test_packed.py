"""Weights in oneDNN's order: the same answers as without, for all shapes and numbers of rows; nothing kept twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small import GQA, MLA, SHAPES, changed, chat, model_of, tokens_of

from mull.engine.engine import LocalEngine
from mull.model.config import ModelConfig
from mull.model.transformer import Transformer
from mull.ops.attention import Documents
from mull.ops.linear import PACKED_FLOOR, linear_packed, pack, packable
from mull.types import Request, Sampling

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN here")
WIDE = {"width": 512, "ffn": 512, "vocab": 300, "max_length": 128}
MODELS: dict[str, ModelConfig] = {
    "gqa": changed(GQA, **WIDE, heads=8, kv_heads=4, head_dim=64),
    "gqa, biases, tied": changed(GQA, **WIDE, heads=8, kv_heads=4, head_dim=64, qkv_bias=True, o_bias=True, tied=True),
    "qwen3": changed(GQA, **WIDE, heads=8, kv_heads=4, head_dim=64, qk_norm="head"),
    "mla": changed(MLA, **WIDE, heads=8, q_rank=256, kv_rank=256, nope_dim=32, rope_dim=32, v_dim=64),
    "mla, queries in one matrix": changed(MLA, **WIDE, heads=8, q_rank=0, kv_rank=256, nope_dim=32, rope_dim=32),
    "mla, mtp": changed(MLA, **WIDE, heads=8, q_rank=256, kv_rank=256, nope_dim=32, rope_dim=32, mtp_layers=1),
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 3, 16, 17, 64, 100])
def test_products_are_those_of_plain_weights(rows: int) -> None:
    g = torch.Generator().manual_seed(0)
    weight, x, bias = torch.randn(300, 600, generator=g), torch.randn(rows, 600, generator=g), torch.randn(300)
    with torch.inference_mode():
        torch.testing.assert_close(
            linear_packed(x, pack(weight), bias), x @ weight.T + bias, atol=2e-4, rtol=1e-4
        )  # fmt: skip


def said(model: Transformer, ids: torch.Tensor) -> list[torch.Tensor]:
    """Of the next token, and by MTP layers of those behind it."""
    documents = Documents([len(ids)])
    hidden_TD = model(ids, documents)
    return [model.logits(state_TD) for state_TD in (hidden_TD, *model.predict_ahead(ids, hidden_TD, documents))]


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_model_answers_as_it_did(name: str) -> None:
    plain, packed = (model_of(MODELS[name], seed=2, std=0.04) for _ in "ab")
    before = sum(p.numel() for p in packed.parameters())
    assert packed.packed() is packed
    assert sum(p.numel() for p in packed.parameters()) < before / 2  # the plain weights are gone
    ids = torch.tensor(tokens_of(40))
    with torch.inference_mode():
        for a, b in zip(said(plain, ids), said(packed, ids), strict=True):
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)
    asked = [Request(tuple(tokens_of(5 + i, i)), Sampling(max_tokens=12, temperature=0.0), (i,)) for i in range(5)]
    answers = [LocalEngine(model, chat()).generate(asked) for model in (plain, packed)]
    assert [a.tokens for a in answers[0]] == [a.tokens for a in answers[1]]
    for one, other in zip(*answers, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", ["moe", "llama", "gqa moe"])
def test_small_matrices_stay_as_they_are(name: str) -> None:
    model = model_of(SHAPES[name])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.packed()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not packable(model.head.weight)


@pytest.mark.parametrize("name", ["moe", "mla", "gqa moe"])
def test_exact_models_that_cannot_be_packed_whole_are_not_packed(name: str) -> None:
    model = model_of(SHAPES[name]).exactly().packed()
    assert model.head.packed is None
    assert all(p.numel() for p in model.parameters())
    assert all(layer.project.packed is None for layer in model.mtp)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 32), (7, 33), (576, 1536), (512, 4096), (2048, 2048)])
def test_rows_from_the_floor_on_have_the_same_bits(outputs: int, inputs: int) -> None:
    g = torch.Generator().manual_seed(0)
    packed, x = pack(torch.randn(outputs, inputs, generator=g)), torch.randn(130, inputs, generator=g)
    with torch.inference_mode():
        whole = linear_packed(x, packed)
        for rows in (PACKED_FLOOR, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100):
            assert torch.equal(linear_packed(x[:rows], packed), whole[:rows])
            assert torch.equal(linear_packed(x[9 : 9 + rows], packed), whole[9 : 9 + rows])
