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
