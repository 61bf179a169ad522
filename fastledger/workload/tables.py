"""Tables of the generated hospital: names, codes and ranges.

Names are made up from words for samples and tests, so that nobody is meant and a search for a leak has something
unmistakable to find. Codes are those of LOINC, SNOMED CT, RxNorm and CVX for common findings.
"""

from typing import NamedTuple

LOINC = "http://loinc.org"
SNOMED = "http://snomed.info/sct"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
CVX = "http://hl7.org/fhir/sid/cvx"
UCUM = "http://unitsofmeasure.org"
MDC = "urn:iso:std:iso:11073:10101"
HL7 = "http://terminology.hl7.org/CodeSystem/"
HOSPITAL = "https://hospital.example/"

_GIVEN_NAMES = (
    "Alfina Bravon Charlona Deltine Echora Foxtan Golfine Hotella Indigan Juliette Kilona Limar Mikela "
    "Novema Oscarin Papilo Quebelle Romeon Sierrina Tangor Uniform Victorin Whiska Xrayda Yankel Zulina"
)
_FAMILY_NAMES = (
    "Dummond Examplar Fakenfield Fixtura Generico Hypothet Imagin Loremond Mockford Notional Placeholt "
    "Probemann Protoson Sampleton Specimund Stubbings Synthwell Templaton Testarossi Trialby Ipsumoor Voidson"
)
GIVEN_NAMES = tuple(_GIVEN_NAMES.split())
FAMILY_NAMES = tuple(_FAMILY_NAMES.split())
STREETS = ("Placeholder Street", "Sample Avenue", "Mock Lane", "Fixture Road", "Testing Way")
CITIES = ("Testville", "Sampleton", "Exampleburg")
ORGANIZATIONS = ("General Sample Hospital", "Mock Street Clinic", "Testville Health Insurance")


class Coded(NamedTuple):
    """A code of a code system, with the text that people read."""

    system: str
    code: str
    display: str


class Measure(NamedTuple):
    """A numeric observation: its code, UCUM unit, decimal places, usual range in units of the last place."""

    code: str
    display: str
    unit: str
    places: int
    low: int
    high: int


class Disease(NamedTuple):
    """A condition and the drug it is treated with; chronic ones stay active."""

    condition: Coded
    drug: Coded
    chronic: bool


DISEASES = (
    Disease(
        Coded(SNOMED, "44054006", "Diabetes mellitus type 2"),
        Coded(RXNORM, "860975", "24 HR metformin hydrochloride 500 MG Extended Release Oral Tablet"),
        True,
    ),
    Disease(
        Coded(SNOMED, "38341003", "Hypertensive disorder"),
        Coded(RXNORM, "314076", "lisinopril 10 MG Oral Tablet"),
        True,
    ),
    Disease(
        Coded(SNOMED, "195967001", "Asthma"),
        Coded(RXNORM, "745679", "200 ACTUAT albuterol 0.09 MG/ACTUAT Metered Dose Inhaler"),
        True,
    ),
    Disease(
        Coded(SNOMED, "49436004", "Atrial fibrillation"),
        Coded(RXNORM, "855332", "warfarin sodium 5 MG Oral Tablet"),
        True,
    ),
    Disease(
        Coded(SNOMED, "10509002", "Acute bronchitis"),
        Coded(RXNORM, "308192", "amoxicillin 500 MG Oral Tablet"),
        False,
    ),
    Disease(
        Coded(SNOMED, "444814009", "Viral sinusitis"),
        Coded(RXNORM, "313782", "acetaminophen 325 MG Oral Tablet"),
        False,
    ),
)
VITALS = (
    Measure("29463-7", "Body weight", "kg", 1, 480, 1150),
    Measure("8867-4", "Heart rate", "/min", 0, 52, 104),
    Measure("8310-5", "Body temperature", "Cel", 1, 359, 391),
    Measure("9279-1", "Respiratory rate", "/min", 0, 11, 21),
    Measure("59408-5", "Oxygen saturation in Arterial blood by Pulse oximetry", "%", 0, 93, 100),
)
BLOOD_PRESSURE = Coded(LOINC, "85354-9", "Blood pressure panel with all children optional")
SYSTOLIC = Measure("8480-6", "Systolic blood pressure", "mm[Hg]", 0, 98, 172)
DIASTOLIC = Measure("8462-4", "Diastolic blood pressure", "mm[Hg]", 0, 58, 104)
PANEL = Coded(LOINC, "24323-8", "Comprehensive metabolic 2000 panel - Serum or Plasma")
LABORATORY = (
    Measure("2345-7", "Glucose [Mass/volume] in Serum or Plasma", "mg/dL", 0, 68, 214),
    Measure("2160-0", "Creatinine [Mass/volume] in Serum or Plasma", "mg/dL", 2, 58, 171),
    Measure("2823-3", "Potassium [Moles/volume] in Serum or Plasma", "mmol/L", 1, 33, 54),
    Measure("2951-2", "Sodium [Moles/volume] in Serum or Plasma", "mmol/L", 0, 133, 147),
    Measure("4548-4", "Hemoglobin A1c/Hemoglobin.total in Blood", "%", 1, 46, 98),
)
# The range that a laboratory prints beside a result, by code, in units of the last place.
REFERENCE_RANGES = {
    "2345-7": (70, 99),
    "2160-0": (60, 130),
    "2823-3": (35, 50),
    "2951-2": (136, 145),
    "4548-4": (40, 56),
}
ECG = Coded(LOINC, "11524-6", "EKG study")
ECG_LEADS = (
    Coded(MDC, "131329", "MDC_ECG_ELEC_POTL_I"),
    Coded(MDC, "131330", "MDC_ECG_ELEC_POTL_II"),
    Coded(MDC, "131389", "MDC_ECG_ELEC_POTL_III"),
)
VACCINES = (
    Coded(CVX, "140", "Influenza, seasonal, injectable, preservative free"),
    Coded(CVX, "113", "Td (adult), 5 Lf tetanus toxoid, preservative free, adsorbed"),
    Coded(CVX, "133", "Pneumococcal conjugate PCV 13"),
    Coded(CVX, "121", "Zoster vaccine, live"),
    Coded(CVX, "208", "COVID-19, mRNA, LNP-S, PF, 30 mcg/0.3 mL dose"),
)
ALLERGIES = (
    Coded(SNOMED, "91936005", "Allergy to penicillin"),
    Coded(SNOMED, "91935009", "Allergy to peanut"),
    Coded(SNOMED, "300916003", "Latex allergy"),
)
PROCEDURES = (
    Coded(SNOMED, "430193006", "Medication reconciliation"),
    Coded(SNOMED, "29303009", "Electrocardiographic procedure"),
    Coded(SNOMED, "73761001", "Colonoscopy"),
    Coded(SNOMED, "399208008", "Plain chest X-ray"),
)
VISITS = (
    Coded(SNOMED, "185349003", "Encounter for check up"),
    Coded(SNOMED, "185345009", "Encounter for symptom"),
    Coded(SNOMED, "390906007", "Follow-up encounter"),
)
