"""Whose code a config may name beside ours: packages that declare themselves, and those that the user names.

An installed package has an entry point in the group `mingpt_lightning`, whose value is the module that a `_target_` may
lead into; its folder `configs` is one of ours. `MINGPT_LIGHTNING_TRUST` names other modules. Both are what an
installation or a shell says: no config, checkpoint or hub file adds to them.
"""

import os
import re
import sys
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from mingpt_lightning.errors import UserError

GROUP = "mingpt_lightning"
VARIABLE = "MINGPT_LIGHTNING_TRUST"
PROVIDER = f"entry points {GROUP}"
"""What Hydra calls the places of declared packages."""

OWN_CODE = (
    f"Your own code goes into projects/, into an installed package with an entry point in the group {GROUP}, "
    f"or into one that the environment variable {VARIABLE} names"
)


def trusted() -> tuple[str, ...]:
    """The modules that a `_target_` may lead into, each ended by a dot.

    Raises UserError for a name in the environment variable that isn't a module's.
    """
    named = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in named:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(
                f"{name!r} is not the name of a module", VARIABLE, "Separate several by commas: mylab,other."
            )
    return tuple(f"{name}." for name in (*declared(tuple(sys.path)), *named))


@lru_cache
def declared(path: tuple[str, ...]) -> tuple[str, ...]:
    """The modules that installed packages declare. path: `sys.path`, on which these are."""
    found = (re.match(r"\w+(\.\w+)*", entry.value) for entry in entry_points(group=GROUP))
    return tuple(sorted({module[0] for module in found if module}))


def declared_configs() -> list[Path]:
    """The folders `configs` of the packages that declare themselves, none of which is imported."""
    folders = []
    for module in declared(tuple(sys.path)):
        top, *rest = module.split(".")
        try:
            spec = find_spec(top)
        except (ImportError, ValueError):
            continue
        places = (spec and spec.submodule_search_locations) or []
        folders += [Path(place, *rest, "configs") for place in places]
    return [folder for folder in folders if folder.is_dir()]


class DeclaredConfigs(SearchPathPlugin):
    """Lets Hydra find the configs of declared packages, after ours."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in declared_configs():
            search_path.append(PROVIDER, f"file://{folder}")
