"""`mvar knockout`: what each part of a trained model is for, by cutting it."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from mvar.commands.checkpoint import MeasuredOn
from mvar.commands.options import Answer, InResults, RunName
from mvar.errors import OK, say

if TYPE_CHECKING:
    from mvar.probes.knockout_kept import Knockout as Found

Cuts = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="CUT", help_behavior_hint="(repeatable)")
]
FIRST = ("own", "coarser", "branch", "state")  # targets that a table without --cut shows, in all layers


@dataclass(frozen=True)
class Knockout(MeasuredOn, InResults, Answer):
    """Cut parts of a trained model and measure how much worse it predicts held-out images.

    Beside every cut of keys stand random ones of the same size. What is measured is kept; interrupted, the same command
    goes on where it was.

    Example: `mvar knockout digits --cut own --cut coarser,layer=0`
    """

    run: RunName = ""
    """Run id, a unique beginning of one, or the run's directory."""
    cut: Cuts = ()
    """own, coarser, scale:K, all (keys); branch:NAME; state, state:K (Mamba's). With ,layer=0 ,head=1 ,queries=2
    ,mixer=NAME ,kind=mean or ,kind=resample. Default: all that the report shows."""
    draws: int = 5
    """Random controls of each cut of keys."""
    fid: bool = False
    """Also FID of images that are drawn with each cut, evaluation.num_images of them, by the run's own settings."""
    fid_draws: int = 3
    """Random controls of each cut of keys that as many images are drawn with; a single one gives no interval."""

    def execute(self, arguments: list[str]) -> int:
        """Measure, print a table, write knockout.json; returns the exit code."""
        options = self.options(self.run)
        from mvar.probes.cut_text import parse_cut

        texts = list(dict.fromkeys(parse_cut(text).text for text in self.cut))
        trained = self.load(self.run, self.results)
        found = trained.knockout(texts, self.draws, self.images, self.batch, self.fid, self.fid_draws, **options)
        if self.json:
            self.answer(asdict(found))
        else:
            show(found, trained.name, texts)
        return OK


def show(found: "Found", name: str, texts: list[str]) -> None:
    """Print a row for each cut that was asked for; where none was, for those of whole parts."""
    from mvar.commands.console import wide_console
    from mvar.commands.narrow import print_in_parts

    names = [f"{side}×{side}" for side in found.sides]
    title = f"{name}, {found.num_images:,} held-out images, {found.bits:.3f} bits a token: what a cut adds"
    shown = texts or [text for text in found.effects if text.partition(":")[0] in FIRST and "," not in text]
    drawn = ("FID", "by", "random by", "beyond it", "±") if any(found[text].fid_images for text in shown) else ()
    columns = [(n, []) for n in ("cut", "kept (%)", "all", "±", "random", "sd", "beyond it", "±", *names, *drawn)]
    for text in shown:
        effect = found[text]
        kept = None if effect.kept is None else 100 * effect.kept
        numbers = (effect.change, effect.half_width, effect.control, effect.control_sd)
        beyond = (effect.beyond, effect.beyond_half_width)
        changes = (dashed(change, "+.2f") for change in (effect.fid_change, effect.fid_control, effect.fid_beyond))
        fids = (dashed(effect.fid, ".2f"), *changes, dashed(effect.fid_beyond_half_width, ".2f")) if drawn else ()
        by_scale = (signed(change) for change in effect.change_by_scale)
        cells = (text, dashed(kept, ".1f"), *_pairs(*numbers), *_pairs(*beyond), *by_scale, *fids)
        for (_, column), cell in zip(columns, cells, strict=True):
            column.append(cell)
    print_in_parts(columns, wide_console(400), title)
    show_by_scale(found, shown, names)
    left = len(found.effects) - len(shown)
    say(
        "Bits a token, more is worse. ±: 95 % t interval over images. Random: as many keys cut of every query, of all "
        "that it sees, mean and standard deviation over draws; beyond it: the cut less their mean, ± over images and "
        "draws."
        + (
            " FID: of images drawn with the cut; by: more than without it; random by: that of random cuts, mean over "
            "draws, and beyond it has ± over these alone."
            if drawn
            else ""
        )
        + (f" {left} more cuts, by layer, scale and head, are in knockout.json and in the report." if left else "")
    )


def show_by_scale(found: "Found", shown: list[str], names: list[str]) -> None:
    """Print a row for each scale of the cuts that have random controls by scale."""
    from mvar.commands.console import wide_console
    from mvar.commands.narrow import print_in_parts

    heads = ("cut", "tokens of", "change", "±", "random", "sd", "beyond it", "±")
    columns: list[tuple[str, list[str]]] = [(head, []) for head in heads]
    for text in shown:
        for name, effect in zip(names, found[text].by_scale, strict=False):
            numbers = (effect.change, effect.half_width, effect.control, effect.control_sd)
            cells = (text, name, *_pairs(*numbers), *_pairs(effect.beyond, effect.beyond_half_width))
            for (_, column), cell in zip(columns, cells, strict=True):
                column.append(cell)
    if columns[0][1]:
        print_in_parts(columns, wide_console(400), "By scale")


def _pairs(*numbers: float | None) -> list[str]:
    return [signed(number) if i % 2 == 0 else dashed(number, ".3f") for i, number in enumerate(numbers)]


def signed(number: float | None) -> str:
    """`+0.025`, or a dash."""
    return dashed(number, "+.3f")


def dashed(number: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if number is None or number != number else format(number, form)
