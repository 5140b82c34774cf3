"""Every option of every command, once.

A field of these dataclasses is at once the flag (`--batch-size`), the TOML key (`batch_size`) and the Python
argument (`batch_size=`). The string under a field is its help. Nothing in this room imports torch, so that
`facemetric --help` answers at once.
"""

from facemetric.config.build import (
    check_least,
    config_command,
    config_dict,
    config_toml,
    make_config,
    require,
)
from facemetric.config.checks import check_stage
from facemetric.config.commands import (
    CalibrateConfig,
    CheckConfig,
    ClusterConfig,
    ConvertConfig,
    DataConfig,
    EvalConfig,
    ExportConfig,
    PushConfig,
    RunsConfig,
    VerifyConfig,
    VisualizeConfig,
)
from facemetric.config.fields import check_ranges
from facemetric.config.gallery import (
    GalleryAddConfig,
    GalleryCheckConfig,
    GalleryListConfig,
    GalleryRemoveConfig,
    IdentifyConfig,
)
from facemetric.config.photographs import AlignConfig, EmbedConfig, FacesConfig
from facemetric.config.recipe import RunConfig, Step, Variant, differences, folder_of, plan
from facemetric.config.training import DemoConfig, FinetuneConfig, PretrainConfig, StageConfig

__all__ = [
    "AlignConfig",
    "CalibrateConfig",
    "CheckConfig",
    "ClusterConfig",
    "ConvertConfig",
    "DataConfig",
    "DemoConfig",
    "EmbedConfig",
    "EvalConfig",
    "ExportConfig",
    "FacesConfig",
    "FinetuneConfig",
    "GalleryAddConfig",
    "GalleryCheckConfig",
    "GalleryListConfig",
    "GalleryRemoveConfig",
    "IdentifyConfig",
    "PretrainConfig",
    "PushConfig",
    "RunConfig",
    "RunsConfig",
    "StageConfig",
    "Step",
    "Variant",
    "VerifyConfig",
    "VisualizeConfig",
    "check_least",
    "check_ranges",
    "check_stage",
    "config_command",
    "config_dict",
    "config_toml",
    "differences",
    "folder_of",
    "make_config",
    "plan",
    "require",
]
