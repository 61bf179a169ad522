"""Bundles whose references are drawn from every form that FHIR R4 knows, and from the lies about each.

Whoever makes a reference here knows whom it means: a person, or nobody. So there are two judges of the product, this
knowledge and the resolver of ``resolver``, which reads the finished bundle.
"""

import random
from dataclasses import dataclass, field
from typing import Any

Node = dict[str, Any]
Person = tuple[str, str]
BASE = "https://clinic.example/fhir"
BASES = (BASE, "https://north.example/fhir", "http://south.example:8080/r4", "https://clinic.example/fhir/tenant")
MRN, OTHER_SYSTEM = "https://clinic.example/mrn", "https://elsewhere.example/mrn"
MATCHED = {(OTHER_SYSTEM, "matched"): (BASE, "matched-person")}
NO_PATIENTS = ("Location", "Group", "Device", "Practitioner", "Organization", "RelatedPerson")


@dataclass
class Case:
    """A reference to resolve: its entry, and whom it means (None: nobody)."""

    entry: Node
    reference: Node
    meant: Person | None
    form: str


@dataclass
class Lying:
    """A generated bundle and its cases."""

    kind: str
    entries: list[Node] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)


def uuid(rng: random.Random) -> str:
    text = f"{rng.getrandbits(128):032x}"
    return f"urn:uuid:{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Maker:
    """Makes one bundle."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.made = Lying(self.rng.choice(("transaction", "transaction", "collection", "searchset")))
        self.people: list[tuple[Node, Person]] = []

    def bundle(self, references: int) -> Lying:
        for number in range(self.rng.randint(1, 4)):
            self._add_patient(number)
        for _ in range(self.rng.randint(0, 3)):
            kind = self.rng.choice(NO_PATIENTS)
            self._entry({"resourceType": kind, "id": self.rng.choice("1234")}, self.rng.choice(("restful", "urn")))
        forms = [name for name in dir(self) if name.startswith("_form_")]
        while len(self.made.cases) < references:
            getattr(self, self.rng.choice(forms))()
        return self.made

    def _entry(self, resource: Node, url: str, base: str = BASE) -> Node:
        entry: Node = {"resource": resource}
        if url == "restful":
            entry["fullUrl"] = f"{base}/{resource['resourceType']}/{resource.get('id') or self.rng.randint(1, 9)}"
        elif url == "urn":
            entry["fullUrl"] = uuid(self.rng)
        self.made.entries.append(entry)
        return entry

    def _add_patient(self, number: int) -> None:
        rng = self.rng
        patient: Node = {"resourceType": "Patient"}
        if rng.random() < 0.7:
            patient["id"] = str(number + 1)
        if rng.random() < 0.6:
            patient["identifier"] = [{"system": rng.choice((MRN, OTHER_SYSTEM)), "value": f"n{number}"}]
        url = "urn" if "id" not in patient else rng.choice(("urn", "restful", "none"))
        base = rng.choice(BASES)
        entry = self._entry(patient, url, base)
        if url == "restful":
            person = (base, patient["id"])
        elif "id" in patient:
            person = (BASE, patient["id"])
        else:
            person = ("placeholder", entry["fullUrl"])
        self.people.append((entry, person))

    def _case(self, form: str, reference: Node, meant: Person | None, **resource: Any) -> None:
        node: Node = {"resourceType": "Observation", "id": f"o{len(self.made.cases)}", "subject": reference, **resource}
        entry = self._entry(node, self.rng.choice(("urn", "none", "restful")))
        self.made.cases.append(Case(entry, reference, meant, form))

    def _anybody(self) -> tuple[Node, Person]:
        return self.rng.choice(self.people)

    # What FHIR gives a meaning.

    def _form_full_url(self) -> None:
        entry, person = self._anybody()
        if "fullUrl" in entry:
            self._case("full-url", {"reference": entry["fullUrl"]}, person)

    def _form_relative(self) -> None:
        number = str(self.rng.randint(1, 9))
        self._case("relative", {"reference": f"Patient/{number}"}, (BASE, number))

    def _form_relative_under_another_base(self) -> None:
        number, base = str(self.rng.randint(1, 9)), self.rng.choice(BASES)
        reference = {"reference": f"Patient/{number}"}
        node = {"resourceType": "Observation", "id": f"b{len(self.made.cases)}", "subject": reference}
        entry = self._entry(node, "restful", base)
        self.made.cases.append(Case(entry, reference, (base, number), "relative-under-base"))

    def _form_absolute(self) -> None:
        base, number = self.rng.choice(BASES), str(self.rng.randint(1, 9))
        shown = base.replace("https://clinic.example", self.rng.choice(("https://clinic.example", "HTTPS://CLINIC.example:443")))
        self._case("absolute", {"reference": f"{shown}/Patient/{number}"}, (base, number))

    def _form_version(self) -> None:
        number = str(self.rng.randint(1, 9))
        self._case("version", {"reference": f"Patient/{number}/_history/{self.rng.randint(1, 9)}"}, (BASE, number))

    def _form_conditional(self) -> None:
        entry, person = self._anybody()
        for identifier in entry["resource"].get("identifier", []):
            known = identifier["system"] == MRN and self.made.kind == "transaction"
            text = f"Patient?identifier={identifier['system']}|{identifier['value']}"
            if self.rng.random() < 0.3:
                text = text.replace("|", "%7C")
            self._case("conditional", {"reference": text}, person if known else None)

    def _form_logical(self) -> None:
        entry, person = self._anybody()
        for identifier in entry["resource"].get("identifier", []):
            reference: Node = {"identifier": dict(identifier)}
            if self.rng.random() < 0.5:
                reference["type"] = "Patient"
            self._case("logical", reference, person if identifier["system"] == MRN else None)

    def _form_matched(self) -> None:
        reference = {"identifier": {"system": OTHER_SYSTEM, "value": "matched"}}
        self._case("matched", reference, (BASE, "matched-person"))

    def _form_contained(self) -> None:
        entry, person = self._anybody()
        identifiers = entry["resource"].get("identifier", [])
        known = any(identifier["system"] == MRN for identifier in identifiers)
        inner = {"resourceType": "Patient", "id": "p", "identifier": identifiers}
        self._case("contained", {"reference": "#p"}, person if known else None, contained=[inner])

    # Lies, and what names nobody.

    def _form_conditional_of_somebody_else(self) -> None:
        self._case("lie-conditional", {"reference": f"Patient?identifier={MRN}|MOTHER"}, None)

    def _form_query(self) -> None:
        texts = (
            f"{BASE}?x=Patient/1",
            "Patient?name=x",
            f"Patient?identifier={MRN}|n0&active=true",
            f"Patient?identifier={MRN}|n0,{MRN}|n1",
            "Patient?identifier=n0",
            f"Patient?identifier={MRN}/n0",
            f"Patient?identifier:of-type={MRN}|n0",
            f"{BASE}/Patient?identifier={MRN}|n0",
        )
        self._case("lie-query", {"reference": self.rng.choice(texts)}, None)

    def _form_path(self) -> None:
        texts = (
            "1",
            "/Patient/1",
            "./Patient/1",
            "../Patient/1",
            "fhir/Patient/1",
            "Patient/1/",
            "Patient/1/name",
            "Patient/1#x",
            "Patient/1?x=y",
            "Patient//1",
            "patient/1",
            "Patient/1 ",
            " Patient/1",
            "Patient/\u2160",
            "Patient/%31",
            "Patient/" + "1" * 65,
            "Patient/",
            "Patient",
            f"{BASE}/../fhir/Patient/1#a",
            "Kiwi/1",
            "javascript:Patient/1",
            "https://user@clinic.example/fhir/Patient/1",
            "https://clinic.example\\fhir/Patient/1",
            "https://clinic.example/./fhir/Patient/1",
            "//clinic.example/fhir/Patient/1",
        )
        self._case("lie-path", {"reference": self.rng.choice(texts)}, None)

    def _form_other_type(self) -> None:
        text = f"{self.rng.choice(NO_PATIENTS)}/{self.rng.randint(1, 4)}"
        prefix = self.rng.choice(("", BASE + "/", BASES[1] + "/"))
        self._case("other-type", {"reference": prefix + text}, None)

    def _form_stranger_urn(self) -> None:
        self._case("lie-urn", {"reference": self.rng.choice((uuid(self.rng), "urn:oid:1.2.36.146"))}, None)

    def _form_type_contradicts(self) -> None:
        reference = {"reference": f"Patient/{self.rng.randint(1, 4)}", "type": self.rng.choice(NO_PATIENTS)}
        self._case("lie-type", reference, None)

    def _form_identifier_contradicts(self) -> None:
        with_numbers = [
            (entry, person)
            for entry, person in self.people
            if any(item["system"] == MRN for item in entry["resource"].get("identifier", []))
        ]
        for entry, person in with_numbers:
            number = str(self.rng.randint(1, 9))
            reference = {"reference": f"Patient/{number}", "identifier": entry["resource"]["identifier"][0]}
            self._case("lie-identifier", reference, person if person == (BASE, number) else None)

    def _form_contained_lies(self) -> None:
        contained, name = self.rng.choice(
            (
                ([], "p"),
                ([{"resourceType": "Patient", "id": "p"}], "q"),
                ([{"resourceType": "Patient", "id": "p"}], "p"),
                ([{"resourceType": "Device", "id": "p", "patient": {"reference": "Patient/1"}}], "p"),
                ([{"resourceType": "Patient", "id": "p"}, {"resourceType": "Patient", "id": "p"}], "p"),
                ([{"resourceType": "Patient", "id": "p"}], ""),
            )
        )
        self._case("lie-contained", {"reference": "#" + name}, None, contained=contained)

    def _form_nothing(self) -> None:
        self._case("nothing", self.rng.choice(({"display": "Patient/1"}, {}, {"type": "Patient"})), None)

    def _form_one_url_twice(self) -> None:
        """Two Patients under one full URL: a reference to it is to neither. The new ones are strangers."""
        url = uuid(self.rng)
        for number in self.rng.choice((("x1", "x2"), (None, None), ("x1", None))):
            patient: Node = {"resourceType": "Patient"} | ({} if number is None else {"id": number})
            self.made.entries.append({"fullUrl": url, "resource": patient})
        self._case("lie-twice", {"reference": url}, None)
