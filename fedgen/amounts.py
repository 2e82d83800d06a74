"""Amounts as people read them."""

from __future__ import annotations


def human_bytes(size_bytes: float) -> str:
    """1234567 -> ``1.2 MB`` (decimal units)."""
    size = float(size_bytes)
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if abs(size) < 999.5:
            break
        size = size / 1000
        unit = larger
    if unit == "B" or abs(size) >= 99.95:
        return f"{size:,.0f} {unit}" if abs(size) < 1e6 else f"{size:.2g} {unit}"
    return f"{size:.1f} {unit}"


def human_count(count: float) -> str:
    """12345 -> ``12,345``; beyond a million, ``1.2 M``."""
    if abs(count) < 1e6:
        return f"{count:,.0f}"
    return f"{count / 1e6:,.1f} M" if abs(count) < 1e12 else f"{count:.2g}"


def counted(count: int, one: str, many: str = "") -> str:
    """1, ``round`` -> ``1 round``; 2 -> ``2 rounds``."""
    return f"{human_count(count)} {one if count == 1 else many or one + 's'}"
