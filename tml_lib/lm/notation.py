"""Numbers as people, Markdown and LaTeX write them, read by exact value; no symbolic mathematics.

`number` reads a text that is one number and nothing else; `mentions` finds the numbers inside
running text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

_LONGEST = 200  # characters; what is longer is no plain number
_POWER = 400  # the largest power of ten
_SCALES = {
    "%": Fraction(1, 100),
    "percent": Fraction(1, 100),
    "thousand": Fraction(10**3),
    "million": Fraction(10**6),
    "billion": Fraction(10**9),
    "trillion": Fraction(10**12),
}
# one unit a line, by all its names: two different ones are not the same answer
_UNITS = """
$ usd dollar | € eur euro | £ gbp pound | ¥ jpy yen | ₹ inr rs rupee | ¢ cent
mm millimeter millimetre | cm centimeter centimetre | m meter metre | km kilometer kilometre
in inch inches | ft foot feet | yd yard | mi mile | mg milligram | g gram | kg kilo kilogram | t ton
oz ounce | lb | ml milliliter millilitre | l liter litre | s sec second
min minute | h hr hour | day | week | month | year yr | mph | kmh km/h kph
""".replace("\n", " | ")
_NAMES = {name: k for k, names in enumerate(_UNITS.split(" | ")) for name in names.split()}
# words behind a number that make it something else
_NO_UNITS = {"or", "and", "to", "pi", "plus", "minus", "times", "mod", "over", "squared", "cubed"}
_NO_UNITS |= {"choose", "factorial", "base", "than"}
_VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅛": "1/8"}

_CURRENCY = r"(?:[A-Z]{0,2}\$|[€£¥₹₽₩₺₫₱₦฿¢]|(?:USD|EUR|GBP|JPY|INR|CAD|AUD|CHF|Rs)\b\.?)"
_WHOLE = re.compile(
    rf"""
    (?P<sign>[-+])?\s* (?P<before>{_CURRENCY})?\s* (?P<inner>[-+])?
    (?:
      (?P<mixed>\d+)[ ]+(?P<over>\d+)\s*/\s*(?P<under>\d+)
    | (?P<top>\d+)\s*/\s*(?P<bottom>\d+)
    | 10\s*\^\s*\{{?(?P<alone>[-+]?\d{{1,3}})\}}?
    | (?P<digits>
        (?:\d{{1,3}}(?:,\d{{3}})+|\d{{1,3}}(?:[ ]\d{{3}})+|\d+)(?:\.\d+)?|\.\d+|\d+\.(?=\s)
      )
      (?:[eE](?P<power>[-+]?\d{{1,3}})|\s*[×*]\s*10\s*\^\s*\{{?(?P<ten>[-+]?\d{{1,3}})\}}?)?
    )
    (?P<after>.*)
    """,
    re.VERBOSE,
)
_FONT = r"\\(?:text\w*|math\w*|mbox|operatorname|boldsymbol)"
_SEPARATOR = r"(?:,|\{,\}|\\,|,?\\!|[\u2009\u202f])"
_FOUND = re.compile(
    rf"""
    \\[dtc]?frac\s*\{{\s*(?P<top>\d+)\s*\}}\s*\{{\s*(?P<bottom>\d+)\s*\}}
    | (?P<digits>(?:\d{{1,3}}(?:{_SEPARATOR}\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)
    """,
    re.VERBOSE,
)
# what may stand behind digits and belong to the number
_BEHIND = re.compile(
    r"""
    [eE](?P<power>[-+]?\d{1,3})(?!\w)
    | \s*(?:\\times|\\cdot|[×*])\s*10\s*(?:\^|\*\*)\s*(?P<ten>\{[-+]?\d{1,3}\}|[-+]?\d{1,3})
    | (?:[ ]|\\[ ,])?\\[dtc]?frac\s*\{\s*(?P<over>\d+)\s*\}\s*\{\s*(?P<under>\d+)\s*\}
    | [ ](?P<top>\d+)/(?P<bottom>\d+)(?![\d/])
    """,
    re.VERBOSE,
)
_QUOTIENT = re.compile(r"/(?P<bottom>\d+)(?![\d/]|[.,]\d)")


@dataclass(frozen=True)
class Number:
    """A number as it is written somewhere; 'value' is that of its digits before a '%'."""

    value: Fraction
    text: str  # its own sign, digits and, where it has one, its 'million'
    scale: Fraction = Fraction(1)  # 1/100 for '%'
    unit: str = ""
    start: int = 0  # its characters in the text where it was found
    end: int = 0

    def equals(self, other: Number) -> bool:
        """Whether both are one answer: '50%' is 50 and 1/2, but not 1/2 %; 5 km are not 5 m."""
        mine, others = self._units(), other._units()
        if mine and others and mine.isdisjoint(others):
            return False
        if self.scale != 1 and other.scale != 1:
            return self.value * self.scale == other.value * other.scale
        return self.value in (other.value, other.value * other.scale) or (
            self.value * self.scale == other.value
        )

    def _units(self) -> set[int]:
        """The known units among the words around it."""
        words = re.findall(r"[^\W\d_]+(?:/h)?|[$€£¥₹¢]", self.unit.lower())
        both = [{_NAMES.get(word), _NAMES.get(word.removesuffix("s"))} for word in words]
        return set().union(*both) - {None}


def number(text: str) -> Number | None:
    """The number that a text is, with its currency, units and marks; None where it is more or
    something else.
    """
    if len(text) > _LONGEST:
        return None
    found = _WHOLE.fullmatch(plain(text))
    tail = None if found is None else _tail(found["after"])
    if tail is None or (found["sign"] and found["inner"]):
        return None
    value = _value(found.groupdict())
    if value is None:
        return None
    scale, unit = tail
    sign = "-" if "-" in (found["sign"], found["inner"]) else ""
    first = found.start("inner") if found["inner"] else found.end("before")
    first = found.end("sign") if first < 0 else first
    own = found.string[max(first, 0) : found.start("after")].strip().lstrip("-+").strip()
    unit = f"{found['before'] or ''} {unit}".strip()
    value = -value if sign else value
    if scale > 1:
        words = found["after"].split()
        return Number(value * scale, f"{sign}{own} {words[0]}", unit=unit)
    return Number(value, sign + own, scale, unit)


def plain(text: str) -> str:
    """A short answer without what Markdown and LaTeX add to a number: fonts, spaces, delimiters,
    one trailing full stop.
    """
    text = text.replace("\\$", "\0").strip().removesuffix(".").strip()
    text = re.sub(r"\\[()\[\]]|\\displaystyle|\\left|\\right", "", text).strip()
    while len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    text = text.replace("\0", "$").replace("\\%", "%").replace("{,}", ",").replace("\\!", "")
    text = re.sub(r"\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|(\d)\s*(\d))", _over, text)
    text = re.sub("[" + "".join(_VULGAR) + "]", lambda m: f" {_VULGAR[m.group()]}", text)
    text = re.sub(r"(?<=\d)(?:\\,|[\u2009\u202f\u00a0])(?=\d{3}(?!\d))", ",", text)
    for _ in range(3):  # fonts may stand in each other
        text = re.sub(rf"{_FONT}\s*\{{([^{{}}]*)\}}", r" \1", text)
    text = re.sub(r"\^?\s*(?:\{\s*\\circ\s*\}|\\circ|\\degree)|º", "°", text)
    text = re.sub(r"\\(?:pounds|textsterling)\b", "£", re.sub(r"\\euro\b", "€", text))
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "×", text)
    text = re.sub(r"\\[,;: ]|\\q?quad|~|[\u00a0\u2009\u202f]", " ", text).replace("−", "-")
    text = re.sub(r"(?<=\d)\*\*(?=\{?[-+]?\d)", "^", text)  # a power, as Python writes it
    text = re.sub(r"(?<!\d)\*\*|\*\*(?!\d)|`|(?<!\w)__?|__?(?!\w)", "", text.strip()).strip(" *")
    text = text.strip().removesuffix(".").strip(" *")
    if re.fullmatch(r"\{[^{}]*\}", text):
        text = text[1:-1].strip()
    return text


def _over(found: re.Match) -> str:
    top, bottom = [part for part in found.groups() if part]
    return f" {top}/{bottom}"


def _value(parts: dict[str, str | None]) -> Fraction | None:
    """The value of the named parts of a number, without its sign; None where it has none."""
    over, under = (parts.get(a) or parts.get(b) for a, b in (("over", "top"), ("under", "bottom")))
    if under and not int(under):
        return None
    if parts.get("alone"):
        return _ten(parts["alone"])
    digits = parts.get("mixed") or parts.get("digits") or "0"
    if len(digits) > _LONGEST:
        return None
    value = Fraction("0" + re.sub(r"[^\d.]", "", digits).rstrip("."))
    power = parts.get("power") or (parts.get("ten") or "").strip("{}")
    if power:
        scale = _ten(power)
        return None if scale is None else value * scale
    return value + Fraction(int(over), int(under)) if under else value


def _ten(power: str) -> Fraction | None:
    return Fraction(10) ** int(power) if abs(int(power)) <= _POWER else None


def _tail(text: str) -> tuple[Fraction, str] | None:
    """(scale, unit) of what stands behind a number's digits; None where it is no unit."""
    scale, glued = Fraction(1), bool(text) and not text[0].isspace()
    text = text.strip()
    for name, size in _SCALES.items():
        if re.match(rf"{name}(?!\w)", text, re.IGNORECASE):
            scale, text, glued = size, text[len(name) :].strip(), False
            break
    text = re.sub(r"^(?:°|degrees?\b)\s*[CFK]?(?!\w)\s*", "", text)
    if not text or re.fullmatch(_CURRENCY, text):
        return scale, text
    word = r"(?:[^\W\d_]+\.?)(?:\^\{?-?\d\}?|[²³])?"
    if not re.fullmatch(rf"{word}(?:(?:\s*[/·×-]\s*|\s+){word}){{0,7}}", text):
        return None
    words = re.findall(r"[^\W\d_]+", text)
    if (glued or len(words[0]) == 1) and words[0].lower() not in _NAMES:
        return None
    single = {word for word in words if len(word) == 1 and word not in _NAMES}
    if single - set("aCFKNJWVA"):
        return None
    return None if _NO_UNITS & {word.lower() for word in words} else (scale, text)


# --- numbers in running text ----------------------------------------------------------------------


def mentions(text: str) -> Iterator[Number]:
    """The numbers of a text from left to right: none inside a word, an index, an exponent, a time
    or another number. `value` is what each stands for, '%' aside; of 3/4 also 3 and 4 are found.
    """
    place = 0
    while found := _FOUND.search(text, place):
        start, end, parts = found.start(), found.end(), found.groupdict()
        place = end
        if parts["digits"] is None:
            place = found.start("top")
        elif (behind := _BEHIND.match(text, end)) and _is_part(behind):
            parts |= behind.groupdict()
            place = end = behind.end()
        elif (behind := _QUOTIENT.match(text, end)) and "." not in parts["digits"]:
            quotient = {"top": re.sub(r"\D", "", parts["digits"]), "bottom": behind["bottom"]}
            value = _value(quotient)
            if value is not None and value.denominator > 1:
                yield from _signed(text, value, start, behind.end())
        value = _value(parts)
        if value is not None:
            yield from _signed(text, value, start, end)


def _is_part(behind: re.Match) -> bool:
    """Whether what stands behind digits belongs to them: of a mixed number, a fraction below 1."""
    over, under = behind["over"] or behind["top"], behind["under"] or behind["bottom"]
    return not under or int(over) < int(under)


def _signed(text: str, value: Fraction, start: int, end: int) -> Iterator[Number]:
    """The number from start to end with its sign and size, where it is a number of its own."""
    before, after = text[max(start - 40, 0) : start], text[end : end + 40]
    # \Z, for '$' would also match before a line break
    inside = r"(?:[^\W_]|\d\.|(?:[^\W_]|[)}])_|\^-?|[_^]\{[^{}]*|[\w)]\*\*|\d\{,\})\Z"
    glued = re.match(r"[^\W_]+", after)
    if re.search(inside, before) or re.match(rf"{_SEPARATOR}\d|\.\d", after):
        return
    if (glued and glued.group() not in _NAMES) or _is_time(before, text[start:end], after):
        return
    scale = next((n for w, n in _SCALES.items() if n > 1 and re.match(rf"\s{w}\b", after)), 1)
    minus = re.search(rf"[-−][ ]?(?:\\?{_CURRENCY})?\Z", before)
    sign = minus and "- " not in minus.group() and _is_unary(before[: minus.start()])
    if sign:
        start -= len(minus.group())
    yield Number(-value * scale if sign else value * scale, text[start:end], start=start, end=end)


def _is_unary(before: str) -> bool:
    """Whether a minus behind this text is a sign: no hyphen and no subtraction."""
    operand = r"(?:[\d)}%]|\d[\w.,%]*\s+[^\W\d]+)[ ]*\Z"
    return not before[-1:].isalnum() and not re.search(operand, before)


def _is_time(before: str, digits: str, after: str) -> bool:
    """Whether digits are the hour or the minute of a time of day such as 12:30."""
    hour, minute = r"(?:[01]?\d|2[0-4])", r"[0-5]\d"
    begins = re.fullmatch(hour, digits) and re.match(rf":{minute}(?!\d)", after)
    return bool(
        begins or (re.fullmatch(minute, digits) and re.search(rf"(?<!\d){hour}:\Z", before))
    )
