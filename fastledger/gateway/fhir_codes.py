"""Codes of FHIR R4 that a required binding closes: which element may hold which codes.

Facts of the FHIR R4 4.0.1 value sets (HL7, CC0 1.0). An element is named by the key of the object that
holds it and its own key, ``telecom.system``; the holder of a resource's own elements is the resource type.
R4 uses nearly every such pair in one meaning only; where types differ, the row says for which one it stands:
``Encounter:statusHistory.status``. Left out: bindings to open or very large sets (MIME types, currencies,
languages, licences, names of types) and elements of the resources that define the standard itself.
The tests derive the same table from the official definitions and compare.
"""

CodeTable = dict[str, tuple[tuple[str, frozenset[str]], ...]]

# Elements, then codes, both separated by spaces.
_ROWS: tuple[tuple[str, str], ...] = (
    ("Account.status", "active entered-in-error inactive on-hold unknown"),
    (
        "ActivityDefinition.intent DeviceRequest.intent NutritionOrder.intent RequestGroup.intent "
        "ServiceRequest.intent",
        "directive filler-order instance-order option order original-order plan proposal reflex-order",
    ),
    (
        "ActivityDefinition.kind",
        "Appointment AppointmentResponse CarePlan Claim CommunicationRequest Contract DeviceRequest "
        "EnrollmentRequest ImmunizationRecommendation MedicationRequest NutritionOrder ServiceRequest "
        "SupplyRequest Task VisionPrescription",
    ),
    (
        "ActivityDefinition.priority Communication.priority CommunicationRequest.priority "
        "DeviceRequest.priority MedicationRequest.priority RequestGroup.priority ServiceRequest.priority "
        "SupplyRequest.priority Task.priority action.priority",
        "asap routine stat urgent",
    ),
    (
        "ActivityDefinition.status CatalogEntry.status ChargeItemDefinition.status CodeSystem.status "
        "EffectEvidenceSynthesis.status EventDefinition.status Evidence.status EvidenceVariable.status "
        "InsurancePlan.status Library.status Measure.status PlanDefinition.status Questionnaire.status "
        "ResearchDefinition.status ResearchElementDefinition.status RiskEvidenceSynthesis.status "
        "ValueSet.status",
        "active draft retired unknown",
    ),
    (
        "ActivityDefinition:participant.type PlanDefinition:participant.type",
        "device patient practitioner related-person",
    ),
    ("AdverseEvent.actuality", "actual potential"),
    ("AllergyIntolerance.category", "biologic environment food medication"),
    ("AllergyIntolerance.criticality", "high low unable-to-assess"),
    ("AllergyIntolerance.type", "allergy intolerance"),
    (
        "Appointment.status",
        "arrived booked cancelled checked-in entered-in-error fulfilled noshow pending proposed waitlist",
    ),
    ("AppointmentResponse.participantStatus participant.status", "accepted declined needs-action tentative"),
    ("AuditEvent.action", "C D E R U"),
    ("AuditEvent.outcome", "0 12 4 8"),
    ("AuditEvent:network.type", "1 2 3 4 5"),
    ("BiologicallyDerivedProduct.productCategory", "biologicalAgent cells fluid organ tissue"),
    ("BiologicallyDerivedProduct.status", "available unavailable"),
    (
        "Bundle.type",
        "batch batch-response collection document history message searchset transaction transaction-response",
    ),
    ("CarePlan.intent", "option order plan proposal"),
    (
        "CarePlan.status CommunicationRequest.status DeviceRequest.status NutritionOrder.status "
        "RequestGroup.status ServiceRequest.status",
        "active completed draft entered-in-error on-hold revoked unknown",
    ),
    ("CareTeam.status", "active entered-in-error inactive proposed suspended"),
    ("ChargeItem.status", "aborted billable billed entered-in-error not-billable planned unknown"),
    (
        "Claim.status ClaimResponse.status Coverage.status CoverageEligibilityRequest.status "
        "CoverageEligibilityResponse.status EnrollmentRequest.status EnrollmentResponse.status "
        "ExplanationOfBenefit.status PaymentNotice.status PaymentReconciliation.status "
        "VisionPrescription.status",
        "active cancelled draft entered-in-error",
    ),
    ("Claim.use ClaimResponse.use ExplanationOfBenefit.use", "claim preauthorization predetermination"),
    (
        "ClaimResponse.outcome CoverageEligibilityResponse.outcome EnrollmentResponse.outcome "
        "ExplanationOfBenefit.outcome PaymentReconciliation.outcome",
        "complete error partial queued",
    ),
    ("ClinicalImpression.status", "completed entered-in-error in-progress"),
    ("CodeSystem.content", "complete example fragment not-present supplement"),
    ("CodeSystem.hierarchyMeaning", "classified-with grouped-by is-a part-of"),
    (
        "Communication.status Media.status Procedure.status",
        "completed entered-in-error in-progress not-done on-hold preparation stopped unknown",
    ),
    ("Composition.status DocumentReference.docStatus", "amended entered-in-error final preliminary"),
    ("Consent.status", "active draft entered-in-error inactive proposed rejected"),
    (
        "Contract.status contentDefinition.publicationStatus",
        "amended appended cancelled disputed entered-in-error executable executed negotiable offered policy "
        "rejected renewed resolved revoked terminated",
    ),
    (
        "CoverageEligibilityRequest.purpose CoverageEligibilityResponse.purpose",
        "auth-requirements benefits discovery validation",
    ),
    ("DetectedIssue.severity", "high low moderate"),
    ("DetectedIssue.status", "entered-in-error final mitigated preliminary"),
    ("Device.status", "active entered-in-error inactive unknown"),
    ("DeviceMetric.category", "calculation measurement setting unspecified"),
    ("DeviceMetric.color", "black blue cyan green magenta red white yellow"),
    ("DeviceMetric.operationalStatus", "entered-in-error off on standby"),
    ("DeviceUseStatement.status", "active completed entered-in-error intended on-hold stopped"),
    (
        "DiagnosticReport.status",
        "amended appended cancelled corrected entered-in-error final partial preliminary registered unknown",
    ),
    ("DocumentManifest.status DocumentReference.status", "current entered-in-error superseded"),
    (
        "Encounter.status Encounter:statusHistory.status",
        "arrived cancelled entered-in-error finished in-progress onleave planned triaged unknown",
    ),
    ("Endpoint.status", "active entered-in-error error off suspended test"),
    (
        "EpisodeOfCare.status EpisodeOfCare:statusHistory.status",
        "active cancelled entered-in-error finished onhold planned waitlist",
    ),
    ("EvidenceVariable.type ResearchElementDefinition.variableType", "continuous descriptive dichotomous"),
    ("FamilyMemberHistory.status", "completed entered-in-error health-unknown partial"),
    (
        "Flag.status Medication.status MedicationKnowledge.status Substance.status",
        "active entered-in-error inactive",
    ),
    (
        "Goal.lifecycleStatus",
        "accepted active cancelled completed entered-in-error on-hold planned proposed rejected",
    ),
    ("Group.type", "animal device medication person practitioner substance"),
    ("GuidanceResponse.status", "data-requested data-required entered-in-error failure in-progress success"),
    ("ImagingStudy.status", "available cancelled entered-in-error registered unknown"),
    ("Immunization.status", "completed entered-in-error not-done"),
    ("ImmunizationEvaluation.status", "completed entered-in-error"),
    ("Invoice.status", "balanced cancelled draft entered-in-error issued"),
    ("Linkage:item.type", "alternate historical source"),
    ("List.mode section.mode", "changes snapshot working"),
    ("List.status", "current entered-in-error retired"),
    ("Location.mode", "instance kind"),
    ("Location.status", "active inactive suspended"),
    ("MeasureReport.status", "complete error pending"),
    ("MeasureReport.type", "data-collection individual subject-list summary"),
    (
        "MedicationAdministration.status",
        "completed entered-in-error in-progress not-done on-hold stopped unknown",
    ),
    (
        "MedicationDispense.status",
        "cancelled completed declined entered-in-error in-progress on-hold preparation stopped unknown",
    ),
    (
        "MedicationRequest.intent",
        "filler-order instance-order option order original-order plan proposal reflex-order",
    ),
    ("MedicationRequest.status", "active cancelled completed draft entered-in-error on-hold stopped unknown"),
    (
        "MedicationStatement.status",
        "active completed entered-in-error intended not-taken on-hold stopped unknown",
    ),
    ("MolecularSequence.type", "aa dna rna"),
    (
        "Observation.status RiskAssessment.status",
        "amended cancelled corrected entered-in-error final preliminary registered unknown",
    ),
    (
        "ObservationDefinition.permittedDataType",
        "CodeableConcept Period Quantity Range Ratio SampledData boolean dateTime integer string time",
    ),
    (
        "Patient.gender Person.gender Practitioner.gender RelatedPerson.gender contact.gender "
        "qualifiedInterval.gender",
        "female male other unknown",
    ),
    ("Patient:link.type", "refer replaced-by replaces seealso"),
    (
        "Questionnaire:item.type",
        "attachment boolean choice date dateTime decimal display group integer open-choice quantity question "
        "reference string text time url",
    ),
    ("QuestionnaireResponse.status", "amended completed entered-in-error in-progress stopped"),
    ("ResearchElementDefinition.type", "exposure outcome population"),
    (
        "ResearchStudy.status",
        "active administratively-completed approved closed-to-accrual closed-to-accrual-and-intervention "
        "completed disapproved in-review temporarily-closed-to-accrual "
        "temporarily-closed-to-accrual-and-intervention withdrawn",
    ),
    (
        "ResearchSubject.status",
        "candidate eligible follow-up ineligible not-registered off-study on-study on-study-intervention "
        "on-study-observation pending-on-study potential-candidate screening withdrawn",
    ),
    ("Slot.status", "busy busy-tentative busy-unavailable entered-in-error free"),
    ("Specimen.status", "available entered-in-error unavailable unsatisfactory"),
    ("Subscription.status", "active error off requested"),
    ("SupplyDelivery.status", "abandoned completed entered-in-error in-progress"),
    ("SupplyRequest.status", "active cancelled completed draft entered-in-error suspended unknown"),
    (
        "Task.intent",
        "filler-order instance-order option order original-order plan proposal reflex-order unknown",
    ),
    (
        "Task.status",
        "accepted cancelled completed draft entered-in-error failed in-progress on-hold ready received "
        "rejected requested",
    ),
    (
        "ValueSet:filter.op filter.operator",
        "= descendent-of exists generalizes in is-a is-not-a not-in regex",
    ),
    ("VerificationResult.status", "attested in-process req-revalid reval-fail val-fail validated"),
    (
        "abatementAge.comparator ageAge.comparator amount.comparator amountQuantity.comparator "
        "answerQuantity.comparator areaUnderCurve.comparator boundsDuration.comparator "
        "caloricDensity.comparator capacity.comparator characteristicQuantity.comparator "
        "dailyAmount.comparator daysSupply.comparator deceasedAge.comparator denominator.comparator "
        "depth.comparator detailQuantity.comparator dispenseInterval.comparator dose.comparator "
        "doseQuantity.comparator due.comparator dueDuration.comparator duration.comparator "
        "durationQuantity.comparator expectedSupplyDuration.comparator externalDiameter.comparator "
        "fastingStatusDuration.comparator firstDose.comparator halfLife.comparator halfLifePeriod.comparator "
        "height.comparator high.comparator highLimit.comparator instancesQuantity.comparator "
        "length.comparator lethalDose50.comparator low.comparator lowLimit.comparator "
        "maxDosePerAdministration.comparator maxDosePerDay.comparator maxDosePerLifetime.comparator "
        "maxDuration.comparator maxSingleDose.comparator maxTreatmentPeriod.comparator "
        "maxVolumeToDeliver.comparator measureScore.comparator minimumVolumeQuantity.comparator "
        "nominalVolume.comparator numerator.comparator offsetDuration.comparator onsetAge.comparator "
        "origin.comparator participantEffectiveDuration.comparator "
        "participantEffectiveTimeFromStart.comparator performedAge.comparator period.comparator "
        "quantity.comparator quantityQuantity.comparator rateQuantity.comparator retentionTime.comparator "
        "score.comparator specimenQuantity.comparator studyEffectiveDuration.comparator "
        "studyEffectiveTimeFromStart.comparator timingAge.comparator timingDuration.comparator "
        "value.comparator valueAge.comparator valueCount.comparator valueDistance.comparator "
        "valueDuration.comparator valueQuantity.comparator weight.comparator width.comparator",
        "< <= > >=",
    ),
    (
        "accessionIdentifier.use additionalIdentifier.use authorisationReferenceNumber.use "
        "cTerminalModificationId.use component.use crossReference.use element.use groupIdentifier.use "
        "identifier.use immediatePackaging.use masterIdentifier.use nTerminalModificationId.use "
        "organismId.use outerPackaging.use parentSubstanceId.use paymentIdentifier.use "
        "preAdmissionIdentifier.use predecessor.use reference.use requestIdentifier.use requisition.use "
        "target.use targetIdentifier.use valueIdentifier.use",
        "official old secondary temp usual",
    ),
    ("action.cardinalityBehavior", "multiple single"),
    ("action.groupingBehavior", "logical-group sentence-group visual-group"),
    ("action.precheckBehavior", "no yes"),
    ("action.requiredBehavior", "could must must-unless-documented"),
    ("action.selectionBehavior", "all all-or-none any at-most-one exactly-one one-or-more"),
    ("address.type locationAddress.type valueAddress.type", "both physical postal"),
    ("address.use locationAddress.use valueAddress.use", "billing home old temp work"),
    ("attester.mode", "legal official personal professional"),
    ("availableTime.daysOfWeek hoursOfOperation.daysOfWeek repeat.dayOfWeek", "fri mon sat sun thu tue wed"),
    ("calibration.state", "calibrated calibration-required not-calibrated unspecified"),
    ("calibration.type", "gain offset two-point unspecified"),
    ("channel.type", "email message rest-hook sms websocket"),
    (
        "characteristic.participantEffectiveGroupMeasure characteristic.studyEffectiveGroupMeasure",
        "mean mean-of-mean mean-of-median median median-of-mean median-of-median",
    ),
    ("condition.kind", "applicability start stop"),
    ("contact.system telecom.system valueContactPoint.system", "email fax other pager phone sms url"),
    ("contact.use telecom.use valueContactPoint.use", "home mobile old temp work"),
    ("data.meaning", "authoredby dependents instance related"),
    (
        "detail.kind",
        "Appointment CommunicationRequest DeviceRequest MedicationRequest NutritionOrder ServiceRequest Task "
        "VisionPrescription",
    ),
    (
        "detail.status",
        "cancelled completed entered-in-error in-progress not-started on-hold scheduled stopped unknown",
    ),
    (
        "deviceName.type",
        "manufacturer-name model-name other patient-reported-name udi-label-name user-friendly-name",
    ),
    (
        "documentation.type justification.type relatedArtifact.type valueRelatedArtifact.type",
        "citation composed-of depends-on derived-from documentation justification predecessor successor",
    ),
    ("enableWhen.operator", "!= < <= = > >= exists"),
    ("entity.role", "derivation quotation removal revision source"),
    (
        "issue.code",
        "business-rule code-invalid conflict deleted duplicate exception expired extension forbidden "
        "incomplete informational invalid invariant lock-error login multiple-matches no-store not-found "
        "not-supported processing required security structure suppressed throttled timeout too-costly "
        "too-long transient unknown value",
    ),
    ("issue.severity", "error fatal information warning"),
    ("item.enableBehavior", "all any"),
    ("lensSpecification.eye", "left right"),
    ("link.assurance", "level1 level2 level3 level4"),
    ("location.status", "active completed planned reserved"),
    ("name.use valueHumanName.use", "anonymous maiden nickname official old temp usual"),
    ("parameter.use valueParameterDefinition.use", "in out"),
    ("participant.required", "information-only optional required"),
    ("priceComponent.type totalPriceComponent.type", "base deduction discount informational surcharge tax"),
    ("prism.base", "down in out up"),
    ("processNote.type", "display print printoper"),
    ("property.type", "Coding boolean code dateTime decimal integer string"),
    ("provision.type", "deny permit"),
    ("qualifiedInterval.category", "absolute critical reference"),
    ("quality.type", "indel snp unknown"),
    ("reaction.severity", "mild moderate severe"),
    ("referenceSeq.orientation", "antisense sense"),
    ("referenceSeq.strand", "crick watson"),
    (
        "relatedAction.relationship",
        "after after-end after-start before before-end before-start concurrent concurrent-with-end "
        "concurrent-with-start",
    ),
    ("relatedEntry.relationtype", "is-replaced-by triggers"),
    ("relatesTo.code", "appends replaces signs transforms"),
    ("repeat.durationUnit repeat.periodUnit", "a d h min mo s wk"),
    (
        "repeat.when",
        "AC ACD ACM ACV AFT AFT.early AFT.late C CD CM CV EVE EVE.early EVE.late HS MORN MORN.early "
        "MORN.late NIGHT NOON PC PCD PCM PCV PHS WAKE",
    ),
    ("repository.type", "directlink login oauth openapi other"),
    ("request.method", "DELETE GET HEAD PATCH POST PUT"),
    ("response.code", "fatal-error ok transient-error"),
    ("resultsByExposure.exposureState", "exposure exposure-alternative"),
    ("search.mode", "include match outcome"),
    ("sort.direction", "ascending descending"),
    ("storage.scale", "celsius farenheit kelvin"),
    ("text.status", "additional empty extensions generated"),
    (
        "trigger.type valueTriggerDefinition.type",
        "data-access-ended data-accessed data-added data-changed data-modified data-removed named-event "
        "periodic",
    ),
    ("typeTested.preference", "alternate preferred"),
    ("udiCarrier.entryType", "barcode card manual rfid self-reported unknown"),
    ("valueContributor.type", "author editor endorser reviewer"),
)

# CodeableConcepts whose binding is required: (code system, codes).
REQUIRED_CONCEPTS: dict[str, tuple[tuple[str, str, frozenset[str]], ...]] = {
    "AllergyIntolerance": (
        (
            "clinicalStatus",
            "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical",
            frozenset(("active", "inactive", "resolved")),
        ),
        (
            "verificationStatus",
            "http://terminology.hl7.org/CodeSystem/allergyintolerance-verification",
            frozenset(("unconfirmed", "confirmed", "refuted", "entered-in-error")),
        ),
    ),
    "Condition": (
        (
            "clinicalStatus",
            "http://terminology.hl7.org/CodeSystem/condition-clinical",
            frozenset(("active", "recurrence", "relapse", "inactive", "remission", "resolved")),
        ),
        (
            "verificationStatus",
            "http://terminology.hl7.org/CodeSystem/condition-ver-status",
            frozenset(
                ("unconfirmed", "provisional", "differential", "confirmed", "refuted", "entered-in-error")
            ),
        ),
    ),
}

# Elements of type date, dateTime or instant wherever R4 uses the name.
_DATE_KEYS = (
    "abatementDateTime answerDate answerDateTime approvalDate authored authoredOn birthDate bornDate "
    "collectedDateTime created createdDateTime creation date dateAsserted dateDateTime "
    "dateOfFirstAuthorization dateTime dateWritten deceasedDate deceasedDateTime detected dueDate "
    "effectiveDate effectiveDateTime effectiveInstant effectiveTime enteredDate eventDateTime "
    "expirationDate expiry identifiedDateTime ifModifiedSince internationalBirthDate issued "
    "lastModified lastOccurrence lastPerformed lastReviewDate lastUpdated manufactureDate nextScheduled "
    "occurredDateTime occurrenceDateTime onset onsetDateTime participantEffectiveDateTime paymentDate "
    "performedDateTime presentationDate publicationDate received receivedTime recorded recordedDate "
    "recordedOn releaseDate restoreDate sent servicedDate startDate started statusDate "
    "studyEffectiveDateTime time timeDateTime timestamp timingDate timingDateTime validTo "
    "validationDate valueDate valueDateTime valueInstant verificationDate whenHandedOver whenPrepared"
)
DATE_KEYS = frozenset(_DATE_KEYS.split())


def _tables() -> tuple[CodeTable, dict[str, CodeTable]]:
    """Returns the rows as lookups: by holder for every type, and the exceptions by type and holder."""
    general: dict[str, dict[str, frozenset[str]]] = {}
    by_type: dict[str, dict[str, dict[str, frozenset[str]]]] = {}
    for elements, codes in _ROWS:
        allowed = frozenset(codes.split())
        for element in elements.split():
            resource_type, _, place = element.rpartition(":")
            holder, key = place.split(".")
            table = by_type.setdefault(resource_type, {}) if resource_type else general
            table.setdefault(holder, {})[key] = allowed
    return _frozen(general), {name: _frozen(table) for name, table in by_type.items()}


def _frozen(table: dict[str, dict[str, frozenset[str]]]) -> CodeTable:
    return {holder: tuple(elements.items()) for holder, elements in table.items()}


CODES, CODES_BY_TYPE = _tables()
