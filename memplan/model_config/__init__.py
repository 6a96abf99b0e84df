"""From any `config.json` to a complete, checked set of architecture keys, without running model code."""

from __future__ import annotations

from memplan.model_config.normalise import normalise_config as normalise_config
from memplan.model_config.reading import read_config_file as read_config_file
from memplan.model_config.schema import known_model_types as known_model_types
