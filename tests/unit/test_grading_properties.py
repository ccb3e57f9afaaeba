"""Rewriting an answer without changing its value keeps it right; changing a digit, sign, unit or order makes it wrong.

`GRADING_CASES=10000 pytest tests/unit/test_grading_properties.py` draws that many of either kind.
"""

import math
import os
from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from score_openrlhf.tasks.math import MathTask

TASK = MathTask()
many = settings(max_examples=int(os.environ.get("GRADING_CASES", "100")), deadline=None)

whole = st.integers(1, 10**9)
small = st.integers(2, 99)
names = st.sampled_from(["Alice", "Bob", "Carla", "Dmitri", "Evelyn", "Farid"])
UNITS = {
    "cm": ["centimeters", "cm"],
    "km": ["kilometers", "km"],
    "kg": ["kilograms", "kg"],
    "hours": ["hours", "hour", "hr"],
    "dollars": ["dollars", "USD"],
    "feet": ["feet", "ft"],
    "apples": ["apples"],
    "minutes": ["minutes", "min"],
}
MONTHS = ["January", "May", "June", "August", "December"]


def grouped(n, sign):
    return f"{n:,}".replace(",", sign)


def spellings(value: Fraction) -> list[str]:
    """Ways to write a rational number that say the same."""
    n, d = value.numerator, value.denominator
    sign, n = ("-", -n) if n < 0 else ("", n)
    if d == 1:
        return [
            sign + text
            for text in (
                f"{n}",
                f"{n}.0",
                f"{n}.",
                grouped(n, ","),
                grouped(n, " "),
                grouped(n, r"\,"),
                grouped(n, r",\!"),
                grouped(n, "{,}"),
                rf"\text{{{n}}}",
                rf"{{{n}}}",
                f"${n}$",
            )
        ] + ([f"−{n}"] if sign else [f"+{n}", f"0{n}", rf"\boxed{{{n}}}"])
    texts = [
        rf"\frac{{{n}}}{{{d}}}",
        rf"\dfrac{{{n}}}{{{d}}}",
        f"{n}/{d}",
        rf"\tfrac{{{n}}}{{{d}}}",
        rf"\displaystyle\frac{{{n}}}{{{d}}}",
    ]
    if n > d:
        texts += [rf"{n // d}\frac{{{n % d}}}{{{d}}}", f"{n // d} {n % d}/{d}"]
    if 10**6 % d == 0:
        texts.append(f"{n / d:.6f}")
    return [sign + text for text in texts] + [rf"x = {sign}{texts[0]}"]


@st.composite
def numbers(draw):
    value = Fraction(draw(whole), draw(st.sampled_from([1, 1, 2, 3, 4, 7, 9, 25, 40, 64]))) * draw(
        st.sampled_from([1, -1])
    )
    delta = draw(
        st.sampled_from([Fraction(1), Fraction(-1), Fraction(1, 10), Fraction(10) ** draw(st.integers(0, 8))])
    )
    other = draw(
        st.sampled_from(
            [-value, value + delta, value * 10, value / 10, 1 / value if value.numerator not in (1, -1) else value + 7]
        )
    )
    assume(other != value)
    changed = draw(st.sampled_from(spellings(other)))
    return (
        draw(st.sampled_from(spellings(value)[:1] + spellings(value)[3:5])),
        draw(st.sampled_from(spellings(value))),
        changed,
    )


@st.composite
def decimals(draw):
    digits, places = draw(st.integers(1, 10**7)), draw(st.integers(1, 6))
    text = f"{digits / 10**places:.{places}f}" if digits else "0"
    assume(Fraction(text) != 0)
    exponent = draw(st.integers(-40, 40))
    kept = draw(st.sampled_from([text, text + "0", f"{text}e0", rf"\approx {text}"]))
    position = draw(st.integers(0, len(text) - 1))
    assume(text[position].isdigit())
    changed = text[:position] + str((int(text[position]) + draw(st.integers(1, 9))) % 10) + text[position + 1 :]
    if draw(st.booleans()):
        forms = [rf" \cdot 10^{{{exponent}}}", rf" \times 10^{{{exponent}}}", f"e{exponent}"]
        one, two, three = (draw(st.sampled_from(forms)) for _ in range(3))
        return text + one, text + two, changed + three
    return text, kept, changed


@st.composite
def closed(draw):
    a, b, c = draw(small), draw(st.sampled_from([2, 3, 5, 6, 7, 10, 11, 13])), draw(small)
    kind = draw(st.sampled_from(["root", "pi", "sum", "quotient", "power", "complex"]))
    if kind == "root":
        return (
            rf"{a}\sqrt{{{b}}}",
            draw(
                st.sampled_from(
                    [
                        rf"{a} \sqrt{b}" if b < 10 else rf"{a}\sqrt{{{b}}}",
                        f"{a}*sqrt({b})",
                        f"{a}√{b}",
                        rf"\sqrt{{{b}}} \cdot {a}",
                        rf"\sqrt{{{a * a * b}}}",
                    ]
                )
            ),
            rf"{a}\sqrt{{{b + 1}}}",
        )
    if kind == "pi":
        return (
            rf"{a}\pi",
            draw(st.sampled_from([f"{a}pi", f"{a}π", rf"{a} \pi", rf"\pi \cdot {a}", f"{a}*pi"])),
            draw(st.sampled_from([rf"{a + 1}\pi", f"{a}", rf"-{a}\pi", rf"{a}\pi^2"])),
        )
    if kind == "sum":
        return (
            rf"{c}+{a}\sqrt{{{b}}}",
            draw(st.sampled_from([rf"{a}\sqrt{{{b}}}+{c}", rf"{c} + {a} \sqrt{{{b}}}", f"{c} + {a}*sqrt({b})"])),
            draw(st.sampled_from([rf"{c}-{a}\sqrt{{{b}}}", rf"{c + 1}+{a}\sqrt{{{b}}}", rf"-{c}+{a}\sqrt{{{b}}}"])),
        )
    if kind == "quotient":
        assume(math.gcd(a, c) == 1)
        return (
            rf"\frac{{{a}\sqrt{{{b}}}}}{{{c}}}",
            draw(
                st.sampled_from(
                    [
                        rf"\frac{{{a}}}{{{c}}}\sqrt{{{b}}}",
                        rf"{a}\sqrt{{{b}}}/{c}",
                        rf"\dfrac{{{a} \sqrt{{{b}}}}}{{{c}}}",
                    ]
                )
            ),
            rf"\frac{{{c}\sqrt{{{b}}}}}{{{a}}}" if a != c else rf"{a}\sqrt{{{b}}}",
        )
    if kind == "power":
        return (
            f"{a}^{{{c}}}",
            draw(st.sampled_from([f"{a}^{{{c}}}", f"{a}^{c}", f"{a}**{c}"])),
            draw(st.sampled_from([f"{a}^{{{c + 1}}}", f"{a + 1}^{{{c}}}", f"{a}^{{-{c}}}"])),
        )
    return (
        f"{a}+{c}i",
        draw(st.sampled_from([f"{c}i+{a}", f"{a} + {c} i", rf"{a}+{c} \cdot i"])),
        draw(st.sampled_from([f"{a}-{c}i", f"{a + 1}+{c}i", f"{a}+{c}"])),
    )


@st.composite
def collections(draw):
    values = draw(st.lists(st.integers(-99, 99), min_size=2, max_size=4, unique=True))
    shuffled = draw(st.permutations(values))
    assume(list(shuffled) != values)
    text, other = ", ".join(map(str, values)), ", ".join(map(str, shuffled))
    one_off = ", ".join(map(str, [values[0] + draw(small) * 100, *values[1:]]))
    kind = draw(st.sampled_from(["tuple", "set", "list", "vector", "interval"]))
    if kind == "tuple":
        return (
            f"({text})",
            draw(st.sampled_from([rf"\left({text}\right)", rf"\langle {text} \rangle", f"( {text} )", text])),
            draw(st.sampled_from([f"({other})", rf"\{{{text}\}}", f"({one_off})"])),
        )
    if kind == "set":
        return (
            rf"\{{{text}\}}",
            draw(st.sampled_from([rf"\{{{other}\}}", rf"\left\{{{other}\right\}}", other])),
            draw(st.sampled_from([rf"\{{{one_off}\}}", f"({text})"])),
        )
    if kind == "list":
        return (
            text,
            draw(
                st.sampled_from(
                    [
                        other,
                        other.replace(", ", ","),
                        rf"\{{{other}\}}",
                        other[::1].rpartition(", ")[0] + " and " + other.rpartition(", ")[2],
                    ]
                )
            ),
            draw(st.sampled_from([one_off, text.rpartition(", ")[0], text + ", 12345"])),
        )
    if kind == "vector":
        rows, mixed = (r" \\ ".join(map(str, some)) for some in (values, shuffled))
        return (
            rf"\begin{{pmatrix}} {rows} \end{{pmatrix}}",
            draw(st.sampled_from([rf"\begin{{bmatrix}} {rows} \end{{bmatrix}}", f"({text})"])),
            draw(st.sampled_from([rf"\begin{{pmatrix}} {mixed} \end{{pmatrix}}", f"({other})"])),
        )
    low, high = sorted(values[:2])
    return (
        f"[{low},{high})",
        draw(
            st.sampled_from(
                [
                    rf"\left[{low}, {high}\right)",
                    rf"{low} \le x < {high}",
                    rf"{high} > y \geq {low}",
                    rf"x \in [{low},{high})",
                ]
            )
        ),
        draw(
            st.sampled_from(
                [f"({low},{high})", f"[{low},{high}]", rf"{low} < x < {high}", f"[{low - 1},{high})", f"{low}, {high}"]
            )
        ),
    )


@st.composite
def quantities(draw):
    n, (unit, others) = draw(st.integers(1, 9999)), draw(st.sampled_from(sorted(UNITS.items())))
    kind = draw(st.sampled_from(["unit", "date", "name", "clock", "money"]))
    if kind == "unit":
        other_unit = draw(st.sampled_from([u for u in UNITS if u != unit]))
        kept = draw(
            st.sampled_from(
                [
                    rf"{n}\text{{ {draw(st.sampled_from(others))}}}",
                    f"{n} {draw(st.sampled_from(others))}",
                    f"{n}",
                    rf"x = {n}\text{{ {unit}}}",
                ]
            )
        )
        return (
            rf"{n}\text{{ {unit}}}",
            kept,
            draw(
                st.sampled_from(
                    [f"{n} {other_unit}", f"{n + 1} {unit}", f"-{n} {unit}", rf"{n}\text{{ {other_unit}}}"]
                )
            ),
        )
    if kind == "date":
        day, month = n % 28 + 1, draw(st.sampled_from(MONTHS))
        other = draw(st.sampled_from([m for m in MONTHS if m != month]))
        return (
            rf"\text{{{month} {day}}}",
            draw(st.sampled_from([f"{month} {day}", f"{day} {month}", f"{month} {day}th"])),
            draw(st.sampled_from([f"{other} {day}", f"{month} {day + 1}", f"{day}"])),
        )
    if kind == "name":
        name, other = draw(names), draw(names)
        assume(name != other)
        return (
            f"{name}: {n}",
            draw(st.sampled_from([f"{name}: {n}", f"{name} = {n}", rf"\text{{{name}}}: {n}"])),
            draw(st.sampled_from([f"{other}: {n}", f"{name}: {n + 1}"])),
        )
    if kind == "clock":
        h, m = n % 12 + 1, n % 60
        return (
            rf"\text{{{h}:{m:02d} p.m.}}",
            draw(st.sampled_from([f"{h}:{m:02d} PM", f"{h}:{m:02d} pm", rf"{h}:{m:02d}\text{{ p.m.}}"])),
            draw(st.sampled_from([f"{h}:{m:02d} a.m.", f"{h}:{(m + 1) % 60:02d} p.m."])),
        )
    return (
        rf"\${n}",
        draw(st.sampled_from([f"{n} dollars", f"{n}", rf"\${n}.00", f"${n}"])),
        draw(st.sampled_from([f"{n} euros", f"{n} cents", rf"\${n + 1}", f"€{n}"])),
    )


@st.composite
def polynomials(draw):
    a, b, c = draw(small), draw(small), draw(small)
    return (
        f"{a}x^2+{b}x-{c}",
        draw(
            st.sampled_from(
                [
                    f"{b}x+{a}x^2-{c}",
                    f"-{c}+{b}x+{a}x^{{2}}",
                    f"{a} x^2 + {b} x - {c}",
                    rf"{a}\cdot x^2+{b}\cdot x-{c}",
                ]
            )
        ),
        draw(st.sampled_from([f"{a}x^2-{b}x-{c}", f"{a}x^3+{b}x-{c}", f"{a + 1}x^2+{b}x-{c}", f"{a}y^2+{b}y-{c}"])),
    )


answers = st.one_of(numbers(), decimals(), closed(), collections(), quantities(), polynomials())
statements = st.sampled_from(
    [r"\boxed{%s}", "The final answer is $%s$. I hope it is correct.", "#### %s", r"So we get \boxed{%s} in the end."]
)


@many
@given(answers, statements)
def test_a_rewrite_that_keeps_the_value_stays_right(answer, statement):
    gold, kept, _ = answer
    grade = TASK.grade(statement % kept, gold, problem="What is it?")
    assert grade.status == "right", (gold, kept, grade)


@many
@given(answers, statements)
def test_a_change_of_digit_sign_unit_or_order_is_wrong(answer, statement):
    gold, _, changed = answer
    grade = TASK.grade(statement % changed, gold, problem="What is it?")
    assert grade.status in ("wrong", "unparsable"), (gold, changed, grade)


@many
@given(st.integers(2, 999), st.integers(2, 999), st.sampled_from(["+", "-", r"\cdot ", r"\times ", "*"]), statements)
def test_an_expression_left_to_be_worked_out_is_no_answer(a, b, sign, statement):
    value = {"+": a + b, "-": a - b}.get(sign, a * b)
    for work in (
        f"{a}{sign}{b}",
        f"({a}){sign}({b})",
        f"{a}{sign}{b}+0",
        rf"\frac{{{a}{sign}{b}}}{{1}}",
        f"x = {a}{sign}{b}",
    ):
        grade = TASK.grade(statement % work, str(value), problem="How many are there?")
        assert grade.status in ("wrong", "unparsable"), (work, grade)
    assert TASK.grade(statement % f"{a}{sign}{b} = {value}", str(value), problem="How many?").status == "right"
