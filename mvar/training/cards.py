"""What GPUs can do at best, by the makers' data sheets: for plans, and for the share of it that a training reaches."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Dense bf16 FLOP/s of a card's matrix units.
CARDS = {"a100": 312e12, "h100": 989e12, "h200": 989e12, "b200": 2250e12, "l40s": 362e12, "rtx4090": 165e12}
FP32_SHARE = 0.5  # of the bf16 rate, by TF32
# FLOP/s of its fp32 units, which do that work where TF32 is off.
FP32 = {"a100": 19.5e12, "h100": 67e12, "h200": 67e12, "b200": 75e12, "l40s": 91.6e12, "rtx4090": 82.6e12}

# Bytes a second of its memory.
BANDWIDTH = {"a100": 2.0e12, "h100": 3.35e12, "h200": 4.8e12, "b200": 8e12, "l40s": 0.86e12, "rtx4090": 1.01e12}


def card_of(name: str) -> str | None:
    """The card of `CARDS` that a device of this name is; None of another one."""
    text = name.lower().replace(" ", "")
    return next((card for card in CARDS if card in text), None)


def rate_of(device: "torch.device", precision: str) -> float | None:
    """FLOP/s of a device; None of a CPU and of a card that is not in the table."""
    import torch

    if device.type != "cuda":
        return None
    card = card_of(torch.cuda.get_device_name(device))
    return None if card is None else CARDS[card] * (FP32_SHARE if precision == "fp32" else 1)
