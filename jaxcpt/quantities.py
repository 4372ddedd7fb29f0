"""Writes large numbers in a short form for people, and counts with their nouns."""


def shorten(number: float) -> str:
    """Three digits and a unit prefix: 1234567 -> '1.23 M'."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g} "


def say_count(count: int, noun: str) -> str:
    """A count and its noun: '1 pair', '1,234 pairs'."""
    return f"{count:,} {noun}" + "s" * (count != 1)
