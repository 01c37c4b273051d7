"""Named starting points: model sizes, published tokenizer, recipes laid out like the papers' tables.

A preset is a `RunConfig`; sweeps derive their cells from it, and `--set` edits it.
"""

from math import gcd

from mvar.config import (
    DataConfig,
    EvaluationConfig,
    MambaConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    RuntimeConfig,
    SampleConfig,
    TokenizerConfig,
    TrainConfig,
    override,
)
from mvar.scales import PATCH_SIDES

IMAGENET_TRAIN_IMAGES = 1_281_167

# The published tokenizer of VAR, vae_ch160v4096z32.pth: 109 M parameters, downsamples 16 times.
VAR_TOKENIZER = TokenizerConfig(
    patch_sides=PATCH_SIDES["256"],
    vocab_size=4096,
    code_channels=32,
    width=160,
    channel_multipliers=(1, 1, 2, 2, 4),
    num_res_blocks=2,
    attention=True,
    mid_attention=True,
    beta=0.25,
    checkpoint="$MVAR_TOKENIZER",
    shift_px=0,
)

# Sampling settings that the official READMEs name.
SAMPLING: dict[str, SampleConfig] = {
    "fid": SampleConfig(cfg_scale=1.5, top_k=900, top_p=0.96),
    "visual": SampleConfig(cfg_scale=4.0, top_k=900, top_p=0.95, more_smooth=True),
}

# Published recipes (VAR and M-VAR READMEs): depth -> batch, epochs, base lr, alng, wpe, final weight decay.
RECIPES: dict[int, tuple[int, int, float, float, float, float | None]] = {
    12: (768, 200, 1e-4, 1e-3, 0.1, None),
    16: (768, 200, 1e-4, 1e-3, 0.1, None),
    20: (768, 250, 1e-4, 1e-3, 0.1, None),
    24: (768, 350, 8e-5, 1e-4, 0.01, None),
    30: (1024, 350, 8e-5, 1e-5, 0.01, 0.08),
    # M-VAR alone, 3.66 billion parameters by the code where the paper prints 3.0; no recipe is printed: that of 30
    32: (1024, 350, 8e-5, 1e-5, 0.01, 0.08),
    36: (768, 350, 8e-5, 5e-6, 0.01, 0.08),
}


def model_size(depth: int, **fields: object) -> ModelConfig:
    """VAR's sizes: width 64 * depth, depth heads, drop path 0.1 * depth / 24; qk-norm above depth 20 (M-VAR README)."""
    size = {"depth": depth, "width": 64 * depth, "num_heads": depth, "drop_path": 0.1 * depth / 24}
    return ModelConfig.model_validate(size | {"attn_l2_norm": depth > 20} | fields)


def imagenet(depth: int, resolution: int) -> RunConfig:
    """The published recipe of a depth on ImageNet; folders come from $IMAGENET_TRAIN and $IMAGENET_VAL."""
    batch, epochs, base_lr, gamma, end, decay_end = RECIPES[depth]
    sides = PATCH_SIDES[str(resolution)]
    return RunConfig(
        data=DataConfig(
            name="imagefolder",
            root="$IMAGENET_TRAIN",
            heldout_root="$IMAGENET_VAL",
            image_size=resolution,
            channels=3,
            num_classes=1000,
        ),
        tokenizer=VAR_TOKENIZER.model_copy(update={"patch_sides": sides}),
        model=model_size(depth, shared_adaln=depth == 36, init_adaln_gamma=gamma),
        train=TrainConfig(
            steps=epochs * IMAGENET_TRAIN_IMAGES // batch,
            batch_size=batch,
            base_lr=base_lr,
            weight_decay_end=decay_end,
            end_ratio=end,
            precision="bf16",
        ),
        sample=SAMPLING["fid"],
        evaluation=EvaluationConfig(
            num_images=50_000, extractor="inception", inception_weights="$MVAR_INCEPTION", kid_subset_size=1000
        ),
        runtime=RuntimeConfig(
            num_workers=8,
            checkpoint_every=1000,
            log_every=50,
            sample_batch="auto",
            strategy="auto",
            micro_batch="auto",
            checkpoint_activations="auto",
        ),
    )


# One's own images, class subfolders, in colour at 64 px: the recipe for one GPU. Without a published tokenizer, one of
# 17 M parameters is trained on them; 1, 2, 3, 4, 6, 8 tokens a side, each of the finest for 8 x 8 pixels.
IMAGEFOLDER64 = RunConfig(
    data=DataConfig(name="imagefolder", root="$MVAR_IMAGES", image_size=64, channels=3, num_classes=10),
    tokenizer=TokenizerConfig(
        patch_sides=(1, 2, 3, 4, 6, 8),
        vocab_size=1024,
        code_channels=16,
        width=64,
        channel_multipliers=(1, 2, 2, 4),
        num_res_blocks=2,
        attention=True,
        mid_attention=True,
        beta=0.25,
        shift_px=0,  # crops are random already
        train=OptimConfig(
            steps=20_000, batch_size=64, base_lr=1.6e-3, warmup_fraction=0.05, clip_norm=1.0, precision="bf16"
        ),
    ),
    model=model_size(8),
    train=TrainConfig(steps=30_000, batch_size=128, crops=4, precision="bf16"),
    evaluation=EvaluationConfig(num_images=5000, classifier_steps=3000),
    runtime=RuntimeConfig(num_workers=4, checkpoint_every=1000, log_every=50),
)

# The same at 32 px, for a first look: two CPU cores make the tokenizer and four mixers.
IMAGEFOLDER_SMALL = RunConfig(
    data=DataConfig(name="imagefolder", root="$MVAR_IMAGES", image_size=32, channels=3, num_classes=10),
    tokenizer=TokenizerConfig(
        patch_sides=(1, 2, 3, 4, 6, 8),
        vocab_size=512,
        code_channels=16,
        width=16,
        channel_multipliers=(1, 2, 3),
        shift_px=0,
        train=OptimConfig(steps=1000, batch_size=32, base_lr=1.6e-2, warmup_fraction=0.1, clip_norm=1.0),
    ),
    model=ModelConfig(
        depth=4, width=64, num_heads=2, attn_l2_norm=False, mamba=MambaConfig(d_state=16, headdim=32), drop_path=0.02
    ),
    train=TrainConfig(steps=700, batch_size=32, base_lr=1.6e-2, warmup_fraction=0.1, clip_norm=1.0, crops=2),
    evaluation=EvaluationConfig(num_images=500, classifier_steps=500, kid_subset_size=50),
    runtime=RuntimeConfig(checkpoint_every=50),
)

# The demo: real handwritten digits (scikit-learn, 8x8), on two CPU cores in minutes.
DIGITS = RunConfig(
    data=DataConfig(heldout_fraction=0.25),
    tokenizer=TokenizerConfig(
        train=OptimConfig(steps=450, batch_size=64, base_lr=1.6e-2, warmup_fraction=0.3, clip_norm=1.0)
    ),
    model=ModelConfig(
        depth=8,
        width=64,
        num_heads=2,
        mlp_ratio=2.0,
        attn_l2_norm=False,  # as the papers' d16, which the ablations use
        mamba=MambaConfig(d_state=16, headdim=32),
    ),
    train=TrainConfig(steps=240, batch_size=32, base_lr=2.4e-2, warmup_fraction=0.1, clip_norm=1.0, label_dropout=0.1),
    evaluation=EvaluationConfig(num_images=1000),
    runtime=RuntimeConfig(checkpoint_every=40),  # some seconds of work
)

# Fashion-MNIST, 28 px and a border: recognisable clothes, on two CPU cores in half an hour beside the tokenizer and the
# classifier. 1, 2, 3, 4, 6, 8 tokens a side, each of the finest for 4 x 4 pixels: 130 an image.
FASHION32_SMALL = RunConfig(
    data=DataConfig(name="fashion", image_size=32, pad_px=2),
    tokenizer=TokenizerConfig(
        patch_sides=(1, 2, 3, 4, 6, 8),
        vocab_size=512,
        code_channels=16,
        width=16,
        channel_multipliers=(1, 2, 3),
        train=OptimConfig(steps=1500, batch_size=64, base_lr=8e-3, warmup_fraction=0.1, clip_norm=1.0),
    ),
    model=ModelConfig(
        depth=4, width=96, num_heads=3, attn_l2_norm=False, mamba=MambaConfig(d_state=32, headdim=32), drop_path=0.02
    ),
    train=TrainConfig(steps=1200, batch_size=32, base_lr=8e-3, warmup_fraction=0.1, clip_norm=1.0),
    evaluation=EvaluationConfig(num_images=1500, classifier_steps=8000),
    runtime=RuntimeConfig(checkpoint_every=100),
)

# The demo shortened to seconds a run: every stage runs, no number means anything.
SMOKE = DIGITS.model_copy(
    update={
        "tokenizer": DIGITS.tokenizer.model_copy(
            update={"train": OptimConfig(steps=60, batch_size=64, base_lr=1.6e-2, warmup_fraction=0.3, clip_norm=1.0)}
        ),
        "model": DIGITS.model.model_copy(update={"depth": 4, "width": 32, "num_heads": 2}),
        "train": DIGITS.train.model_copy(update={"steps": 20}),
        "evaluation": EvaluationConfig(num_images=100, classifier_steps=60, kid_subset_size=50),
        "runtime": RuntimeConfig(checkpoint_every=10, log_every=5),
    }
)

IMAGENET: dict[str, RunConfig] = {
    **{f"imagenet256-d{depth}": imagenet(depth, 256) for depth in (12, 16, 20, 24, 30, 32, 36)},
    "imagenet512-d24": imagenet(24, 512),
    "imagenet512-d36": imagenet(36, 512),
    "imagenet1024-d24": imagenet(24, 1024),  # VAR's schedule; no recipe is printed: that of 256 px
}

PRESETS: dict[str, RunConfig] = {
    "digits": DIGITS,
    "smoke": SMOKE,
    "fashion32-small": FASHION32_SMALL,
    "imagefolder-small": IMAGEFOLDER_SMALL,
    "imagefolder64": IMAGEFOLDER64,
    **IMAGENET,
    # VAR's own way: every epoch another crop of an image, not flipped
    **{f"{name}-online": override(config, {"train.tokens": "online"}) for name, config in IMAGENET.items()},
}

# Presets for images of one's own: how many classes these have, the data say.
OWN_IMAGES = frozenset({"imagefolder-small", "imagefolder64"})


def resize(config: RunConfig, depth: int, width: int) -> RunConfig:
    """The config at another size: head dimensions kept where they divide the width, drop path in step with depth."""
    model = config.model
    head_dim = gcd(model.width // model.num_heads, width)
    headdim = gcd(model.mamba.headdim, width * model.mamba.expand)
    size: dict[str, float] = {"depth": depth, "width": width, "num_heads": width // head_dim, "mamba.headdim": headdim}
    size["drop_path"] = model.drop_path * depth / model.depth  # VAR: 0.1 * depth / 24
    return override(config, {f"model.{name}": value for name, value in size.items()})
