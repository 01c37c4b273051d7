"""GPUs as they are named: how many, which card, and what a step may take of each."""

import re
from dataclasses import dataclass

from mvar.errors import UserError, one_of
from mvar.training.cards import CARDS

CARD = re.compile(r"([a-z0-9]+)-([1-9]\d{0,3})gb")
USABLE = 0.95  # of a card's memory: 76 of 80 GB; the rest is the allocator's, the kernels' and the network's


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind, on one node or many."""

    gpus: int
    card: str
    memory_gb: float

    @classmethod
    def parse(cls, text: str) -> "Machine":
        """`8xh100-80gb`: so many cards of a kind, each with its memory.

        Raises:
            UserError: another form, or a card whose speed is not known here.
        """
        count, sign, card = text.strip().lower().partition("x")
        if not sign or not re.fullmatch(r"[1-9]\d{0,4}", count) or not CARD.fullmatch(card):
            raise UserError(f"on: {text!r:.60} is no such machine; allowed: COUNTxCARD-MEMORYgb, e.g. 8xh100-80gb")
        return cls.of_cards(int(count), card, "on")

    @classmethod
    def of_cards(cls, gpus: int, card: str, where: str) -> "Machine":
        """So many of `h100-80gb`; raises what `parse` raises, under the field `where`."""
        found = CARD.fullmatch(card.strip().lower())
        if not found:
            raise UserError(f"{where}: {card!r:.60} is no such card; allowed: CARD-MEMORYgb, e.g. h100-80gb")
        if found[1] not in CARDS:
            raise one_of(f"{where}: card", found[1], CARDS)
        return cls(gpus, found[1], float(found[2]))

    @property
    def limit_gb(self) -> float:
        """What a step may take of a card."""
        return USABLE * self.memory_gb

    def flops_per_s(self, precision: str, tf32: bool) -> float:
        """Of one card, at best; in fp32 by `runtime.tf32`."""
        return CARDS[self.card].flops_per_s(precision, tf32)
