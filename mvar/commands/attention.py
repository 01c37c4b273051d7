"""`mvar attention`: where the attention of a run or a published checkpoint goes."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mvar.commands.checkpoint import CheckpointFiles, check_source, sampling_settings
from mvar.commands.options import Answer, Count, Folder, InResults, Number, RunName, Settings, Word
from mvar.errors import OK, UserError, one_of, say
from mvar.pattern import mixers_of

if TYPE_CHECKING:
    from mvar.api.trained import Trained
    from mvar.api.trained_files import TrainedFiles
    from mvar.api.trained_run import TrainedRun
    from mvar.config import ModelConfig, TokenSpace
    from mvar.probes.attention_mass import AttentionStats


@dataclass(frozen=True)
class Attention(CheckpointFiles, InResults, Answer):
    """Measure how much attention stays inside a scale and how much goes to every coarser one; draw it.

    Interrupted, the same command goes on where it was.

    Example: `mvar attention digits --picture 3`
    """

    run: RunName = ""
    """Run id, a unique beginning of one, or the run's directory."""
    source: Literal["heldout", "self"] = "heldout"
    """Measure on held-out images, or on images that the model draws itself."""
    images: Count = 0
    """At most so many images; default: 1000 of a run, 64 for a checkpoint."""
    images_from: Folder = ""
    """Held-out images for a checkpoint: a folder with a subfolder for each class."""
    sampling: Word = ""
    """For source self: fid or visual; default: the run's own, for a checkpoint fid."""
    set: Settings = ()
    """For source self: fields of the sampling, e.g. sample.cfg_scale=3."""
    picture: Number = None
    """Also draw an image of this class: as it grows, and what one query of it looks at."""
    layer: Number = None
    """Layer of the picture; default: the one whose attention is furthest from uniform."""
    head: Number = None
    """Head of the picture; default: the mean over heads."""
    query: Number = None
    """Token of the picture that looks; default: the middle of the finest scale."""
    batch: Count = 0
    """Images at a time; default: runtime.sample_batch of a run, 8 for a checkpoint. 1 needs the least memory."""
    out: Folder = ""
    """Folder to write; default: the run's directory, or results/attention/... for what is not the default."""

    def execute(self, arguments: list[str]) -> int:
        """Measure, print a table, write attention.json and figures; returns the exit code."""
        check_source(self.run, self.checkpoint)
        for name in ("images", "batch"):
            if (value := getattr(self, name)) < 0:
                raise UserError(f"{name}: {value}; allowed: 1 or more, 0 for the default")
        if self.source == "heldout" and (self.sampling or self.set):
            raise UserError("sampling, set: only for images that are drawn; allowed: with --source self")
        for name in ("picture", "layer", "head", "query"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise UserError(f"{name}: {value}; allowed: 0 or more")
        trained, options = self._opened()
        what, folder = trained.measurable(self.source, self.images, self.batch, options)
        folder = Path(self.out) if self.out else folder
        from mvar.probes.attention_kept import measure
        from mvar.runs.display import shown

        with shown("attention", "measuring") as progress:
            stats = measure(what, folder, progress)
        if self.json:
            self.answer({"measured": what.identity} | stats.to_json())
        else:
            show(stats, f"{trained.name}, {stats.num_images:,} images ({self.source})")
        draw(stats, folder)
        if self.picture is not None:
            self._draw_picture(self.picture, trained, options if self.source == "self" else {}, stats, folder)
        say(f"{folder}: {', '.join(sorted(path.name for path in folder.glob('attention*')))}")
        return OK

    def _draw_picture(
        self, wanted: int, trained: "Trained", settings: dict[str, Any], stats: "AttentionStats", folder: Path
    ) -> None:
        """One image that the model draws: growing, one map, and one query over the image."""
        from mvar.analysis import maps, pictures, style

        schedule = trained.config.token_space.schedule
        layer = self.layer if self.layer is not None else stats.layers[int(stats.layer_relative_entropy.argmin())]
        head = self.head
        side = schedule.sides[-1]
        query = self.query if self.query is not None else schedule.offsets[-2] + side * (side // 2) + side // 2
        settings = {"seed": trained.config.sample.seed, **settings}
        row = trained.attention_map(layer, head, drawn=wanted, query=query, **settings)
        rows = trained.attention_map(layer, head, drawn=wanted, scale=schedule.levels[query], **settings)
        grown = trained.grow([wanted], **settings)
        title = f"class {wanted}, layer {layer}, {'mean over heads' if head is None else f'head {head}'}"
        figures = {
            "growth": pictures.growth_figure(grown, schedule.sides, title=f"class {wanted}, scale by scale"),
            "map": maps.map_figure(rows, schedule, title),
            "query": pictures.query_figure(row, schedule, query, grown[0, -1], title),
        }
        for name, figure in figures.items():
            style.save(figure, folder, f"attention_{name}")

    def _check_picture(self, config: "ModelConfig", space: "TokenSpace") -> None:
        """Refuse a class, layer, head or query that is not there, before anything is measured.

        Whether a layer has global attention at all is left to the measurement, which names the pattern.
        """
        if self.picture is None:
            return
        counts = {"picture": space.num_classes, "head": config.num_heads, "query": space.schedule.num_tokens}
        for name, count in counts.items():
            if (value := getattr(self, name)) is not None and value >= count:
                raise UserError(f"{name}: {value}; allowed: {'classes ' * (name == 'picture')}0 to {count - 1}")
        layers = [number for number, layer in enumerate(config.layers) if "global" in mixers_of(layer)]
        if self.layer is not None and layers and self.layer not in layers:
            raise one_of("layer", self.layer, layers)

    def _opened(self) -> "tuple[TrainedRun | TrainedFiles, dict[str, Any]]":
        """What is measured, once the picture that is asked for can be drawn of it; and options of the measurement."""
        if self.run:
            for name in ("tokenizer", "images_from", "patch_sides", "num_heads", "weights"):
                if getattr(self, name):
                    raise UserError(f"{name.replace('_', '-')}: only for --checkpoint; a run has its own")
        trained = self.load(self.run, self.results)
        self._check_picture(trained.config.model, trained.config.token_space)
        options = sampling_settings(self.sampling, self.set) if self.source == "self" else {}
        return trained, options | ({"images_from": self.images_from} if self.images_from else {})


def show(stats: "AttentionStats", title: str) -> None:
    """Print a table: a row a layer, then the model."""
    from mvar.analysis.maps import names
    from mvar.commands.console import wide_console
    from mvar.commands.narrow import print_in_parts
    from mvar.probes.attention_mass import uniform_share
    from mvar.scales import ScaleSchedule

    columns: dict[str, list[str]] = {
        name: [] for name in ("layer", "own scale", "±", "entropy (nats)", "of max (%)", *names(stats.sides))
    }

    def add(name: str, share: float, sd: float, keys: Any, entropy: float, relative: float) -> None:
        half = 100 * float(stats.half_width(sd))
        told = (f"{100 * share:.1f}", "–" if math.isnan(half) else f"{half:.2f}", f"{entropy:.2f}")
        cells = (name, *told, f"{100 * relative:.0f}", *(f"{100 * k:.1f}" for k in keys))
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)

    per_layer = (stats.layers, stats.intra, stats.intra_sd, stats.key_shares, stats.layer_entropy)
    for layer, share, sd, keys, entropy, relative in zip(*per_layer, stats.layer_relative_entropy, strict=True):
        add(str(layer), float(share), float(sd), keys, float(entropy), float(relative))
    means = (stats.key_shares.mean(0), float(stats.layer_entropy.mean()), float(stats.layer_relative_entropy.mean()))
    add("mean", stats.share, stats.share_sd, *means)
    print_in_parts(list(columns.items()), wide_console(400), f"{title}: % of attention mass", section=1)
    uniform = uniform_share(ScaleSchedule(stats.sides))
    say(
        f"own scale: {stats.share:.1%} of attention mass; uniform attention would put {uniform:.1%} there. "
        "Own scale and 1×1 ...: where the mass of all queries lies; ±: 95 % t interval over images. Of max: of the "
        "entropy of uniform attention."
    )


def draw(stats: "AttentionStats", folder: Path) -> None:
    """Write the figures."""
    from mvar.analysis import maps, style

    figures = {"flow": maps.flow_figure, "heads": maps.heads_figure, "layers": maps.layers_figure}
    for name, figure in figures.items():
        style.save(figure(stats), folder, f"attention_{name}")
