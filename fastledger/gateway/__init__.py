"""Borders to the formats that hospitals speak: FHIR resources in, and where they come from."""
