"""The configuration tree: `schema` its sections, `parsing` texts and documents in, `identity` what decides an id."""

from mvar.config.parsing import from_dict, override, stored_config
from mvar.config.schema import (
    IS_SPLITS,
    SCHEMA_VERSION,
    Config,
    DataConfig,
    EvaluationConfig,
    MambaConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    RuntimeConfig,
    SampleConfig,
    TokenizerConfig,
    TokenSpace,
    TrainConfig,
)

__all__ = [
    "IS_SPLITS",
    "SCHEMA_VERSION",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "MambaConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "RuntimeConfig",
    "SampleConfig",
    "TokenSpace",
    "TokenizerConfig",
    "TrainConfig",
    "from_dict",
    "override",
    "stored_config",
]
