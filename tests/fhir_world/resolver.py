"""A second resolver of FHIR references, from the text of FHIR R4 and nothing of the product.

Written along these passages, slowly and with lists: references.html 2.3.0.1 (literal references, the regular
expression of RESTful ones), 2.3.0.2 (contained), 2.3.0.4 (logical); bundle.html 2.36.4.1 (resolving references in
bundles); http.html 3.1.0.11.2 (transactions: conditional references). Where the text leaves a reference to a server
that we are not, the answer is None.

What it answers is a person's (base, id) or ("placeholder", url), or a word for why it is nobody.
"""

from typing import Any
from urllib.parse import unquote, urlsplit

Node = dict[str, Any]
Person = tuple[str, str]
# The regular expression of R4 (references.html), with the letters that RFC 3986 leaves unreserved besides.
_BASE_LETTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-.:%$_~/")
_ID_LETTERS = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-.")


class Resolver:
    """One bundle of one source."""

    def __init__(
        self,
        source_base: str,
        entries: list[Node],
        types: set[str],
        *,
        systems: set[str],
        matched: dict[tuple[str, str], Person],
        transaction: bool,
    ) -> None:
        self.source_base = source_base
        self.entries = entries
        self.types = types
        self.systems = systems
        self.matched = matched
        self.transaction = transaction

    # The text's notion of a RESTful URL: [base]/[type]/[id](/_history/[vid])?

    def split(self, text: str) -> tuple[str, str, str] | None:
        """(base or "", type, id) of a RESTful reference."""
        pieces = text.split("/")
        if len(pieces) >= 4 and pieces[-2] == "_history" and self.is_id(pieces[-1]):
            pieces = pieces[:-2]
        if len(pieces) < 2 or pieces[-2] not in self.types or not self.is_id(pieces[-1]):
            return None
        base = "/".join(pieces[:-2])
        if not base:
            return ("", pieces[-2], pieces[-1]) if len(pieces) == 2 else None
        tidy = self.tidy_base(base)
        return None if tidy is None else (tidy, pieces[-2], pieces[-1])

    @staticmethod
    def tidy_base(base: str) -> str | None:
        """RFC 3986 section 6.2: scheme and host in lower case, no default port; None for what is no plain base."""
        if not set(base) <= _BASE_LETTERS:
            return None
        try:
            parts = urlsplit(base)
            port = parts.port
        except ValueError:
            return None
        if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
            return None
        path = parts.path.split("/")
        if any(segment in (".", "..") for segment in path) or "" in path[1:]:
            return None
        own = {"http": 80, "https": 443}[parts.scheme.lower()]
        shown = "" if port in (None, own) else f":{port}"
        return f"{parts.scheme.lower()}://{parts.hostname.lower()}{shown}{parts.path}"

    @staticmethod
    def is_id(text: str) -> bool:
        return 1 <= len(text) <= 64 and set(text) <= _ID_LETTERS

    # Who an entry's Patient is.

    def person_of(self, entry: Node) -> Person | None:
        """By its full URL where that is RESTful, by its id at the source, or as a placeholder of this bundle."""
        resource, url = entry["resource"], entry.get("fullUrl")
        parts = self.split(url) if url else None
        if parts and parts[0]:
            return parts[0], parts[2]
        if "id" in resource:
            return self.source_base, resource["id"]
        if url and ":" in url and sum(1 for other in self.entries if other.get("fullUrl") == url) == 1:
            return "placeholder", url
        return None

    def same_url(self, left: str, right: str) -> bool:
        """Whether two absolute URLs name one resource, versions aside."""
        one, two = self.split(left), self.split(right)
        if one and two:
            return bool(one[0]) and one == two
        return left == right and not one and not two

    # Resolution.

    def resolve(self, reference: Node, holder: Node, entry: Node) -> tuple[str | None, Person | str]:
        """(type or None, person) for a person; (type or None, a word) for anything else."""
        kind, answer = self._resolve(reference, holder, entry)
        stated = reference.get("type")
        if stated is not None:
            if kind is None:
                kind, answer = stated, answer if isinstance(answer, str) else "nobody"
            elif kind != stated:
                return None, "contradiction"
        if isinstance(answer, tuple) and "reference" in reference and "identifier" in reference:
            people = self.people_with([reference["identifier"]])
            if people and people != {answer}:
                return "Patient", "contradiction"
        return kind, answer

    def _resolve(self, reference: Node, holder: Node, entry: Node) -> tuple[str | None, Person | str]:
        text = reference.get("reference")
        if text is None:
            if "identifier" not in reference:
                return None, "nothing"
            return self.one_of(self.people_with([reference["identifier"]]), None)
        if text[:1] == "#":
            return self.contained(text[1:], holder, entry)
        parts = self.split(text)
        if parts:
            base, kind, number = parts
            if not base:
                own = self.split(entry.get("fullUrl") or "")
                base = own[0] if own and own[0] else self.source_base
            return self.in_bundle(f"{base}/{kind}/{number}") or (
                (kind, (base, number)) if kind == "Patient" else (kind, "no patient")
            )
        if "?" in text and text.split("?")[0] in self.types:
            return self.conditional(*text.split("?", 1))
        head = text.split(":")[0]
        if ":" not in text or not head.isascii() or not head[:1].isalpha() or any(c.isspace() for c in text):
            return None, "malformed"
        return self.in_bundle(text) or (None, "elsewhere")

    def in_bundle(self, url: str) -> tuple[str | None, Person | str] | None:
        found = [item for item in self.entries if item.get("fullUrl") and self.same_url(item["fullUrl"], url)]
        if not found:
            return None
        answers = {(item["resource"]["resourceType"], self.answer_of(item)) for item in found}
        return answers.pop() if len(answers) == 1 else (None, "ambiguous")

    def answer_of(self, entry: Node) -> Person | str:
        if entry["resource"]["resourceType"] != "Patient":
            return "no patient"
        return self.person_of(entry) or "no name"

    def contained(self, name: str, holder: Node, entry: Node) -> tuple[str | None, Person | str]:
        if not name:
            return holder["resourceType"], self.answer_of(entry)
        found = [item for item in holder.get("contained", []) if item.get("id") == name]
        if len(found) != 1:
            return None, "ambiguous"
        if found[0]["resourceType"] != "Patient":
            return found[0]["resourceType"], "no patient"
        return self.one_of(self.people_with(found[0].get("identifier", [])), "Patient")

    def conditional(self, kind: str, query: str) -> tuple[str | None, Person | str]:
        if kind != "Patient":
            return kind, "no patient"
        if not self.transaction or not query.startswith("identifier=") or any(c in query for c in "&,#\\"):
            return "Patient", "nobody"
        token = unquote(query[len("identifier=") :])
        if token.count("|") != 1 or (any(c in token for c in ",\\") and any(c in token.split("|")[1] for c in ",\\")):
            return "Patient", "nobody"
        system, value = token.split("|")
        if not system or not value:
            return "Patient", "nobody"
        return self.one_of(self.people_with([{"system": system, "value": value}]), "Patient")

    def people_with(self, identifiers: list[Node]) -> set[Person]:
        people: set[Person] = set()
        for wanted in identifiers:
            system, value = wanted.get("system"), wanted.get("value")
            if not system or not value:
                continue
            if (system, value) in self.matched:
                people.add(self.matched[system, value])
            if system not in self.systems:
                continue
            for entry in self.entries:
                if entry["resource"]["resourceType"] != "Patient":
                    continue
                for own in entry["resource"].get("identifier", []):
                    if (own.get("system"), own.get("value")) == (system, value):
                        person = self.person_of(entry)
                        if person:
                            people.add(person)
        return people

    @staticmethod
    def one_of(people: set[Person], kind: str | None) -> tuple[str | None, Person | str]:
        if not people:
            return kind, "nobody"
        return ("Patient", next(iter(people))) if len(people) == 1 else ("Patient", "ambiguous")
