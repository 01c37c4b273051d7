"""The configuration: `sections`, `schema` (a whole run), `parsing` (texts in) and `identity` (what decides an id)."""

from mvar.config.evaluation_sections import IS_SPLITS, EvaluationConfig, SampleConfig
from mvar.config.extensible import Config
from mvar.config.model_section import MambaConfig, ModelConfig
from mvar.config.parsing import from_dict, override, stored_config
from mvar.config.schema import SCHEMA_VERSION, RunConfig
from mvar.config.sections import (
    DataConfig,
    OptimConfig,
    RuntimeConfig,
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
