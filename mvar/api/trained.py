"""A trained generator with its tokenizer: draws images, is judged by its likelihood, shows where its attention goes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mvar import layout
from mvar.checkpoints.published import GeneratorFacts
from mvar.config import RunConfig
from mvar.data.crops import to_float
from mvar.data.sources.contract import Split
from mvar.errors import UserError, one_of
from mvar.evaluation.likelihood import heldout_nll
from mvar.probes.attention_kept import measure
from mvar.probes.attention_mass import AttentionStats
from mvar.probes.contract import make_probe
from mvar.probes.cut_text import parse_cut
from mvar.probes.knockout import DRAWS, FID_DRAWS
from mvar.probes.knockout_kept import Knockout, measure_cuts
from mvar.probes.measurable import Batch, Measurable, drawn_inputs
from mvar.probes.probe_kept import Probed, measure_probe
from mvar.runs import gallery
from mvar.runs.at_hand import drawn_at_once
from mvar.runs.display import shown
from mvar.runs.stages.reject import LabelScore
from mvar.tokenizer.model import Tokenizer
from mvar.training.numerics import as_in_its_run
from mvar.transformer import ScaleTransformer


@dataclass(frozen=True)
class Likelihood:
    """How well images are predicted under teacher forcing, given their class: means over images and tokens."""

    bits: float
    """Negative log-likelihood in bits a token: lower is better."""
    bits_by_scale: tuple[float, ...]
    """The same of each scale, coarse to fine."""
    error: float
    """Share of tokens, 0 to 1, that are not the likeliest ones."""
    error_by_scale: tuple[float, ...]
    """The same of each scale."""
    num_images: int
    """Images that were looked at."""


class Trained(ABC):
    """What `mvar.load` returns. Weights are loaded when they are first used, in evaluation mode, on the run's device.

    Attributes:
        name: of the run, or of the checkpoint's file.
        config: of the run; of a checkpoint what its files say, and the published settings of sampling.
        class_names: by class number.
        facts: what a checkpoint's file says of itself, for people; None for a run.
    """

    name: str
    config: RunConfig
    facts: GeneratorFacts | None = None

    @property
    @abstractmethod
    def class_names(self) -> list[str]: ...

    @abstractmethod
    def python(self, here: bool = True) -> str:
        """The expression that loads it, once `mvar` is imported; not here: on a machine with other folders."""

    @property
    @abstractmethod
    def model(self) -> ScaleTransformer:
        """The generator."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Images to tokens and back."""

    def __repr__(self) -> str:
        model, data = self.config.model, self.config.data
        return f"<{self.name}: {model.depth} layers of {model.pattern!r}, width {model.width}, on {data.name}>"

    # Images -----------------------------------------------------------------------------------------------------------

    @as_in_its_run
    def sample(
        self, classes: Sequence[str | int] = (), per_class: int = 1, seed: int = 0, **settings: Any
    ) -> np.ndarray:
        """Draw images.

        Examples:
            >>> import mvar
            >>> run = mvar.load("digits")
            >>> images = run.sample(classes=[3, 8], per_class=2, seed=0, cfg_scale=3)
            >>> images.shape, images.dtype
            ((4, 8, 8, 1), dtype('uint8'))

        Args:
            classes: numbers or names; none: the first ten.
            per_class: images of each class.
            seed: numbers the set: equal seeds give equal images, those of `mvar sample` too.
            settings: fields of `SampleConfig` that differ from the run's own: `cfg_scale=3`, `guidance="interval"`,
                `interval={"low": 0.2}`. Every image that is drawn is kept unless `candidates` is given.

        Returns:
            uint8 `(N, H, W, channels)`, class by class: image `i * per_class + j` is number j of class i.

        Raises:
            UserError: an unknown class or field, or a value that is not allowed.
        """
        numbers = gallery.class_numbers(classes, self.class_names)
        config = self._drawing(settings, seed)
        score, tokenizer = self._score(config), self.tokenizer
        return gallery.draw_set(self._drawer(config), tokenizer, numbers, per_class, config, score)

    @as_in_its_run
    def grow(self, classes: Sequence[str | int] = (), seed: int = 0, **settings: Any) -> np.ndarray:
        """Draw an image of each class and decode it after every scale.

        Examples:
            >>> import mvar
            >>> mvar.load("digits").grow(classes=[3]).shape  # one image, four scales
            (1, 4, 8, 8, 1)

        Args:
            classes, seed, settings: as of `sample`; the last scale is the image that it draws.

        Returns:
            uint8 `(N, S, H, W, channels)`.

        Raises:
            UserError: as `sample`.
        """
        from mvar.analysis.pictures import grow

        numbers = gallery.class_numbers(classes, self.class_names)
        seeds = [(seed, number) for number in range(len(numbers))]
        config = self._drawing(settings, seed)
        return grow(self._drawer(config), self.tokenizer, torch.tensor(numbers), seeds, config.sample)

    def _drawing(self, settings: Mapping[str, Any], seed: int) -> RunConfig:
        """The config with other settings of the sampling."""
        if seed < 0:
            raise UserError(f"seed: {seed}; allowed: 0 or more")
        return gallery.with_sampling(self.config, {"candidates": 1, **settings, "seed": seed})

    def _drawer(self, config: RunConfig) -> ScaleTransformer:
        """The generator whose weights draw."""
        return self.model

    @abstractmethod
    def _score(self, config: RunConfig) -> LabelScore | None:
        """What picks the best of several candidates; None where every image is kept."""

    # Likelihood -------------------------------------------------------------------------------------------------------

    @as_in_its_run
    def nll(
        self,
        images: np.ndarray | None = None,
        labels: Sequence[str | int] = (),
        split: Split = "heldout",
    ) -> Likelihood:
        """How well images are predicted, in all and scale by scale.

        Examples:
            >>> import mvar
            >>> run = mvar.load("digits")
            >>> found = run.nll()
            >>> len(found.bits_by_scale)
            4
            >>> found.bits == mvar.evaluate(run)["eval/nll_bits_per_token"]
            True

        Args:
            images: uint8 `(N, H, W, channels)`; None: those of the split.
            labels: their classes, N numbers or names.
            split: of the run's data; `train` are the random crops that it was trained on.

        Raises:
            UserError: images of another size, not one label each; a split that is not there.
        """
        if split not in get_args(Split):
            raise one_of("split", split, get_args(Split))
        tokens, numbers = self._split(split) if images is None else self._tokens(images, labels)
        found = heldout_nll(self.model, self.tokenizer.quantize, tokens, numbers)
        scales = range(self.model.schedule.num_scales)
        bits, error = ([found[f"eval/{name}_scale_{k:02d}"] for k in scales] for name in ("nll_bits", "error"))
        totals = (found["eval/nll_bits_per_token"], found["eval/error"])
        return Likelihood(totals[0], tuple(bits), totals[1], tuple(error), len(tokens))

    def _tokens(self, images: np.ndarray, labels: Sequence[str | int]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `(N, L)` of images, and the numbers of their classes."""
        data, images = self.config.data, np.asarray(images)
        shape = (data.image_size, data.image_size, data.channels)
        if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
            allowed = f"uint8 (N, {', '.join(map(str, shape))}), one image or more"
            raise UserError(f"images: {images.dtype} {images.shape}; allowed: {allowed}")
        if len(labels) != len(images):
            raise UserError(f"labels: {len(labels)} for {len(images)} images; allowed: one class an image")
        tokens, size = [], drawn_at_once(self.config)
        with torch.no_grad():
            for start in range(0, len(images), size):
                pixels = to_float(np.ascontiguousarray(np.moveaxis(images[start : start + size], -1, 1)))
                tokens.append(self.tokenizer.encode(pixels.to(self.device)).cpu())
        return torch.cat(tokens).numpy(), np.asarray(gallery.class_numbers(labels, self.class_names))

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.model.pos_1LC.device

    @abstractmethod
    def _split(self, split: Split) -> tuple[Any, Any]:
        """Tokens `(N, L)` and labels `(N,)` of a split of the data."""

    # Attention --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def measurable(
        self,
        source: str,
        images: int = 0,
        batch: int = 0,
        options: dict[str, Any] | None = None,
        kept_in: str = layout.ATTENTION,
    ) -> tuple[Measurable, Path]:
        """What `attention`, `knockout` or `probe` measures, and where it is kept: in the run, or in `kept_in`."""

    def _kept_attention(self, source: str, images: int, batch: int, options: dict[str, Any]) -> AttentionStats:
        what, folder = self.measurable(source, images, batch, options)
        with shown("attention", "measuring") as progress:
            return measure(what, folder, progress)

    @abstractmethod
    def attention(
        self, source: Literal["heldout", "self"] = "heldout", images: int = 0, batch: int = 0, **options: Any
    ) -> AttentionStats:
        """How much attention stays inside a scale and goes to each coarser one; measured once, and kept."""

    def knockout(
        self,
        cuts: Sequence[str] = (),
        draws: int = DRAWS,
        images: int = 0,
        batch: int = 0,
        fid: bool = False,
        fid_draws: int = FID_DRAWS,
        **options: Any,
    ) -> Knockout:
        """How much worse held-out images are predicted when parts of the model are cut; measured once, and kept.

        Examples:
            >>> import mvar
            >>> found = mvar.load("digits").knockout(["own", "coarser,layer=0"], draws=2, images=8)
            >>> list(found.effects)
            ['own', 'coarser,layer=0']
            >>> effect = found["own"]
            >>> abs(effect.change - (effect.bits - found.bits)) < 1e-9  # bits a token: more than 0 is worse
            True
            >>> len(effect.change_by_scale), len(effect.controls)  # of random keys, as many
            (4, 2)

        Args:
            cuts: `own`, `coarser`, `scale:2`, `scale:1,queries=3`, `all,layer=0,head=1`, `branch:mamba`, `state`,
                `state:2`, with `layer=`, `head=`, `mixer=` and `kind=mean` or `kind=resample`; none: the standard
                ones of the report.
            draws: random controls of each cut of keys.
            images: at most so many held-out ones; 0: 1000, of a checkpoint 64.
            batch: images at a time; 0: `runtime.sample_batch`, of a checkpoint 8.
            fid: also the FID of `evaluation.num_images` images that are drawn with each cut.
            fid_draws: random controls of each cut of keys that as many images are drawn with, for their FID: 2 or
                more give an interval.
            options: of a checkpoint `images_from`, a folder with a subfolder for each class, and `evaluation`, fields
                of `EvaluationConfig` for FID: `{"extractor": "mobilenet", "num_images": 1000}`.

        Raises:
            UserError: a cut that is none, or of a part that the model has not; no held-out images.
        """
        wanted = [parse_cut(text) for text in ([cuts] if isinstance(cuts, str) else cuts)]
        config = self._judged(options, fid)
        what, folder = self.measurable("heldout", images, batch, options, layout.KNOCKOUT)
        with shown("cuts", "measuring") as progress:
            return measure_cuts(what, wanted, folder, draws, progress, fid * config.evaluation.num_images, fid_draws)

    def _judged(self, options: dict[str, Any], fid: bool = False) -> RunConfig:
        """The config with the evaluation that images are judged by; `fid`: it is wanted whatever `options` name."""
        return self.config

    def probe(
        self, name: str, images: int = 0, batch: int = 0, out: str | Path | None = None, **settings: Any
    ) -> Probed:
        """What a probe measures, row by row; each row is measured once, and kept.

        Examples:
            >>> import mvar
            >>> found = mvar.load("digits").probe("prefix", scales=[0, 4], of=["heldout"], cfg_scale=[0], samples=20)
            >>> [row["scales"] for row in found.rows], found.rows[1]["fid"] > 0, found.rows[1]["bits"]
            ([0, 4], True, None)

        Args:
            name: of a registered probe: `prefix`, ... (`mvar probe` lists them with their settings).
            images: at most so many held-out ones; 0: 1000, of a checkpoint 64.
            batch: images at a time; 0: `runtime.sample_batch`, of a checkpoint 8.
            out: folder that the rows are kept in; None: the run's, or one in `results/probes`.
            settings: of the probe; of a checkpoint also `images_from` and `evaluation`, as of `knockout`; without
                `evaluation` a checkpoint has no FID.

        Raises:
            UserError: an unknown probe or setting, a value that is not allowed, or what this model has not.
        """
        options = {key: settings.pop(key) for key in ("images_from", "evaluation") if key in settings}
        made, config = make_probe(name, settings), self._judged(options)
        what, folder = self.measurable("heldout", images, batch, options, layout.PROBES)
        with shown(name, "measuring") as progress:
            return measure_probe(name, made, what, config, Path(out) if out else folder, progress)

    @as_in_its_run
    def attention_map(
        self,
        layer: int,
        head: int | None = None,
        *,
        image: int = 0,
        drawn: str | int | None = None,
        seed: int = 0,
        query: int | None = None,
        scale: int | None = None,
        **settings: Any,
    ) -> Tensor:
        """Attention of one image in one layer.

        Examples:
            >>> import mvar
            >>> run = mvar.load("digits")
            >>> run.attention_map(layer=0, head=1, image=5).shape  # of all 30 tokens
            torch.Size([30, 30])
            >>> run.attention_map(layer=0, drawn=3, query=29).shape  # mean over heads, what the last token looks at
            torch.Size([30])

        Args:
            layer: one with global attention.
            head: None: the mean over heads.
            image: number of a held-out image.
            drawn: instead, the class of an image that the model draws: the one of `sample(classes=[drawn], seed=seed)`.
            seed, settings: of that drawing.
            query: token whose row is wanted.
            scale: scale whose rows are wanted.

        Returns:
            On the CPU: with `query` the row `(V,)` over the V tokens that it sees; with `scale` `(n, V)`; with neither
            `(L, L)`, zero where a token does not see. Rows sum to 1.

        Raises:
            UserError: no such layer (or one without global attention), head, query, scale, image or class.
        """
        from mvar.analysis.maps import attention_map

        if drawn is None and settings:
            raise UserError(f"{next(iter(settings))}: only for an image that is drawn; allowed: with drawn=CLASS")
        labels, inputs = self._heldout(image) if drawn is None else self.drawn_inputs(drawn, seed, settings)
        return attention_map(self.model, labels[0], inputs[0], layer, head, query=query, scale=scale)

    @as_in_its_run
    def drawn_inputs(self, drawn: str | int, seed: int, settings: Mapping[str, Any]) -> Batch:
        """Label `(1,)` and inputs of an image as the model saw it while drawing."""
        labels = torch.tensor(gallery.class_numbers([drawn], self.class_names), device=self.device)
        config = self._drawing(settings, seed)
        return labels, drawn_inputs(self._drawer(config), self.tokenizer.quantize, labels, [(seed, 0)], config.sample)

    def _heldout(self, image: int) -> Batch:
        """Label and inputs of a held-out image."""
        label, codes = self.heldout_tokens(image)
        with torch.no_grad():
            return label, self.tokenizer.quantize.inputs(codes)

    @property
    def kept_cuts(self) -> Knockout | None:
        """What `knockout` has measured on all held-out images of a run, of its weights; None: nothing."""
        return None

    @property
    @abstractmethod
    def heldout_labels(self) -> np.ndarray:
        """Classes `(N,)` of the held-out images; none of a checkpoint's."""

    def heldout_tokens(self, image: int) -> tuple[Tensor, Tensor]:
        """Label `(1,)` and tokens `(1, L)` of a held-out image, on the model's device."""
        tokens, labels = self._split("heldout")
        if not 0 <= image < len(tokens):
            raise UserError(f"image: {image}; allowed: 0 to {len(tokens) - 1}")
        label, codes = (torch.from_numpy(np.array(a[image : image + 1], dtype=np.int64)) for a in (labels, tokens))
        return label.to(self.device), codes.to(self.device)
