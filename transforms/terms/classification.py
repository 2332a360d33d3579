"""ICD-10-CM as the package simple-icd-10-cm ships it: codes with their descriptions.

>>> dict(descriptions())["ICD10CM:J18.9"]
'Pneumonia, unspecified organism'
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from typing import Any

from infra.errors import ConfigError


@cache
def classification() -> Any:
    """The package, loaded. Raises ConfigError where it is not installed."""
    if importlib.util.find_spec("simple_icd_10_cm") is None:
        raise ConfigError("icd10cm needs the package simple-icd-10-cm: pip install simple-icd-10-cm")
    with warnings.catch_warnings():
        # the package reads its data with a function that importlib.resources has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        import simple_icd_10_cm
    return simple_icd_10_cm


@cache
def descriptions() -> tuple[tuple[str, str], ...]:
    """(ICD10CM:CODE, description) of every category and subcategory, in the order of the classification."""
    icd = classification()
    codes = dict.fromkeys(icd.get_all_codes())
    kept = (code for code in codes if icd.is_category(code) or icd.is_subcategory(code))
    return tuple((f"ICD10CM:{code}", icd.get_description(code)) for code in kept)
