from typing import TypedDict

from typing_extensions import Buffer

KEY_CACHE_ENTRIES_DEFAULT: int
KEY_CACHE_ENTRIES_MAX: int
LIBRARY_VERSION: str

class EcdsaBackend(TypedDict):
    library: str
    version: str
    threads: int
    cache_entries: int
    cache_used: int
    cache_hits: int
    cache_misses: int

def default_threads() -> int: ...
def verify_batch(
    digests: Buffer, signatures: Buffer, keys: Buffer, *, threads: int | None = None
) -> bytes: ...
def resize_key_cache(entries: int = ...) -> None: ...
def ecdsa_backend() -> EcdsaBackend: ...
