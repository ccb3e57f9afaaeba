"""What stands before and after a number in; its units and its other words out."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from score_openrlhf.tasks.answers.units import MONEY, UNITS, Unit

# Words that say nothing about what is counted.
_FILLERS = """
    a about all altogether amount an answer approx approximately are area around at be by can cost difference
    distance each equal equals every exactly final for gets got had has have he height hence her his i in
    integer integers is it its just left length made make makes measure need needs number of on only perimeter
    price probability product quotient ratio remaining result roughly she should so solution solutions sum
    that the their then there therefore they this thus time to total totals unit units value volume was way
    ways we were which width will would you
"""
FILLERS = frozenset(_FILLERS.split())
# Words that change a number: what holds one is not the number itself.
_CHANGING = """
    any anything aren't between but can't cannot choose cube cubed divided doesn't double either everything
    except factorial false fewer fifth fourth guess half halves incorrect isn't least less log maybe minus mod
    modulo more most multiplied negative neither never no nor not or over perhaps plus possibly power quarter
    root something sqrt squared than third thirds thrice times triple twice undecided undefined under unknown
    unless until without wrong
"""
CHANGING = frozenset(_CHANGING.split())
MAGNITUDES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
MERIDIEM = re.compile(r"\b([ap])\.?\s?m\b\.?", re.I)
POWERED = re.compile(r"([A-Za-z]+)\s*(?:\^\s*\{?\s*(-?\d)\s*\}?|(?<=[a-z])(?P<bare>[23])\b)")
BEFORE_POWER = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}


def singular(word: str) -> str:
    """A word in its singular, by rule: `apples` and `apple`, `boxes` and `box`, are the same to a comparison."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and re.search(r"(?:s|x|z|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


class Beside(NamedTuple):
    """What stands beside a number: units with their powers, and other words, in singular and without fillers."""

    units: tuple[tuple[Unit, int], ...] = ()
    words: frozenset[str] = frozenset()
    label: frozenset[str] = frozenset()  # words before the number that name whose number it is
    meridiem: str = ""
    vague: bool = False  # "units" of no kind: they go with anything

    @property
    def empty(self) -> bool:
        return not self.units and not self.words and not self.meridiem


def beside(before: str, after: str) -> tuple[Beside, Fraction]:
    """The surroundings of a number and what a magnitude among them multiplies it by; ValueError for changing words."""
    factor = Fraction(1)
    meridiem = MERIDIEM.search(after)
    after = MERIDIEM.sub(" ", after)
    units: list[tuple[Unit, int]] = []
    words: set[str] = set()
    power_next = 1
    sign = 1
    vague = False
    prepared = POWERED.sub(
        lambda m: f" {m[1]}~{m[2] or m['bare']} ", after.replace("%", " percent ").replace("°", " degree ")
    )
    prepared = re.sub(r"\bmph\b", "mile per hour", re.sub(r"\b(?:kph|kmh)\b", "km per hour", prepared))
    for token in re.findall(r"[^\W\d_]+(?:[’'][a-z]+)?(?:~-?\d)?|/", prepared):
        token, _, power = token.partition("~")
        word = token.lower()
        if word in CHANGING and word != "or":
            raise ValueError(f"{word!r} beside a number")
        if word == "or":
            raise ValueError("a choice")
        if word in ("per", "/", "an", "a") and (units or words or factor != 1) and word in ("per", "/"):
            sign = -1
            continue
        if word in BEFORE_POWER:
            power_next = BEFORE_POWER[word]
            continue
        if word in MAGNITUDES:
            factor *= MAGNITUDES[word]
            continue
        if word in ("unit", "units"):
            vague = True
        if token in ("L", "N", "J", "W", "V", "C", "F", "K") or word in UNITS or singular(word) in UNITS:
            unit = {"C": UNITS["celsius"], "F": UNITS["fahrenheit"], "K": UNITS["kelvin"]}.get(token)
            unit = unit or UNITS.get(word) or UNITS[singular(word)]
            if unit.dimension == "temperature":
                units = [entry for entry in units if entry[0].dimension != "angle"]
            units.append((unit, sign * (int(power) if power else power_next)))
            power_next = 1
        elif word not in FILLERS:
            words.add(singular(word))
    label: set[str] = set()
    for word in re.findall(r"[^\W\d_]+(?:[’'][a-z]+)?", before.replace("%", " percent ")):
        word = word.lower()
        if word in CHANGING:
            raise ValueError(f"{word!r} beside a number")
        if word in UNITS and UNITS[word].dimension in MONEY:
            units.append((UNITS[word], 1))
        elif word not in FILLERS and word != "pound":
            label.add(singular(word))
    units = [entry for i, entry in enumerate(units) if entry not in units[:i]]
    units = [e for e in units if not (e[0].name == "pound" and any(u.dimension == "sterling" for u, _ in units))]
    return (
        Beside(tuple(units), frozenset(words), frozenset(label), meridiem[1].lower() if meridiem else "", vague),
        factor,
    )


ASKED = re.compile(r"\b(?:in|into|to|many|number of|as|nearest)\s+((?:square |cubic )?[A-Za-z]+)", re.I)


def asked_units(problem: str) -> list[tuple[tuple[Unit, int], ...]]:
    """The units a problem asks for by name: centimetres in "How many centimeters ...", "in cm"."""
    found = []
    for match in ASKED.finditer(problem):
        try:
            units = beside("", match[1])[0].units
        except ValueError:
            continue
        if units and (match[1].lower() not in ("in", "second", "quarter", "minute") or match[1].lower() == "minute"):
            found.append(units)
    return found
