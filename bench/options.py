"""What several measurements read from their command lines."""

from collections.abc import Iterable

from tpi.errors import UsageError


def read_names(option: str, text: str, known: Iterable[str]) -> list[str]:
    """The names of a list with commas.

    Raises:
        UsageError: one is not ``known``; says which there are.
    """
    names, known = text.split(","), list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"{option} {unknown[0]}: there are {', '.join(known)}")
    return names


def read_numbers(option: str, text: str) -> list[float]:
    """The numbers of a list with commas.

    Raises:
        UsageError: one is none.
    """
    try:
        return [float(entry) for entry in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} {text}: write numbers, as in 1,5") from None


def read_counts(option: str, text: str) -> list[int]:
    """The whole numbers from 1 on of a list with commas.

    Raises:
        UsageError: one is none.
    """
    counts = [int(entry) if entry.isdecimal() else 0 for entry in text.split(",")]
    if not all(counts):
        raise UsageError(f"{option} {text}: write numbers, as in 1,2,4")
    return counts
