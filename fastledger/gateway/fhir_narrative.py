"""The XHTML of a narrative: txt-1 of FHIR R4.

Only inert, basic markup may stand in a ``div``: it is shown to clinicians, so scripts, forms, frames, event
handlers and document types are refused. txt-2 (a narrative is not empty) is not asked: official examples
break it. Source: FHIR R4, narrative.html, section 2.4.0.
"""

import re
from xml.parsers import expat

_ELEMENT_NAMES = (
    "a abbr acronym address area b big blockquote br caption cite code col colgroup dd dfn div dl dt em font "
    "h1 h2 h3 h4 h5 h6 hr i img kbd li map ol p pre q s samp small span strike strong sub sup table tbody td "
    "tfoot th thead tr tt u ul var"
)
_ELEMENTS = frozenset(_ELEMENT_NAMES.split())
_PREFIXED = re.compile(r"(?:[A-Za-z0-9]+:)?([A-Za-z0-9]+)").fullmatch
# The commonest narratives are one div of text: no parser is needed for them.
_plain_div = re.compile(r'<div xmlns="http://www\.w3\.org/1999/xhtml">[^<&\]]*</div>').fullmatch


class _ForbiddenError(Exception):
    """Raised out of the parser's callbacks for markup outside the subset."""


class _Inspector:
    """The parser's callbacks for one narrative; they raise at the first forbidden markup."""

    def __init__(self) -> None:
        self.at_root = True

    def start(self, name: str, attributes: dict[str, str]) -> None:
        match = _PREFIXED(name)
        if match is None or match[1] not in _ELEMENTS or (self.at_root and match[1] != "div"):
            raise _ForbiddenError
        self.at_root = False
        for key, value in attributes.items():
            if key[:2].lower() == "on" or value.strip().lower().startswith(("javascript:", "vbscript:")):
                raise _ForbiddenError

    def doctype(self, *_: object) -> None:
        raise _ForbiddenError


def is_inert_xhtml(div: str) -> bool:
    """Whether the ``div`` of a narrative is well-formed and holds basic markup only."""
    if _plain_div(div):
        return True
    inspector = _Inspector()
    parser = expat.ParserCreate()
    parser.StartElementHandler = inspector.start
    parser.StartDoctypeDeclHandler = inspector.doctype
    try:
        parser.Parse(div, True)
    except (expat.ExpatError, _ForbiddenError, UnicodeError):
        return False
    return True
