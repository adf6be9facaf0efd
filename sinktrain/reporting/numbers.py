"""How numbers are written on the page."""

from __future__ import annotations

import math

MINUS = "\u2212"
MISSING = "\u2013"
TIMES = "\u00d7"


def count(value: float) -> str:
    """A whole number, with commas."""
    return f"{value:,.0f}"


def ppl(value: float) -> str:
    """A PPL: two decimals while it is small, then none, then a power of ten."""
    if not math.isfinite(value):
        return MISSING if math.isnan(value) else "infinite"
    if value < 1000:
        return f"{value:.2f}"
    if value < 1e6:
        return f"{value:,.0f}"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa} {TIMES} 10{_superscript(int(power))}"


def nats(value: float) -> str:
    """A difference in NLL, with its sign."""
    return MISSING if not math.isfinite(value) else _signed(f"{value:+.4f}")


def plain(value: float) -> str:
    """A small positive number to three figures."""
    return f"{value:.3g}"


def change(difference: float) -> str:
    """What a difference in NLL does to the PPL, in percent, or as a factor where it is large."""
    if not math.isfinite(difference):
        return MISSING
    if difference > 1:
        return f"PPL {TIMES} {ppl(exponential(difference))}"
    return _signed(f"PPL {math.expm1(difference) * 100:+.2f}%")


def exponential(nll: float) -> float:
    """PPL of an NLL; infinite instead of an error where it is out of range."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def seconds(value: float) -> str:
    """A duration."""
    if not math.isfinite(value):
        return MISSING
    return f"{value:.1f} s" if value < 60 else f"{value // 60:.0f} min {value % 60:.0f} s"


def rate(value: float) -> str:
    """So many a second: whole, or to three figures where they are few."""
    if not math.isfinite(value):
        return MISSING
    return count(value) if value >= 100 else plain(value)


def _signed(text: str) -> str:
    return text.replace("-", MINUS)


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))


def share(value: float) -> str:
    """A share, in percent."""
    return MISSING if not math.isfinite(value) else f"{value:.1%}"
