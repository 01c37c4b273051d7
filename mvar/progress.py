"""How work says how far it is: one signature for every callback that counts."""

from collections.abc import Callable

Progress = Callable[[int, int], None]  # (done, of so many); what it raises ends the work
