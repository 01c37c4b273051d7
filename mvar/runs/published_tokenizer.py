"""The published checkpoint that a tokenizer is made of, and whether it is still the same file."""

from mvar import layout
from mvar.checkpoints.checkpoint_files import split_choice
from mvar.checkpoints.published import load_tokenizer as load_tokenizer_file
from mvar.config import RunConfig, TokenizerConfig
from mvar.errors import UserError, in_field
from mvar.files import known_digest
from mvar.runs.documents import read_document
from mvar.runs.store import Directory, Store
from mvar.tokenizer.model import Tokenizer


def published_tokenizer(wanted: TokenizerConfig, channels: int) -> Tokenizer:
    """The tokenizer of the published checkpoint that a config names, e.g. VAR's vae_ch160v4096z32.pth.

    Raises:
        UserError: an unreadable file, or one whose sizes are not those of the config; names each.
    """
    with in_field("tokenizer.checkpoint"):
        tokenizer = load_tokenizer_file(wanted.checkpoint or "", patch_sides=wanted.patch_sides)
    found = tokenizer.config
    names = ("vocab_size", "code_channels", "width", "channel_multipliers", "num_res_blocks", "share_phi")
    pairs = [(f"tokenizer.{name}", getattr(found, name), getattr(wanted, name)) for name in names]
    pairs.append(("data.channels", tokenizer.in_channels, channels))
    wrong = [f"{name}: {ours!r} here, {theirs!r} in the file" for name, theirs, ours in pairs if theirs != ours]
    if wrong:
        raise UserError(
            f"tokenizer.checkpoint: {wanted.checkpoint} does not fit; {'; '.join(wrong)}; allowed: the file's values"
        )
    return tokenizer


def source_digest(settings: TokenizerConfig, directory: Directory) -> str:
    """SHA-256 of the checkpoint that the config names; its stamp is the stage's, the checkpoint's folder another's."""
    return known_digest(split_choice(settings.checkpoint or "")[0], directory.path / layout.SOURCE_STAMP)


def check_source(settings: TokenizerConfig, directory: Directory) -> None:
    """Refuse a path, or a variable, behind which there is another file than the one that a finished stage was made of.

    A file that is no longer there is none: the stage holds its weights.
    """
    source, record = settings.checkpoint, directory.path / layout.SOURCE
    if not source or not record.is_file() or not split_choice(source)[0].is_file():
        return
    made_of, found = read_document(record)["sha256"], source_digest(settings, directory)
    if found != made_of:
        raise UserError(
            f"tokenizer.checkpoint: {source} is another file (SHA-256 {found[:12]}...) than the one that "
            f"{directory.path} was made of ({made_of[:12]}...); allowed: that file, or another path or --results"
        )


def need_tokenizer(store: Store, config: RunConfig, run: Directory) -> None:
    """Refuse to go on with a run whose tokenizer is not here: none is trained to look at a run.

    Raises:
        UserError: says where a run's tokenizer lies.
    """
    if not store.has_tokenizer(config):
        raise UserError(
            f"run: {run.path}: its tokenizer {config.tokenizer_id} is not in {store.root}; allowed: a run in the "
            "results directory that it was made in, or --results DIR of that one"
        )
