from typing import Literal, TypedDict, overload

from typing_extensions import Buffer

KEY_CACHE_ENTRIES_DEFAULT: int
KEY_CACHE_ENTRIES_MAX: int
TABLE_MEMORY_DEFAULT: int
TABLE_MEMORY_MAX: int
HINTS_PARITY: int
HINTS_FULL: int
PATHS: dict[str, int]
LIBRARY_VERSION: str

class DecidedBy(TypedDict):
    known: int
    any: int
    randomised: int
    libsecp: int
    undecided: int
    refused: int

class EcdsaBackend(TypedDict):
    library: str
    version: str
    kernel: str | None
    policy: str
    threads: int
    cache_entries: int
    cache_used: int
    cache_hits: int
    cache_misses: int
    tables: int
    table_memory: int
    table_memory_max: int
    tables_built: int
    tables_evicted: int
    by: DecidedBy
    batches_failed: int

def default_threads() -> int: ...
@overload
def verify_batch(
    digests: Buffer,
    signatures: Buffer,
    keys: Buffer,
    *,
    hints: Buffer | None = None,
    return_hints: Literal[False] = False,
    threads: int | None = None,
) -> bytes: ...
@overload
def verify_batch(
    digests: Buffer,
    signatures: Buffer,
    keys: Buffer,
    *,
    hints: Buffer | None = None,
    return_hints: Literal[True],
    threads: int | None = None,
) -> tuple[bytes, bytes]: ...
def parity_hints(hints: Buffer) -> bytes: ...
def resize_key_cache(entries: int = ...) -> None: ...
def set_table_memory(size: int = ...) -> None: ...
def ecdsa_kernels() -> list[str]: ...
def force_ecdsa(path: str | None = None, kernel: str | None = None) -> None: ...
def ecdsa_backend() -> EcdsaBackend: ...
