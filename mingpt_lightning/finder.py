"""Where the package `projects` is: on `sys.path`, as of any package; here; and in the working directory.

The projects of this library are in `projects/` of a checkout, and in `mingpt_lightning/projects/` of an installed one,
which so owns no other top-level name. Either way they are `projects.adder` and so on. A project of one's own is in
`./projects/`, whether or not that has an `__init__.py`, and whichever way the program was started.
"""

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent
PROJECTS = PACKAGE / "projects" if (PACKAGE / "projects").is_dir() else PACKAGE.parent / "projects"
"""Our projects: inside the package when installed, beside it in a checkout."""


class ProjectsFinder(MetaPathFinder):
    """Finds `projects` and what is in it, where Python's own finders do not; the last one in `sys.meta_path`.

    So a package `projects` of one's own is run as ever, and what it lacks is found here. Of a working directory that
    isn't on `sys.path`, no `projects/__init__.py` is run and nothing comes before our projects: a downloaded folder
    can't put code in their place.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of `projects` or one of the modules and packages in it; None where there is none, or of others."""
        top, *parents = fullname.split(".")[:-1] or [fullname]
        if fullname == "projects":
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(PROJECTS)]
            return spec
        if top != "projects":
            return None
        found = (PathFinder.find_spec(fullname, [str(Path(folder, *parents))]) for folder in folders())
        return next((spec for spec in found if spec is not None), None)


def folders() -> list[str]:
    """The folders of projects beside those that Python finds: ours, then the working directory's."""
    return [str(PROJECTS), str(Path("projects").absolute())]
