"""The one model, as each protocol's own client has it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import anthropic
import openai
import pytest
from anthropic.types import ModelInfo
from serving import TINY, Server, saved, serving


@pytest.fixture(scope="module", name="server")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(saved(tmp_path_factory.mktemp("model") / "tiny")) as server:
        yield server


def test_openais_client_finds_the_model(server: Server) -> None:
    with server.openai() as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        model = client.models.retrieve("tiny")
        assert (model.object, model.owned_by, model.max_model_len) == ("model", "mull", TINY.max_length)
        with pytest.raises(openai.NotFoundError, match="no model 'tiny/other'"):
            client.models.retrieve("tiny/other")


def test_anthropics_client_finds_the_model(server: Server) -> None:
    with server.anthropic() as client:
        page = client.models.list()
        assert [model.id for model in page] == ["tiny"]  # of all pages
        assert (page.first_id, page.last_id, page.has_more) == ("tiny", "tiny", False)
        assert [*client.models.list(after_id="tiny")] == [*client.models.list(before_id="tiny", limit=5)] == []
        model = client.models.retrieve("tiny")
        assert model == page.data[0]
        assert set(model.to_dict()) == set(ModelInfo.model_fields)
        assert (model.type, model.display_name, model.lifecycle) == ("model", "tiny", "active")
        assert model.max_tokens == model.max_input_tokens == TINY.max_length
        assert abs(model.created_at.timestamp() - time.time()) < 3600
        with pytest.raises(anthropic.NotFoundError, match="no model 'tiny/other'") as error:
            client.models.retrieve("tiny/other")
    assert error.value.body["type"] == "error"
    assert error.value.body["error"]["type"] == "not_found_error"
    assert error.value.response.headers["request-id"].startswith("req_")
