"""Gateways to the formats that hospitals speak: reading and validating FHIR resources, and describing them."""
