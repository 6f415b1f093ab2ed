"""How config.json spells rotary positions: rope_theta and rope_scaling, or rope_parameters since transformers 5.

Read as transformers reads it (modeling_rope_utils.py), and completely: a key that is not used is refused, since what a
stretched position means depends on every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mull.model.config import ModelConfig
from mull.types import UserError

# our field -> theirs
YARN = {
    "factor": "factor", "original_length": "original_max_position_embeddings", "beta_fast": "beta_fast",
    "beta_slow": "beta_slow", "mscale": "mscale", "mscale_all_dim": "mscale_all_dim", "magnitude": "attention_factor",
    "truncate": "truncate",
}  # fmt: skip
LLAMA3 = {key: YARN[key] for key in ("factor", "original_length")} | {
    "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
}  # fmt: skip
KINDS: dict[str, tuple[str, Mapping[str, str]]] = {  # theirs -> our field, and what it consists of
    "linear": ("linear_rope", {"factor": "factor"}), "llama3": ("llama3_rope", LLAMA3), "yarn": ("yarn", YARN),
}  # fmt: skip
NEEDED = ("factor", "original_length", "low_freq_factor", "high_freq_factor")
UNSAID_IF_ZERO = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def rope_from_hf(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our values, unchecked. Raises UserError for a kind of scaling that mull has not, and for keys that it lacks or
    has no use for."""
    table = _table(raw, where)
    values = {
        ours: said
        for ours, theirs in (("rope_theta", "rope_theta"), ("partial_rotary", "partial_rotary_factor"))
        if (said := table.pop(theirs, raw.get(theirs))) is not None
    }
    kind = table.pop("type", "default")
    kind = table.pop("rope_type", kind)
    if kind == "default":
        field, names = "", {}
    elif isinstance(kind, str) and kind in KINDS:
        field, names = KINDS[kind]
    else:
        known = ", ".join(KINDS)
        raise UserError(f"{where}: rotary scaling of the type {str(kind)[:80]!r} is not supported; {known} are.")
    if "original_length" in names:  # what stands outside the table comes first; unsaid, it is the whole length
        table.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
        if (said := raw.get("original_max_position_embeddings")) is not None:
            table["original_max_position_embeddings"] = said
    if table.get("truncate", True) is None:
        table["truncate"] = False  # as transformers takes it
    scaling: dict[str, Any] = {}
    for ours, theirs in names.items():
        value = table.pop(theirs, None)
        if value is None and ours in NEEDED:
            raise UserError(f"{where}: its {kind} scaling lacks {theirs!r}.")
        if ours == "magnitude" and value == 0:
            raise UserError(f"{where}: {theirs} = {value!r} leaves nothing of queries and keys.")
        if value is not None and not (value == 0 and ours in UNSAID_IF_ZERO):
            scaling[ours] = value
    for key, value in table.items():
        if value is not None:
            raise UserError(f"{where}: {kind} rotary positions have no use for {str(key)[:80]!r}.")
    if not field:
        return values
    return values | {field: scaling["factor"] if field == "linear_rope" else scaling}


def _table(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    tables = {key: raw[key] for key in ("rope_scaling", "rope_parameters") if raw.get(key)}
    for key, table in tables.items():
        if not isinstance(table, Mapping):
            raise UserError(f"{where}: {key} = {str(table)[:80]!r} is no JSON object.")
    if len(tables) == 2 and tables["rope_scaling"] != tables["rope_parameters"]:
        raise UserError(f"{where}: rope_scaling and rope_parameters say different things; keep one of them.")
    return dict(next(iter(tables.values()), {}))


def rope_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The keys of config.json, in the older spelling, which all versions read."""
    for kind, (field, names) in KINDS.items():
        scaling = getattr(cfg, field)
        if field == "linear_rope":
            said = {"factor": scaling} if scaling != 1 else {}
        elif scaling is None:
            said = {}
        else:
            said = {theirs: getattr(scaling, ours) for ours, theirs in names.items()}
            for unset in ("mscale", "mscale_all_dim", "attention_factor"):
                if said.get(unset) == 0:
                    del said[unset]
        if said:
            return {"rope_theta": cfg.rope_theta, "rope_scaling": {"type": kind, "rope_type": kind, **said}}
    return {"rope_theta": cfg.rope_theta, "rope_scaling": None}


__all__ = ["rope_from_hf", "rope_to_hf"]
