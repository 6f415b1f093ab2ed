"""The tables of models: ours are whole and dated, the user's are laid over them, mistakes are said in a sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from mull.endpoints import DIALECTS, FILE, HABITS, Endpoint, Usage, endpoint, endpoints, knows, put, reported
from mull.types import UserError

ASKED_FOR = ("o3", "o4-mini", "gpt-5", "deepseek-r1", "deepseek-flash", "gemini-2.5-pro", "gemini-2.5-flash",
             "claude-haiku-4-5", "claude-sonnet-5-5", "vllm", "mull")  # fmt: skip
SETS = ("aime24", "math500", "humaneval", "ifeval", "gsm8k", "mbpp")


@pytest.fixture(autouse=True)
def no_file_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(FILE, raising=False)


def mistake(text: str, name: str = "mine") -> str:
    Path("models.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        endpoint(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_our_tables() -> None:
    known = endpoints()
    assert {*ASKED_FOR} <= {*known}
    assert {*HABITS} == {*DIALECTS}
    for name, table in known.items():
        assert table.name == name and table.about
        assert table.key_env or table.url.startswith("http://127.0.0.1"), name
        if table.usd_per_million is not None:
            assert table.priced is not None and table.source.startswith("https://"), name
            assert table.priced <= date(2026, 11, 24), name
            assert (table.usd_per_million.cached or 0) <= table.usd_per_million.input < table.usd_per_million.output


def test_published_scores_are_dated_and_signed() -> None:
    scores = reported()
    assert scores and all(score.set in SETS and score.by and score.what for score in scores)
    assert all(score.url.startswith("https://") and score.when <= date(2026, 11, 24) for score in scores)
    assert len({(score.model, score.set) for score in scores}) == len(scores)
    assert {score.set for score in reported("aime24")} == {"aime24"} and reported("chain_sum") == []


def test_a_users_file_is_laid_over_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("models.toml").write_text(
        '[o3]\nconcurrency = 2\n[mine]\nurl = "http://box:9000"\nmodel = "qwen"\ndialect = "vllm"\n', encoding="utf-8"
    )
    assert endpoint("o3").concurrency == 2 and endpoint("o3").usd_per_million == endpoint("o3:low").usd_per_million
    assert endpoint("mine").url == "http://box:9000/v1" and "o4-mini" in endpoints()
    other = tmp_path / "other.toml"
    other.write_text('[o3]\nconcurrency = 3\n', encoding="utf-8")
    monkeypatch.setenv(FILE, str(other))
    assert endpoint("o3").concurrency == 3 and "mine" not in endpoints()
    monkeypatch.setenv(FILE, str(tmp_path / "othr.toml"))
    with pytest.raises(UserError, match=r"othr\.toml.*other\.toml"):
        endpoints()


@pytest.mark.parametrize(("text", "words"), [
    ('[mine]\nmodel = "m"', "url: this key is required"),
    ('[mine]\nurl = "box:9000"\nmodel = "m"', "no http:// or https:// address"),
    ('[mine]\nurl = "http://box"\nmodel = ""', "model"),
    ('[mine]\nurl = "http://box"\nmodel = "m"\nkey_evn = "K"', "Did you mean 'key_env'"),
    ('[mine]\nurl = "http://box"\nmodel = "m"\ndialect = "german"', "dialect"),
    ('[mine]\nurl = "http://box"\nmodel = "m"\nconcurrency = 0', "concurrency"),
    ('[mine]\nurl = "http://box"\nmodel = "m"\nusd_per_million = {input = 1, output = 1}', "priced ="),
    ('mine = 3', "no table"), ('[mine', "not valid TOML"),
])  # fmt: skip
def test_mistakes(text: str, words: str) -> None:
    assert words in mistake(text)


@pytest.mark.parametrize("key", ["sk-proj-abc", "AIzaSyabc123", "two words"])
def test_a_key_in_the_place_of_its_name_is_not_repeated(key: str) -> None:
    why = mistake(f'[mine]\nurl = "http://box"\nmodel = "m"\nkey_env = "{key}"')
    assert "not the key itself" in why and key not in why
    with pytest.raises(UserError) as caught:
        Endpoint.of_url(f"https://me:{key}@box/v1".replace(" ", ""), "m")
    assert key not in str(caught.value) and "no key or password" in str(caught.value)


def test_names() -> None:
    with pytest.raises(UserError, match="Did you mean 'o4-mini'"):
        endpoint("o4mini")
    with pytest.raises(UserError, match="Did you mean 'high'"):
        endpoint("o3:hihg")
    with pytest.raises(UserError, match="takes no effort"):
        endpoint("vllm:low")
    assert endpoint("o3:low").name == "o3:low" and endpoint("o3:low").on == {"reasoning_effort": "low"}


GOOGLE = "https://generativelanguage.googleapis.com/v1beta/openai"


@pytest.mark.parametrize(("url", "expected", "dialect"), [
    ("http://localhost:8000", "http://localhost:8000/v1", "plain"), ("http://h/v1/", "http://h/v1", "plain"),
    ("http://h/v1/chat/completions", "http://h/v1", "plain"), (f"{GOOGLE}/", GOOGLE, "gemini"),
    ("https://api.deepseek.com", "https://api.deepseek.com", "deepseek"),
    ("https://api.openai.com/v1", "https://api.openai.com/v1", "openai"),
    ("https://api.x.ai/v1", "https://api.x.ai/v1", "xai"),
])  # fmt: skip
def test_addresses(url: str, expected: str, dialect: str) -> None:
    found = Endpoint.of_url(url, "m")
    assert (found.url, found.dialect) == (expected, dialect)


def test_what_an_answer_costs() -> None:
    prices: dict[str, Any] = {"input": 2.0, "cached": 0.5, "written": 3.0, "output": 8.0}
    plain = Endpoint.of_url("http://h/v1", "m", usd_per_million=prices, priced="2026-11-24")
    assert plain.usd(Usage(1_000_000, 500_000, 400_000, 600_000, 100_000)) == pytest.approx(0.6 + 0.3 + 0.3 + 4.0)
    assert plain.usd(Usage(10, 0, 0, 99, 99)) == pytest.approx(10 * 0.5 / 1e6)  # more cached than there is
    bare = Endpoint.of_url("http://h/v1", "m", usd_per_million={"input": 2, "output": 8}, priced="2026-11-24")
    assert bare.usd(Usage(1_000_000, 0, 0, 500_000)) == pytest.approx(2.0)
    assert Endpoint.of_url("http://h/v1", "m").usd(Usage(1, 1)) is None


def test_long_prompts_and_peak_hours_have_prices_of_their_own() -> None:
    sol = endpoint("gpt-6.2-sol")
    assert sol.usd(Usage(272_000, 0)) == pytest.approx(0.544) and sol.usd(Usage(272_001, 0)) == pytest.approx(1.088004)
    flash, used = endpoint("deepseek-flash"), Usage(1_000_000, 0)
    for when, usd in (
        (datetime(2026, 11, 24, 0, 59, tzinfo=UTC), 0.15), (datetime(2026, 11, 24, 1, 0, tzinfo=UTC), 0.30),
        (datetime(2026, 11, 24, 9, 59, tzinfo=UTC), 0.30), (datetime(2026, 11, 24, 10, 0, tzinfo=UTC), 0.15),
        (datetime(2026, 11, 28, 2, 0, tzinfo=UTC), 0.15),  # Saturday
    ):  # fmt: skip
        assert flash.usd(used, when) == pytest.approx(usd)


def test_what_can_be_asked_of_it() -> None:
    assert endpoint("o3").modes == (True,) and endpoint("deepseek-flash").modes == (True, False)
    assert Endpoint.of_url("http://h/v1", "m").modes == (True,)
    assert Endpoint.of_url("http://h/v1", "m", off={"think": False}).modes == (True, False)
    assert knows("o3") and knows("o3:low") and not knows("o3mini") and not knows("runs/demo:student")


def test_put_leaves_what_it_was_given() -> None:
    table = {"a": {"b": 1}}
    assert put(table, "a.c.d", 2) == {"a": {"b": 1, "c": {"d": 2}}} and table == {"a": {"b": 1}}


def test_asking_loads_no_torch() -> None:
    code = "import sys, mull.engine.remote; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


PAGE = Path(__file__).parents[1] / "docs" / "endpoints.md"


def test_the_page_names_every_key_and_no_other() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## A table of your own")[2].partition("## Dialects")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE)
    assert sorted(re.findall(r"\w+", " ".join(rows))) == sorted({*Endpoint.model_fields} - {"name"})


def test_the_page_names_every_model_with_its_price() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## A table of your own")[0]
    rows = dict(re.findall(r"^\| `([\w.-]+)` \| (.+) \|$", text, re.MULTILINE))
    assert {*rows} == {*endpoints()}
    for name, table in endpoints().items():
        if table.usd_per_million is not None:
            prices = (table.usd_per_million.input, table.usd_per_million.cached, table.usd_per_million.output)
            told = ", ".join("unknown" if price is None else f"{price:g}" for price in prices)
            assert f"| {told}" in rows[name] and str(table.priced) in rows[name], name
        assert table.ends is None or str(table.ends) in rows[name], name


def test_the_table_that_the_page_shows_is_one() -> None:
    shown = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    Path("models.toml").write_text(shown[0], encoding="utf-8")
    assert endpoint("box").url == "http://box:8000/v1" and endpoint("o3").requests_per_minute == 60
