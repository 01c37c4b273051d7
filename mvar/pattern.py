"""Which mixer sits in which layer: the text form of layer patterns. Text only, no torch.

A layer is one registered mixer or several joined by `+`, each a residual branch of its own; those joined by `|` share
one branch, in which they are summed: `intra|mamba+conv` is `intra` and `mamba` on the same tokens, then `conv`. A
pattern names every layer: `"intra+mamba"` (all of them) or `"8*intra+mamba 8*global"`. Partial replacement derives one
pattern from another: `first:8`, `last:8`, `every:2` or an explicit list such as `0,3,5`.

A mixer may have settings: `markov:2`, the value of its first field, or by name `window:3,dilation=2`. What they mean
its class says, and `mvar.config.mixer_settings` reads them; here they are text.
"""

import re
from collections.abc import Callable
from itertools import groupby

from mvar.errors import UserError, quoted
from mvar.registries import MIXERS
from mvar.registry import NAME

WORD = re.compile("[A-Za-z0-9_.-]+")  # a value of a setting
SETTINGS_FORM = "allowed: NAME:VALUE,FIELD=VALUE,... with values of letters, digits, '.', '-' and '_'"


def mixer_name(text: str) -> str:
    """The name in a mixer's text: `markov` of `markov:2`."""
    return text.partition(":")[0]


def parse_mixer(text: str) -> tuple[str, dict[str, str]]:
    """Name and settings of a mixer's text: `("window", {"": "3", "dilation": "2"})`; "" is the first field, unnamed.

    Raises:
        UserError: settings that are no such list; names the mixer.
    """
    name, colon, rest = text.partition(":")
    settings: dict[str, str] = {}
    for number, part in enumerate(rest.split(",") if colon else ()):
        field, equals, value = part.rpartition("=")
        if not WORD.fullmatch(value) or not re.fullmatch(r"[a-z_][a-z0-9_]*" if equals else "", field):
            raise UserError(f"mixer: {quoted(text)}: {quoted(part)} is no setting; {SETTINGS_FORM}")
        if number and not equals:
            raise UserError(f"mixer: {quoted(text)}: {quoted(part)} has no name, and is not the first; {SETTINGS_FORM}")
        if field in settings:
            raise UserError(f"mixer: {quoted(text)} gives {field} twice; allowed: once")
        settings[field] = value
    return name, settings


def parse_branches(layer: str, known: bool = True) -> tuple[tuple[str, ...], ...]:
    """Split one layer into its branches, and those into the texts of their mixers: `intra|markov:2+conv`.

    Args:
        layer: the text.
        known: False: names may be those of a plug-in that is not loaded.

    Raises:
        UserError: a mixer that is unknown, missing, or named twice.
    """
    branches = tuple(tuple(branch.split("|")) for branch in layer.split("+"))
    names = [parse_mixer(text)[0] for branch in branches for text in branch]
    if "" in names and layer:
        raise UserError(f"mixer: {quoted(layer)} lacks a mixer beside '+' or '|'; allowed: A+B, A|B")
    for name in names:
        if known or not NAME.fullmatch(name):
            MIXERS.check(name)
    if len(set(names)) < len(names):
        raise UserError(f"mixer: {quoted(layer)} names a mixer twice; allowed: each at most once in a layer")
    return branches


def parse_layer(layer: str, known: bool = True) -> tuple[str, ...]:
    """The texts of a layer's mixers in order, whatever joins them; as `parse_branches`."""
    return tuple(text for branch in parse_branches(layer, known) for text in branch)


def map_mixers(layer: str, change: Callable[[str], str]) -> str:
    """A layer with the text of every mixer changed."""
    return re.sub("[^+|]+", lambda found: change(found[0]), layer)


def parse_pattern(text: str, depth: int, known: bool = True) -> tuple[str, ...]:
    """Expand a pattern to one entry a layer.

    Args:
        text: groups separated by spaces, each `LAYER` or `COUNT*LAYER`; a single `LAYER` fills the depth.
        depth: the number of layers that the pattern must name.
        known: as in `parse_layer`.

    Raises:
        UserError: an unknown mixer, or a pattern whose length is not the depth.
    """
    groups = text.split()
    if not groups:
        raise UserError("model.pattern: empty; allowed: LAYER or COUNT*LAYER groups separated by spaces")
    layers: list[str] = []
    for group in groups:
        match = re.fullmatch(r"(?:(\d+)\*)?([^*\s]+)", group)
        if not match:
            raise UserError(f"model.pattern: {quoted(group)} is not a group; allowed: LAYER or COUNT*LAYER")
        parse_layer(match[2], known)
        count = int(match[1]) if match[1] else (depth if len(groups) == 1 else 1)
        if count > 10_000:
            raise UserError(f"model.pattern: {quoted(group)} repeats a layer more than 10000 times")
        layers += [match[2]] * count
    if len(layers) != depth:
        raise UserError(f"model.pattern: {quoted(text)} names {len(layers)} layers; model.depth is {depth}")
    return tuple(layers)


def format_pattern(layers: tuple[str, ...]) -> str:
    """The shortest text of a pattern; `parse_pattern` reads it back."""
    if len(set(layers)) == 1:
        return layers[0]
    runs = [(name, len(list(group))) for name, group in groupby(layers)]
    return " ".join(name if count == 1 else f"{count}*{name}" for name, count in runs)


def replaced_layers(rule: str, depth: int) -> tuple[int, ...]:
    """Layer numbers that a replacement rule selects: `none`, `all`, `first:N`, `last:N`, `every:N` or `0,3,5`.

    `every:N` takes layers N-1, 2N-1, ...: the last of each group of N, so `every:1` is all of them.
    """
    allowed = f"none, all, first:N, last:N, every:N or a list such as 0,3,5 with numbers below depth {depth}"
    wrong = UserError(f"model.replace: {quoted(rule)} does not fit; allowed: {allowed}")
    if rule in ("", "none", "all"):
        return tuple(range(depth)) if rule == "all" else ()
    match = re.fullmatch(r"(first|last|every):(\d+)", rule)
    if match:
        kind, count = match[1], int(match[2])
        if count > depth or (kind == "every" and count == 0):
            raise wrong
        if kind == "every":
            return tuple(range(count - 1, depth, count))
        return tuple(range(count)) if kind == "first" else tuple(range(depth - count, depth))
    if not re.fullmatch(r"\d+(,\d+)*", rule):
        raise wrong
    numbers = tuple(int(n) for n in rule.split(","))
    if len(set(numbers)) < len(numbers) or max(numbers) >= depth:
        raise wrong
    return tuple(sorted(numbers))


def replace_layers(base: str, rule: str, replacement: str, depth: int, known: bool = True) -> str:
    """The pattern `base` with the layers that `rule` selects replaced, e.g. M-VAR's Figure 5 with `first:8`."""
    layers = list(parse_pattern(base, depth, known))
    parse_layer(replacement)
    for number in replaced_layers(rule, depth):
        layers[number] = replacement
    return format_pattern(tuple(layers))


def mixer_texts(text: str) -> frozenset[str]:
    """The texts of the mixers in a pattern, settings included, whether they are registered or not."""
    return frozenset(mixer for group in text.split() for mixer in re.split("[+|]", group.rpartition("*")[2]))


def mixers_of(text: str) -> frozenset[str]:
    """The names in a pattern's text, whether they are registered or not."""
    return frozenset(map(mixer_name, mixer_texts(text)))
