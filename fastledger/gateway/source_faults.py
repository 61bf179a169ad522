"""What can be wrong with a source or an entry of one before anything is validated: stable codes, no names."""

from enum import StrEnum

from fastledger.errors import FhirError


class Fault(StrEnum):
    """Why something in a source is not read or not taken; the value is a stable code of the report."""

    UNREADABLE = "cannot-be-read"
    NOT_FHIR = "not-a-fhir-file"
    DAMAGED = "damaged"
    INFLATES = "grows-too-much"
    LINK_OUT = "link-out-of-the-tree"
    DANGLING = "link-to-nothing"
    CHANGED = "changed-while-reading"
    NESTED_ARCHIVE = "archive-in-an-archive"
    ARCHIVED_LINK = "link-in-an-archive"
    OVERSIZED = "oversized"
    TOO_MANY_ENTRIES = "too-many-entries"
    TOO_MANY_VALUES = "too-many-values"
    NESTED_TOO_DEEP = "nested-too-deep"
    NOT_JSON = "not-json"
    NOT_AN_ENTRY = "not-an-entry"
    NO_RESOURCE = "no-resource"
    NOT_A_RESOURCE = "not-a-resource"
    PATCH = "patch-not-applied"
    ENTRY_CONTRADICTS = "entry-contradicts-itself"


_TEXTS = {
    Fault.UNREADABLE: "cannot be read",
    Fault.NOT_FHIR: "not a kind of file that holds FHIR",
    Fault.DAMAGED: "damaged archive or compression",
    Fault.INFLATES: "grows to more than data does when it is decompressed; decompress it first",
    Fault.LINK_OUT: "a link that leads out of the tree; name its target as a source of its own",
    Fault.DANGLING: "a link that leads nowhere",
    Fault.CHANGED: "another file took its place while the source was read",
    Fault.NESTED_ARCHIVE: "an archive in an archive; unpack the outer one",
    Fault.ARCHIVED_LINK: "a link or a device in an archive",
    Fault.OVERSIZED: "has too many bytes",
    Fault.TOO_MANY_ENTRIES: "has too many entries",
    Fault.TOO_MANY_VALUES: "has too many JSON values",
    Fault.NESTED_TOO_DEEP: "bundles nested too deeply",
    Fault.NOT_JSON: "neither a FHIR bundle nor a resource in JSON",
    Fault.NOT_AN_ENTRY: "not a bundle entry",
    Fault.NO_RESOURCE: "has no resource",
    Fault.NOT_A_RESOURCE: "not a resource in JSON",
    Fault.PATCH: "a patch, whose result is not in the source",
    Fault.ENTRY_CONTRADICTS: "contradicts itself",
}


class SourceError(FhirError):
    """A source, or an entry of one, that is not taken; ``origin`` names the place by ordinals."""

    def __init__(self, origin: str, fault: Fault, detail: str = "", *, element: str = "") -> None:
        """``detail`` takes the place of the fault's sentence; it may hold numbers, no names or values."""
        super().__init__(f"{origin}: {detail or _TEXTS[fault]}")
        self.origin = origin
        self.fault = fault
        self.element = element
