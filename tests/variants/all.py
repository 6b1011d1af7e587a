"""Small models with random weights of every architecture, as llama.cpp loads them, by name: the files beside this one
have ``VARIANTS``, and a few layers of each kind in ``SMALL``. Called by tests only."""

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module

from tests import variants
from tests.variants.made import Made


def _gather(table: str) -> Mapping[str, Callable[[], Made]]:
    found: dict[str, Callable[[], Made]] = {}
    for module in pkgutil.iter_modules(variants.__path__, f"{variants.__name__}."):
        if module.name != __name__:
            found |= getattr(import_module(module.name), table, {})
    return found


VARIANTS = _gather("VARIANTS")
SMALL = _gather("SMALL")
