"""Sources of FHIR for the tests: what they may say, who they mean, and an oracle of each."""
