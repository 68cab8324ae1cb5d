"""Numbers for people."""


def large(value: float) -> str:
    """``7.68 B``; two decimals from a thousand on."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:g}"


def binary(value: float) -> str:
    """``14.30 GiB``."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:g} B"


def long_duration(seconds: float) -> str:
    """``12.3 s``, ``4.5 min``, ``6.7 h`` or ``23.1 days``."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return duration(seconds)


def duration(seconds: float) -> str:
    """``12.3 ms``; three digits, from nanoseconds to seconds."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
