"""Settings of uploads."""

from typing import Annotated

from msgspec import Meta, Struct

from fastledger.limits import BLOB_BYTES_MAX
from fastledger.settings import DAY_MS, HOUR_MS, KIB, SECOND_MS


class UploadLimits(Struct, frozen=True, kw_only=True):
    """The bounds of a directory of uploads; an upload counts as the bytes that it announced, from its beginning on.

    ``pending_bytes_max`` bounds all together; an owner has at most ``owner_uploads_max``.
    """

    upload_bytes_max: Annotated[
        int, Meta(description="The largest envelope taken.", ge=KIB, le=BLOB_BYTES_MAX)
    ] = BLOB_BYTES_MAX
    uploads_max: Annotated[int, Meta(description="Unfinished uploads at a time.", ge=1, le=100_000)] = 1_024
    lifetime_ms: Annotated[
        int,
        Meta(description="An upload that got no byte for so long is dropped.", ge=SECOND_MS, le=30 * DAY_MS),
    ] = HOUR_MS
    owner_uploads_max: int = 64
    pending_bytes_max: int = 16 * BLOB_BYTES_MAX
