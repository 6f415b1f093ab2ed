"""Requests made up from the OpenAPI description, right ones and wrong ones: none ends in an error of the server's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from serving import serving

from mull.serve.settings import Limits

EXAMPLES = 10  # of each operation and mode


@pytest.fixture(scope="module")
def described() -> Iterator[schemathesis.BaseSchema]:
    """Of a running server; answers are kept short."""
    with serving(limits=Limits(max_tokens=4, n=2, votes=2)) as server:
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", GenerationMode)
def test_no_request_is_an_error_of_the_servers(described: schemathesis.BaseSchema, mode: GenerationMode):
    tried = 0
    for found in described.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES, deadline=None, derandomize=True, phases=[Phase.generate], database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            nonlocal tried
            response = case.call()
            tried += 1
            assert response.status_code < 500, (case.as_curl_command(), response.text)
            if response.status_code >= 400:
                error = response.json()["error"]
                assert error["message"].endswith((".", "?")), error
                assert error["type"] in ("invalid_request_error", "not_found_error"), error

        with suppress(Unsatisfiable):  # what takes no arguments cannot be asked wrongly
            ask()
    assert tried > 40
