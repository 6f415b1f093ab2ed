"""Instructions that a program can check: IFEval's 25 kinds (Zhou et al. 2023, arXiv 2311.07911), by their ids.

`CHECKS[id](text, **arguments)` says whether a text follows, and what was found. What counts is what the original's
checkers count, oddities included, so that scores compare: a bullet is a line that begins with `-` or a single `*`,
a rule `---` among them; a keyword also counts inside a longer word, a forbidden word does not.

Own work, where the original leans on libraries:
- sentences and all-capital words are counted by the rules of nltk's English Punkt and Treebank tokenizers, with a short
  list of abbreviations in place of Punkt's trained model. On 1,817 texts (solutions, essays, documents) words agreed in
  all, sentences in 1,801: around single letters ("X. Then") and rare abbreviations a count can be one off.
- languages are told by langdetect, as in the original, but with a fixed seed: it draws lots, and the original lets it.
Every check takes time in proportion to the text; the original's expressions take the square on hostile ones.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from mull.config import nearest
from mull.types import UserError

Check = Callable[..., tuple[bool, str]]  # (does the text follow?, what was found)

ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
FENCES = ("```json", "```Json", "```JSON", "```")
POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
LANGUAGE_LETTERS = 20_000  # langdetect itself reads 10,000, once links are taken out

# Punkt's candidates: an end mark before one of these, or at the end of a word that another follows
BEHIND_END = frozenset("?!)\";}]*:@'({[")
CLOSING = "\"')]}"
SHORT = """
a.m adm aug ave bros co col corp cos d.c dec dr feb fri ft gen inc jan jr l.a lt ltd maj mr mrs ms n.y nov oct p.m ph.d
prof rep sen sep sept sr st tues u.k u.n u.s u.s.a v vs wed
"""
ABBREVIATIONS = frozenset(SHORT.split())  # "e.g.", "i.e." and "etc." are not among Punkt's: they end sentences
FIRST = """
Although Both But Despite Even Finally He Her Here However I If In Instead It Many Meanwhile Moreover Most Nevertheless
Overall Please Since So Some Such The There Therefore These They This Though Thus Under When Which While Yes Yet Your
"""
STARTERS = frozenset(FIRST.split())  # words that, with a capital, begin a sentence even behind an abbreviation
# what the Treebank tokenizer cuts words at; endings such as 's and N'T are words of their own, and so are CAN and NOT
CUTS = re.compile(
    r"\s+|[;@#$%&?!*\"«»“”‘’()\[\]{}<>]|--|\.{2,}|[,:](?!\d)"
    r"|(?=(?:'[sSmMdD]|'ll|'LL|'re|'RE|'ve|'VE|n't|N'T)(?![\w']))|(?<=\bCAN)(?=NOT\b)"
)


def follows(kind: str, text: str, arguments: dict[str, Any]) -> tuple[bool, str]:
    """Whether the text follows, and what was found. An empty text follows nothing."""
    return CHECKS[kind](text, **arguments) if text.strip() else (False, "the answer is empty")


def known(kind: str) -> str:
    """The id itself. Raises UserError with the nearest for one that is not known."""
    if kind not in CHECKS:
        raise UserError(f'There is no instruction "{kind}".{nearest(kind, CHECKS)}')
    return kind


def contradiction(asked: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Why no text can follow all of these; "" where nothing is found.

    Looked at is what must stand in the text word for word: does it have what must not be there, or too much of it?
    """
    needed = [(kind, text) for kind, arguments in asked for text in verbatim(kind, arguments)]
    for kind, arguments in asked:
        if kind in LIMITS and "at least" not in arguments.values():
            for other, text in needed:
                ok, why = follows(kind, text, arguments)
                if not ok:
                    return f"nobody can follow {kind} and {other} together ({why})"
    return ""


def verbatim(kind: str, arguments: dict[str, Any]) -> list[str]:
    return {
        "combination:repeat_prompt": lambda: [arguments["prompt_to_repeat"]],
        "startend:end_checker": lambda: [arguments["end_phrase"]],
        "keywords:existence": lambda: list(arguments["keywords"]),
    }.get(kind, lambda: [])()


def compared(found: int, relation: str, wanted: int, what: str) -> tuple[bool, str]:
    ok = found < wanted if relation == "less than" else found >= wanted
    return ok, f"{found} {what}, asked for {relation} {wanted}"


def exactly(found: int, wanted: int, what: str) -> tuple[bool, str]:
    return found == wanted, f"{found} {what}, asked for {wanted}"


# keywords


def existence(text: str, keywords: Sequence[str]) -> tuple[bool, str]:
    missing = [word for word in keywords if not re.search(re.escape(word), text, re.IGNORECASE)]
    return not missing, f"without {', '.join(missing)}" if missing else "has all keywords"


def frequency(text: str, keyword: str, frequency: int, relation: str) -> tuple[bool, str]:
    found = re.findall(re.escape(keyword.strip()), text, re.IGNORECASE)
    return compared(len(found), relation, frequency, f'times "{keyword}"')


def forbidden_words(text: str, forbidden_words: Sequence[str]) -> tuple[bool, str]:
    used = [word for word in forbidden_words if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)]
    return not used, f"uses {', '.join(used)}" if used else "uses no forbidden word"


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> tuple[bool, str]:
    found = text.lower().count(letter.strip().lower())
    return compared(found, let_relation, let_frequency, f'letters "{letter}"')


# length


def number_sentences(text: str, num_sentences: int, relation: str) -> tuple[bool, str]:
    return compared(sentences(text), relation, num_sentences, "sentences")


def sentences(text: str) -> int:
    """How many sentences Punkt would find: line breaks end none, and at most one ends inside a word."""
    words = text.split()
    count, fresh = 0, True
    for i, word in enumerate(words):
        count += fresh
        following = words[i + 1] if i + 1 < len(words) else ""
        end = last_end(word, bool(following))
        fresh = end > 0 and ends_sentence(word[:end], word[end:] or following)
        if fresh and word[end:].strip(CLOSING + "?!"):  # what stands behind the end begins the next one
            count, fresh = count + 1, False
    return count


def last_end(word: str, followed: bool) -> int:
    """Where the last mark in a word that may end a sentence ends; 0 where there is none."""
    if followed and word[-1] in ".?!":
        return len(word)
    return next((i for i in range(len(word) - 1, 0, -1) if word[i - 1] in ".?!" and word[i] in BEHIND_END), 0)


def ends_sentence(head: str, following: str) -> bool:
    """Whether the mark at the end of `head` ends a sentence, by what it stands behind and what follows."""
    if head[-1] != ".":
        return True
    name = head.lstrip("\"'([{*`_").rstrip(".")
    initial = len(name) == 1 and name.isalpha()
    if head.endswith("..") or initial or name.lower().rpartition("-")[2] in ABBREVIATIONS:
        return following.strip("\"'([{*,") in STARTERS
    return not (name.isdecimal() and following[0].islower())


def number_words(text: str, num_words: int, relation: str) -> tuple[bool, str]:
    return compared(len(re.findall(r"\w+", text)), relation, num_words, "words")


def number_paragraphs(text: str, num_paragraphs: int) -> tuple[bool, str]:
    """Paragraphs stand between `***`; an empty one counts against the text unless it is the first or the last."""
    filled = [bool(paragraph.strip()) for paragraph in text.split("***")]
    if not all(filled[1:-1]):
        return False, "an empty paragraph"
    return exactly(sum(filled), num_paragraphs, "paragraphs")


def nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> tuple[bool, str]:
    """Paragraphs stand between two line breaks; empty ones do not count, but take their place in the order."""
    paragraphs = text.split("\n\n")
    filled = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if nth_paragraph > filled or not (words := paragraphs[nth_paragraph - 1].split()):
        return False, f"{filled} paragraphs, none at place {nth_paragraph}"
    word = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"').lower(), maxsplit=1)[0]
    ok = filled == num_paragraphs and word == first_word.lower()
    return ok, f'{filled} paragraphs, number {nth_paragraph} begins with "{word[:40]}"'


# content


def number_placeholders(text: str, num_placeholders: int) -> tuple[bool, str]:
    """Pairs of square brackets, each on one line."""
    found = 0
    for line in text.split("\n"):
        end = 0
        while (start := line.find("[", end)) >= 0 and (end := line.find("]", start) + 1) > 0:
            found += 1
    return compared(found, "at least", num_placeholders, "placeholders")


def postscript(text: str, postscript_marker: str) -> tuple[bool, str]:
    marker = postscript_marker.strip()
    ok = re.search(POSTSCRIPTS.get(marker) or re.escape(marker.lower()), text.lower()) is not None
    return ok, f"{'has' if ok else 'no'} {marker}"


# format


def number_bullet_lists(text: str, num_bullets: int) -> tuple[bool, str]:
    """Lines that begin with `-`, or with `*` and no second one. A bare `*` takes the line below as its text."""
    lines = [line.lstrip() for line in text.split("\n")]
    found, i = sum(line.startswith("-") for line in lines), 0
    while i < len(lines):
        bare = lines[i] == "*" and i + 1 < len(lines)
        found += bare or (lines[i][:1] == "*" and lines[i][1:2] not in ("", "*"))
        i += 2 if bare else 1
    return exactly(found, num_bullets, "bullets")


def constrained_response(text: str) -> tuple[bool, str]:
    ok = any(answer in text for answer in ANSWERS)
    return ok, "one of the options" if ok else "none of the options"


def number_highlighted_sections(text: str, num_highlights: int) -> tuple[bool, str]:
    single = re.findall(r"\*[^\n*]*\*", text)
    double = re.findall(r"\*\*[^\n*]*\*\*", text)
    found = sum(bool(mark.strip("*").strip()) for mark in single + double)
    return compared(found, "at least", num_highlights, "highlights")


def multiple_sections(text: str, section_spliter: str, num_sections: int) -> tuple[bool, str]:
    found = re.findall(re.escape(section_spliter.strip()) + r"\s?\d+", text)
    return compared(len(found), "at least", num_sections, "sections")


def json_format(text: str) -> tuple[bool, str]:
    """All of it, a fence around it left aside."""
    text = text.strip()
    for fence in FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip(), parse_int=len)  # a number's value does not matter, only its form
    except (ValueError, RecursionError) as error:
        return False, f"no JSON: {error}"[:200]
    return True, "JSON"


def title(text: str) -> tuple[bool, str]:
    """`<<...>>` on one line, with something in it."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and start + 3 <= end and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True, "has a title"
    return False, "no <<title>>"


# combination


def two_responses(text: str) -> tuple[bool, str]:
    parts = [part.strip() for part in text.split("******")]
    if not all(parts[1:-1]):
        return False, "an empty response"
    given = [part for part in parts if part]
    if len(given) == 2 and given[0] == given[1]:
        return False, "two responses that are the same"
    return exactly(len(given), 2, "responses")


def repeat_prompt(text: str, prompt_to_repeat: str) -> tuple[bool, str]:
    ok = text.strip().lower().startswith(prompt_to_repeat.strip().lower())
    return ok, "repeats the prompt" if ok else "does not begin with the prompt"


# start and end


def end_checker(text: str, end_phrase: str) -> tuple[bool, str]:
    ok = text.strip().strip('"').lower().endswith(end_phrase.strip().lower())
    return ok, "ends as asked" if ok else f'ends with "{text.strip()[-40:]}"'


def quotation(text: str) -> tuple[bool, str]:
    text = text.strip()
    ok = len(text) > 1 and text[0] == text[-1] == '"'
    return ok, "is quoted" if ok else "is not between double quotation marks"


# case


def capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> tuple[bool, str]:
    return compared(capital_words(text), capital_relation, capital_frequency, "words in capitals")


def capital_words(text: str) -> int:
    """How many of the words the Treebank tokenizer would make are in capitals: WELL-KNOWN is one, DON'T two."""
    return sum(word.isupper() for word in CUTS.split(text))


def english_capital(text: str) -> tuple[bool, str]:
    return response_language(text, "en") if text.isupper() else (False, "has letters that are not capitals")


def english_lowercase(text: str) -> tuple[bool, str]:
    return response_language(text, "en") if text.islower() else (False, "has letters that are not small")


# punctuation and language


def no_comma(text: str) -> tuple[bool, str]:
    return exactly(text.count(","), 0, "commas")


def response_language(text: str, language: str) -> tuple[bool, str]:
    """As in the original, a text without a word in it, of which nothing can be told, counts as following."""
    found = language_of(text)
    return found in (language, None), f"language {found or 'cannot be told'}, asked for {language}"


def language_of(text: str) -> str | None:
    """The ISO 639-1 code; None where langdetect finds nothing to go by. Raises UserError without that package."""
    from langdetect import LangDetectException

    detector = languages().create()
    detector.append(text[:LANGUAGE_LETTERS])
    try:
        return detector.detect()
    except LangDetectException:
        return None


@cache
def languages() -> Any:
    """langdetect's factory with our seed: a factory of our own, so that nobody else's changes."""
    needs_languages()
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)
    return factory


def needs_languages() -> None:
    """Raises UserError where there is no langdetect."""
    if importlib.util.find_spec("langdetect") is None:
        raise UserError("Telling an answer's language needs langdetect: pip install 'langdetect==1.0.9'.")


CHECKS: dict[str, Check] = {
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "combination:repeat_prompt": repeat_prompt,
    "combination:two_responses": two_responses,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_format,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:title": title,
    "keywords:existence": existence,
    "keywords:forbidden_words": forbidden_words,
    "keywords:frequency": frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "punctuation:no_comma": no_comma,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
}
TELLS_LANGUAGE = frozenset(
    ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")
)

# what a part of a text breaks, the whole breaks
LIMITS = frozenset(
    ("keywords:forbidden_words", "keywords:frequency", "keywords:letter_frequency", "length_constraints:number_words",
     "punctuation:no_comma")
)  # fmt: skip

__all__ = [
    "CHECKS", "TELLS_LANGUAGE", "Check", "capital_words", "contradiction", "follows", "known", "language_of",
    "needs_languages", "sentences",
]  # fmt: skip
