"""Numbers that remember how they are written."""

from typing import Self


class Number(float):
    """A number of a JSON line or a sheet: prints as it is written there."""

    written: str

    def __new__(cls, written: str) -> Self:
        number = super().__new__(cls, written)
        number.written = written
        return number

    @property
    def exact(self) -> int | float:
        """The value; an integer where it is written as one."""
        return int(self.written) if self.written.lstrip("-").isdigit() else float(self)


class Single(float):
    """A number of 32 bits: prints as 2.7, not as 2.700000047683716."""
