"""Gateways to the formats that hospitals speak: reading and validating FHIR resources, and describing them."""

from fastledger.extras import require

require("fhir")
