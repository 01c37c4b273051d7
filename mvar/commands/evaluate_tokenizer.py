"""`mvar evaluate-tokenizer`: what a tokenizer is worth, of a run or of a published checkpoint."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from mvar import layout
from mvar.commands.checkpoint import CheckpointFiles
from mvar.commands.options import Answer, Count, InResults, Numbers, Settings, Word
from mvar.commands.plugged import Plugged
from mvar.errors import OK, UserError, say
from mvar.files import check_place

if TYPE_CHECKING:
    from mvar.config import RunConfig
    from mvar.evaluation.extractor import Extractor
    from mvar.evaluation.tokenizer_quality import TokenizerQuality
    from mvar.runs.store import RunDirectory, StageDirectory, Store
    from mvar.tokenizer.model import Tokenizer

FILES = (".pth", ".pt", ".safetensors", ".json")  # what a checkpoint's name ends in; it may end in #MODEL too
SECTIONS = ("data", "evaluation", "runtime")
TOKENIZER = "tokenizer"  # the kind of its stage


@dataclass(frozen=True)
class EvaluateTokenizer(Plugged, InResults, Answer):
    """Measure a tokenizer: rFID, PSNR, SSIM, use and entropy of its codebook by scale, and a picture.

    The picture has a row an image: the image itself, then what is decoded after each scale, coarse to fine.

    Example: `mvar evaluate-tokenizer vae_ch160v4096z32.pth --data ~/pictures --out vae.png`
    """

    tokenizer: tyro.conf.Positional[str]
    """A run, whose tokenizer is meant; a tokenizer of the results by its id, as reports have it, or by its folder; or a
    checkpoint file: VAR's, M-VAR's, or one of this project."""
    data: Word = ""
    """A folder of class subfolders, all of whose images are used, or the name of a data source; default: the run's."""
    split: Literal["heldout", "train"] = "heldout"
    """Which images of a data source."""
    set: Settings = ()
    """FIELD=VALUE ...: of data, evaluation and runtime, e.g. evaluation.extractor=inception
    evaluation.inception_weights=FILE."""
    images: Count = 0
    """At most so many images, evenly spread; default: all."""
    rows: int = 8
    """Images in the picture; 0: none is written."""
    out: Path = Path("tokenizer.png")
    """The PNG to write."""
    patch_sides: Numbers = ""
    """The scales, e.g. 1,2,3,4, where the checkpoint cannot tell them."""
    weights: Word = ""
    """Which of several models in the checkpoint."""

    def execute(self, arguments: list[str]) -> int:
        """Measure, print a table, write the picture; returns the exit code."""
        if self.rows < 0 or self.rows > 1000:
            raise UserError(f"rows: {self.rows}; allowed: 0 to 1,000")
        if self.images < 0:
            raise UserError(f"images: {self.images}; allowed: 1 or more, or 0 for all")
        if self.rows:
            check_place("out", self.out)
        from mvar.data.sources.contract import find
        from mvar.data.splits import load_images
        from mvar.evaluation.images import Images, spread_indices
        from mvar.evaluation.tokenizer_quality import VERSION, after_each_scale, tokenizer_quality
        from mvar.runs.display import shown
        from mvar.runs.stages.sample import save_grid
        from mvar.runs.store import Store
        from mvar.training.distributed import resolve_device
        from mvar.training.numerics import precise

        tokenizer, config, folder, store = self._opened(Store(self.results))
        tokenizer = tokenizer.to(resolve_device(config.runtime)).eval()
        split = "heldout" if folder else self.split
        every = Images(load_images(config.data, split), "images")
        chosen = every.subset(spread_indices(len(every), self.images or len(every)))
        extractor, lacking = _extractor(config, store)
        with shown("tokenizer") as progress, precise(config.runtime):
            found = tokenizer_quality(tokenizer, chosen, extractor, progress)
        if self.rows:
            few = spread_indices(len(chosen), self.rows)
            pixels = next(chosen.subset(few).batches(len(few)))
            save_grid(self.out, after_each_scale(tokenizer, pixels))
        factor = config.data.resize_factor if find(config.data.name).resizes(config.data) else None
        told = {"data": config.data.name, "split": "all" if folder else split, "resize_factor": factor}
        if self.json:
            by = config.extractor_id if extractor else None
            self.answer({"tokenizer": self.tokenizer, "version": VERSION, **told, "extractor_id": by, **asdict(found)})
        else:
            name = f"{config.data.name}, {'all' if folder else split} images"
            name += f", resized to {factor:g} times the tokenizer's size and cropped" if factor not in (None, 1) else ""
            show(found, name, config.evaluation.extractor, lacking)
            if self.rows:
                say(f"{self.out}: the image, then what is decoded after each scale")
        return OK

    def _opened(self, store: "Store") -> "tuple[Tokenizer, RunConfig, bool, Store]":
        """The tokenizer, data and evaluation as a config, whether all images of a folder are meant, and its results."""
        from mvar.config.parsing import parse_overrides

        given = dict(parse_overrides(setting for group in self.set for setting in group))
        if wrong := [name for name in given if name.partition(".")[0] not in SECTIONS]:
            raise UserError(f"set: {wrong[0]}; allowed: fields of {', '.join(SECTIONS)}")
        is_file = self.tokenizer.partition("#")[0].endswith(FILES) or Path(self.tokenizer).is_file()
        tokenizer, config, store = (*self._of_file(), store) if is_file else self._of_results(store)
        values, folder = _data(self.data, given)
        if not (values or given) and not is_file:
            return tokenizer, config, False, store
        return tokenizer, _with_data(config, tokenizer, values | given), folder, store

    def _of_file(self) -> "tuple[Tokenizer, RunConfig]":
        from mvar.checkpoints.published import load_tokenizer
        from mvar.config import EvaluationConfig, RunConfig

        if not self.data:
            raise UserError("data: not given; allowed for a checkpoint: a folder of class subfolders, or a data source")
        sides = CheckpointFiles(patch_sides=self.patch_sides).sides()
        found = load_tokenizer(self.tokenizer, patch_sides=sides, weights=self.weights)
        return found, RunConfig(evaluation=EvaluationConfig(extractor="inception"))

    def _of_results(self, store: "Store") -> "tuple[Tokenizer, RunConfig, Store]":
        """Of a run, or of a tokenizer by its own name; and the results that it lies in."""
        from mvar.runs.stages.contract import Watch
        from mvar.runs.stages.tokenizer import TokenizerStage
        from mvar.runs.store import Store
        from mvar.runs.wiring import Stages

        for name in ("patch_sides", "weights"):
            if getattr(self, name):
                option = name.replace("_", "-")
                raise UserError(f"{option}: a run has its own; allowed: --{option} with a checkpoint file")
        if found := _stage_of(store, self.tokenizer):
            store, directory, run = found
            config = run.config() if run else _config_of(directory)
            stage = TokenizerStage(directory, Watch(), config.data, config.tokenizer, config.evaluation, config.runtime)
            name = directory.name
        else:
            run, store = Store.locate(store.root, self.tokenizer)
            config, stage, name = run.config(), Stages.of_run(store, run).tokenizer, f"that of {run.name}"
        if not stage.is_done():
            raise UserError(f"tokenizer: {name} is not there yet; allowed: a run whose tokenizer is made")
        return stage.load(), config, store


def _stage_of(store: "Store", name: str) -> "tuple[Store, StageDirectory, RunDirectory | None] | None":
    """The tokenizer's folder that an id, its folder's name or path means, with its results and a run that has it.

    None where there is no such folder.

    Raises:
        UserError: the folder of another stage.
    """
    from mvar.runs.store import Store

    path = Path(name).resolve()
    if path.parent.name == layout.STAGES and path.is_dir():
        store, name = Store(path.parent.parent), path.name
    kind, _, stage_id = name.rpartition("-")
    stage = next((s for s in store.stages() if s.name == (name if kind else f"{TOKENIZER}-{name}")), None)
    if stage is None:
        return None
    if kind not in ("", TOKENIZER):
        raise UserError(f"tokenizer: {stage.path} is another stage; allowed: a run, a tokenizer's id or folder, a file")
    for run in store.runs():
        with suppress(UserError):
            if run.stored().config.tokenizer_id == stage_id:
                return store, stage, run
    return store, stage, None


def _config_of(stage: "StageDirectory") -> "RunConfig":
    """What a tokenizer that no run has was made from; its features are the default ones."""
    from mvar.config import DataConfig, RunConfig, TokenizerConfig, from_dict
    from mvar.files import read_json

    try:
        document = read_json(stage.path / layout.CONFIG)
        found = {"data": document["data"], "tokenizer": document["tokenizer"]}
    except (OSError, KeyError, TypeError):
        file = stage.path / layout.TOKENIZER
        raise UserError(
            f"tokenizer: what {stage.name} was made from is not known; allowed: {file} with --data"
        ) from None
    kinds = {"data": DataConfig, "tokenizer": TokenizerConfig}
    return RunConfig().model_copy(update={n: from_dict(kinds[n], found[n], lenient=True) for n in found})


def _data(name: str, given: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The fields that --data stands for, and whether it is a folder."""
    from mvar.registries import SOURCES

    if not name or name in SOURCES:
        return ({"data.name": name} if name else {}), False
    if not Path(name).expanduser().is_dir():
        allowed = ", ".join(SOURCES.names())
        raise UserError(f"data: {name!r} is no folder and no data source; allowed: a folder, or {allowed}")
    return {"data.name": "imagefolder", "data.root": name, "data.heldout_root": name, "data.reading": "2"}, True


def _with_data(config: "RunConfig", tokenizer: "Tokenizer", values: dict[str, Any]) -> "RunConfig":
    """The config with other data, whatever their number of classes, of the tokenizer's size and channels."""
    from mvar.config import override
    from mvar.data.checking import open_whole

    side = tokenizer.schedule.sides[-1] * tokenizer.config.downsample
    config = config.model_copy(update={"tokenizer": tokenizer.config})
    sizes = {"data.image_size": side, "data.channels": tokenizer.in_channels}
    wrong = [f"{name}={values[name]}" for name, size in sizes.items() if str(values.get(name, size)) != str(size)]
    if wrong:
        raise UserError(f"set: {wrong[0]}; allowed: the tokenizer's {', '.join(f'{n}={s}' for n, s in sizes.items())}")
    config = override(config, {**sizes, **values})
    data, _ = open_whole(config.data)
    return config.model_copy(update={"data": data})


def _extractor(config: "RunConfig", store: "Store") -> "tuple[Extractor | None, str]":
    """What rFID is measured with, or why there is none; nothing is trained."""
    from mvar.evaluation.extractors.contract import kind_of

    kind = kind_of(config)
    directory = store.stage("extractor", config.extractor_id).path
    if kind.keeps and not (directory / kind.keeps).is_file():
        return None, f"no rFID: {config.evaluation.extractor} is not trained on these data here; `mvar run` trains it"
    if config.evaluation.extractor == "inception" and not config.evaluation.inception_weights:
        return None, "no rFID: --set evaluation.inception_weights=FILE, or another evaluation.extractor, gives it"
    kind.check()
    return kind.load(directory), ""


def show(found: "TokenizerQuality", name: str, extractor: str, lacking: str) -> None:
    """Print what was measured: a line of the whole, a row a scale."""
    from rich import box
    from rich.table import Table

    from mvar.commands.console import wide_console

    rfid = lacking if found.rfid is None else f"rFID {found.rfid:.4g} (features of {extractor})"
    say(f"{found.num_images:,} images ({name}): PSNR {found.psnr_db:.2f} dB, SSIM {found.ssim:.4f}; {rfid}")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("scale", "codes used", "of", "entropy (bits)", "at most"):
        table.add_column(column, justify="right")
    rows = zip(found.sides, found.codes_used_by_scale, found.entropy_bits_by_scale, strict=True)
    for side, used, entropy in rows:
        table.add_row(f"{side}×{side}", *_row(used, found.num_images * side * side, found.vocab_size, entropy))
    tokens = found.num_images * sum(side * side for side in found.sides)
    table.add_row("all", *_row(found.codes_used, tokens, found.vocab_size, found.entropy_bits))
    wide_console().print(table)


def _row(used: int, tokens: int, vocab_size: int, entropy: float) -> list[str]:
    from math import log2

    most = min(vocab_size, tokens)
    return [f"{used:,}", f"{vocab_size:,}", f"{entropy:.2f}", f"{log2(most):.2f}"]
