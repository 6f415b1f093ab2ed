"""Numbers as people read them. Every figure in a report is written by one of these."""

from __future__ import annotations

from collections.abc import Sequence

from mull.ledger import money

THIN = "\u202f"  # narrow no-break space: between a number and its unit


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}{THIN}%"


def hundred(share: float) -> str:
    """A share of a hundred, where the sign is understood."""
    return f"{100 * share:.1f}"


def interval(pair: list[float] | tuple[float, float] | None) -> str:
    """[0.801, 0.864] -> 80.1–86.4, without the sign."""
    return "" if pair is None else f"{100 * pair[0]:.1f}–{100 * pair[1]:.1f}"


def points(difference: float) -> str:
    """A difference of shares, signed, in percentage points."""
    written = f"{100 * difference:+.1f}".replace("-", "−")
    return "0.0" if written in ("+0.0", "−0.0") else written


def count(n: float | None) -> str:
    """1234567 -> 1.23 M."""
    if n is None:
        return "–"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size * 0.9995:
            return f"{n / size:.3g}{THIN}{unit}" if n < size * 999.5 else f"{n / size:,.0f}{THIN}{unit}"
    return f"{n:,.0f}"


def flops(n: float) -> str:
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if n >= size:
            return f"{n / size:.3g}{THIN}{unit}FLOP"
    return f"{n / 1e6:.3g}{THIN}MFLOP" if n else "–"


def clock(seconds: float) -> str:
    if seconds < 0.95:
        return f"{seconds:.1f}{THIN}s"
    if seconds < 90:
        return f"{seconds:.0f}{THIN}s"
    if seconds < 5400:
        return f"{seconds / 60:.0f}{THIN}min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{THIN}h {minutes:02d}{THIN}min"


def energy(kwh: float) -> str:
    return f"{kwh:.2f}{THIN}kWh" if kwh >= 1 else f"{1000 * kwh:.3g}{THIN}Wh"


def memory(size: float | None) -> str:
    if size is None:
        return "–"
    return f"{size / 2**30:.2f}{THIN}GiB" if size >= 2**30 else f"{size / 2**20:.0f}{THIN}MiB"


def price_range(pair: list[float | None]) -> str:
    """Of a thousand solved problems; without an upper end where none may be solved."""
    low, high = (None if usd is None else money(1000 * usd) for usd in pair)
    return f"{low}–{high}" if high else f"{low} or more" if low else ""


def per_thousand(usd: float | None) -> str:
    """Money for a thousand solved problems; one alone costs too little to read."""
    return "–" if usd is None else money(1000 * usd)


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def equals(p: float) -> str:
    """For behind a p."""
    written = probability(p).replace(" ", THIN)
    return written if written.startswith("<") else f"={THIN}{written}"


def mode(thinking: bool) -> str:
    return "thinking" if thinking else "at once"


def listed(names: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def each_time(seconds: float | None) -> str:
    """Of one answer."""
    return "–" if seconds is None else f"{seconds:.2g}{THIN}s" if seconds < 10 else clock(seconds)


def shown(text: str, most: int = 6000, length: int | None = None) -> str:
    """A model's text fit to show: controls made visible, broken surrogates replaced, the middle of a long one cut.

    `length` is what it had before its middle was cut from it already (`middle`).
    """
    length = len(text) if length is None else length
    if length > most:
        text = f"{text[: most * 2 // 3]}\n[… {length - most:,} characters left out …]\n{text[-(most // 3) :]}"
    clean = text.encode("utf-8", "replace").decode("utf-8")
    if clean.replace("\n", "").replace("\t", "").isprintable():
        return clean
    return "".join(_visible(c) for c in clean)


def middle(text: str, most: int) -> str:
    """Without the middle that `shown` would not show."""
    return text if len(text) <= most else text[: most * 2 // 3] + text[-(most // 3) :]


def _visible(c: str) -> str:
    if c in "\n\t" or c.isprintable():
        return c
    code = ord(c)
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else c if c.isspace() else "\ufffd"


__all__ = [
    "THIN", "clock", "count", "each_time", "energy", "equals", "flops", "hundred", "interval", "listed", "memory",
    "middle", "mode", "money", "per_thousand", "percent", "points", "price_range", "probability", "shown",
]  # fmt: skip
