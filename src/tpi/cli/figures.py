"""How numbers are written for people: sizes in powers of ten, times, shares. Pure text."""

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(n_bytes: float) -> str:
    """``163 MB``, ``4.8 GB``: three digits at most."""
    value, unit = float(n_bytes), 0
    while abs(value) >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 1 if unit and abs(value) < 9.95 else 0
    return f"{value:.{digits}f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """``850 ms``, ``2.4 s``, ``3 min 20 s``."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.{0 if seconds >= 0.0095 else 1}f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def part(share: float) -> str:
    """``25 %``; tenths below ten percent."""
    return f"{share * 100:.{0 if share >= 0.0995 or share == 0 else 1}f} %"
