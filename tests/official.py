"""Loads a golden case of the official code: its facts, model and quantizer with their weights, inputs and outputs."""

import json
from pathlib import Path

from safetensors.torch import load_file

from mvar.config import ModelConfig, TokenizerConfig, TokenSpace
from mvar.tokenizer.quantizer import ResidualQuantizer
from mvar.transformer import ScaleTransformer

GOLDEN = Path(__file__).parent / "golden"
PATTERNS = {"var": "global", "mvar": "intra+mamba"}
BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "patch_nums")  # official, derived from the schedule here


def facts_of(case):
    return json.loads((GOLDEN / case / "config.json").read_text())


def load_model(case):
    """(facts, model, inputs, outputs) of a `var_*` or `mvar_*` case; the weights are loaded strictly by name."""
    folder, facts = GOLDEN / case, facts_of(case)
    config = ModelConfig(
        depth=facts["depth"],
        width=facts["width"],
        num_heads=facts["heads"],
        mlp_ratio=facts["mlp_ratio"],
        pattern=PATTERNS[facts["kind"]],
        attn_l2_norm=facts["attn_l2_norm"],
        shared_adaln=facts["shared_aln"],
    )
    space = TokenSpace(tuple(facts["patch_nums"]), facts["vocab_size"], facts["Cvae"], facts["num_classes"])
    model = ScaleTransformer(config, space)
    weights = load_file(folder / "state.safetensors")
    model.load_state_dict({k: v.float() for k, v in weights.items() if not k.endswith(BUFFERS)})
    return facts, model, load_file(folder / "inputs.safetensors"), load_file(folder / "outputs.safetensors")


def load_quantizer(case):
    """The quantizer of the tokenizer that a `var_*` or `mvar_*` case belongs to."""
    facts = facts_of(case)
    quantizer = ResidualQuantizer(
        TokenizerConfig(
            patch_sides=tuple(facts["patch_nums"]),
            vocab_size=facts["vocab_size"],
            code_channels=facts["Cvae"],
            share_phi=facts["share_quant_resi"],
            phi_ratio=facts["quant_resi"],
        )
    )
    vae = load_file(GOLDEN / case / "vae.safetensors")
    quantizer.load_state_dict({k.removeprefix("quantize."): v.float() for k, v in vae.items()})
    return quantizer


def tokenizer_config(facts, **more):
    """The tokenizer of a golden case; the parts beside the quantizer are given by those cases that have them."""
    return TokenizerConfig(
        patch_sides=facts["patch_nums"],
        vocab_size=facts["vocab_size"],
        code_channels=facts["Cvae"],
        share_phi=facts["share_quant_resi"],
        beta=facts["beta"],
        **more,
    )
