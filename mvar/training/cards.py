"""What GPUs can do at best, by the makers' data sheets: for plans, and for the share of it that a training reaches.

Rates are dense: half of those that the sheets give for sparse matrices. Sources, all NVIDIA's: a100: A100 Tensor Core
GPU data sheet. h100, h100pcie, h100nvl: H100 Tensor Core GPU data sheet, its columns SXM, PCIe and NVL; h200, h200nvl:
H200 Tensor Core GPU data sheet. b200: Blackwell data sheet, its column HGX B200. l40s: L40S data sheet. rtx4090: Ada
GPU architecture white paper, with sums in fp32. An a100's memory is that of 80 GB; that of 40 GB has 1.6.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TERA = 1e12


@dataclass(frozen=True)
class Card:
    """Rates of one card: 10^12 FLOP/s, and 10^12 bytes a second."""

    half: float  # bf16 and fp16
    tf32: float
    fp32: float  # of the units that do this work where TF32 is off
    bandwidth: float  # of its memory
    called: str  # by its driver, all of the name: a regular expression

    def flops_per_s(self, precision: str, tf32: bool) -> float:
        """FLOP/s at best: in fp32 by `runtime.tf32`."""
        return TERA * (self.half if precision != "fp32" else self.tf32 if tf32 else self.fp32)

    @property
    def bytes_per_s(self) -> float:
        """Of its memory, at best."""
        return TERA * self.bandwidth


CARDS = {
    "a100": Card(312, 156, 19.5, 2.0, r"A100-(SXM4|PCIE)-[48]0GB|A100 80GB PCIe"),
    "h100pcie": Card(756, 378, 51, 2.0, "H100 PCIe"),
    "h100nvl": Card(835.5, 417.5, 60, 3.9, "H100 NVL"),
    "h100": Card(989, 494.5, 67, 3.35, "H100 80GB HBM3"),
    "h200nvl": Card(835.5, 417.5, 60, 4.8, "H200 NVL"),
    "h200": Card(989, 494.5, 67, 4.8, "H200"),
    "b200": Card(2250, 1100, 75, 7.7, "B200"),
    "l40s": Card(362.05, 183, 91.6, 0.864, "L40S"),
    "rtx4090": Card(165.2, 82.6, 82.6, 1.008, "(GeForce )?RTX 4090"),
}


def card_of(name: str) -> str | None:
    """The card of `CARDS` that a device is of which `torch.cuda.get_device_name` says this; None of another one.

    All of the name counts: an RTX 4090 D, a GH200 or a MIG slice of an A100 is slower than what it is called after.
    """
    text = name.removeprefix("NVIDIA ")  # older drivers leave the maker out
    return next((card for card, rates in CARDS.items() if re.fullmatch(rates.called, text)), None)


def rate_of(device: "torch.device", precision: str, tf32: bool) -> float | None:
    """FLOP/s of a device at best, in fp32 by `runtime.tf32`; None of a CPU and of a card that is not in the table."""
    import torch

    if device.type != "cuda":
        return None
    card = card_of(torch.cuda.get_device_name(device))
    return None if card is None else CARDS[card].flops_per_s(precision, tf32)
