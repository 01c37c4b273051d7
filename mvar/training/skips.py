"""Steps that were skipped because loss or gradient was not finite: counted, and what too many of them mean."""

import math
from typing import Any

from mvar.errors import UserError

MAX_IN_A_ROW = 20


class TrainingDiverged(UserError):
    """Loss, gradient or weights stay not finite; the message names step and values. The last checkpoint is kept."""


class SkippedSteps:
    """Counts them; part of a checkpoint's state, so a resumed training ends where an uninterrupted one does."""

    def __init__(self, steps: int) -> None:
        self.steps = steps  # of the whole training
        self.total = 0  # skipped so far
        self.in_a_row = 0  # skipped just now, one after the other
        self._loss = self._norm = math.nan  # of the last step that was looked at

    def count(self, step: int, loss: float, norm: float) -> None:
        """Take in the next step, 0 .. steps - 1, its loss and gradient norm.

        Raises:
            TrainingDiverged: it is the 20th in a row, or the last of a training in which every step was skipped.
        """
        self._loss, self._norm = loss, norm
        if math.isfinite(norm):  # a loss that is not finite has made the norm so too
            self.in_a_row = 0
            return
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= MAX_IN_A_ROW:
            raise TrainingDiverged(self.message(step, f"the last {self.in_a_row} steps were skipped"))
        if self.total == self.steps:
            raise TrainingDiverged(self.message(step, f"every step of {self.steps} was skipped"))

    def message(self, step: int, what: str) -> str:
        """One line for a training that ends at `step`: what happened, the values, what may help."""
        return (
            f"training diverged at step {step + 1} of {self.steps}: {what}; loss {self._loss:g}, gradient norm "
            f"{self._norm:g}; the last good checkpoint is kept; a lower base_lr or clip_norm, a longer warm-up or "
            "precision=fp32 may help"
        )

    def __str__(self) -> str:
        return f"{self.total} of {self.steps} steps were skipped, their loss or gradient was not finite"

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; an empty state is a checkpoint from before steps were counted."""
        self.total, self.in_a_row = state.get("total", 0), state.get("in_a_row", 0)
