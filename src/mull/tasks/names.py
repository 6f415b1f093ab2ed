"""First names in a text, exchanged for others that go with the same pronouns."""

from __future__ import annotations

import re
from random import Random

# names that are also words, places or months (Rose, Will, May, Jordan) are left out: they would be exchanged wrongly
HER_NAMES = """
Abigail Alice Alicia Allison Amanda Amy Andrea Angela Anita Ann Anna Annie Ashley Barbara Becky Betty Brenda Brittany
Carla Carly Carol Caroline Catherine Cindy Claire Claudia Cynthia Daisy Dana Deborah Debra Diana Donna Doris Dorothy
Elena Elise Elizabeth Ella Ellen Emily Emma Erica Esther Eva Evelyn Fiona Gina Gloria Greta Hannah Heather Helen
Isabella Jane Janet Janice Jasmine Jen Jenna Jenny Jessica Jill Joan Joanne Josephine Judy Julia Julie Karen Kate
Katherine Kathy Katie Kelly Kim Kristin Laura Lauren Leah Linda Lisa Lucy Lydia Maria Marie Marissa Martha Mary Megan
Melanie Melissa Mia Michelle Miranda Molly Monica Nancy Natalia Natalie Nicole Nina Olivia Pamela Patricia Paula Rachel
Rebecca Sandra Sara Sarah Sharon Shirley Sofia Sophia Sophie Stephanie Susan Suzanne Sylvia Tanya Teresa Tina Valerie
Vanessa Wendy Yolanda Zoe
"""
HIS_NAMES = """
Aaron Adam Alan Albert Alex Alfred Andrew Anthony Arnold Arthur Ben Benjamin Bernard Billy Bob Bobby Brandon Brian
Bruce Bryan Carl Carlos Charles Chris Christopher Cody Craig Daniel Danny Darren Dave David Dean Dennis Derek Donald
Douglas Edward Elliot Eric Ethan Evan Felix Fred Gary George Gerald Greg Gregory Harold Harry Henry Howard Ian Isaac
Ivan Jack Jacob Jake James Jared Jason Jeff Jeffrey Jeremy Jerry Jim Jimmy Joe Joel John Johnny Jonathan Jose Joseph
Joshua Juan Justin Keith Ken Kenneth Kevin Kyle Larry Leo Leonard Liam Louis Lucas Luke Manuel Marcus Mario Martin
Matt Matthew Max Michael Mike Nathan Nicholas Noah Oliver Oscar Patrick Paul Pedro Peter Philip Phillip Ralph Raymond
Richard Robert Roger Ronald Russell Ryan Sam Samuel Scott Sean Simon Stanley Stephen Steve Steven Stuart Ted Terry
Theodore Thomas Tim Timothy Todd Tom Tommy Tony Travis Tyler Victor Vincent Walter William Zachary
"""
HERS, HIS = HER_NAMES.split(), HIS_NAMES.split()
KNOWN = {name: names for names in (HERS, HIS) for name in names}
WORD = re.compile(r"\b[A-Za-z]+\b")


def renamed(text: str, rng: Random) -> str:
    """Each name that is known for another of its kind, the same one everywhere; none that the text has already.

    A name begins with a capital at least once; then its other spellings (jack, JACK) are exchanged too.
    """
    words = list(dict.fromkeys(WORD.findall(text)))
    taken, new = {word.capitalize() for word in words}, dict[str, str]()
    for name in words:
        if name in KNOWN:
            # one that ends in s would write its possessive in another way
            others = [one for one in KNOWN[name] if one not in taken and one.endswith("s") == name.endswith("s")]
            new[name] = rng.choice(others)
            taken.add(new[name])
    return WORD.sub(lambda found: _spelt(new.get(found[0].capitalize()), found[0]), text)


def _spelt(name: str | None, like: str) -> str:
    if name is None:
        return like
    return name.lower() if like.islower() else name.upper() if like.isupper() else name


__all__ = ["renamed"]
