"""What `mvar knockout` has measured of the runs there are: one model in which something was cut, over its seeds."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mvar import layout
from mvar.analysis.compare import Measured, over_images
from mvar.analysis.records import Records
from mvar.config import RunConfig
from mvar.errors import one_line
from mvar.files import digest
from mvar.mixers.base import Mixer, chosen_in
from mvar.mixers.global_attention import GlobalAttention
from mvar.probes.attention_mass import AttentionStats
from mvar.probes.cut_text import OF_KEYS, Cut, parse_cut
from mvar.probes.knockout import Effect, matrix_of
from mvar.probes.knockout_kept import Knockout
from mvar.probes.measurable import MAX_IMAGES
from mvar.runs.states import DONE
from mvar.runs.wiring import kept_knockouts, run_attention

PARTS = ("own", "coarser", "branch", "state")  # targets of cuts that take away a whole part


@dataclass
class CutModel:
    """One trained model in which something was cut, over its seeds.

    Attributes:
        config: of one seed.
        limit: at most so many held-out images of each seed's run; only what shares it is compared.
        found: by training seed.
        attention: of its layers with global attention, by training seed; empty where it has none.
        run_ids: by training seed.
    """

    config: RunConfig
    limit: int = MAX_IMAGES
    found: dict[int, Knockout] = field(default_factory=dict)
    attention: dict[int, AttentionStats] = field(default_factory=dict)
    run_ids: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Layers, data and training, in words."""
        config = self.config
        return f"{config.model.pattern}, {config.data.name}, {config.train.steps:,} steps"

    @property
    def has_all_mass(self) -> bool:
        """Whether `attention` is that of every mixer in which keys are cut, so that a cut takes this mass away."""
        return bool(self.attention) and all(issubclass(cls, GlobalAttention) for cls in keyed_mixers(self.config))

    def kept(self, cut: str) -> float | None:
        """Share of the query-key pairs, of those heads and layers, that is left; None where no keys are cut."""
        return next(effect.kept for effect in self.effects(cut).values())

    def mass_by_scale(self) -> np.ndarray:
        """Mass `(S, S)` by query and key scale, mean over layers with global attention and over seeds."""
        return np.mean([stats.matrix.mean(0).numpy() for stats in self.attention.values()], axis=0)

    def entropy_by_scale(self) -> np.ndarray:
        """Entropy `(S,)` in nats of the queries of each scale: means over the same."""
        return np.mean([stats.scale_entropy.mean(0).numpy() for stats in self.attention.values()], axis=0)

    def effects_by_scale(self) -> dict[int, np.ndarray]:
        """By seed the change `(S, S)` of cutting a scale's keys (column) for the queries of one (row).

        NaN is what was not cut; seeds in which no such pair was are left out.
        """
        schedule = self.config.token_space.schedule
        found = {seed: matrix_of(knockout.effects.values(), schedule) for seed, knockout in self.found.items()}
        return {seed: matrix for seed, matrix in found.items() if np.isfinite(matrix).any()}

    def mass_by_head(self) -> np.ndarray:
        """Mass on the own scale `(N, H)` by layer and head, mean over seeds; NaN in layers without global attention."""
        return self._by_head([stats.intra_per_head.numpy() for stats in self.attention.values()])

    def entropy_by_head(self) -> np.ndarray:
        """Entropy `(N, H)` in nats: means over the same."""
        return self._by_head([stats.head_entropy.numpy() for stats in self.attention.values()])

    def _by_head(self, by_seed: list[np.ndarray]) -> np.ndarray:
        found = np.full((self.config.model.depth, self.config.model.num_heads), np.nan)
        found[[*next(iter(self.attention.values())).layers]] = np.mean(by_seed, axis=0)
        return found

    def effects_by_head(self, target: str) -> dict[int, np.ndarray]:
        """By seed the change `(N, H)` of cutting `own` or `coarser` in one head of one layer.

        NaN is what was not cut; seeds in which no head was are left out.
        """
        model, found = self.config.model, {}
        for seed, knockout in self.found.items():
            cuts = [
                [head_cut(target, n, h, model.num_heads) for h in range(model.num_heads)] for n in range(model.depth)
            ]
            changes = [[getattr(knockout.effects.get(cut), "change", np.nan) for cut in row] for row in cuts]
            if np.isfinite(changes).any():
                found[seed] = np.array(changes)
        return found

    def effects(self, cut: str, scale: int | None = None) -> dict[int, Effect]:
        """A cut's effect by seed; of the tokens of one scale alone: of the seeds that have its controls."""
        found = {seed: k.effects[cut] for seed, k in self.found.items() if cut in k.effects}
        if scale is None:
            return found
        return {seed: by_scale[scale] for seed, effect in found.items() if (by_scale := effect.by_scale)}

    def values(self, cut: str, name: str, scale: int | None = None) -> Measured | None:
        """One number of a cut's effect over the seeds, by the name it has in `Effect`."""
        found = {seed: getattr(effect, name) for seed, effect in self.effects(cut, scale).items()}
        return Measured.of(pd.Series(found, dtype=float), [self.run_ids[seed] for seed in found])

    def fid(self, cut: str, name: str) -> Measured | None:
        """The same of FID; None too where seeds differ in number of images or judge."""
        found = self.effects(cut).values()
        alike = len({(effect.fid_images, effect.fid_by) for effect in found if effect.fid_images}) == 1
        return self.values(cut, name) if alike else None

    def cuts(self) -> list[str]:
        """All that was cut in some seed, in order."""
        return list(dict.fromkeys(cut for knockout in self.found.values() for cut in knockout.effects))

    def parts(self, of_all_kinds: bool = False) -> list[str]:
        """Those of whole parts, in all layers; of all kinds also those in whose place something stood."""
        found = {cut: cut.partition(",kind=")[0] for cut in self.cuts()}
        whole = {cut: part for cut, part in found.items() if "," not in part and part.partition(":")[0] in PARTS}
        return [cut for cut, part in whole.items() if of_all_kinds or cut == part]

    def row(self, cut: str, scale: int | None = None) -> dict[str, Any]:
        """What tables have of a cut that is there in a seed."""
        names = ("change", "half_width", "control", "beyond", "beyond_half_width")
        change, half, control, beyond, beyond_half = (self.values(cut, name, scale) for name in names)
        assert change is not None
        row = {"model": self.name, "label": cut, "change": change, "control": control, "beyond": beyond, "n": change.n}
        row |= {"half_width": over_images(half), "beyond_half_width": over_images(beyond_half)}
        row |= {"change_over_seeds": change.half_width, "beyond_over_seeds": beyond and beyond.half_width}
        draws = {len(effect.controls) for effect in self.effects(cut, scale).values()}
        return row | {"draws": min(draws) or None}

    def attended(self, cut: str) -> dict[str, Measured | None]:
        """Attention's `mass` on the keys that are cut and its `entropy` in nats, see `AttentionStats.under`.

        None where no keys are cut, or where not all of their mass is known.
        """
        parsed, seeds = parse_cut(cut), list(self.effects(cut))
        if parsed.target not in OF_KEYS or not self.has_all_mass:
            return {"mass": None, "entropy": None}
        found = pd.DataFrame([self.attention[seed].under(parsed) for seed in seeds], seeds, ["mass", "entropy"])
        return {
            str(name): Measured.of(values, [self.run_ids[seed] for seed in seeds]) for name, values in found.items()
        }


def head_cut(target: str, layer: int, head: int, num_heads: int) -> str:
    """The cut of one head of one layer; of the layer where it has a single one."""
    return Cut(target, layers=(layer,), heads=(head,) if num_heads > 1 else ()).text


def scales_of(cut: str) -> dict[str, int | None]:
    """The scale whose `keys` are cut, and the one whose `queries` lose them; None where it is not a single one."""
    parsed = parse_cut(cut)
    return {"queries": parsed.queries, "keys": parsed.scale if parsed.target == "scale" else None}


def keyed_mixers(config: RunConfig) -> list[type[Mixer]]:
    """The mixers of a model in which keys can be cut, each once."""
    chosen = [made for layer in config.model.layers for made in chosen_in(config.model, layer).values()]
    return list(dict.fromkeys(cls for cls, _ in chosen if "keys" in cls.cuts))


def cut_models(records: Records) -> tuple[list[CutModel], list[str]]:
    """Every model that `mvar knockout` was run on, grouped by all but the seed and apart by number of images.

    What was measured on the default number comes first. And one line for each run that failed.
    """
    groups: dict[tuple[str, int], CutModel] = {}
    problems = []
    for run_id in sorted(set(records.table.loc[records.table["state"] == DONE, "run_id"])):
        config, run = records.configs[run_id], records.store.run(run_id)
        try:
            measured = kept_knockouts(records.store, run)
            if not measured:  # its mixers need not even be known here
                continue
            has_maps = any(issubclass(cls, GlobalAttention) for cls in keyed_mixers(config))
            attention = run_attention(records.store, run) if has_maps else None
            for found in measured:
                key = digest({**config.identity(), "seed": None}), found.limit
                group = groups.setdefault(key, CutModel(config, found.limit))
                group.found[config.seed], group.run_ids[config.seed] = found, run_id
                if attention:
                    group.attention[config.seed] = attention
        except Exception as error:  # one run with damaged files: the others are still shown
            problems.append(f"{layout.RUNS}/{run_id}: effects of cuts, or their mass, are not shown: {one_line(error)}")
    return sorted(groups.values(), key=lambda model: (model.limit != MAX_IMAGES, model.limit)), problems
