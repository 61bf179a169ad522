"""The types of fields in bodies and entities. Everything derived from a field follows from its type.

A type is ``Annotated[base, Meta(bounds, extra={...})]``. The bounds are checked whenever a body is decoded. ``extra``
tells what the field means, and from it follow search terms, JSON forms and command-line options:

============ =======================================================================================
``term``     the term table under which a transaction is found that carries such a value
``table``    the field is a key of that :class:`fastledger.state.entity.EntityTable`
``identity`` the value is somebody's pseudonym, or empty
``late``     the term is added only where the transaction is accepted (blind tokens)
``blob``     the 32-byte field is the digest of an envelope that has to be stored first
``hex``      the bytes are shown in hexadecimal though their length varies
``mask``     the integer is a set: a mapping from the names of its members to their bits
``time``     the integer is a time in UTC milliseconds
============ =======================================================================================

Byte strings of one fixed length are ids, digests and keys: JSON shows them in hexadecimal, all others in base64.
"""

from typing import Annotated, TypeAlias

from msgspec import Meta

from fastledger import limits
from fastledger.model.terms import SUBJECT, TOKEN

ID_BYTES = 16

Id16: TypeAlias = Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
# The pseudonym of somebody whom the transaction or the entity concerns.
Identity16: TypeAlias = Annotated[
    bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES, extra={"term": SUBJECT, "identity": True})
]
# The pseudonym of somebody, or nothing: found by no term.
OptionalIdentity: TypeAlias = Annotated[bytes, Meta(max_length=ID_BYTES, extra={"hex": True, "identity": True})]
Key33: TypeAlias = Annotated[bytes, Meta(min_length=33, max_length=33)]
Digest32: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature64: TypeAlias = Annotated[bytes, Meta(min_length=64, max_length=64)]
Token16: TypeAlias = Annotated[
    bytes, Meta(min_length=16, max_length=16, extra={"term": TOKEN, "late": True})
]
UInt32: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
TimeMs: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1, extra={"time": True})]
# A version of this software, such as 1.2.0 or 2.0rc1, or nothing: the one text that a body may hold.
RELEASE_PATTERN = r"^([0-9]{1,4}(\.[0-9]{1,4}){1,3}((a|b|rc)[0-9]{1,3})?)?\Z"
OptionalRelease: TypeAlias = Annotated[
    str, Meta(max_length=limits.RELEASE_BYTES_MAX, pattern=RELEASE_PATTERN)
]
SizeBytes: TypeAlias = Annotated[int, Meta(ge=1, le=limits.BLOB_BYTES_MAX)]
KemPublicKey: TypeAlias = Annotated[bytes, Meta(min_length=33, max_length=limits.KEM_PUBLIC_KEY_BYTES_MAX)]
KeyWrap: TypeAlias = Annotated[bytes, Meta(min_length=48, max_length=limits.WRAPPED_KEY_BYTES_MAX)]
FolderWrap: TypeAlias = Annotated[bytes, Meta(min_length=40, max_length=64)]
Tokens: TypeAlias = Annotated[list[Token16], Meta(max_length=limits.TOKENS_PER_RECORD_MAX)]
FolderWraps: TypeAlias = Annotated[
    list[FolderWrap], Meta(min_length=1, max_length=limits.FOLDERS_PER_CONSENT_MAX)
]
