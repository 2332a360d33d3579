"""Options that a recipe passes through a stage to a plug-in: checked before anything runs.

>>> checked("expert", cells, {"min_aera": 40})
ConfigError: the expert 'cells' has no option 'min_aera' (did you mean 'min_area'?); it takes local, depth, min_area
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from infra.errors import ConfigError
from infra.plugins import nearest


def checked(kind: str, plugin: Any, options: Mapping[str, Any]) -> BaseModel:
    """The plug-in's Params made of these options. Raises ConfigError that names each wrong one."""
    known = plugin.Params.model_fields
    for name in options:
        if name not in known:
            raise ConfigError(
                f"the {kind} {plugin.NAME!r} has no option {name!r}{nearest(name, known)}; "
                f"it takes {', '.join(known) or 'none'}"
            )
    try:
        params: BaseModel = plugin.Params(**options)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"options of the {kind} {plugin.NAME!r}: {wrong}") from error
    return params
