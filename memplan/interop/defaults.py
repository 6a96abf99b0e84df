"""Defaults of frameworks by version; the table is the catalog's."""

from __future__ import annotations

from memplan.catalog.framework_defaults import FrameworkDefault as FrameworkDefault
from memplan.catalog.framework_defaults import framework_default as framework_default
from memplan.catalog.framework_defaults import in_range as in_range
from memplan.catalog.framework_defaults import list_defaults as list_defaults
from memplan.catalog.framework_defaults import reference_version as reference_version
