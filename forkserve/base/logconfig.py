"""The configurations of Python's logging: the file of --log-config, and the setting `logconfig_dict`."""

import importlib
import json
from collections.abc import Mapping
from typing import Any, Final

from forkserve.base.errors import ConfigError

# What gunicorn has for a configuration that names these without defining them.
DEFAULTS: Final[Mapping[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "generic": {
            "format": "%(asctime)s [%(process)d] [%(levelname)s] %(message)s",
            "datefmt": "[%Y-%m-%d %H:%M:%S %z]",
            "class": "logging.Formatter",
        }
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stdout"},
        "error_console": {"class": "logging.StreamHandler", "formatter": "generic", "stream": "ext://sys.stderr"},
    },
}


def apply_mapping(mapping: Mapping[str, Any]) -> None:
    """Configure logging from the setting `logconfig_dict`. Raises ConfigError for anything wrong in it."""
    import logging.config  # noqa: PLC0415 - slow to import, and seldom needed

    try:
        logging.config.dictConfig(_completed(mapping))
    except Exception as error:  # noqa: BLE001 - a user's mapping can fail in any way
        cause = error.__cause__ or error
        raise ConfigError(f"logconfig_dict: {_line(error)}{f': {_line(cause)}' * (cause is not error)}") from None


def apply(path: str) -> None:
    """Configure logging from *path*. Raises ConfigError for anything wrong in it."""
    import logging.config  # noqa: PLC0415 - slow to import, and seldom needed

    try:
        if path.endswith((".json", ".yaml", ".yml")):
            logging.config.dictConfig(_completed(_mapping(path)))
        else:
            if not _content(path).strip():
                raise ValueError("the file is empty")  # noqa: TRY301 - one answer for all
            logging.config.fileConfig(path, disable_existing_loggers=False, encoding="utf-8")
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"--log-config {path}: {error.strerror or error}") from None
    except KeyError as error:  # raised by fileConfig
        raise ConfigError(
            f"--log-config {path}: it has no {error}, which logging.config.fileConfig needs; or name a .json or .yaml file"
        ) from None
    except Exception as error:  # noqa: BLE001 - a user's file can fail in any way
        cause = error.__cause__ or error
        raise ConfigError(f"--log-config {path}: {type(cause).__name__}: {_line(cause)}") from None


def _line(error: BaseException) -> str:
    """Return the text of an error in one line, as each line of a ConfigError is a fault of its own."""
    return " ".join(str(error).split())


def _completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with what it lacks of DEFAULTS. An incremental one only changes what is there."""
    if given.get("incremental"):
        return dict(given)
    parts = {key: {**DEFAULTS[key], **(given.get(key) or {})} for key in ("formatters", "handlers")}
    return {**DEFAULTS, **given, **parts}


def _content(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def _mapping(path: str) -> dict[str, Any]:
    content = json.loads(_content(path)) if path.endswith(".json") else _yaml(_content(path))
    if not isinstance(content, dict):
        raise ConfigError(f"--log-config {path}: it must hold a mapping, as logging.config.dictConfig takes it")
    return content


def _yaml(content: str) -> Any:
    try:
        yaml: Any = importlib.import_module("yaml")  # only this option depends on it
    except ImportError:
        raise ConfigError("--log-config needs PyYAML for a .yaml file: pip install PyYAML, or write it as .json") from None
    return yaml.safe_load(content)
