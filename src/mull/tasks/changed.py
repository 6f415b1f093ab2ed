"""Changed instructions: a conversation in which a later turn changes what an earlier one asked for.

The first turn asks for a short text under a few rules that a program can check; each later turn asks for it again and
changes, adds or withdraws a rule. The answer to the last turn must follow every rule in force then. What was changed
is asked for in a way that its old form excludes: whoever goes on following the old rule is wrong, and the words say so.
A rule that was withdrawn no longer counts, followed or not.

The last turn always changes a rule of the first, to a form it never had: so no answer that was right before is right at
the end. That form asks for something that a plain text has not, or else a text without anything would follow it. One
rule holds throughout: the text begins with a word of its topic and goes on. So no text fits two topics, and a refusal
follows no conversation. Candidate i of a seed is a function of (seed, i) alone. Nothing here needs a judge, a network
or a package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import count
from random import Random
from typing import Any, ClassVar, NamedTuple

from mull.tasks.base import Split, Verdict, deal, sized, unfinished
from mull.tasks.instructions import Check, follows
from mull.types import Completion, Message, Outcome, Problem

Rule = dict[str, Any]  # subject, id, arguments, words (how it was asked), said and until (turns; until None: in force)


def lower(text: str) -> tuple[bool, str]:
    return text.islower(), "has letters that are not small"


def upper(text: str) -> tuple[bool, str]:
    return text.isupper(), "has letters that are not capitals"


def begins(text: str, word: str, more: int) -> tuple[bool, str]:
    """With that word, or with a title before it, and at least so many words behind."""
    words = re.findall(r"\w+", text)
    untitled = re.match(r"\W*<<[^<>]*>>\W*(\w+)", text)
    if word not in (first.lower() for first in (*words[:1], *(untitled.groups() if untitled else ()))):
        return False, f"does not begin with {word}"
    return len(words) > more, f"has {len(words)} words"


# IFEval's kinds ask that such a text is English too, which takes a package to tell
OWN: dict[str, Check] = {"case:lower": lower, "case:upper": upper, "text:begins": begins}

# with a word of each that a refusal does not happen to have, not even inside another word
TOPICS = {
    "a lighthouse by night": "lighthouse", "the first day of school": "school", "a market at dawn": "market",
    "a lost umbrella": "umbrella", "an old bicycle": "bicycle", "a tram that is late": "tram",
    "an old teapot": "teapot", "a walk in the fog": "fog", "moving to another town": "town", "a storm at sea": "storm",
    "learning to swim": "swim", "a cat on the roof": "roof", "a picnic that went wrong": "picnic",
    "the smell of rain": "smell", "a clock that runs slow": "clock", "a letter that came too late": "letter",
    "cooking for ten people": "cooking", "a chess game in the park": "chess", "a night at the airport": "airport",
    "planting an apple tree": "apple",
}  # fmt: skip
KEYWORDS = ("river", "lantern", "winter", "bread", "garden", "ladder", "silver", "harbour")
LETTERS = "zxqj"
MORE = 15  # words behind the first, at least
PLAIN = "The old town keeps its lamps on. The sea is calm and the boats come home."
NEVER = {"frequency": 1, "relation": "less than"}
ENDINGS = ("That is all for now.", "Come and see.", "So it goes on.", "We will meet again.", "Let me know.")
# of these the solution is made: without a comma, a keyword or one of the letters
FILLER = (
    "the",
    "old",
    "town",
    "keeps",
    "its",
    "lamps",
    "on",
    "while",
    "the",
    "sea",
    "is",
    "calm",
    "and",
    "the",
    "boats",
)

FIRST = (
    "Write a short text about {topic}. Answer with the text alone. "
    "Keep to these rules, now and in later answers, until I change them:\n{rules}",
    "Please write a few lines about {topic}, and nothing besides. My rules, which hold until I say otherwise:\n{rules}",
    "I need a text about {topic}. Answer with nothing but the text; "
    "whenever you write it, follow these rules unless I change them:\n{rules}",
)
CHANGE = (
    "Change the rule on {subject}: from now on, {words}.",
    "I have changed my mind about {subject}. Now {words}.",
    "Instead of what I said on {subject}, {words}.",
)
ADD = ("One more rule, on {subject}: {words}.", "Also, {words}.", "From now on, {words} as well.")
WITHDRAW = (
    "Forget the rule on {subject}; do there as you like.",
    "The rule on {subject} no longer holds.",
    "You need not keep to what I said on {subject} any more.",
)
AGAIN = ("Write it again.", "Please give me the whole text anew.", "Now rewrite it.", "Let me have a new version.")
REST = ("Everything else stays as it was.", "All other rules in force still hold.", "The rest is unchanged.")


class Wish(NamedTuple):
    """One form a rule may have."""

    id: str
    arguments: dict[str, Any]
    words: str


def wishes(rng: Random) -> dict[str, list[Wish]]:
    """Every subject's forms, of which any excludes any other, with numbers and words drawn."""
    word, letter = rng.choice(KEYWORDS), rng.choice(LETTERS)
    few, many = rng.choice((40, 45, 50)), rng.choice((60, 70, 80, 100))
    times, commas, gaps = rng.randint(2, 3), rng.randint(3, 5), rng.randint(1, 3)
    return {
        "the length": [
            Wish("length_constraints:number_words", {"num_words": few, "relation": "less than"},
                 f"use fewer than {few} words"),
            Wish("length_constraints:number_words", {"num_words": many, "relation": "at least"},
                 f"use at least {many} words"),
        ],
        "bullet points": [
            Wish("detectable_format:number_bullet_lists", {"num_bullets": n},
                 f'have exactly {n} bullet points, each on a line of its own that begins with "- "')
            for n in range(2, 6)
        ] + [Wish("detectable_format:number_bullet_lists", {"num_bullets": 0}, "have no bullet points")],
        "paragraphs": [
            Wish("length_constraints:number_paragraphs", {"num_paragraphs": n},
                 f"have exactly {n} paragraphs, with a line *** between one and the next")
            for n in range(2, 5)
        ],
        "commas": [
            Wish("punctuation:no_comma", {}, "use no commas"),
            Wish("keywords:frequency", {"keyword": ",", "frequency": commas, "relation": "at least"},
                 f"use at least {commas} commas"),
        ],
        f'the word "{word}"': [
            Wish("keywords:frequency", {"keyword": word, "frequency": times, "relation": "at least"},
                 f'use the word "{word}" at least {times} times'),
            Wish("keywords:frequency", {"keyword": word, **NEVER}, f'do not use the word "{word}"'),
        ],
        f'the letter "{letter}"': [
            Wish("keywords:letter_frequency", {"letter": letter, "let_frequency": 3, "let_relation": "at least"},
                 f'use the letter "{letter}" at least 3 times'),
            Wish("keywords:letter_frequency", {"letter": letter, "let_frequency": 1, "let_relation": "less than"},
                 f'do without the letter "{letter}"'),
        ],
        "the ending": [
            Wish("startend:end_checker", {"end_phrase": phrase}, f'end with exactly these words: "{phrase}"')
            for phrase in ENDINGS
        ],
        "a title": [
            Wish("detectable_format:title", {}, "give it a title in double angle brackets, such as <<title>>"),
            Wish("keywords:frequency", {"keyword": "<<", **NEVER}, "give it no title in double angle brackets"),
        ],
        "quotation marks": [
            Wish("startend:quotation", {}, "put the whole answer between double quotation marks"),
            Wish("keywords:frequency", {"keyword": '"', **NEVER}, "use no double quotation marks"),
        ],
        "placeholders": [
            Wish("detectable_content:number_placeholders", {"num_placeholders": gaps},
                 f"have at least {gaps} placeholders in square brackets, such as [name]"),
            Wish("keywords:frequency", {"keyword": "[", **NEVER}, "use no square brackets"),
        ],
        "capital letters": [
            Wish("case:lower", {}, "write everything in small letters, without a capital"),
            Wish("case:upper", {}, "write everything in capital letters"),
        ],
    }  # fmt: skip


class Changed:
    name = "changed"
    about = "conversations in which a later turn changes a rule that the last answer must follow"
    sizes: ClassVar = {"turns": (2, 4), "constraints": (1, 3)}

    def problems(self, split: Split, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        """`turns`: the user's, at least 2; `constraints`: rules of the first besides the topic's. Both at most 8."""
        ranges = sized(self.name, self.sizes, size, {"turns": (2, 8), "constraints": (1, 8)})
        drawn = deal(self.name, split, n, candidates(seed, ranges))
        return [
            Problem(
                task=self.name,
                id=f"{split}/{seed}/{i}",
                messages=(Message("user", turns[0]),),
                answer="",
                meta={"split": split, "size": f"{len(turns)} turns", "turns": turns[1:], "rules": rules},
            )
            for i, (turns, rules) in enumerate(drawn)
        ]

    def judge(self, problem: Problem, completion: Completion) -> Verdict:
        """The reward is the share of rules in force that the answer follows."""
        if cut := unfinished(completion):
            return Verdict(0.0, cut)
        rules, text = problem.meta["rules"], completion.text
        words, kept = {}, []
        for rule in rules:
            ok, why = obeys(rule, text)
            name = f"turn {rule['said']}: {rule['words']}"
            if rule["until"] is not None:
                words[name] = f"no longer in force, {'followed all the same' if ok else 'not followed'}"
                continue
            kept.append(ok)
            old = any(other["subject"] == rule["subject"] and obeys(other, text)[0] for other in rules)
            instead = "followed the old instruction" if old else f"not followed: {why}"
            words[name] = f"in force, {'followed' if ok else instead}"
        outcome: Outcome = "solved" if all(kept) else "wrong"
        return Verdict(sum(kept) / len(kept), outcome, words)

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        verdict = self.judge(problem, completion)
        return verdict.reward, verdict.outcome

    def gold(self, problem: Problem) -> str:
        return compose(in_force(problem.meta["rules"], len(problem.meta["turns"]) + 1))


def obeys(rule: Mapping[str, Any], text: str) -> tuple[bool, str]:
    if rule["id"] in OWN:
        return OWN[rule["id"]](text, **rule["arguments"])
    return follows(rule["id"], text, rule["arguments"])


def in_force(rules: Sequence[Rule], turn: int) -> list[Rule]:
    """The rules that hold once the user's turn of that number, from 1, was said."""
    return [rule for rule in rules if rule["said"] <= turn and (rule["until"] is None or rule["until"] > turn)]


def candidates(seed: int, size: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, tuple[list[str], list[Rule]]]]:
    for i in count():
        state = blake2b(f"changed/{seed}/{i}".encode(), digest_size=8).digest()
        rng = Random(int.from_bytes(state, "big"))
        turns, rules = converse(rng, rng.randint(*size["turns"]), rng.randint(*size["constraints"]))
        yield "\n".join(turns), (turns, rules)


def converse(rng: Random, turns: int, constraints: int) -> tuple[list[str], list[Rule]]:
    """What the user says, turn by turn, and every rule that it sets; the first, of the topic, is never changed."""
    talk, (topic, word) = Talk(rng), rng.choice(list(TOPICS.items()))
    first = rng.sample(sorted(talk.left), constraints)
    talk.last = last = rng.choice(first)
    for subject in first:
        talk.put(subject, 1)
    about = Wish("text:begins", {"word": word, "more": MORE},
                 f'let the first word be "{word}", and at least {MORE} more follow')  # fmt: skip
    talk.rules.insert(0, {"subject": "the topic", **about._asdict(), "said": 1, "until": None})
    said = [rng.choice(FIRST).format(topic=topic, rules="\n".join(f"- {rule['words']}" for rule in talk.rules))]
    for turn in range(2, turns + 1):
        moves = [talk.change(last, turn, list(filter(demanding, talk.left[last])))] if turn == turns else []
        if turn < turns or rng.random() < 0.3:
            moves.append(talk.move(turn))
        rng.shuffle(moves)
        text = " ".join([*moves, rng.choice(AGAIN), rng.choice(REST)])
        said.append(text.replace('.".', '."'))
    return said, talk.rules


def demanding(wish: Wish) -> bool:
    """Whether a text has to do something for it."""
    return not obeys(wish._asdict(), PLAIN)[0]


class Talk:
    """Rules as they come and go."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.left = wishes(rng)  # forms that no rule had yet
        self.rules: list[Rule] = []
        self.now: dict[str, Rule] = {}  # in force, by subject
        self.last = ""  # the subject that the last turn changes: a demanding form is kept for it

    def free(self, subject: str) -> list[Wish]:
        """The forms that a subject may take before the last turn."""
        forms = self.left[subject]
        return [one for one in forms if subject != self.last or any(demanding(o) for o in forms if o is not one)]

    def put(self, subject: str, turn: int, forms: list[Wish] | None = None) -> Rule:
        wish = self.rng.choice(forms or self.free(subject))
        self.left[subject].remove(wish)
        rule = {"subject": subject, **wish._asdict(), "said": turn, "until": None}
        self.rules.append(rule)
        self.now[subject] = rule
        return rule

    def change(self, subject: str, turn: int, forms: list[Wish] | None = None) -> str:
        self.now[subject]["until"] = turn
        return self.rng.choice(CHANGE).format(**self.put(subject, turn, forms))

    def move(self, turn: int) -> str:
        """A rule changed, added or withdrawn."""
        changing = [s for s in self.now if self.free(s) and self.now[s]["said"] < turn]
        new = [s for s in self.left if not any(rule["subject"] == s for rule in self.rules)]
        idle = [s for s in self.now if s != self.last and self.now[s]["said"] < turn]
        kinds = [("change", changing), ("change", changing), ("add", new), ("withdraw", idle)]
        kind, subjects = self.rng.choice([(kind, subjects) for kind, subjects in kinds if subjects])
        subject = self.rng.choice(sorted(subjects))
        if kind == "change":
            return self.change(subject, turn)
        if kind == "add":
            return self.rng.choice(ADD).format(**self.put(subject, turn))
        self.now.pop(subject)["until"] = turn
        return self.rng.choice(WITHDRAW).format(subject=subject)


def compose(rules: Sequence[Rule]) -> str:
    """A text, dull but right, that follows all of them: at most one rule a subject."""
    asked = {rule["id"]: rule["arguments"] for rule in rules}
    about, lines = asked.get("text:begins", {"word": "", "more": 6}), []
    words = [about["word"], *FILLER[: about["more"]]]
    for rule in rules:
        if rule["id"] == "keywords:frequency" and rule["arguments"]["relation"] == "at least":
            keyword, times = rule["arguments"]["keyword"], rule["arguments"]["frequency"]
            words += ["so," if keyword == "," else keyword] * times
    letter = asked.get("keywords:letter_frequency", {})
    if letter.get("let_relation") == "at least":
        words.append(letter["letter"] * letter["let_frequency"])
    words += ["[name]"] * asked.get("detectable_content:number_placeholders", {}).get("num_placeholders", 0)
    length = asked.get("length_constraints:number_words", {})
    if length.get("relation") == "at least":
        words += [FILLER[i % len(FILLER)] for i in range(length["num_words"])]
    if "detectable_format:title" in asked:
        lines.append("<<the lamps>>")
    lines.append(" ".join(words))
    lines += ["- boats"] * asked.get("detectable_format:number_bullet_lists", {}).get("num_bullets", 0)
    lines += ["***\ncalm"] * (asked.get("length_constraints:number_paragraphs", {}).get("num_paragraphs", 1) - 1)
    lines.append(asked.get("startend:end_checker", {}).get("end_phrase", "home"))
    text = "\n".join(lines)
    text = text.upper() if "case:upper" in asked else text.lower() if "case:lower" in asked else text
    return f'"{text}"' if "startend:quotation" in asked else text


__all__ = ["Changed", "Rule", "compose", "in_force", "obeys", "wishes"]
