"""From FHIR sources to durable records: a custodian, its runs, their reports, and the matching step."""

from fastledger.client.ingest.custodian import DIRECTORY, ORGANISATION_ENTRY, PARKED, Custodian, Match
from fastledger.client.ingest.matching import match_identifier, match_patient, person_named
from fastledger.client.ingest.report import REFUSALS_KEPT, IngestReport, Kept, Remark
from fastledger.client.ingest.resource_map import ResourceMap, map_path
from fastledger.client.ingest.run import Ingest

__all__ = [
    "DIRECTORY",
    "ORGANISATION_ENTRY",
    "PARKED",
    "REFUSALS_KEPT",
    "Custodian",
    "Ingest",
    "IngestReport",
    "Kept",
    "Match",
    "Remark",
    "ResourceMap",
    "map_path",
    "match_identifier",
    "match_patient",
    "person_named",
]
