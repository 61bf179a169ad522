"""The FHIR border against others' data: official examples, validator cases, exports, definitions, schema."""

import json
import lzma
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fhirkit import RESOURCE_TYPES
from test_fhir import SAMPLES, Node, drop, encode, issues_of, mutations, plant_value, replaced

from fastledger.errors import FhirError
from fastledger.gateway.fhir import Validated, describe, validate_each, validate_many
from fastledger.gateway.fhir_codes import CODES, CODES_BY_TYPE, DATE_KEYS
from fastledger.gateway.fhir_compartment import OF_NO_PATIENT
from fastledger.gateway.fhir_owner import owner_of
from fastledger.gateway.fhir_places import places_of
from fastledger.gateway.fhir_references import Scope
from fastledger.gateway.fhir_source import Source
from fastledger.gateway.sources import SourceBundle, read_bundles, read_resources

# Against others' data.

# Invalid cases that need a profile, a terminology server, another resource, or a validator's own policy.
ACCEPTED_INVALID = frozenset(
    (
        "PulseOxBundle_25Oct2022.json",
        "bad-markdown.json",
        "capstmt.json",
        "cvx.json",
        "dr-example-org.json",
        "nested-questionnaire-nested-valueset.json",
        "obs-temp-bad.json",
        "obs-temp-code2.json",
        "obs-vs-1.json",
        "pat-example-ext.json",
        "sdoh-type-slice.json",
        "shc-cvx.json",
        "sp-composite.json",
        "supplement-cs.json",
        "vs-bad-code.json",
        "vs-bad-props.json",
        "vs-canonical-bad-2.json",
        "vs-params-2.json",
    )
)
# Has a comment, which JSON does not: the reference validator's leniency.
REFUSED_VALID = frozenset(("json-comments-1.json",))
# Lacks linkId in three items, which R4 requires; has a SHA-1 in hexadecimal where base64 stands, and not of its data;
# package.json is the package's manifest and no resource.
REFUSED_EXAMPLES = frozenset(
    ("Questionnaire-qs1.json", "DiagnosticReport-example-pgx.json", "package.json")
)


@pytest.mark.data
def test_validator_cases(shared_data: Path) -> None:
    folder = shared_data / "fhir-validator-cases"
    cases = [case for case in json.loads((folder / "expected.json").read_bytes()) if case["fhir"] == "4.0"]
    cases = [case for case in cases if (folder / case["file"]).exists()]
    outcomes = validate_many([(folder / case["file"]).read_bytes() for case in cases])
    accepted_invalid, refused_valid = set(), set()
    for case, outcome in zip(cases, outcomes, strict=True):
        name = Path(case["file"]).name
        refused = isinstance(outcome, FhirError)
        if case["errors"] and not refused:
            accepted_invalid.add(name)
        if refused and not case["errors"]:
            refused_valid.add(name)
    assert refused_valid == REFUSED_VALID
    assert accepted_invalid <= ACCEPTED_INVALID


@pytest.mark.data
def test_official_examples(shared_data: Path) -> None:
    files = sorted((shared_data / "fhir-r4-examples").rglob("*.json"))
    outcomes = validate_many([file.read_bytes() for file in files])
    refused = {
        file.name for file, outcome in zip(files, outcomes, strict=True) if isinstance(outcome, FhirError)
    }
    assert len(files) > 600
    assert refused == REFUSED_EXAMPLES


@pytest.mark.data
@pytest.mark.slow
def test_every_synthea_resource(shared_data: Path) -> None:
    batch: list[bytes] = []
    types: Counter[str] = Counter()

    def flush() -> None:
        for outcome in validate_many(batch):
            assert isinstance(outcome, Validated), outcome.issues
            types[outcome.resource_type] += 1
            info = describe(outcome.resource)
            assert info.terms[0] == "type:" + outcome.resource_type
        batch.clear()

    for item in read_resources([shared_data / "synthea-r4" / "r4-bundles.tar.xz"]):
        assert not isinstance(item, FhirError)
        batch.append(item.raw)
        if len(batch) == 1_000:
            flush()
    flush()
    assert types.total() == 49_634
    assert types["Patient"] == 160


@pytest.mark.data
def test_whose_every_picked_history_is(shared_data: Path) -> None:  # SPEC-FHIR-11
    """Histories of real shape: every resource is its patient's, or of a type that is of no patient; none is parked."""
    source = Source.named("https://synthea.example/fhir")
    counts: Counter[bool] = Counter()
    for bundle in read_bundles([shared_data / "synthea-r4" / "pick"]):
        assert isinstance(bundle, SourceBundle)
        places = places_of(bundle, source)
        scope = Scope(source, places, bundle.digest, transaction=True)
        verdicts = validate_each([item.raw for item in bundle.resources])
        for place, verdict in zip(places, verdicts, strict=True):
            assert isinstance(verdict, Validated)
            owner = owner_of(verdict.resource, place, scope)
            assert owner.reason is None, (owner, place.resource_type)
            own = None if bundle.patient_id is None else f"{source.base}/Patient/{bundle.patient_id}"
            assert owner.person in (own, None)
            assert (owner.person is None) == (place.resource_type in OF_NO_PATIENT)
            counts[owner.person is None] += 1
    assert counts[False] > 1_000 < counts[True] + 1_000


@pytest.mark.data
def test_bulk_export_resources(shared_data: Path) -> None:
    raws = [
        item.raw
        for item in read_resources([shared_data / "synthea-bulk-ndjson"])
        if not isinstance(item, FhirError)
    ]
    assert len(raws) > 10_000
    refused = [item.issues for item in validate_many(raws) if isinstance(item, FhirError)]
    assert refused == []


# The official definitions as oracle of the code table.

_STRING_NAMES = "string uri markdown id url canonical dateTime instant date base64Binary time oid uuid xhtml"
_STRINGS = frozenset(_STRING_NAMES.split())


def definitions(folder: Path, name: str) -> list[Node]:
    with lzma.open(folder / "fhir-r4-definitions" / f"{name}.json.xz") as file:
        return [entry["resource"] for entry in json.load(file)["entry"]]


class Definitions:
    """Codes that the official definitions allow, by (holder, key) and resource type."""

    def __init__(self, folder: Path) -> None:
        resources = definitions(folder, "valuesets")
        self.value_sets = {item["url"]: item for item in resources if item["resourceType"] == "ValueSet"}
        self.systems = {item["url"]: item for item in resources if item["resourceType"] == "CodeSystem"}
        self.types = {
            item["name"]: item
            for name in ("profiles-resources", "profiles-types")
            for item in definitions(folder, name)
            if item["resourceType"] == "StructureDefinition" and item.get("derivation") != "constraint"
        }
        self.children: dict[str, list[tuple[str, Node]]] = {}
        for item in self.types.values():
            for element in item["snapshot"]["element"][1:]:
                holder, _, key = element["path"].rpartition(".")
                self.children.setdefault(holder, []).append((key, element))
        self.found: dict[tuple[str, str], dict[frozenset[str] | None, set[str]]] = {}

    def expand(self, url: str) -> frozenset[str] | None:
        """The codes of a value set; None where they are not all listed."""
        codes: set[str] = set()
        for include in self.value_sets.get(url.split("|")[0], {}).get("compose", {}).get("include", [{}]):
            if "filter" in include or not include:
                return None
            for inner in include.get("valueSet", ()):
                codes |= self.expand(inner) or set()
            if "concept" in include:
                codes |= {item["code"] for item in include["concept"]}
            elif "system" in include:
                system = self.systems.get(include["system"])
                if system is None or system.get("content") != "complete":
                    return None
                codes |= self._concepts(system)
        return frozenset(codes) or None

    def _concepts(self, node: Node) -> set[str]:
        inner = node.get("concept", ())
        return {item["code"] for item in inner}.union(*(self._concepts(item) for item in inner))

    def visit(self, resource_type: str, holder: str, typ: str, seen: set[tuple[str, str]]) -> None:
        if (holder, typ) in seen:
            return
        seen.add((holder, typ))
        for key, element in self.children.get(typ, ()):
            if "contentReference" in element:
                self.visit(resource_type, key, element["contentReference"].rpartition("#")[2], seen)
            for kind in (item["code"] for item in element.get("type", ())):
                name = key.removesuffix("[x]") + (kind[0].upper() + kind[1:] if key.endswith("[x]") else "")
                if kind in ("BackboneElement", "Element"):
                    self.visit(resource_type, name, f"{typ}.{key}", seen)
                elif kind == "code" or kind in _STRINGS:
                    binding = element.get("binding", {}) if kind == "code" else {}
                    required = binding.get("strength") == "required"
                    codes = self.expand(binding["valueSet"]) if required else None
                    self.found.setdefault((holder, name), {}).setdefault(codes, set()).add(resource_type)
                elif kind != "Resource":
                    self.visit(resource_type, name, kind, seen)


@pytest.mark.data
def test_code_table_is_that_of_the_definitions(shared_data: Path) -> None:  # SPEC-FHIR-4
    official = Definitions(shared_data)
    for name, item in official.types.items():
        if item["kind"] == "resource" and not item["abstract"] and name in RESOURCE_TYPES:
            official.visit(name, name, name, set())
    compared = 0
    for holder, elements in CODES.items():
        for key, allowed in elements:
            for codes, users in official.found[holder, key].items():
                overridden = {name for name in users if holder in CODES_BY_TYPE.get(name, {})}
                if users - overridden:
                    assert codes == allowed, (holder, key)
                compared += 1
    for name, table in CODES_BY_TYPE.items():
        for holder, elements in table.items():
            for key, allowed in elements:
                assert any(
                    codes == allowed and name in users for codes, users in official.found[holder, key].items()
                ), (name, holder, key)
                compared += 1
    assert compared > 300


@pytest.mark.data
def test_date_keys_are_dates_only(shared_data: Path) -> None:
    official = Definitions(shared_data)
    kinds: dict[str, set[str]] = {}
    for typ, children in official.children.items():
        if typ.partition(".")[0] not in official.types:
            continue
        for key, element in children:
            for kind in (item["code"] for item in element.get("type", ())):
                name = key.removesuffix("[x]") + (kind[0].upper() + kind[1:] if key.endswith("[x]") else "")
                kinds.setdefault(name, set()).add(kind)
    assert len(DATE_KEYS) > 70
    for key in DATE_KEYS:
        assert kinds[key] <= {"date", "dateTime", "instant"}, key


# The official JSON schema as a second opinion on mutated resources.


def schema_mutations(root: Node) -> Iterator[tuple[str, Node]]:
    """Mutations that each make a valid resource invalid in one known way, by kind."""
    for key in root:
        if key in ("status", "code", "subject", "patient", "intent", "use"):
            yield "required", replaced(root, (key,), drop)
    for path in mutations(root):
        key = path[-1]
        if path == ("resourceType",):
            continue
        if key in ("status", "gender", "intent", "use", "criticality", "lifecycleStatus"):
            yield "code", replaced(root, path, plant_value("martian"))
        if key in ("birthDate", "effectiveDateTime", "start", "created", "authoredOn", "recordedDate"):
            yield "date", replaced(root, path, plant_value("last tuesday"))
            yield "type", replaced(root, path, plant_value(True))
        if key in ("subject", "patient", "coding", "identifier", "code", "name"):
            yield "type", replaced(root, path, plant_value(7))
    yield "unknown", {**root, "martian": 1}


@pytest.mark.data
def test_official_schema_agrees_on_mutations(shared_data: Path) -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    with lzma.open(shared_data / "fhir-r4-definitions" / "fhir.schema.json.xz") as file:
        schema = jsonschema_rs.validator_for(json.load(file))
    verdicts: Counter[tuple[str, bool, bool]] = Counter()
    for raw in SAMPLES:
        root = json.loads(raw)
        assert schema.is_valid(root)
        assert issues_of(raw) == ()
        for kind, mutated in schema_mutations(root):
            verdicts[kind, schema.is_valid(mutated), not issues_of(encode(mutated))] += 1
    # Whatever the schema refuses, we refuse; of what it accepts we refuse the required elements and the
    # bindings that it leaves open.
    assert {kind for kind, _, _ in verdicts} == {"required", "code", "date", "type", "unknown"}
    assert sum(count for (_, by_schema, by_us), count in verdicts.items() if by_us and not by_schema) == 0
    assert all(not by_us for kind, _, by_us in verdicts if kind != "required"), verdicts


# Violations of the schema that we accept, in the official examples and validator cases: none is known.
@pytest.mark.data
def test_schema_refusals_that_we_accept(shared_data: Path) -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    with lzma.open(shared_data / "fhir-r4-definitions" / "fhir.schema.json.xz") as file:
        schema = jsonschema_rs.validator_for(json.load(file))
    files = sorted((shared_data / "fhir-validator-cases" / "r4").rglob("*.json"))
    accepted_by_us_only = []
    for file in files:
        try:
            node = json.loads(file.read_bytes())
        except ValueError:
            continue
        if not schema.is_valid(node) and not issues_of(file.read_bytes()):
            accepted_by_us_only.append(file.name)
    assert accepted_by_us_only == []
