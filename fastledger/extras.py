"""The parts of the package that a plain installation leaves out: which libraries each needs, and who misses them.

A layer that cannot do without an extra calls :func:`require` in its ``__init__.py``, before any of its modules is
imported. What needs one for a single function calls it there.
"""

from collections.abc import Mapping
from importlib.util import find_spec

from fastledger.errors import InstallationError

# Extra -> the names by which its libraries are imported; pyproject.toml has the releases (a test compares the two).
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "bench": ("matplotlib", "pymerkle"),
    "cli": ("click", "rich"),
    "fhir": ("fhirkit",),
    "node": ("prometheus_client", "structlog", "uvloop"),
}


def require(extra: str) -> None:
    """Raises ``InstallationError``, which says what to install, unless all libraries of ``extra`` are there."""
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise InstallationError(
            f"this needs {', '.join(missing)}: pip install 'fastledger[{extra}]'", extra=extra
        )
