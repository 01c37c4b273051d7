"""Published weights as a run: a checkpoint's config, so that the one pipeline samples, evaluates and reports it."""

from collections.abc import Sequence

from mvar.checkpoints.checkpoint_files import read_checkpoint, with_choice
from mvar.checkpoints.published import GeneratorFacts, check_pair, infer_generator, infer_tokenizer
from mvar.config import RunConfig, from_dict
from mvar.errors import UserError, in_field
from mvar.files import portable


def imported_config(
    base: RunConfig,
    checkpoint: str,
    tokenizer: str = "",
    *,
    patch_sides: Sequence[int] | None = None,
    num_heads: int | None = None,
    weights: str = "",
    adapt_data: bool = False,
) -> tuple[RunConfig, GeneratorFacts]:
    """The run whose weights are a checkpoint's: zero steps of training from it.

    Args:
        base: data, sampling and evaluation.
        checkpoint: file of the generator.
        tokenizer: file of its tokenizer; empty: the tokenizer of `base`.
        patch_sides, num_heads, weights: what the generator's file cannot tell, see `published.load_generator`.
        adapt_data: take channels, classes and size of the images from the checkpoints too; else `base` must have them.

    Raises:
        UserError: a checkpoint that cannot be used; a tokenizer or data that do not fit it.
    """
    found = read_checkpoint(checkpoint, "generator", weights)
    facts = infer_generator(found, patch_sides=patch_sides, num_heads=num_heads)
    space, data, sizes = facts.space, base.data, base.tokenizer
    channels = data.channels
    if tokenizer:
        with in_field("tokenizer"):
            sizes, channels = infer_tokenizer(read_checkpoint(tokenizer, "tokenizer"), space.patch_sides)
        sizes = sizes.model_copy(update={"checkpoint": portable(tokenizer)})
    image_size = space.patch_sides[-1] * sizes.downsample
    wanted = {"num_classes": space.num_classes, "channels": channels, "image_size": image_size}
    wrong = [f"data.{name}: {getattr(data, name)}" for name, value in wanted.items() if getattr(data, name) != value]
    if wrong and not adapt_data:
        allowed = ", ".join(f"{name} {value}" for name, value in wanted.items())
        raise UserError(f"{'; '.join(wrong)} does not fit the checkpoint; allowed: {allowed} (by --preset or --set)")
    values = base.model_dump(mode="json") | {"model": facts.config.model_dump(mode="json")}
    values["tokenizer"] = sizes.model_dump(mode="json") | {"patch_sides": space.patch_sides}
    values["data"] |= wanted
    values["train"] |= {"steps": 0, "init_from": with_choice(portable(checkpoint), weights)}
    config = from_dict(RunConfig, values)
    check_pair(config.tokenizer, space)
    return config, facts
