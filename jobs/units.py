"""Large numbers for people: three digits and a unit, in powers of 1000."""

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def scaled(number: float, unit: str = "") -> str:
    """`5.19 M`, `1.29 EFLOP`, `553 MB`, `12`"""
    power = 0
    while power < len(_PREFIXES) - 1 and float(f"{number:.3g}") >= 1000:
        number, power = number / 1000, power + 1
    text = str(int(number)) if not power and number == int(number) else _three_digits(number)
    return f"{text} {_PREFIXES[power]}{unit}".rstrip()


def _three_digits(number: float) -> str:
    """At least: `9.99`, `10.0`, `553`, `1234`"""
    rounded = float(f"{number:.3g}")  # before its digits are counted: 9.999 has two before the point
    return f"{number:.{max(0, 3 - len(str(int(rounded))))}f}"


def hours(number: float) -> str:
    """`3.1 h`, `14 min`, `25 s`; of days there are many hours: `1,210 h`"""
    seconds = 3600 * number
    if 0 < seconds < 0.5:
        return "< 1 s"
    if round(seconds) < 100:
        return f"{seconds:.0f} s"
    if round(seconds / 60) < 100:
        return f"{seconds / 60:.0f} min"
    return f"{number:,.{0 if round(number, 1) >= 100 else 1}f} h"
