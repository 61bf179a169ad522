"""A small integer random generator whose numbers are the same on every platform and Python version."""

from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


class SplitMix64:
    """SplitMix64 (Steele, Lea, Flood 2014); ``stream`` gives independent generators of one seed."""

    def __init__(self, seed: int, stream: int = 0) -> None:
        self._state = seed & _MASK
        self._state = (self.next() ^ (stream * _GAMMA)) & _MASK
        self._state = self.next()

    def next(self) -> int:
        """Returns the next 64 random bits as an unsigned integer."""
        self._state = (self._state + _GAMMA) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def between(self, low: int, high: int) -> int:
        """Returns an integer from ``low`` to ``high``, both included; the bias of the remainder is below 2^-32."""
        return low + self.next() % (high - low + 1)

    def choice(self, items: tuple[T, ...]) -> T:
        """Returns one of the items, each as likely as any other."""
        return items[self.next() % len(items)]

    def chance(self, percent: int) -> bool:
        """Returns True in ``percent`` of a hundred cases."""
        return self.next() % 100 < percent

    def uuid(self) -> str:
        """Returns a version 4 UUID (RFC 9562) in its text form."""
        value = (self.next() << 64) | self.next()
        value = value & ~(0xF << 76) | (0x4 << 76)
        value = value & ~(0x3 << 62) | (0x2 << 62)
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
