"""The visit: what counts as a request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from small import chat
from starlette.testclient import TestClient

from mull.engine.host import Host
from mull.serve.app import build
from mull.serve.dialogue import Ask, Dialogue
from mull.serve.errors import ApiError
from mull.serve.gate import Open, Spent, Visit, Who
from mull.types import Message, UserError

ASK = Ask(messages=(Message("user", "What is 1 + 1?"),))


class Once(Open):
    """Lets one in at a time, and one in all."""

    def __init__(self) -> None:
        self.let_in, self.settled = 0, list[Spent]()

    def allow(self, who: Who, ask: Ask) -> None:
        if self.let_in:
            raise ApiError(429, "Once is enough.")
        self.let_in += 1

    async def settle(self, who: Who, spent: Spent) -> float | None:
        self.settled.append(spent)
        return None


def test_counting_tokens_is_a_request_too(monkeypatch: Any) -> None:
    """Encoding takes long for long prompts, so who may ask no more may not have them counted either."""
    dialogue, gate = Dialogue(Host({}), chat(), "tiny", 1024), Once()
    first, second = (Visit("req_1", "anthropic", dialogue, gate) for _ in range(2))
    assert asyncio.run(first.counted(ASK)) == len(dialogue.encode(ASK))
    assert gate.settled == [Spent()]
    monkeypatch.setattr(dialogue, "encode", None)  # it is not come to
    with pytest.raises(ApiError, match="Once"):
        asyncio.run(second.counted(ASK))
    assert gate.settled == [Spent()]  # who was not let in does not leave


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/completions", {"prompt": ["x", "y"]}),
    ("/v1/responses", {"input": [{"role": "user", "content": "x"}] * 3, "truncation": "auto"}),
    ("/v1/responses/input_tokens", {"input": "x"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}),
])  # fmt: skip
def test_nothing_is_encoded_of_who_may_not_ask(path: str, body: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    template, gate = chat(), Once()
    gate.let_in = 1
    for owner in (template, template.tokenizer):
        monkeypatch.setattr(owner, "encode", None)
    said = TestClient(build(Dialogue(Host({}), template, "tiny", 1024), gate)).post(path, json=body)
    assert (said.status_code, gate.settled) == (429, [])


def test_who_cannot_be_encoded_leaves_too() -> None:
    dialogue, gate = Dialogue(Host({}), chat(), "tiny", 1024), Once()
    broken = Ask(messages=(Message("user", "x"),), effort="endless")
    with pytest.raises(Exception, match="no effort"):
        asyncio.run(Visit("req_1", "openai", dialogue, gate).counted(broken))
    assert len(gate.settled) == 1


def test_more_answers_than_there_is_ever_room_for_are_no_matter_of_waiting() -> None:
    gate = Once()
    visit = Visit("req_1", "openai", Dialogue(Host({}, rows=4, queue=2), chat(), "tiny", 1024), gate)

    async def ask() -> None:
        await anext(visit.answer(*[Ask(prompt=(1,), n=2)] * 4))

    with pytest.raises(UserError, match="at most 6 answers at a time, not 8"):
        asyncio.run(ask())
    assert gate.let_in == 0
