"""How far work is: the one shape of the callbacks that are told."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # (done, in all), e.g. images; what it raises ends the work
