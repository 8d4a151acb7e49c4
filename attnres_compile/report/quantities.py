"""Numbers as people read them, such as 28.24 TFLOP; the exact ones are in JSON and CSV."""

from __future__ import annotations

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
_SCALED = ("B", "FLOP")


def quantity(value: float | None, unit: str, sign: str = "") -> str:
    """A value with its unit: bytes and FLOPs with a prefix (1 kB is 1000 B), counts in full, all else plainly.

    Args:
        value: or None, which is "n/a".
        unit: "B", "FLOP", "ms" or "" for a count.
        sign: "+" to show it always.
    """
    if value is None:
        return "n/a"
    if unit in _SCALED:
        return _scaled(value, unit, sign)
    text = f"{round(value):{sign},}" if float(value).is_integer() else f"{value:{sign}.4g}"
    return f"{text} {unit}".rstrip()


def _scaled(value: float, unit: str, sign: str) -> str:
    step = 0
    while abs(value) >= 999.5 and step + 1 < len(_PREFIXES):
        value /= 1000
        step += 1
    whole = step == 0 and float(value).is_integer()
    digits = 0 if whole or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:{sign}.{digits}f} {_PREFIXES[step]}{unit}"


def percent(value: float) -> str:
    """A percentage with its sign: two decimals, or two digits where those decimals would be zeros."""
    if value == 0:
        return "0 %"
    if abs(value) < 0.01:
        return f"{value:+.1g} %"
    return f"{value:+.2f} %" if abs(value) < 10 else f"{value:+.1f} %" if abs(value) < 100 else f"{value:+,.0f} %"
