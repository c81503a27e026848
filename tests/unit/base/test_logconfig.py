"""Configurations of logging as mappings."""

import pytest

from forkserve.base.errors import ConfigError
from forkserve.base.logconfig import apply_mapping


def test_an_incremental_configuration_only_changes_what_is_there() -> None:
    apply_mapping({"version": 1, "incremental": True, "loggers": {"forkserve.tests": {"level": "WARNING"}}})


def test_parts_may_be_empty() -> None:
    apply_mapping({"handlers": None, "loggers": {"forkserve.tests": {"handlers": ["error_console"]}}})


def test_a_handler_that_nobody_defines_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"logconfig_dict: .*'nothing'"):
        apply_mapping({"loggers": {"forkserve.tests": {"handlers": ["nothing"]}}})
