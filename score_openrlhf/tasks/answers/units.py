"""Names of units in; their exact sizes and whether two of them agree out.

Only exact sizes are here. Units of one dimension are told apart: 5 cm is not 5 km. One of size 0 is not converted.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

# dimension: the names of a unit, then its size in the base unit of the dimension; the first name is its own.
TABLE = """
length: m meter metre 1, km kilometer kilometre 1000, cm centimeter centimetre 1/100, mm millimeter millimetre
    1/1000, nm nanometer 1/1000000000, um micrometer 1/1000000, inch inches in 127/5000, foot feet ft 381/1250,
    yard yd 1143/1250, mile mi 201168/125
mass: kg kilogram kilo 1, g gram gm 1/1000, mg milligram 1/1000000, tonne 1000, pound lb lbs 45359237/100000000,
    ounce oz 45359237/1600000000, ton 45359237/50000
time: s second sec 1, minute min 60, hour hr h 3600, day 86400, week 604800, month 0, year yr 0, decade 0, century
    0, ms millisecond 1/1000
volume: l liter litre 1, ml milliliter millilitre 1/1000, gallon gal 473176473/125000000, quart qt
    473176473/500000000, pint pt 473176473/1000000000, cup 473176473/2000000000, tablespoon tbsp
    473176473/32000000000, teaspoon tsp 157725491/32000000000
money: dollar usd buck 1, cent 1/100, dime 1/10, nickel 1/20, quarter 1/4, penny pennies 1/100
euro: euro eur 1
sterling: sterling gbp 1
yen: yen jpy 1
rupee: rupee inr 1
ruble: ruble 1
won: won 1
peso: peso 1
yuan: yuan cny 1
angle: degree deg ° 1, radian rad 0
temperature: celsius 0, fahrenheit 0, kelvin 0
percent: percent % percentage pct 1
energy: joule j 1, kilojoule kj 1000, calorie cal 0
force: newton n 1
power: watt w 1, kilowatt kw 1000
voltage: volt v 1
frequency: hertz hz 1, khz 1000, mhz 1000000
"""
MONEY = ("money", "euro", "sterling", "yen", "rupee", "ruble", "won", "peso", "yuan")


class Unit(NamedTuple):
    """One unit: its own name, what it measures, its size in that dimension's base unit."""

    name: str
    dimension: str
    size: Fraction


def _table() -> dict[str, Unit]:
    table: dict[str, Unit] = {}
    for line in TABLE.replace("\n    ", " ").strip().splitlines():
        dimension, _, entries = line.partition(":")
        for entry in entries.split(","):
            *names, size = entry.split()
            unit = Unit(names[0], dimension, Fraction(size))
            for name in names:
                table[name] = unit
                if len(name) > 3 and not name.endswith("s"):
                    table[f"{name}s"] = unit
    return table


UNITS = _table()


def same_units(a: tuple[tuple[Unit, int], ...], b: tuple[tuple[Unit, int], ...]) -> bool:
    return sorted((unit.name, power) for unit, power in a) == sorted((unit.name, power) for unit, power in b)


def conversion(a: tuple[tuple[Unit, int], ...], b: tuple[tuple[Unit, int], ...]) -> Fraction | None:
    """What a number of `a` is multiplied by to be one of `b`; None if they differ in kind, or not exactly."""

    def size(units: tuple[tuple[Unit, int], ...]) -> tuple[Fraction, dict[str, int]]:
        total, dimensions = Fraction(1), dict[str, int]()
        for unit, power in units:
            if unit.size <= 0:
                return Fraction(0), {}
            total *= unit.size**power
            dimensions[unit.dimension] = dimensions.get(unit.dimension, 0) + power
        return total, {name: power for name, power in dimensions.items() if power}

    (size_a, dims_a), (size_b, dims_b) = size(a), size(b)
    return size_a / size_b if dims_a and dims_a == dims_b and size_b else None
