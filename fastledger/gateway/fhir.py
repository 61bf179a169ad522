"""Validation of FHIR R4 (4.0.1) at the border.

Shape (types, cardinality, names, required elements, formats, duplicate keys) is ``fhirkit``'s verdict, known to this
module alone; closed codes, invariants and references are those of ``fhir_invariants``. The bytes of a resource are
never rewritten: a signature or a digest is over what the source sent, where 1.0 and 1.00 differ.

A problem is a (path, problem) pair. Neither part holds anything of the payload: paths are made of FHIR's own element
names and indexes, problems are fixed sentences (SPEC-FHIR-3).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fhirkit
import msgspec

from fastledger.errors import FhirError
from fastledger.gateway.fhir_describe import ResourceInfo, describe
from fastledger.gateway.fhir_invariants import check
from fastledger.gateway.json_bounds import has_more_values, values_most
from fastledger.gateway.lifting import Content, lift
from fastledger.limits import ISSUES_PER_RESOURCE_MAX, RESOURCE_BYTES_MAX, RESOURCE_VALUES_MAX

__all__ = ["FHIR_VERSION", "ResourceInfo", "Validated", "describe", "validate", "validate_each", "validate_many"]

FHIR_VERSION: str = fhirkit.FHIR_VERSION

Issue = tuple[str, str]

_RESOURCE_TYPES = frozenset(fhirkit.RESOURCE_TYPES)
# One release of the interpreter's lock per chunk; small enough that the parsed form stays in cache.
_CHUNK_RESOURCES = 64
# However few they are, so many values at a time are decoded, and so many bytes.
_CHUNK_VALUES = RESOURCE_VALUES_MAX
_CHUNK_BYTES = 16 * 1024 * 1024
_COUNTED_BYTES = 64 * 1024
_BOM = b"\xef\xbb\xbf"
_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True, eq=False)
class Validated:
    """A valid resource: the bytes of the source, and the same decoded.

    Decoded decimals may have lost digits, and in a large resource a short value stands for each long base64 one.
    """

    raw: bytes = field(repr=False)
    resource: dict[str, Any] = field(repr=False)

    @property
    def resource_type(self) -> str:
        """The ``resourceType``, one of R4's."""
        return str(self.resource["resourceType"])


def validate(raw: bytes) -> Validated:
    """Validates one resource; raises ``FhirError`` with the problems found (SPEC-FHIR-1)."""
    (outcome,) = validate_many([raw], threads=1)
    if isinstance(outcome, FhirError):
        raise outcome
    return outcome


def validate_many(resources: Sequence[bytes], threads: int = 1) -> list[Validated | FhirError]:
    """Validates a batch: returns for each resource, in order, its decoded form or the refusal.

    Never raises for input. ``threads`` is for the shape, which is checked without the interpreter's lock; 0 means
    one per core. One is the default: more cost half as much processor time again for little wall time.
    """
    return list(validate_each(resources, threads))


def validate_each(resources: Sequence[bytes], threads: int = 1) -> Iterator[Validated | FhirError]:
    """Validates a batch as :func:`validate_many` does, holding the decoded form of a few resources at a time."""
    for chunk in _chunks(resources):
        texts = [lift(raw) for raw in chunk]
        outcomes: list[Validated | FhirError] = [
            _read(raw, text) for raw, (text, _) in zip(chunk, texts, strict=True)
        ]
        readable = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Validated)]
        shapes = _shapes([texts[index][0] for index in readable], threads) if readable else []
        for index, shape in zip(readable, shapes, strict=True):
            outcomes[index] = _judge(outcomes[index], shape, *texts[index])
        yield from outcomes


def _chunks(resources: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Yields the resources in runs that are bounded by their number, bytes and values."""
    chunk: list[bytes] = []
    size = values = 0
    for raw in resources:
        # A text has no more values than bytes; only of long ones it is worth knowing better.
        most = len(raw) if len(raw) < _COUNTED_BYTES else values_most(raw)
        full = len(chunk) == _CHUNK_RESOURCES or size + len(raw) > _CHUNK_BYTES or values + most > _CHUNK_VALUES
        if chunk and full:
            yield chunk
            chunk, size, values = [], 0, 0
        chunk.append(raw)
        size, values = size + len(raw), values + most
    if chunk:
        yield chunk


def _read(raw: bytes, text: bytes) -> Validated | FhirError:
    """Decodes a resource by its ``text``, from which long values are lifted, or returns the refusal of what is none."""
    if len(raw) > RESOURCE_BYTES_MAX:
        return _refusal([("Resource", f"has {len(raw)} bytes, at most {RESOURCE_BYTES_MAX} are taken")])
    if has_more_values(text, RESOURCE_VALUES_MAX):
        return _refusal([("Resource", f"has more than {RESOURCE_VALUES_MAX} JSON values")])
    try:
        resource = _decode(text[3:] if text[:3] == _BOM else text)
    except msgspec.DecodeError as error:
        return _refusal([("Resource", _syntax_problem(error))])
    except UnicodeDecodeError:
        return _refusal([("Resource", "is not UTF-8")])
    except RecursionError:
        return _refusal([("Resource", "is nested too deeply")])
    if not isinstance(resource, dict):
        return _refusal([("Resource", "is not a JSON object")])
    resource_type = resource.get("resourceType")
    if not isinstance(resource_type, str) or resource_type not in _RESOURCE_TYPES:
        return _refusal([("Resource", "has no resourceType of FHIR R4")])
    return Validated(raw, resource)


_byte_offset = re.compile(r"\(byte (\d+)\)").search


def _syntax_problem(error: msgspec.DecodeError) -> str:
    if "out of range" in str(error):
        return "holds a number that is out of range"
    match = _byte_offset(str(error))
    return f"is not JSON from byte {match[1]} on" if match else "is not JSON"


def _refusal(issues: list[Issue]) -> FhirError:
    count = len(issues)
    return FhirError(f"not valid FHIR R4: {count} problem{'s' * (count > 1)}", issues=issues)


# Shape: everything that knows fhirkit.


def _shapes(raws: Sequence[bytes], threads: int) -> list[list[Any]]:
    """Returns fhirkit's issues for each resource."""
    if len(raws) > 1:
        try:
            return [parsed.issues for parsed in fhirkit.parse_many(list(raws), threads=threads)]
        except ValueError:
            # One item of the chunk is not JSON to fhirkit, though it was to msgspec: judge each alone.
            pass
    return [_shape_alone(raw) for raw in raws]


def _shape_alone(raw: bytes) -> list[Any]:
    try:
        return list(fhirkit.validate(raw))
    except ValueError as error:
        return [error]


def _judge(
    outcome: Validated | FhirError, shape: list[Any], text: bytes, lifted: Mapping[str, Content]
) -> Validated | FhirError:
    """Returns the verdict on a decoded resource. Invariants are checked only where the shape is sound."""
    if isinstance(outcome, FhirError):
        return outcome
    issues = _shape_issues(shape, outcome.resource) if shape else []
    if not issues:
        issues = check(outcome.resource, text, lifted)
    return _refusal(issues) if issues else outcome


def _shape_issues(shape: list[Any], resource: dict[str, Any]) -> list[Issue]:
    """Returns fhirkit's errors as issues without values, at most ``ISSUES_PER_RESOURCE_MAX``."""
    issues: list[Issue] = []
    for item in shape:
        if isinstance(item, ValueError):
            issues.append(("Resource", "is not well-formed JSON"))
        elif item.severity == "error":
            problem, names_payload = _problem(item.message)
            path = _known_path(item.path, resource) if names_payload else item.path
            issues.append((path, problem))
        if len(issues) == ISSUES_PER_RESOURCE_MAX:
            break
    return issues


# Ends of fhirkit's messages -> our sentence. A message may quote a value before its end, or even hold a name
# of the payload; so nothing of it is passed on but what stands here.
_PROBLEMS: tuple[tuple[str, str], ...] = (
    ("required element missing", "is required and missing"),
    ("an empty array is not allowed; leave the element out", "is an empty array"),
    ("null is not allowed; leave the element out", "is null"),
    ("null with no extension in its place", "is null without an extension in its place"),
    ("is outside the 32-bit range of a FHIR integer", "is outside the 32-bit range of an integer"),
    ("is not a FHIR integer", "is not an integer"),
    ("is not a FHIR decimal", "is not a decimal"),
    ("is not an unsignedInt (0 or more)", "is not an unsignedInt"),
    ("is not a positiveInt (1 or more)", "is not a positiveInt"),
    ("is not a FHIR R4 resource type this build knows", "is not a resource type of FHIR R4"),
    ("a resource needs a resourceType", "has no resourceType"),
)
_TYPE_WORDS = "an? (?:array|object|string|number|whole number|boolean|single value)|true or false|null"
_expected = re.compile(rf"expected ({_TYPE_WORDS}), found ({_TYPE_WORDS})").fullmatch
_format_name = re.compile(r"\bis not a valid ([A-Za-z0-9]{2,20})\Z").search
_PAYLOAD_NAMED = {
    "unknown element": "holds an unknown element",
    "the key appears more than once": "holds a key more than once",
}


def _problem(message: str) -> tuple[str, bool]:
    """Returns our sentence for a message of fhirkit, and whether the path's last name may be the payload's."""
    if message in _PAYLOAD_NAMED:
        return _PAYLOAD_NAMED[message], True
    match = _expected(message)
    if match:
        return f"is not {match[1]} but {match[2]}", False
    if message.startswith("an empty string is not allowed"):
        return "is an empty string", False
    if message.startswith("only one type may be given, found "):
        return "is given in more than one type", False
    for end, problem in _PROBLEMS:
        if message.endswith(end):
            return problem, False
    match = _format_name(message)
    return (f"is not a valid {match[1]}" if match else "is not valid"), False


def _known_path(path: str, resource: dict[str, Any]) -> str:
    """Returns the path of the object that holds the last name of ``path``, which may contain dots or brackets.

    It follows the decoded resource and stops at the first object that has all the rest as one key. What comes before
    was read by fhirkit and is therefore made of FHIR's own names.
    """
    known, _, rest = path.partition(".")
    node: object = resource
    while isinstance(node, dict) and rest and rest not in node:
        step = _step(rest)
        if step is None:
            break
        key, index, rest = step
        node = node.get(key)
        if index is not None:
            node = node[index] if isinstance(node, list) and index < len(node) else None
        known += f".{key}" if index is None else f".{key}[{index}]"
    return known if isinstance(node, dict) and rest in node else path.partition(".")[0]


_path_step = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\[(\d{1,9})\])?\.").match


def _step(rest: str) -> tuple[str, int | None, str] | None:
    match = _path_step(rest)
    if match is None:
        return None
    return match[1], None if match[2] is None else int(match[2]), rest[match.end() :]
