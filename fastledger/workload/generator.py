"""A hospital's records from a seed: plausible, synthetic, and the same bytes everywhere (SPEC-LOAD-1).

No clock, no hash order, no floats: numbers come from ``SplitMix64``, decimals are decimals, keys keep the
order they are written in. Each patient has a generator of their own, so patient 7 is the same among 10 and
among 1,000.
"""

from collections.abc import Iterator
from datetime import date, timedelta

import msgspec

from fastledger.errors import InputError
from fastledger.gateway.sources import SourceBundle, SourceResource
from fastledger.workload import resources as r
from fastledger.workload import tables as t
from fastledger.workload.ecg import three_leads
from fastledger.workload.prng import SplitMix64

# The day on which every history ends.
LAST_DAY = date(2025, 6, 30)
PRACTITIONER_COUNT = 8
ECG_SAMPLES = 1_000

_encoder = msgspec.json.Encoder(decimal_format="number")
_HOSPITAL_STREAM = 0


def generate(seed: int, patients: int) -> Iterator[SourceBundle]:
    """Yields a bundle with the hospital's organisations and practitioners, then one for each patient.

    Every bundle holds valid FHIR R4 resources that refer to each other by ``urn:uuid``; a patient has about 65 to
    135 of them. Raises ``InputError`` for a negative number of patients.
    """
    if patients < 0:
        raise InputError(f"cannot generate {patients} patients")
    hospital = _Hospital(SplitMix64(seed, _HOSPITAL_STREAM))
    yield _bundle(hospital.nodes, 0, None)
    for number in range(1, patients + 1):
        history = _History(SplitMix64(seed, number), hospital, number)
        yield _bundle(history.nodes, number, history.patient_id)


def transaction_bundle(bundle: SourceBundle) -> bytes:
    """Returns the bundle as the text of a FHIR transaction Bundle, its resources byte for byte."""
    entries = [
        {
            "fullUrl": resource.full_url,
            "resource": msgspec.Raw(resource.raw),
            "request": {"method": "POST", "url": resource.resource_type},
        }
        for resource in bundle.resources
    ]
    return _encoder.encode({"resourceType": "Bundle", "type": "transaction", "entry": entries})


def _bundle(nodes: list[r.Node], index: int, patient_id: str | None) -> SourceBundle:
    origin = f"workload {index}"
    items = tuple(
        SourceResource(
            _encoder.encode(node),
            f"{origin}, entry {entry + 1}",
            index,
            entry,
            node["resourceType"],
            f"urn:uuid:{node['id']}",
            resource_id=node["id"],
        )
        for entry, node in enumerate(nodes)
    )
    return SourceBundle(items, origin, index, patient_id, f"urn:uuid:{patient_id}" if patient_id else None)


class _Hospital:
    """The organisations and practitioners of the hospital, and the insurer that pays."""

    def __init__(self, random: SplitMix64) -> None:
        self.organization_ids = [random.uuid() for _ in t.ORGANIZATIONS]
        self.insurer_id = self.organization_ids[-1]
        self.practitioner_ids = tuple(random.uuid() for _ in range(PRACTITIONER_COUNT))
        self.nodes = [
            r.organization(identity, name, number)
            for number, (identity, name) in enumerate(
                zip(self.organization_ids, t.ORGANIZATIONS, strict=True), start=1
            )
        ]
        for number, identity in enumerate(self.practitioner_ids, start=1):
            family, given = random.choice(t.FAMILY_NAMES), random.choice(t.GIVEN_NAMES)
            self.nodes.append(r.practitioner(identity, family, given, number))


class _History:
    """One patient's records, visit after visit."""

    def __init__(self, random: SplitMix64, hospital: _Hospital, number: int) -> None:
        self._random = random
        self._hospital = hospital
        self.nodes: list[r.Node] = []
        self.patient_id = random.uuid()
        self._coverage_id = random.uuid()
        self._height_cm = random.between(148, 197)
        self._weight_units = random.between(480, 1150)
        self._diseases = self._pick_diseases()
        self._add_patient(number)
        visits = random.between(4, 8)
        gap_days = 3_000 // visits
        for visit in range(visits):
            day = LAST_DAY - timedelta(days=gap_days * (visits - visit) - random.between(0, gap_days // 2))
            self._visit(visit, day, random.between(8 * 60, 17 * 60))

    def _pick_diseases(self) -> list[t.Disease]:
        first = self._random.between(0, len(t.DISEASES) - 1)
        count = self._random.between(2, 4)
        return [t.DISEASES[(first + step) % len(t.DISEASES)] for step in range(count)]

    def _add(self, node: r.Node) -> str:
        self.nodes.append(node)
        return str(node["id"])

    def _add_patient(self, number: int) -> None:
        random = self._random
        birth = LAST_DAY - timedelta(days=random.between(18 * 365, 90 * 365))
        address = {
            "line": [f"{random.between(1, 199)} {random.choice(t.STREETS)}"],
            "city": random.choice(t.CITIES),
            "country": "US",
        }
        family, given = random.choice(t.FAMILY_NAMES), random.choice(t.GIVEN_NAMES)
        gender = random.choice(("female", "male"))
        self._add(r.patient(self.patient_id, number, family, given, gender, birth, address))
        self._add(r.coverage(self._coverage_id, self.patient_id, self._hospital.insurer_id))

    def _visit(self, index: int, day: date, minute: int) -> None:
        random = self._random
        practitioner_id = random.choice(self._hospital.practitioner_ids)
        visit = random.choice(t.VISITS)
        at = r.moment(day, minute)
        encounter_id = self._add(
            r.encounter(random.uuid(), self.patient_id, practitioner_id, visit, day, minute)
        )
        about = {"subject": r.reference(self.patient_id), "encounter": r.reference(encounter_id)}
        self._add_vitals(about, at)
        if index < len(self._diseases):
            self._add_disease(self._diseases[index], about, encounter_id, day, minute, practitioner_id)
        if index == 0:
            self._add_background(day, at)
        if index % 2:
            self._add_laboratory(about, at)
        else:
            vaccine = random.choice(t.VACCINES)
            self._add(r.immunization(random.uuid(), self.patient_id, encounter_id, vaccine, at))
        if index % 3 == 1:
            end = r.moment(day, minute + random.between(5, 25))
            self._add(r.procedure(random.uuid(), about, random.choice(t.PROCEDURES), at, end))
        if index == 2:
            self._add_ecg(about, at)
        self._add_claim(encounter_id, visit, at, r.moment(day + timedelta(days=14), 12 * 60))

    def _add_vitals(self, about: r.Node, at: str) -> None:
        random = self._random
        height = t.Measure("8302-2", "Body height", "cm", 0, 0, 0)
        self._weight_units += random.between(-15, 15)
        for measure in (height, *t.VITALS):
            units = random.between(measure.low, measure.high)
            if measure is height:
                units = self._height_cm
            elif measure.code == "29463-7":
                units = self._weight_units
            self._observe("vital-signs", measure, units, about, at)
        body_mass = t.Measure("39156-5", "Body mass index (BMI) [Ratio]", "kg/m2", 1, 0, 0)
        units = self._weight_units * 10_000 // self._height_cm**2
        self._observe("vital-signs", body_mass, units, about, at)
        parts = [
            r.component(measure, random.between(measure.low, measure.high))
            for measure in (t.SYSTOLIC, t.DIASTOLIC)
        ]
        self._add(r.observation(random.uuid(), "vital-signs", t.BLOOD_PRESSURE, about, at, component=parts))

    def _observe(self, category: str, measure: t.Measure, units: int, about: r.Node, at: str) -> str:
        code = t.Coded(t.LOINC, measure.code, measure.display)
        result = r.measured(measure, units)
        return self._add(r.observation(self._random.uuid(), category, code, about, at, **result))

    def _add_disease(
        self,
        disease: t.Disease,
        about: r.Node,
        encounter_id: str,
        day: date,
        minute: int,
        practitioner_id: str,
    ) -> None:
        random = self._random
        onset = r.moment(day, minute)
        abated = None
        if not disease.chronic:
            abated = r.moment(day + timedelta(days=random.between(7, 21)), minute)
        self._add(r.condition(random.uuid(), self.patient_id, encounter_id, disease, onset, abated))
        self._add(r.prescription(random.uuid(), about, disease.drug, onset, practitioner_id, disease.chronic))

    def _add_background(self, day: date, at: str) -> None:
        """Adds the resources that the first visit records: allergies, a goal and a plan."""
        random = self._random
        if random.chance(60):
            self._add(r.allergy(random.uuid(), self.patient_id, random.choice(t.ALLERGIES), at))
        chief = self._diseases[0].condition.display
        goal_id = self._add(r.goal(random.uuid(), self.patient_id, f"Control of {chief.lower()}", day))
        self._add(r.care_plan(random.uuid(), self.patient_id, goal_id, f"Care plan: {chief}", day))

    def _add_laboratory(self, about: r.Node, at: str) -> None:
        random = self._random
        result_ids = [
            self._observe("laboratory", measure, random.between(measure.low, measure.high), about, at)
            for measure in t.LABORATORY
        ]
        self._add(r.report(random.uuid(), t.PANEL, about, at, result_ids))

    def _add_ecg(self, about: r.Node, at: str) -> None:
        random = self._random
        leads = three_leads(random, ECG_SAMPLES, random.between(55, 95))
        parts = [r.ecg_component(lead, samples) for lead, samples in zip(t.ECG_LEADS, leads, strict=True)]
        self._add(r.observation(random.uuid(), "procedure", t.ECG, about, at, component=parts))

    def _add_claim(self, encounter_id: str, visit: t.Coded, at: str, settled_at: str) -> None:
        random = self._random
        cents = random.between(60, 480) * 100 + random.choice((0, 25, 50, 95))
        provider_id = self._hospital.organization_ids[random.between(0, 1)]
        node = r.claim(
            random.uuid(), self.patient_id, provider_id, self._coverage_id, encounter_id, visit, cents, at
        )
        self._add(node)
        paid_cents = cents * random.between(60, 100) // 100
        self._add(r.benefit(random.uuid(), node, self._hospital.insurer_id, paid_cents, settled_at))
