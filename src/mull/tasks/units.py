"""Units: one name for many writings, and what is none."""

from __future__ import annotations

import re

from mull.tasks.writings import Unreadable

SAME_UNITS = """
mm millimeter millimeters millimetre millimetres
cm centimeter centimeters centimetre centimetres
meter meters metre metres
km kilometer kilometers kilometre kilometres
inch inches in
foot feet ft
yard yards yd
mile miles mi
second seconds sec secs
minute minutes min mins
hour hours hr hrs
day days
week weeks
month months
year years
gram grams
kg kilogram kilograms
pound pounds lb lbs
ounce ounces oz
liter liters litre litres
ml milliliter milliliters
gallon gallons
dollar dollars usd bucks
cent cents
degree degrees deg
radian radians rad
percent
unit units
mph
"""
UNITS = {word: line.split()[0] for line in SAME_UNITS.strip().splitlines() for word in line.split()}
MULTIPLIED = (
    r"(?:halves|half|(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore|score)s?|k|"
    r"(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|(?:hundred|thousand|million|billion)th)s?)"
)
HEDGED = re.compile(
    rf"\b(?:not|no|or|and|maybe|perhaps|about|approximately|approx|roughly|around|almost|nearly|if|when|but|than|never|"
    rf"either|neither|between|unless|except|plus|minus|times|cannot|at|most|least|impossible|possible|wrong|incorrect|"
    rf"false|invalid|factorial|cubed|mod|modulo|{MULTIPLIED})\b|n't\b"
)
SAYS_MORE = re.compile(
    r"\b(?:is|are|was|were|be|been|has|have|had|can|could|may|might|would|must|does|do)\b|^squared\b"
)


def unit_of(words: str) -> str:
    """One name for a unit's many. Raises Unreadable for words that say more than a unit does."""
    if HEDGED.search(words) or SAYS_MORE.search(words) or re.search(r"\d", words.replace("^2", "").replace("^3", "")):
        raise Unreadable(f"{words[:30]!r} is no unit")
    words = re.sub(r"\bpercent\b", "%", words)
    power = "^2" if re.search(r"\b(?:square|sq)\b|\^2", words) else "^3" if re.search(r"\bcubic\b|\^3", words) else ""
    parts = re.sub(r"\b(?:square|sq|cubic)\b|\^[23?]|\.", " ", words).replace("m p h", "mph").split()
    return (" ".join(UNITS.get(part, part) for part in parts) + power) if parts else ""


__all__ = ["HEDGED", "MULTIPLIED", "UNITS", "unit_of"]
