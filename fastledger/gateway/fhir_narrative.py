"""The XHTML of a narrative: txt-1 of FHIR R4, and what a browser makes of it (SPEC-FHIR-15).

A ``div`` is shown to clinicians, mostly as HTML. So it holds nothing but elements and attributes of the standard's
own list, in the XHTML name space, and URLs of a few schemes as a browser reads them: it drops tabs and line ends
anywhere, and blanks and controls in front. What HTML would read otherwise than XML (CDATA, processing instructions,
comments that HTML closes earlier) is refused. txt-2 (a narrative is not empty) is not asked: official examples break
it. Source: FHIR R4, narrative.html, section 2.4.0; URL Standard, section 4.4.
"""

import re
from xml.parsers import expat

_ELEMENT_NAMES = (
    "a abbr acronym b big blockquote br caption cite code col colgroup dd dfn div dl dt em h1 h2 h3 h4 h5 h6 "
    "hr i img li ol p pre q samp small span strong sub sup table tbody td tfoot th thead tr tt ul var"
)
_ATTRIBUTE_NAMES = (
    "abbr accesskey align alt axis bgcolor border cellhalign cellpadding cellspacing cellvalign char charoff "
    "charset cite class colspan compact coords dir frame headers height href hreflang hspace id lang longdesc "
    "name nowrap rel rev rowspan rules scope shape span src start style summary tabindex title type valign "
    "value vspace width"
)
_ELEMENTS = frozenset(_ELEMENT_NAMES.split())
_ATTRIBUTES = frozenset(_ATTRIBUTE_NAMES.split())
_XHTML = "http://www.w3.org/1999/xhtml"
_XML = "http://www.w3.org/XML/1998/namespace"
_URLS = frozenset(("href", "src", "cite", "longdesc"))
_SCHEMES = frozenset(("http", "https", "mailto", "tel", "urn", "cid"))
# Pictures that hold no script.
_is_picture = re.compile(
    r"data:image/(?:png|jpeg|gif|webp);base64,[A-Za-z0-9+/=\s]*", re.IGNORECASE
).fullmatch
_scheme_of = re.compile(r"([a-zA-Z][a-zA-Z0-9+.\-]*):").match
_css_comment = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
# What makes a style fetch or run something; a backslash hides any of these words.
_STYLE_WORDS = ("url", "expression", "import", "binding", "behavior", "script", "image", "\\", "@", "<", "&")
# The commonest narratives are one div of text: no parser is needed for them.
_plain_div = re.compile(r'<div xmlns="http://www\.w3\.org/1999/xhtml">[^<&\]]*</div>').fullmatch


class _ForbiddenError(Exception):
    """Raised out of the parser's callbacks for markup outside the subset."""


class _Inspector:
    """The parser's callbacks for one narrative; they raise at the first forbidden markup."""

    def __init__(self) -> None:
        self.at_root = True

    def start(self, name: str, attributes: dict[str, str]) -> None:
        space, _, element = name.rpartition(" ")
        if space not in ("", _XHTML) or element not in _ELEMENTS or (self.at_root and element != "div"):
            raise _ForbiddenError
        self.at_root = False
        for key, value in attributes.items():
            space, _, attribute = key.rpartition(" ")
            if space == _XML and attribute in ("lang", "space"):
                continue
            if space or attribute not in _ATTRIBUTES:
                raise _ForbiddenError
            if attribute in _URLS and not is_harmless_url(
                value, picture=element == "img" and attribute == "src"
            ):
                raise _ForbiddenError
            if attribute == "style" and not _is_harmless_style(value):
                raise _ForbiddenError

    def comment(self, text: str) -> None:
        # HTML ends a comment at once where it begins so; some browsers ran conditional ones.
        if text.startswith((">", "->")) or text.lstrip().lower().startswith("[if"):
            raise _ForbiddenError

    def forbidden(self, *_: object) -> None:
        raise _ForbiddenError


def is_harmless_url(text: str, *, picture: bool = False) -> bool:
    """Whether a URL, as a browser reads it, is relative or of a scheme that shows or calls and runs nothing.

    ``picture``: it is the source of an image, which may also be raster data.
    """
    # URL Standard 4.4: strip C0 controls and blanks at both ends, then drop tab, LF and CR anywhere.
    read = re.sub(r"[\t\n\r]", "", text.strip("".join(map(chr, range(0x21)))))
    if "\0" in read:
        return False
    scheme = _scheme_of(read)
    if scheme is None:
        # Not a scheme to us, but who knows what stands before a colon: none before the first slash or mark.
        return ":" not in re.split(r"[/?#]", read, maxsplit=1)[0]
    return scheme[1].lower() in _SCHEMES or (picture and _is_picture(read) is not None)


def _is_harmless_style(text: str) -> bool:
    read = _css_comment.sub("", text).lower()
    return not any(word in read for word in _STYLE_WORDS)


def is_inert_xhtml(div: str) -> bool:
    """Whether the ``div`` of a narrative is well-formed and holds basic markup only."""
    if _plain_div(div):
        return True
    inspector = _Inspector()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = inspector.start
    parser.CommentHandler = inspector.comment
    parser.StartDoctypeDeclHandler = inspector.forbidden
    parser.ProcessingInstructionHandler = inspector.forbidden
    parser.StartCdataSectionHandler = inspector.forbidden
    parser.XmlDeclHandler = inspector.forbidden
    try:
        parser.Parse(div, True)
    except (expat.ExpatError, _ForbiddenError, UnicodeError):
        return False
    return True
