"""Ambiguity: word problems of which half cannot be answered as they stand, each beside a twin that can.

Reasoning models do badly at noticing it: they fill gaps in silence. An incomplete problem lacks a quantity that is
needed (`underspecified`), gives one twice with different values (`contradictory`), or asks what its text says nothing
about (`unanswerable`). Right is then to ask for it, to abstain and say why, or, but for the last, to answer under an
assumption that is stated; a bare number is wrong. In the twin (`complete`) only the number is right, so that whoever
always asks, or always answers, gets half.

The prompt fixes four forms of the last line, so nothing here needs a judge: a question, reason or assumption must name
the quantity (by words of a list, or both values of a contradiction), and an answer must follow from what was assumed.
Naming is told by words; whoever names three quantities of a story at once, or writes at length, has named none.
Candidate i of a seed is a function of (seed, i) alone; twins are always in one split and follow one another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from itertools import count
from random import Random
from typing import Any, ClassVar, NamedTuple

from mull.tasks.arithmetic import NUMBER
from mull.tasks.base import Range, Split, Verdict, deal, sized, unfinished
from mull.types import Completion, Message, Outcome, Problem

VARIANTS = ("underspecified", "contradictory", "unanswerable")
FORMS = """

Think as you need to. The last line of your answer must have one of these four forms:
ANSWER: <number>
ASSUMING <a quantity and the value you take for it>: ANSWER: <number>
QUESTION: <what you would need to be told>
CANNOT: <why it cannot be answered; name what is missing or contradictory>
A question, reason or assumption is about one thing and has at most 40 words.
Use the first where the text settles the answer, and one of the others only where it does not."""

# the last of these in an answer counts; "ASSUMING" only with an answer behind it
SAID = re.compile(
    r"^[\s>*_`#-]*(?:ASSUMING\b(?P<assumed>.*?)\bANSWER[*_`\s]*:(?P<under>.*)|ANSWER[*_`\s]*:(?P<answer>.*)"
    r"|QUESTION[*_`\s]*:(?P<question>.*)|CANNOT[*_`\s]*:(?P<reason>.*))$",
    re.IGNORECASE,
)
DID = {"answer": "answered", "assumed": "assumed", "question": "asked", "reason": "abstained"}  # by form
END = 10_000  # letters at the end of an answer in which the form is looked for
LONGEST = 30  # letters of a number; a longer one is none of ours
WORDS = 40  # of a question, reason or assumption; the prompt says so
MANY = 4  # numbers in an assumption; more than that is no assumption

NAMES = ("Ada", "Ben", "Carla", "David", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kemal", "Lena")
ITEMS = ("notebook", "pen", "mug", "candle", "lemon", "basket", "lamp", "ribbon", "plate", "spoon")
TOWNS = ("Arden", "Belmont", "Corvo", "Dunmore", "Estrel", "Farley")
VEHICLES = ("bus", "train", "lorry", "van")


class Quantity(NamedTuple):
    """Something a story tells: `tell` and `again` say its value, and a text names it that has a word of each `cue`."""

    name: str
    tell: str
    again: str
    values: Range
    cues: tuple[str, ...]


class Beyond(NamedTuple):
    """A question of which the story says nothing."""

    question: str
    name: str
    cues: tuple[str, ...]


class Story(NamedTuple):
    """`answer` takes the quantities' values in their order, and changes with each."""

    opening: str
    quantities: tuple[Quantity, ...]
    question: str
    answer: Callable[..., Fraction]
    beyond: tuple[Beyond, ...]
    asides: tuple[str, ...]  # numbers that do not matter


HOW_MANY = "how many(?! euros| minutes)|number(?! of minutes)|amount|quantit|count"
LITRES = "lit(?:re|er)s|volume|hold|capacity|size|full|how much(?! sugar)|amount(?! of sugar)|quantit"
PRICE = "price|cost|euro|how much|expensive|charge|pay|worth"
TIME = "time|hour|long|duration|last|takes"
SPEED = "speed|fast|km/h|kilomet|pace|veloc"
AGE = "old|age|year|born"

STORIES: dict[str, Story] = {
    "shopping": Story(
        "{a} buys some {x}s and some {y}s at the market.",
        (
            Quantity("the number of {x}s", "{a} takes {n} {x}s.", "The receipt lists {n} {x}s.", (2, 12),
                     (HOW_MANY, "{x}")),
            Quantity("the price of one {x}", "One {x} costs {n} euros.", "The sign says {n} euros for a {x}.", (2, 15),
                     (PRICE, "{x}")),
            Quantity("the number of {y}s", "{n} {y}s go into the bag.", "The receipt lists {n} {y}s.", (2, 12),
                     (HOW_MANY, "{y}")),
            Quantity("the price of one {y}", "One {y} costs {n} euros.", "The sign says {n} euros for a {y}.", (2, 15),
                     (PRICE, "{y}")),
        ),
        "How much does {a} pay altogether, in euros?",
        lambda n, p, m, q: n * p + m * q,
        (
            Beyond("How old is the seller?", "the age of the seller", ("seller|vendor|merchant",)),
            Beyond("In which year was the market founded?", "the year in which the market was founded",
                   ("year(?!s old)|found|market(?:'s age| is)|old is the market",)),
        ),
        ("The market has {n} stalls.", "{a} has {n} cousins.", "There are {n} pigeons on the roof."),
    ),
    "travel": Story(
        "A {v} goes from {s} to {t} in two legs.",
        (
            Quantity("the time that the first leg takes", "The first leg takes {n} hours.",
                     "It comes to the end of the first leg after {n} hours.", (2, 6), (TIME, "first|1st|leg 1")),
            Quantity("the speed on the first leg", "On the first leg it keeps to {n} km/h.",
                     "Its speed on the first leg is {n} km/h.", (30, 90), (SPEED, "first|1st|leg 1")),
            Quantity("the time that the second leg takes", "The second leg takes {n} hours.",
                     "It needs {n} hours for the second leg.", (2, 6), (TIME, "second|2nd|leg 2|last leg")),
            Quantity("the speed on the second leg", "On the second leg it keeps to {n} km/h.",
                     "Its speed on the second leg is {n} km/h.", (30, 90), (SPEED, "second|2nd|leg 2|last leg")),
        ),
        "How many kilometres does it go in all?",
        lambda h, v, k, w: h * v + k * w,
        (
            Beyond("How old is the driver?", "the age of the driver", ("driver|" + AGE,)),
            Beyond("How many passengers are on board?", "the number of passengers", ("passenger|people|on board",)),
        ),
        ("The {v} was built {n} years ago.", "{s} has {n} bridges.", "The driver has a break of {n} minutes in {t}."),
    ),
    "ages": Story(
        "{a}, {b} and {c} are friends of different ages.",
        (
            Quantity("the age of {a}", "{a} is {n} years old.", "{a} has just turned {n} years old.", (3, 12),
                     (r"old\b|age(?! diff| gap)|years|born|turn", "{a}")),
            Quantity("how much older {b} is than {a}", "{b} is {n} years older than {a}.",
                     "On the day {a} was born, {b} turned {n}.", (2, 9),
                     ("older|younger|differen|apart|gap|than|relat|compar|between|how old|age of|{b}'s age", "{b}")),
            Quantity("how many times as old as {b} {c} is", "{c} is {n} times as old as {b}.",
                     "Take {b}'s age {n} times, and you have {c}'s.", (2, 4),
                     ("times|ratio|multipl|factor|than|relat|compar|older|differen|as old as", "{c}")),
        ),
        "How old is {c}?",
        lambda x, d, k: k * (x + d),
        (
            Beyond("How old is the mother of {a}?", "the age of {a}'s mother", ("mother|mom|mum|parent",)),
            Beyond("How many sisters has {b}?", "the number of {b}'s sisters", ("sister|sibling",)),
        ),
        ("{a} lives at number {n}.", "They have known each other for {n} months.", "{b} has {n} books."),
    ),
    "mixture": Story(
        "{a} mixes lemonade from two jugs, a red one and a blue one, and uses up both.",
        (
            Quantity("the litres in the red jug", "The red jug holds {n} litres.", "In the red jug are {n} litres.",
                     (2, 9), (LITRES, "red")),
            Quantity("the sugar in a litre from the red jug", "Each litre from the red jug has {n} grams of sugar.",
                     "The label of the red jug says {n} grams of sugar a litre.", (20, 90),
                     ("sugar|sweet|gram|concentrat", "red")),
            Quantity("the litres in the blue jug", "The blue jug holds {n} litres.", "In the blue jug are {n} litres.",
                     (2, 9), (LITRES, "blue")),
            Quantity("the sugar in a litre from the blue jug", "Each litre from the blue jug has {n} grams of sugar.",
                     "The label of the blue jug says {n} grams of sugar a litre.", (20, 90),
                     ("sugar|sweet|gram|concentrat", "blue")),
        ),
        "How many grams of sugar are in the mixture?",
        lambda p, s, q, t: p * s + q * t,
        (
            Beyond("What did the red jug cost, in euros?", "the price of the red jug", (PRICE,)),
            Beyond("How many guests drink the lemonade?", "the number of guests", ("guest|people|drink",)),
        ),
        ("The kitchen is {n} degrees warm.", "There are {n} lemons left over.", "{a} stirs for {n} seconds."),
    ),
    "course": Story(
        "{a} attends a language course, with as many lessons in one week as in the next.",
        (
            Quantity("the number of lessons a week", "There are {n} lessons a week.", "Every week has {n} lessons.",
                     (2, 6), (HOW_MANY + "|often|frequen", "lesson|class|session|often")),
            Quantity("the length of a lesson", "A lesson lasts {n} minutes.",
                     "Each lesson is over after {n} minutes.", (30, 90),
                     ("long|length|duration|minute|last|time", "lesson|class|session|each")),
            Quantity("the number of weeks of the course", "The course runs for {n} weeks.",
                     "After {n} weeks the course is over.", (4, 20),
                     ("weeks|long|duration|length|last", "weeks|course")),
        ),
        "How many minutes of lessons does the course have in all?",
        lambda n, m, w: n * m * w,
        (
            Beyond("What does the course cost, in euros?", "the price of the course", (PRICE + "|fee",)),
            Beyond("How many people attend the course?", "the number of people who attend",
                   ("people|how many.*attend|attendee|participa|student|class size",)),
        ),
        ("The way there takes {n} minutes.", "The teacher speaks {n} languages.", "The room is on floor {n}."),
    ),
    "bakery": Story(
        "A bakery bakes rolls on trays, in several ovens at the same time.",
        (
            Quantity("the number of ovens", "There are {n} ovens.", "The bakery uses {n} ovens.", (2, 6),
                     (HOW_MANY, "ovens")),
            Quantity("the number of trays in an oven", "Each oven takes {n} trays.",
                     "The trays in one oven are {n} in number.", (3, 9),
                     (HOW_MANY + "|hold|fit|capac|take", "tray.*oven|oven.*tray")),
            Quantity("the number of rolls on a tray", "Each tray holds {n} rolls.",
                     "{n} is the number of rolls on a tray.", (12, 30),
                     (HOW_MANY + "|hold|fit|capac|take", "roll.*tray|tray.*roll")),
        ),
        "How many rolls does it bake at the same time when all ovens are full?",
        lambda o, t, r: o * t * r,
        (
            Beyond("How many customers come in a day?", "the number of customers", ("customer|people|visit",)),
            Beyond("What does one roll cost, in cents?", "the price of a roll", (PRICE + "|cent",)),
        ),
        ("The bakery is {n} years old.", "The ovens are {n} degrees hot.", "It has {n} apprentices."),
    ),
    "fence": Story(
        "{a} puts a fence around all of a rectangular garden.",
        (
            Quantity("the length of the garden", "The garden is {n} metres long.",
                     "Its length measures {n} metres.", (20, 40), ("length|long|other (?:side|dimension)",)),
            Quantity("the width of the garden", "The garden is {n} metres wide.", "Its width measures {n} metres.",
                     (5, 15), ("width|wide|broad|breadth|short|other (?:side|dimension)",)),
            Quantity("the price of a metre of fence", "A metre of fence costs {n} euros.",
                     "The shop asks {n} euros for each metre of fence.", (3, 20),
                     (PRICE, "met(?:re|er)|per m|unit|fenc")),
        ),
        "What does the fence cost altogether, in euros?",
        lambda x, y, p: 2 * (x + y) * p,
        (
            Beyond("How many trees stand in the garden?", "the number of trees", ("tree",)),
            Beyond("How many hours does the work take?", "the hours that the work takes", (TIME + "|work",)),
        ),
        ("The fence is {n} decimetres high.", "{a} has {n} neighbours.", "The shop is {n} kilometres away."),
    ),
    "savings": Story(
        "{a} saves for a bicycle, the same sum every week, and buys one present from it.",
        (
            Quantity("the money at the start", "At the start there are {n} euros in the box.",
                     "Before the first week {a} had {n} euros.", (50, 99),
                     ("start|beg[ai]n|initial|already|before|original|box",)),
            Quantity("the money saved in a week", "Every week {n} euros are added.",
                     "{a} puts {n} euros aside each week.", (5, 20),
                     ("week", "much|amount|euro|add|put|money|sum|sav.* (?:a|each|every|per) week|weekly sav")),
            Quantity("the number of weeks", "This goes on for {n} weeks.", "{a} keeps it up for {n} weeks.", (4, 20),
                     ("weeks|how long|duration",)),
            Quantity("the price of the present", "The present costs {n} euros.",
                     "{a} pays {n} euros for the present.", (10, 40), ("present|gift",)),
        ),
        "How many euros are there in the end?",
        lambda s, w, k, d: s + w * k - d,
        (
            Beyond("What does the bicycle cost, in euros?", "the price of the bicycle", ("bicycle|bike",)),
            Beyond("How old is {a}?", "the age of {a}", (AGE,)),
        ),
        ("The box is {n} centimetres high.", "{a} is number {n} in the class list.", "The school has {n} pupils."),
    ),
    "reading": Story(
        "{a} began a novel some time ago and reads on in the holidays.",
        (
            Quantity("the number of pages of the novel", "The novel has {n} pages.",
                     "The novel's last page is number {n}.", (400, 900),
                     ("page|long|length", "novel|book|total|altogether|in all")),
            Quantity("the number of pages read before the holidays", "{n} pages were read before the holidays.",
                     "When the holidays began, {n} pages were read already.", (20, 80),
                     ("page|read|much|far", "before|already|start|beg[ai]n|earlier|previous")),
            Quantity("the number of pages read each day", "Each day of the holidays {a} reads {n} pages.",
                     "In the holidays it is {n} pages every day.", (10, 25),
                     ("day|daily", "page|much|rate|pace")),
            Quantity("the number of days of the holidays", "The holidays last {n} days.",
                     "The holidays are over after {n} days.", (5, 12),
                     ("days|how long|duration|last|length", "days|holiday")),
        ),
        "How many pages are left when the holidays are over?",
        lambda p, r, d, k: p - r - d * k,
        (
            Beyond("In which year was the novel first printed?", "the year in which the novel was printed",
                   ("year|print|publi|writ",)),
            Beyond("What did the novel cost, in euros?", "the price of the novel", (PRICE,)),
        ),
        ("The author wrote {n} novels.", "{a} has {n} books at home.", "The novel weighs {n} grams."),
    ),
    "feast": Story(
        "{a} bakes bread for the guests of a feast.",
        (
            Quantity("the number of guests", "There will be {n} guests.", "The number of guests is {n}.", (4, 30),
                     (HOW_MANY, "guest|people|person|come|attend")),
            Quantity("the flour for each guest", "Each guest needs {n} grams of flour.",
                     "{a} reckons with {n} grams of flour for each guest.", (40, 120),
                     ("flour|gram", "guest|person|each|per|head|portion")),
            Quantity("the extra flour for dusting the board", "Another {n} grams of flour are for dusting the board.",
                     "Dusting the board takes {n} grams of flour more.", (10, 90),
                     ("dust|board|extra|additional|another",)),
        ),
        "How many grams of flour are needed in all?",
        lambda n, g, e: n * g + e,
        (
            Beyond("How many eggs are needed?", "the number of eggs", ("egg",)),
            Beyond("How many minutes is the bread in the oven?", "the time in the oven", ("oven|minute|" + TIME,)),
        ),
        ("The oven is {n} degrees hot.", "{a} has done this {n} times.", "The hall has {n} chairs."),
    ),
}  # fmt: skip


class Said(NamedTuple):
    """What the last form in an answer says; `number` where it has exactly one behind ANSWER."""

    form: str  # answer, assumed, question, reason
    words: str
    number: Fraction | None


class Drawn(NamedTuple):
    """A problem and the part of its `meta` that grading needs."""

    text: str
    answer: str
    meta: dict[str, Any]


class Ambiguity:
    name = "ambiguity"
    about = "word problems, half of them incomplete, contradictory or unanswerable, beside twins that are not"
    sizes: ClassVar = {"asides": (0, 1)}

    def problems(self, split: Split, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        """`asides`: sentences whose numbers do not matter, at most 3."""
        ranges = sized(self.name, self.sizes, size, {"asides": (0, 3)})
        pairs = deal(self.name, split, n if n < 0 else (n + 1) // 2, candidates(seed, ranges["asides"]))
        return [
            Problem(
                task=self.name,
                id=f"{split}/{seed}/{i}/{drawn.meta['variant']}",
                messages=(Message("user", drawn.text + FORMS),),
                answer=drawn.answer,
                meta={"split": split, "pair": f"{split}/{seed}/{i}", **drawn.meta},
            )
            for i, pair in enumerate(pairs)
            for drawn in pair
        ][: max(n, 0)]

    def judge(self, problem: Problem, completion: Completion) -> Verdict:
        if cut := unfinished(completion):
            return Verdict(0.0, cut)
        said = read(completion.text)
        if said is None:
            return Verdict(0.0, "unparsed", {"judgement": "no line of one of the four forms"})
        if said.form in ("answer", "assumed") and said.number is None:
            return Verdict(0.0, "unparsed", {"judgement": "not one number behind ANSWER"})
        ok, why = (settled if problem.meta["variant"] == "complete" else unsettled)(problem, said)
        outcome: Outcome = "solved" if ok else "wrong"
        return Verdict(float(ok), outcome, {"judgement": why})

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        verdict = self.judge(problem, completion)
        return verdict.reward, verdict.outcome

    def gold(self, problem: Problem) -> str:
        variant, name = problem.meta["variant"], problem.meta["name"]
        if variant == "complete":
            return f"ANSWER: {problem.answer}"
        if variant == "underspecified":
            return f"QUESTION: I need to know {name}; how many or how much is it?"
        reason = "the text contradicts itself on" if variant == "contradictory" else "the text does not tell"
        return f"CANNOT: {reason} {name}."


def settled(problem: Problem, said: Said) -> tuple[bool, str]:
    """Whether an answer is right where the text has all that is needed."""
    if said.form == "answer":
        ok = said.number == Fraction(problem.answer)
        return ok, "right number" if ok else "wrong number"
    return False, f"over-cautious: {DID[said.form]} where the text settles the answer"


def unsettled(problem: Problem, said: Said) -> tuple[bool, str]:
    """Whether an answer is right where the text does not settle it."""
    variant, name = problem.meta["variant"], problem.meta["name"]
    if said.form == "answer":
        return False, f"confident number although the problem is {variant}"
    if said.form == "assumed":
        return assumption(problem, said)
    if names(problem, said.words):
        return True, f"{DID[said.form]}, naming what is {variant}: {name}"
    return False, f"{DID[said.form]} without naming {name}"


def assumption(problem: Problem, said: Said) -> tuple[bool, str]:
    """It must name the quantity and a value, and the answer must follow; of a contradiction, one of the two values."""
    meta, numbers = problem.meta, numbers_in(said.words)
    if meta["variant"] == "unanswerable":
        return False, "assumed the very thing that was asked"
    if not numbers or len(numbers) > MANY or not names(problem, said.words):
        return False, f"assumed without naming {meta['name']} and one value"
    if meta["variant"] == "contradictory":
        numbers = [number for number in numbers if number in meta["stated"]]
    if not numbers:
        return False, f"assumed a value of {meta['name']} that the text does not give"
    place, values = meta["place"], meta["values"]
    results = [STORIES[meta["story"]].answer(*values[:place], n, *values[place + 1 :]) for n in numbers]
    if any(close(said.number, result) for result in results):
        return True, f"answered under an assumption on {meta['name']}"
    return False, "the answer does not follow from the assumption"


def names(problem: Problem, words: str) -> bool:
    """Whether a text names the quantity: a word of each cue, or the two values that contradict one another.

    One other may be named too, as in "the price cannot be told without the length", but not more, nor the other
    question that the text is silent about.
    """
    meta, numbers = problem.meta, set(numbers_in(words))
    if len(words.split()) > WORDS or len([cues for cues in meta.get("others", ()) if cued(cues, words)]) > 1:
        return False
    if (never := meta.get("never")) and cued(never, words):
        return False
    stated = set(meta.get("stated", ()))
    return cued(meta["cues"], words) or (len(stated) == 2 and stated <= numbers and len(numbers - stated) <= 1)


def cued(cues: list[str], words: str) -> bool:
    return all(re.search(rf"\b(?:{cue})", words, re.IGNORECASE) for cue in cues)


def close(said: Fraction | None, exact: Fraction) -> bool:
    """Equal, but for rounding to two decimals."""
    return said is not None and abs(said - exact) <= Fraction(5, 1000)


def read(text: str) -> Said | None:
    """The last form in an answer; None where it has none. A question or a reason goes on to the end of the text."""
    lines = text[-END:].splitlines()
    for i in range(len(lines) - 1, -1, -1):
        if match := SAID.match(lines[i]):
            found = match.groupdict()
            form = next(name for name in DID if found[name] is not None)
            numbers = set(numbers_in(found["under" if form == "assumed" else form]))
            words = "\n".join([found[form], *lines[i + 1 :]]) if form in ("question", "reason") else found[form]
            return Said(form, words, numbers.pop() if len(numbers) == 1 else None)
    return None


def numbers_in(text: str) -> list[Fraction]:
    found = [number for number in NUMBER.findall(text) if len(number) <= LONGEST]
    return [Fraction(Decimal(number.replace(",", "").replace("\u2212", "-"))) for number in found]


def candidates(seed: int, asides: Range) -> Iterator[tuple[str, tuple[Drawn, Drawn]]]:
    """(the complete problem's text, both twins in an order that is drawn too) for ever."""
    for i in count():
        state = blake2b(f"ambiguity/{seed}/{i}".encode(), digest_size=8).digest()
        rng = Random(int.from_bytes(state, "big"))
        open_, complete = twins(rng, rng.choice(sorted(STORIES)), rng.choice(VARIANTS), rng.randint(*asides))
        yield complete.text, (open_, complete) if rng.random() < 0.5 else (complete, open_)


def twins(rng: Random, key: str, variant: str, asides: int) -> tuple[Drawn, Drawn]:
    """The incomplete problem and its complete twin: of one story, with the same numbers in the same order."""
    story = STORIES[key]
    a, b, c = rng.sample(NAMES, 3)
    x, y = rng.sample(ITEMS, 2)
    s, t = rng.sample(TOWNS, 2)
    cast = {"a": a, "b": b, "c": c, "x": x, "y": y, "s": s, "t": t, "v": rng.choice(VEHICLES)}
    values = [rng.randint(*quantity.values) for quantity in story.quantities]
    place = rng.randrange(len(values))
    quantity, beyond = story.quantities[place], rng.choice(story.beyond)
    low, high = quantity.values
    other = rng.choice([value for value in range(low, high + 1) if value != values[place]])

    told = [
        (i, q.tell.format(n=value, **cast)) for i, (q, value) in enumerate(zip(story.quantities, values, strict=True))
    ]
    told += [(-1, aside.format(n=rng.randint(2, 40), **cast)) for aside in rng.sample(story.asides, asides)]
    rng.shuffle(told)
    again = rng.randint(1 + next(j for j, (i, _) in enumerate(told) if i == place), len(told))

    def text(question: str, left_out: int | None = None, twice: int | None = None) -> str:
        said = [sentence for i, sentence in told if i != left_out]
        if twice is not None:
            said.insert(again, quantity.again.format(n=twice, **cast))
        return " ".join([story.opening.format(**cast), *said, question.format(**cast)])

    incomplete = {
        "underspecified": lambda: text(story.question, left_out=place),
        "contradictory": lambda: text(story.question, twice=other),
        "unanswerable": lambda: text(beyond.question),
    }[variant]()
    complete = text(story.question, twice=values[place] if variant == "contradictory" else None)
    thing = beyond if variant == "unanswerable" else quantity
    silent = [one for one in story.beyond if variant == "unanswerable" and one is not beyond]

    def cues(of: Quantity | Beyond) -> list[str]:
        return [cue.format(**cast) for cue in of.cues]

    meta = {
        "story": key, "name": thing.name.format(**cast), "cues": cues(thing),
        "others": [cues(one) for one in story.quantities if one is not thing],
        "never": [cue for one in silent for cue in cues(one)],
        "values": values, "place": place, "stated": [values[place], other] if variant == "contradictory" else [],
    }  # fmt: skip
    answer = str(story.answer(*values))
    return Drawn(incomplete, "", {"variant": variant, **meta}), Drawn(
        complete, answer, {"variant": "complete", "twin": variant, **meta}
    )


__all__ = ["STORIES", "VARIANTS", "Ambiguity", "read", "twins"]
