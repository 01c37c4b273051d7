"""The multi-scale residual quantizer of VAR: features to tokens of every scale, and tokens back to a latent.

Each scale quantises what the coarser ones left over. A code is looked up at the scale's own resolution, enlarged to
the finest one, smoothed by a convolution (phi) and added to the latent. Shapes: `B` batch, `L` tokens of all scales,
`n` tokens of one scale, `C` code channels, `V` codebook size, `S` scales, `h` side of the finest token map.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvar.config import TokenizerConfig
from mvar.errors import UserError
from mvar.scales import ScaleSchedule

MAX_SCORE_CELLS = 1 << 26  # of one block of the code search: 256 MiB in fp32
HIT_DECAY = 0.99  # of the usage statistics, as in the official code after its first 100 records
USED_SHARE = 0.08  # a code counts as used above this share of the mean code's hits (official margin)


class Phi(nn.Conv2d):
    """phi(x) = (1 - r) x + r conv(x): smooths an enlarged token map, `(B, C, h, h)` to the same (official `Phi`)."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 - self.ratio) + super().forward(x) * self.ratio


@lru_cache
def phi_index(scale: int, num_scales: int, num_phis: int) -> int:
    """Which of the shared phis a scale uses: the one whose tick is nearest to scale / (S - 1).

    The ticks, K = 4 being special, are the official code's; a checkpoint fixes them. That code divides by zero for
    a single scale; here such a scale uses the first phi.
    """
    margin = 1 / 3 / num_phis if num_phis == 4 else 1 / 2 / num_phis
    ticks = np.linspace(margin, 1 - margin, num_phis)
    return int(np.argmin(np.abs(ticks - scale / max(num_scales - 1, 1))))


def _enlarge(x: Tensor, side: int) -> Tensor:
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode="bicubic")


def _shrink(x: Tensor, side: int) -> Tensor:
    return x if x.shape[-1] == side else F.interpolate(x, size=(side, side), mode="area")


def _to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    # |x|^2 is the same for every code and would only cost precision, so the score leaves it out.
    norms = codes.square().sum(1)
    blocks = vectors.split(max(1, MAX_SCORE_CELLS // len(codes)))
    return torch.cat([torch.addmm(norms, block, codes.T, alpha=-2).argmin(1) for block in blocks])


def _full_precision(x: Tensor) -> torch.autocast:
    # Under autocast the search and the accumulated latent would lose the bits that decide between codes.
    return torch.autocast(x.device.type, enabled=False)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class ResidualQuantizer(nn.Module):
    """Multi-scale residual vector quantizer (VAR algorithms 1 and 2; official `VectorQuantizer2` without z-norm).

    State-dict keys are the official ones: `embedding.weight` `(V, C)`, the phis below `quant_resi`, and the buffer
    `ema_vocab_hit_SV` `(S, V)`, a moving average of how often a training step picks each code at each scale.
    """

    ema_vocab_hit_SV: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.schedule = config.schedule
        self.vocab_size = config.vocab_size
        self.code_channels = config.code_channels
        self.beta = config.beta
        self.num_phis = config.share_phi or self.schedule.num_scales
        phis = nn.ModuleList(
            Phi(self.code_channels, config.phi_ratio) if config.phi_ratio > 1e-6 else nn.Identity()
            for _ in range(self.num_phis)
        )
        match config.share_phi:  # three layouts, because the official keys differ
            case 0:
                self.quant_resi = phis
            case 1:
                self.quant_resi = nn.ModuleDict({"qresi": phis[0]})
            case _:
                self.quant_resi = nn.ModuleDict({"qresi_ls": phis})
        self.embedding = nn.Embedding(self.vocab_size, self.code_channels)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(self.schedule.num_scales, self.vocab_size))
        self.register_load_state_dict_pre_hook(_drop_foreign_usage)

    def phi(self, scale: int, num_scales: int) -> nn.Module:
        """The phi that scale number `scale` of `num_scales` uses."""
        index = phi_index(scale, num_scales, self.num_phis)
        if isinstance(self.quant_resi, nn.ModuleList):
            return self.quant_resi[index]
        if self.num_phis == 1:
            return self.quant_resi["qresi"]
        shared = self.quant_resi["qresi_ls"]
        assert isinstance(shared, nn.ModuleList)
        return shared[index]

    def embed(self, tokens: Tensor) -> Tensor:
        """Look codes up: token ids `(B, n)` int64 to `(B, n, C)`."""
        return self.embedding(tokens)

    def add(self, latent: Tensor, codes: Tensor, scale: int) -> Tensor:
        """Add one scale to the accumulated latent: codes enlarged to the finest side (bicubic), then phi.

        Args:
            latent: `(B, C, h, h)`, the sum over the coarser scales; zeros before the first.
            codes: `(B, n, C)`, code vectors of this scale in raster order (or mixtures of them).
            scale: number of the scale in the quantizer's own schedule.

        Returns:
            The new latent `(B, C, h, h)`; the argument is left as it is.
        """
        return latent + self._contribution(codes, scale, self.schedule)

    def next_input(self, latent: Tensor, scale: int) -> Tensor:
        """What the generator sees at `scale`: the latent `(B, C, h, h)` of the coarser scales, area-averaged to
        the side of `scale`, as `(B, n, C)` in raster order."""
        return _to_tokens(_shrink(latent, self.schedule.sides[scale]))

    @torch.no_grad()
    def encode(self, f: Tensor, schedule: ScaleSchedule | None = None) -> Tensor:
        """Quantise features `(B, C, h, h)` to token ids `(B, L)` int64, coarse to fine.

        Args:
            f: features.
            schedule: another schedule than the quantizer's own; it must end at the same side h.

        Raises:
            UserError: the schedule's finest side is not that of the features.
        """
        steps = self._descend(f, schedule or self.schedule)
        return torch.cat([ids for _, ids, _ in steps], dim=1)

    @torch.no_grad()
    def inputs(self, tokens: Tensor) -> Tensor:
        """Teacher-forcing inputs of all scales but the first (official `idxBl_to_var_input`).

        Args:
            tokens: `(B, L)` int64, all scales.

        Returns:
            `(B, L - n_0, C)`: for each scale the sum of the coarser ones at the side of that scale.
        """
        latents = self.latents(tokens)
        parts = [self.next_input(latent, scale + 1) for scale, latent in enumerate(latents[:-1])]
        return torch.cat(parts, dim=1) if parts else latents[0].new_zeros(len(tokens), 0, self.code_channels)

    @torch.no_grad()
    def latents(self, tokens: Tensor) -> list[Tensor]:
        """The accumulated latent `(B, C, h, h)` after every scale; the last is what the decoder takes.

        Args:
            tokens: `(B, L)` int64, all scales.
        """
        side = self.schedule.sides[-1]
        codes = self.embed(tokens).split(list(self.schedule.lengths), dim=1)
        latent = codes[0].new_zeros(len(tokens), self.code_channels, side, side)
        latents = []
        for scale, part in enumerate(codes):
            latent = self.add(latent, part, scale)
            latents.append(latent)
        return latents

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise for training; in training mode the usage statistics are updated.

        Args:
            f: `(B, C, h, h)` features.

        Returns:
            The latent `(B, C, h, h)` with the gradient passed straight to `f`, and the scalar loss: the mean over
            scales of codebook loss plus beta times commitment loss of the accumulated latent.
        """
        f = f.to(self.embedding.weight.dtype)
        latent, loss, hits = torch.zeros_like(f), f.new_zeros(()), []
        for _, ids, contribution in self._descend(f, self.schedule):
            latent = latent + contribution
            loss = loss + F.mse_loss(latent, f.detach()) + self.beta * F.mse_loss(latent.detach(), f)
            hits.append(ids.flatten().bincount(minlength=self.vocab_size))
        if self.training:
            self._record(torch.stack(hits))
        return f + (latent - f).detach(), loss / self.schedule.num_scales

    def usage(self) -> dict[str, Tensor]:
        """Share of the codebook in use, `codes_used` over all scales and `codes_used_scale_00`, ... for each.

        A code is used when its hits are above 8 % of the mean code's. The official code has the same margin but
        takes the mean of the finest scale for all of them, which calls a coarse scale unused whatever it does.
        """
        hits = torch.cat([self.ema_vocab_hit_SV.sum(0, keepdim=True), self.ema_vocab_hit_SV])
        used = ((hits >= USED_SHARE * hits.mean(1, keepdim=True)) & (hits > 0)).float().mean(1)
        names = ["codes_used", *(f"codes_used_scale_{k:02d}" for k in range(self.schedule.num_scales))]
        return dict(zip(names, used, strict=True))

    @torch.no_grad()
    def init_codes(self, features: Tensor, generator: torch.Generator) -> None:
        """Initialise the codebook from data: each scale gets an equal share of codes, drawn from its residuals.

        Residuals shrink from scale to scale, so codes drawn from one distribution would leave the fine or the
        coarse scales without a near one. The usage statistics are cleared.

        Args:
            features: `(B, C, h, h)`; with fewer than V residual vectors, vectors are repeated.
            generator: source of the random choice; its device may differ from that of the features.
        """
        codes = self.embedding.weight
        residual = features.to(codes.dtype)
        self._check(residual, self.schedule)
        done = 0
        for scale, side in enumerate(self.schedule.sides):
            vectors = _to_tokens(_shrink(residual, side)).flatten(0, 1)
            is_last = scale == self.schedule.num_scales - 1
            share = (self.vocab_size - done) // (self.schedule.num_scales - scale)
            share = share if is_last else min(share, len(vectors))
            if share:
                codes[done : done + share] = _draw(vectors, share, generator)
                done += share
            ids = _nearest(vectors, codes[: max(done, 1)])
            part = self.embed(ids).view(len(residual), -1, self.code_channels)
            residual = residual - self._contribution(part, scale, self.schedule)
        self.ema_vocab_hit_SV.zero_()
        self._agree()

    @torch.no_grad()
    def restart_dead_codes(self, features: Tensor, generator: torch.Generator, min_share: float = USED_SHARE) -> Tensor:
        """Move codes that are (nearly) never picked onto residuals of the data.

        All that decides is in the state dict, so a resumed training does the same. A moved code gets hits of twice
        the threshold: it is left alone for log 2 / (1 - decay), about 70 steps, before it can be moved again.

        Args:
            features: `(B, C, h, h)` to take the residuals of all scales from.
            generator: source of the random choice.
            min_share: a code is dead below this share of the mean code's hits over all scales.

        Returns:
            The ids `(num,)` of the codes that were moved, so that a caller can clear their optimizer state.
        """
        hits = self.ema_vocab_hit_SV.sum(0)
        dead = (hits < min_share * hits.mean()).nonzero().flatten()
        if len(dead):
            vectors = torch.cat([vectors for vectors, _, _ in self._descend(features, self.schedule)])
            self.embedding.weight[dead] = _draw(vectors, len(dead), generator)
            self.ema_vocab_hit_SV[:, dead] = 2 * min_share * hits.mean() / self.schedule.num_scales
            self._agree()
        return dead

    def _contribution(self, codes: Tensor, scale: int, schedule: ScaleSchedule) -> Tensor:
        side = schedule.sides[scale]
        with _full_precision(codes):
            grid = codes.to(self.embedding.weight.dtype).transpose(1, 2).unflatten(2, (side, side))
            return self.phi(scale, schedule.num_scales)(_enlarge(grid, schedule.sides[-1]))

    def _descend(self, f: Tensor, schedule: ScaleSchedule) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Per scale: residual vectors `(B n, C)`, nearest ids `(B, n)` and their contribution `(B, C, h, h)`."""
        self._check(f, schedule)
        residual = f.detach().to(self.embedding.weight.dtype)
        for scale, side in enumerate(schedule.sides):
            vectors = _to_tokens(_shrink(residual, side)).flatten(0, 1)
            with _full_precision(vectors), torch.no_grad():
                ids = _nearest(vectors, self.embedding.weight).view(len(f), -1)
            contribution = self._contribution(self.embed(ids), scale, schedule)
            yield vectors, ids, contribution
            residual = residual - contribution.detach()

    def _check(self, f: Tensor, schedule: ScaleSchedule) -> None:
        if f.shape[-2:] != (schedule.sides[-1],) * 2:
            raise UserError(
                f"patch_sides: {list(schedule.sides)} ends at side {schedule.sides[-1]}, the features are "
                f"{f.shape[-2]}x{f.shape[-1]}; allowed: schedules that end at the features' side"
            )

    @torch.no_grad()
    def _record(self, hits: Tensor) -> None:
        hits = hits.to(self.ema_vocab_hit_SV.dtype)
        if _is_distributed():
            torch.distributed.all_reduce(hits)
        # An empty average takes the first record whole. Deciding this from the buffer itself rather than from a
        # counter keeps everything that a resumed training needs in the official keys.
        decay = torch.where(self.ema_vocab_hit_SV.sum() == 0, 0.0, HIT_DECAY)
        self.ema_vocab_hit_SV.mul_(decay).add_(hits * (1 - decay))

    def _agree(self) -> None:
        if _is_distributed():  # every process saw other features; the first one's choice holds
            torch.distributed.broadcast(self.embedding.weight.data, 0)
            torch.distributed.broadcast(self.ema_vocab_hit_SV, 0)


def _draw(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    # Without replacement while there are enough: two equal codes are one code and one dead code.
    order = torch.randperm(len(vectors), generator=generator, device=generator.device).to(vectors.device)
    return vectors[order[torch.arange(count, device=vectors.device) % len(vectors)]]


def _drop_foreign_usage(module: ResidualQuantizer, state: dict, prefix: str, *_: object) -> None:
    # The statistics of a checkpoint with another number of scales mean nothing here (official code: the same).
    own, key = module.ema_vocab_hit_SV, f"{prefix}ema_vocab_hit_SV"
    if key in state and state[key].shape[0] != own.shape[0]:
        state[key] = own.detach().clone()
