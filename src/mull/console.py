"""What the command line prints: tables, one-line errors, JSON. Results go to stdout, all else to stderr."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mull.ledger import money
from mull.locate import judged
from mull.report.summary import HELD_OUT
from mull.report.verdict import verdict
from mull.report.words import THIN, clock, count, energy, flops, interval, mode, per_thousand, percent
from mull.tasks import TAUGHT
from mull.types import OUTCOMES, Message, Problem

HEALTH = 8  # lines before a score; the report has all
PIPED_WIDTH = 120  # columns where nobody's terminal says how many there are

Row = Mapping[str, Any]


def error_console() -> Console:
    return Console(stderr=True, highlight=False)


def _out() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    return console


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, default=str))


def command(*words: str) -> str:
    """What to type to run mull with these words: by name where the shell finds it, else by the path it was run by."""
    given = Path(sys.argv[0])
    program = "mull" if shutil.which("mull") or given.name != "mull" else str(given)
    return shlex.join([program, *words])


def _table(title: str, columns: Sequence[str], left: int = 1) -> Table:
    """The first `left` columns are text; numbers stand on the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place < left else "right", no_wrap=place > 0)
    return table


# what a run came to


def print_run(folder: Path, report: Row) -> None:
    """Accuracy, bill, where the report is, what to type next."""
    out = _out()
    if judged(folder):
        _print_judgement(out, folder, report)
        return
    if report["overall"]:
        order = [model["name"] for model in report["models"]]
        overall, by_task = (_ordered(report[key], order) for key in ("overall", "evals"))
        out.print(_accuracy(overall), "")
        if len({row["task"] for row in by_task}) > 1:
            out.print(_by_task(by_task), "")
    out.print(_bill(report), "")
    out.print(Text(f"Report: {folder / 'report.html'}"), soft_wrap=True)
    if report["model"]:
        out.print(Text(f"Talk with it: {command('chat', str(folder))}"), soft_wrap=True)
        if report["evals"]:
            question = command("ask", str(folder), _question(report["evals"][0]))
            out.print(Text(f"Ask it:       {question}"), soft_wrap=True)


def _print_judgement(out: Console, folder: Path, report: Row) -> None:
    """Of an evaluation: how far its problems can tell, the verdict and what speaks against it, the table, the bill."""
    sheet = report["health"]
    for row in sheet[:HEALTH]:
        mark, style = ("! ", "yellow") if row["level"] == "warning" else ("  ", "dim")
        out.print(Text(f"{mark}{row['line']}", style=style))
    if len(sheet) > HEALTH:
        out.print(Text(f"  and {len(sheet) - HEALTH} more lines in the report", style="dim"))
    found = verdict(report)
    out.print("", Text(found.headline, style="bold"), sep="\n")
    for line in found.caveats:
        out.print(Text(f"! {line}", style="yellow"))
    if report["overall"]:
        out.print("", _scores(report), sep="\n")
    total, charged = report["total"], sum(row["charged_usd"] or 0.0 for row in report["overall"])
    by = f", {money(charged)} of it charged by endpoints" if charged else ""
    rate = f"{clock(total['seconds'])} of this machine at {money(total['usd_per_hour'])} an hour"
    out.print("", Text(f"Cost: {money(total['usd'])}{by}; {rate}."), sep="\n")
    out.print(Text(f"Report: {folder / 'report.html'}"), soft_wrap=True)


def _scores(report: Row) -> Table:
    """A line per set and target: what it solves, how the rest came out, what it costs."""
    several = len({row["task"] for row in report["evals"]}) > 1
    rows = [*(report["overall"] if several else []), *report["evals"]]
    order = list(dict.fromkeys([*(one["name"] for one in report["targets"]), *(row["model"] for row in rows)]))
    sets = list(dict.fromkeys((row["task"], row["label"]) for row in rows))
    rows.sort(key=lambda row: (sets.index((row["task"], row["label"])), order.index(row["model"]), not row["thinking"]))
    modes = len({row["thinking"] for row in rows}) > 1
    columns = ["set", "target", "solved (95 % interval)", "not solved", "per 1,000", "1,000 solved"]
    table = _table("How the answers came out, and what they cost", columns, left=2)
    for place in (1, 3):
        table.columns[place].no_wrap = False
    table.columns[3].justify = "left"
    for i, row in enumerate(rows):
        last = i + 1 < len(rows) and rows[i + 1]["task"] != row["task"]
        rest = ", ".join(f"{row['outcomes'][kind]} {kind}" for kind in OUTCOMES[1:] if row["outcomes"].get(kind))
        prices = [per_thousand(row[f"usd_per_{what}"]) for what in ("answer", "solved")]
        name = f"{row['model']} {mode(row['thinking'])}" if modes else row["model"]
        about = row["task"] if row["label"] == HELD_OUT else f"{row['task']}, {row['label']}"
        table.add_row(Text(about), Text(name), _share(row), rest or "–", *prices, end_section=last)
    return table


def _ordered(rows: Sequence[Row], models: Sequence[str]) -> list[Row]:
    """Models as they were made, thinking first, labels and tasks as they come."""
    place = {name: i for i, name in enumerate(models)}
    return sorted(rows, key=lambda row: (place.get(row["model"], -1), not row["thinking"]))


def _accuracy(rows: Sequence[Row]) -> Table:
    """A line per model and mode, a column per label."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    cells: dict[tuple[str, bool], dict[str, str]] = {}
    for row in rows:
        cells.setdefault((row["model"], row["thinking"]), {})[row["label"]] = _share(row)
    table = _table("Solved, with 95 % interval", ["model", "mode", *labels], left=2)
    for (model, thinking), by_label in cells.items():
        table.add_row(model, _mode(thinking), *(by_label.get(label, "") for label in labels))
    return table


def _by_task(rows: Sequence[Row]) -> Table:
    """The same, task by task."""
    names = list(dict.fromkeys((row["task"], row["label"]) for row in rows))
    cells: dict[tuple[str, bool], dict[tuple[str, str], str]] = {}
    for row in rows:
        cells.setdefault((row["model"], row["thinking"]), {})[row["task"], row["label"]] = percent(row["accuracy"])
    table = _table("By task", ["task", "problems", *(f"{m} {_mode(t)}" for m, t in cells)], left=2)
    for task, label in names:
        table.add_row(task, label, *(by_task.get((task, label), "") for by_task in cells.values()))
    return table


def _share(row: Row) -> str:
    return f"{percent(row['accuracy'])} ({interval(row['ci95'])})" if row["accuracy"] is not None else "–"


def _mode(thinking: bool) -> str:
    return "thinking" if thinking else "direct"


def _bill(report: Row) -> Table:
    total = report["total"]
    table = _table("The bill", ["stage", "kind", "time", "tokens", "compute", "energy", "cost"], left=2)
    for row in [*report["stages"], {"name": "total", "kind": "", **total}]:
        last = row is report["stages"][-1] if report["stages"] else False
        table.add_row(row["name"], row["kind"], *_costs(row), end_section=last)
    rate = total["usd_per_hour"]
    table.caption = f"at ${rate:{'.2f' if rate >= 0.01 else 'g'}} an hour; energy: {total['energy_source']}"
    table.caption_justify = "left"
    return table


def _costs(row: Row) -> list[str]:
    return [clock(row["seconds"]), count(row["tokens"]), flops(row["flops"]), energy(row["kwh"]), money(row["usd"])]


def _question(row: Row) -> str:
    """One like those of an exam, where that costs nothing to make."""
    if row["task"] not in TAUGHT:
        return "..."
    return TAUGHT[row["task"]].problems(row["split"], 1, **row.get("size", {}))[0].messages[-1].content


# models, tasks, recipes


def print_info(facts: Row) -> None:
    out = _out()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _spelt(facts).items():
        table.add_row(name, Text(value))
    out.print(table)


def _spelt(facts: Row) -> dict[str, str]:
    """The lines of `mull info`, of a model, a run or an evaluation."""
    lines = {"path": str(facts["path"])}
    if facts["kind"] == "evaluation":
        lines["evaluation"] = ", ".join(f"of {name} in {folder}" for name, folder in facts["judged"].items())
        for row in facts["overall"]:
            lines[f"{row['model']} {_mode(row['thinking'])}, {row['label']}"] = (
                f"{_share(row)} of {row['n']} problems of {', '.join(row['tasks'])}"
            )
        if not facts["overall"]:
            lines["results"] = "none yet"
        lines |= {"report": str(facts["report"] or "none yet"), "bill": ", ".join(_costs(facts["total"]))}
    if facts["kind"] == "run":
        stages = [f"{stage['name']} ({'done' if stage['done'] else 'not done'})" for stage in facts["stages"]]
        lines |= {
            "recipe": " - ".join(part for part in (facts["name"], facts["about"]) if part),
            "stages": ", ".join(stages) or "none yet", "models": ", ".join(facts["models"]) or "none yet",
            "result": facts["result"] or "none yet", "report": str(facts["report"] or "none yet"),
            "bill": ", ".join(_costs(facts["total"])),
        }  # fmt: skip
    return lines | (_sizes(facts) if facts.get("total_params") else {})


def _sizes(facts: Row) -> dict[str, str]:
    """Of a model: what it is, what it takes to keep, to run, and to serve."""
    experts = f", {facts['active_experts']} of {facts['experts']} experts per token" if facts["experts"] else ""
    mtp = f", {_parameters(facts['mtp_params'])} more to predict further tokens" if facts["mtp_params"] else ""
    total, active = _parameters(facts["total_params"]), _parameters(facts["active_params"])
    lines = {
        "parameters": f"{total} in all, {active} active per token{mtp}",
        "family": f"{facts['family']}, {facts['layers']} layers of width {facts['width']}{experts}",
        "vocabulary": str(facts["vocab"]), "length": f"{facts['max_length']} tokens",
        "compute": f"{flops(facts['flops_per_token'])} per token",
        "cache": f"{facts['cache_bytes_per_token']:,} bytes per token in f32, half of it in bf16",
        "weights": _in_formats(facts["bytes"]),
    }  # fmt: skip
    for load in facts["serving"]:
        lines[f"with the cache of {load['rows']} x {load['tokens']}"] = _in_formats(load["bytes"])
    held = ", ".join(f"{kind} {count(one['bytes'])}B in {one['tensors']}" for kind, one in facts["held"].items())
    lines["on disk"] = f"{count(facts['disk_bytes'])}B" + (f": {held} tensors" if held else "")
    return lines | ({"licence": facts["license"]} if facts["license"] else {})


def _parameters(n: int) -> str:
    """As models are spoken of: 671B, 37B (of 37.6), 135M."""
    if n >= 10e9:
        return f"{n // 10**9:,}B"
    return count(n).replace(THIN, "").replace("G", "B")


def _in_formats(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{count(size)}B in {name}" for name, size in sizes.items())


def print_names(title: str, rows: Sequence[tuple[str, str]], what: str = "about") -> None:
    """Names and what they are, or where, a line each."""
    table = _table(title, ["name", what], left=2)
    table.columns[0].no_wrap = True
    table.columns[1].no_wrap = False
    for name, about in rows:
        table.add_row(name, Text(about))
    _out().print(table)


def print_lines(lines: Sequence[str]) -> None:
    out = _out()
    for line in lines:
        out.print(Text(line), soft_wrap=True)


def print_endpoints(rows: Sequence[Row]) -> None:
    """Dollars per million tokens, and whether the key that each needs is in the environment."""
    columns = ["name", "what", "key", "in", "cached", "out", "priced"]
    table = _table("Endpoints (USD per million tokens)", columns, left=3)
    for row in rows:
        price = row["usd_per_million"] or {}
        known = [f"{price[key]:g}" if price.get(key) is not None else "–" for key in ("input", "cached", "output")]
        key = "none needed" if not row["key_env"] else f"{row['key_env']}{'' if row['key'] else ' (not set)'}"
        table.add_row(Text(row["name"]), Text(row["about"]), key, *known, str(row["priced"] or "–"))
    table.columns[1].no_wrap = False
    _out().print(table)


def print_problem(problem: Problem, solution: Message | None) -> None:
    out = _out()
    out.print(Text(problem.messages[-1].content, style="bold"), soft_wrap=True)
    if solution is not None and solution.reasoning:
        out.print(Text(solution.reasoning, style="dim"), soft_wrap=True)
    out.print(Text(f"-> {problem.answer or '(only the scorer knows)'}\n"), soft_wrap=True)


# keys and what was used


def print_keys(rows: Sequence[Row]) -> None:
    table = _table("API keys", ["name", "ends in", "made", "last used", "", "may use"], left=6)
    for row in rows:
        state = f"revoked {_date(row['revoked'])}" if row["revoked"] else "in force"
        table.add_row(
            Text(row["name"]), row["ends_in"], _date(row["created"]), _date(row["used"]), state, _allowance(row)
        )
    _out().print(table if rows else Text("There are no keys; `mull keys create NAME` makes one."))


def _allowance(row: Row) -> str:
    bounds = (
        ("rpm", "requests a minute"), ("tpm", "tokens a minute"), ("parallel", "at a time"),
        ("usd_per_day", "dollars a day"), ("usd_per_month", "dollars a month"),
    )  # fmt: skip
    return ", ".join(f"{row[key]:g} {what}" for key, what in bounds if key in row) or "all"


def _date(seconds: float | None) -> str:
    return "–" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def print_usage(rows: Sequence[Row]) -> None:
    """What stands before `requests` in a row is what it is of."""
    if not rows:
        _out().print(Text("Nothing was asked yet."))
        return
    names = list(rows[0])
    groups, sums = names[: names.index("requests")], names[names.index("requests") :]
    table = _table("Used, in tokens (days of UTC)", [*groups, *sums[:-2], "time", "cost"], left=len(groups))
    total = {name: sum(row[name] for row in rows) for name in sums}
    for row in rows:
        named = [row[name] or "(no key)" for name in groups]
        table.add_row(*map(Text, named), *_used(row), end_section=row is rows[-1])
    table.add_row("in all", *[""] * (len(groups) - 1), *_used(total))
    _out().print(table)


def _used(row: Row) -> list[str]:
    counts = ("requests", "prompt", "cached", "completion", "thinking")
    return [*(f"{row[name]:,}" for name in counts), clock(row["seconds"]), money(row["usd"])]


__all__ = [
    "command", "error_console", "print_endpoints", "print_info", "print_json", "print_keys", "print_lines",
    "print_names", "print_problem", "print_run", "print_usage",
]  # fmt: skip
