"""Bytes and seconds, as people write and read them."""

import re
import resource
import sys

from npmerge.reports.text import plural

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


def process_peak() -> int:
    """The most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def size(nbytes: float) -> str:
    """Bytes in words: 1.2 GB is 1,200,000,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:,.1f} TB"


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
