"""The resources of a bundle as references see them, from a look at their heads alone."""

import msgspec

from fastledger.gateway.fhir_references import Place, identifiers_of
from fastledger.gateway.fhir_source import Identifier, Source
from fastledger.gateway.json_bounds import has_more_values
from fastledger.gateway.sources import SourceBundle
from fastledger.limits import RESOURCE_VALUES_MAX

_BOM = b"\xef\xbb\xbf"


class _Identified(msgspec.Struct):
    """What of a resource tells who it is."""

    identifier: list[dict[str, object]] = []


_decode = msgspec.json.Decoder(_Identified).decode


def places_of(bundle: SourceBundle, source: Source) -> list[Place]:
    """The places of a bundle's resources, in order; identifiers only where the source may refer by them."""
    places = []
    for item in bundle.resources:
        identified = source.identifier_systems and item.resource_type == "Patient"
        identifiers = tuple(identifiers_in(item.raw)) if identified else ()
        places.append(Place(item.resource_type, item.resource_id, item.full_url, identifiers))
    return places


def practitioner_of(raw: bytes) -> set[Identifier]:
    """The identifiers of a Practitioner."""
    return set(identifiers_in(raw))


def identifiers_in(raw: bytes) -> list[Identifier]:
    """The identifiers of a resource given as text; none where it is not sound, which the validation will say."""
    if has_more_values(raw, RESOURCE_VALUES_MAX):
        return []
    try:
        return identifiers_of({"identifier": _decode(raw.removeprefix(_BOM)).identifier})
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def is_placeholder(name: str) -> bool:
    """Whether a name of :meth:`fhir_references.Scope.name_of` is worth something in its bundle alone."""
    return name.count(" ") == 2
