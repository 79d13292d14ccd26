"""docker-compose.yml as Docker Compose reads it: anchors resolved, variables filled in, and checked."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import yaml
from compose_spec import PyCompose

from tests.stack import ROOT

_VARIABLE: Final = re.compile(r"\$\$|\$\{(\w+)(?:(:-|:\?)([^}]*))?\}")


def read_services(variables: Mapping[str, str]) -> dict[str, Any]:
    """Read the file.

    Args:
        variables: The environment of `docker compose`.

    Returns:
        Its content.

    Raises:
        KeyError: If a variable that must be set is not.
        ValueError: If it is no Compose file.
    """
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    filled = _fill({key: value for key, value in document.items() if not key.startswith("x-")}, variables)
    PyCompose.from_json(json.dumps(filled))
    return dict(filled)


def list_variables() -> set[str]:
    """Name every variable that the file takes from the environment."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    return {match[1] for match in _VARIABLE.finditer(text) if match[1]}


def _fill(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill(one, variables) for key, one in value.items()}
    if isinstance(value, list):
        return [_fill(one, variables) for one in value]
    return _VARIABLE.sub(lambda found: _replace(found, variables), value) if isinstance(value, str) else value


def _replace(found: re.Match[str], variables: Mapping[str, str]) -> str:
    name, kind, rest = found.groups()
    if name is None:
        return "$"
    return variables.get(name) or rest if kind == ":-" else variables[name]
