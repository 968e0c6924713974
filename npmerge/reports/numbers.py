"""Numbers as people write and read them: bytes, seconds, counts."""

import math
import re

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
"""What a number of bytes is multiplied by; B is mergekit's billion."""


def parse_size(option: str, text: str) -> int:
    """Bytes of "64MB", "5GB", "5B" (mergekit's five billion), "1.5GiB" or a plain number.

    Args:
        option: that it was given for, for the message.
        text: the number and its unit.

    Raises:
        ValueError: something else, or less than one byte.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?|B)?B?\s*", text.upper())
    nbytes = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    if nbytes < 1:
        raise ValueError(f"{option} must be a number of bytes such as 64MB, 5GB or 5B (five billion), got {text!r}")
    return nbytes


def without_unit(option: str, text: str) -> list[str]:
    """A line if a size of less than a megabyte has no unit, which few mean."""
    if not text.strip().isdigit() or int(text) >= UNITS["M"]:
        return []
    return [f"{option} {text} is {plural(int(text), 'byte')}: for megabytes or gigabytes give {text}MB or {text}GB"]


def size(nbytes: float) -> str:
    """Bytes: `1.2 GB` is 1,200,000,000."""
    return _scaled(nbytes, (" B", " kB", " MB", " GB", " TB"), ",.1f")


def counted(count: float) -> str:
    """A number of entries with three digits: `468 M`."""
    return _scaled(count, ("", " k", " M", " G", " T"), ",.3g")


def _scaled(value: float, units: tuple[str, ...], most: str) -> str:
    """Three digits and the unit that a thousand of the one before make; `most` is the format of the last."""
    for unit in units[:-1]:
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:{most}}{units[-1]}"


def duration(seconds: float) -> str:
    """Seconds: `12.3 s`, `2 min 5 s` or `1 h 3 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def plural(count: int, noun: str) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def nats(loss: float) -> str:
    """Four digits behind the point; of a small loss three that count, rather than zeros."""
    return f"{loss:.4f}" if abs(loss) >= 0.01 or loss == 0 else f"{loss:.3g}"


def number(value: float | None) -> str:
    """Four digits; a dash where there is no value."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"
