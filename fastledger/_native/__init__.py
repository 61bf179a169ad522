"""The only border between Python and C: one shared object that holds every Cython module and all of ``native/``.

The modules are imported by their names, ``fastledger._native.scan`` and so on, each when it is first asked for; the
``PyInit_`` functions of all of them are in ``_library.*.so`` (PEP 489, "Multiple modules in one library"). They share
one copy of the native state: the SHA-256 backend that was chosen, the tables of public keys.

Each module is a Python file that takes its names from the shared object. A finder on ``sys.meta_path`` would save the
files and lose to threads: an import of a submodule does not wait until another thread has executed its package, and
would look for the module before the finder is there.
"""

from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from typing import Any


def native_names(module: str) -> dict[str, Any]:
    """Loads a module of the native library and returns its public names with what they stand for.

    ``module`` is its full name, such as ``fastledger._native.scan``. Raises ``ImportError`` where the library was not
    built for this Python, and what the module itself raises.
    """
    library = PathFinder.find_spec(f"{__name__}._library", __path__)
    if library is None or library.origin is None:
        raise ImportError(
            "the native library of fastledger was not built for this Python: install a wheel for it, or in a "
            "checkout run `make build`, or `python setup.py build_ext --inplace` after a change of C or Cython"
        )
    loader = ExtensionFileLoader(module, library.origin)
    spec = ModuleSpec(module, loader, origin=library.origin)
    spec.has_location = True
    loaded = loader.create_module(spec)
    loader.exec_module(loaded)
    return {name: value for name, value in vars(loaded).items() if not name.startswith("_")}
