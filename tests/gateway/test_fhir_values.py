"""Values that a clinician or a program will be shown: dates, base64, attachments, strings and narratives."""

import base64
import binascii
import hashlib
import re
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fhir import PATIENT, encode, issues_of, observation

from fastledger.gateway.fhir import validate
from fastledger.gateway.fhir_narrative import is_inert_xhtml
from fastledger.gateway.lifting import LIFT_TEXT_BYTES, lift

# R4's regular expressions, as the standard prints them.
_YEAR = r"([0-9]([0-9]([0-9][1-9]|[1-9]0)|[1-9]00)|[1-9]000)"
_DAY = r"(0[1-9]|[1-2][0-9]|3[0-1])"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?"
_ZONE = r"(Z|(\+|-)((0[0-9]|1[0-3]):[0-5][0-9]|14:00))"
DATE_TIME = re.compile(rf"{_YEAR}(-(0[1-9]|1[0-2])(-{_DAY}(T{_TIME}{_ZONE})?)?)?")
BASE64 = re.compile(r"(\s*([0-9a-zA-Z\+\/=]){4}\s*)+")


@settings(max_examples=600, deadline=None)
@given(st.from_regex(DATE_TIME, fullmatch=True), st.data())
def test_dates_are_those_of_the_standards_expression(text: str, data: st.DataObject) -> None:  # SPEC-FHIR-16
    """And no other: one letter is changed, and the two judges agree. Days that do not exist are refused besides."""
    text = text.translate({ord(c): str(int(c)) for c in text if c.isdigit() and not c.isascii()})
    letters = st.sampled_from("0123456789-:+.TZ")
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + data.draw(letters) + text[place + 1 :]
    for value in (text, changed):
        found = issues_of(encode({**PATIENT, "deceasedDateTime": value}))
        sound = DATE_TIME.fullmatch(value) is not None
        if sound and len(value) >= 10:
            try:
                date.fromisoformat(value[:10])
            except ValueError:
                sound = False
        assert (found == ()) is sound, value


@pytest.mark.parametrize(
    "value", ["0000", "0000-01", "0000-01-01", "2020-01-01T10:00:00+14:30", "2020-01-01T10:00:00-14:01"]
)
def test_years_and_zones_that_do_not_exist(value: str) -> None:  # SPEC-FHIR-16
    assert issues_of(encode({**PATIENT, "deceasedDateTime": value})) != ()
    assert issues_of(encode({**PATIENT, "name": [{"family": value}]})) == ()


def binary(data: str) -> bytes:
    return encode({"resourceType": "Binary", "contentType": "text/plain", "data": data})


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from("aGk=+/ \n-_"), min_size=1, max_size=16)
    | st.binary(min_size=1).map(lambda b: base64.b64encode(b).decode())
)
def test_base64_is_what_can_be_decoded(text: str) -> None:  # SPEC-FHIR-16
    if issues_of(binary(text)) == ():
        assert BASE64.fullmatch(text)
        assert base64.b64decode("".join(text.split()), validate=True) is not None
    elif BASE64.fullmatch(text):
        with pytest.raises(binascii.Error):
            binascii.a2b_base64("".join(text.split()), strict_mode=True)


@pytest.mark.parametrize("text", ["aG=k", "aGk", "a===", "aGk=aGk=", "aG k=\u00a0", "aGk=\u0000"])
def test_base64_that_cannot_be_decoded(text: str) -> None:  # SPEC-FHIR-16
    assert issues_of(binary(text)) != ()


def test_an_attachments_size_and_hash_are_those_of_its_data() -> None:  # SPEC-FHIR-16
    content = b"a page"
    sound = {
        "contentType": "text/plain",
        "data": base64.b64encode(content).decode(),
        "size": len(content),
        "hash": base64.b64encode(hashlib.sha1(content).digest()).decode(),
    }
    for changes, path in (
        ({}, None),
        ({"size": 5}, "size"),
        ({"hash": base64.b64encode(hashlib.sha1(b"x").digest()).decode()}, "hash"),
        ({"hash": hashlib.sha1(content).hexdigest()}, "hash"),
        ({"data": "aG=k"}, "data"),
        ({"data": "", "size": 0}, "data"),
    ):
        node = {**PATIENT, "photo": [{**sound, **changes}]}
        places = [place for place, _ in issues_of(encode(node))]
        assert places == ([] if path is None else [f"Patient.photo[0].{path}"]), changes
    sampled = {"origin": {"value": 1}, "period": 1, "dimensions": 1, "data": "1 2 E"}
    assert issues_of(encode(observation(valueQuantity=None, valueSampledData=sampled))) == ()


def test_large_attachments_are_judged_without_decoding_them() -> None:  # SPEC-FHIR-14, SPEC-FHIR-16
    content = bytes(range(256)) * 16 * 1024
    sound = {
        "contentType": "application/pdf",
        "data": base64.b64encode(content).decode(),
        "size": len(content),
        "hash": base64.b64encode(hashlib.sha1(content).digest()).decode(),
    }
    raw = encode({**PATIENT, "photo": [sound]})
    assert len(raw) > LIFT_TEXT_BYTES
    valid = validate(raw)
    assert valid.raw is raw
    assert len(valid.resource["photo"][0]["data"]) < 100
    for changes, path in (
        ({"size": 5}, "size"),
        ({"hash": base64.b64encode(bytes(20)).decode()}, "hash"),
        ({"data": sound["data"][:-2] + "=A"}, "data"),
        ({"data": sound["data"][:-1]}, "data"),
        ({"title": sound["data"]}, "title"),
    ):
        node = {**PATIENT, "photo": [{**sound, **changes}]}
        assert [place for place, _ in issues_of(encode(node))] == [f"Patient.photo[0].{path}"], path
    text, lifted = lift(raw)
    assert len(text) < 1_000
    assert [item.size for item in lifted.values()] == [len(content)]
    # Between the quotation marks of two values there is no value.
    between = b'{"a":"' + b"x" * LIFT_TEXT_BYTES + b'!","b":1}'
    assert lift(between) == (between, {})


def test_strings_hold_no_controls_and_end_somewhere() -> None:  # SPEC-FHIR-16
    for text, sound in (
        ("a\tb\r\nc", True),
        ("a\u007f\u00a0", True),
        ("a\u0000", False),
        ("\b", False),
        ("\f", False),
        ("\u001b[31m", False),
        ("x" * 1024 * 1024, True),
        ("x" * (1024 * 1024 + 1), False),
    ):
        assert (issues_of(encode({**PATIENT, "name": [{"text": text}]})) == ()) is sound, text[:9]
        assert (issues_of(encode({**PATIENT, "name": [{"given": [text]}]})) == ()) is sound, text[:9]
    assert issues_of(binary("aGkh" * 400_000)) == ()


# Narratives.

DIVS = {
    '<div xmlns="http://www.w3.org/1999/xhtml">text</div>': True,
    '<div xmlns="http://www.w3.org/1999/xhtml"><table><tr><td>1</td></tr></table></div>': True,
    "<div>a &lt; b &#160;</div>": True,
    "<div>": False,
    "<p>x</p>": False,
    "<div>&nbsp;</div>": False,
    '<div onclick="x()">x</div>': False,
    '<div><a href=" JavaScript:x()">x</a></div>': False,
    "<div><iframe/></div>": False,
    "<div><form/></div>": False,
    '<!DOCTYPE div [<!ENTITY a "b">]><div>&a;</div>': False,
    "<div>a</div><div>b</div>": False,
    '<div xmlns="http://www.w3.org/2000/svg">x</div>': False,
    '<h:div xmlns:h="http://www.w3.org/1999/xhtml"><h:p>x</h:p></h:div>': True,
    '<div xmlns="http://www.w3.org/1999/xhtml"><x:p xmlns:x="u:u">x</x:p></div>': False,
    '<div><a href="#x" title="y">x</a><img src="a.png" alt="z"/></div>': True,
    '<div xml:lang="de" lang="de" style="color: red; text-align: left">x</div>': True,
    '<div><table><tr idref="a"><td>x</td></tr></table></div>': False,
    '<div><a xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="x">x</a></div>': False,
    '<div style="background: url(https://x.example)">x</div>': False,
    '<div style="width: exp/**/ression(x())">x</div>': False,
    '<div style="w: e\\78pression(x())">x</div>': False,
    "<div><?php x ?></div>": False,
    "<?xml version='1.0'?><div>x</div>": False,
    "<div><![CDATA[<img src='x'>]]></div>": False,
    "<div><!-- a comment --></div>": True,
    "<div><!--> <b>x</b> --></div>": False,
    "<div><!---> <b>x</b> --></div>": False,
    "<div><!--[if IE]> x <![endif]--></div>": False,
    "<div><script>x</script></div>": False,
    "<div><svg/></div>": False,
    "<div><style>x</style></div>": False,
    '<div><img src="data:image/png;base64,aGk="/></div>': True,
    '<div><img src="data:image/svg+xml;base64,aGk="/></div>': False,
    '<div><a href="data:image/png;base64,aGk=">x</a></div>': False,
    '<div><a href="data:text/html,x">x</a></div>': False,
}
# What stands between the letters of a scheme, or before it, and a browser does not see.
UNSEEN = ("", "&#9;", "&#10;", "&#13;", "\t", "\n", "&#x9;")
LEADING = ("", " ", "&#32;", "&#10;", "&#x20;&#9;")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_spelling_of_a_scheme_passes(data: st.DataObject) -> None:  # SPEC-FHIR-15
    scheme = data.draw(st.sampled_from(("javascript", "vbscript", "data", "file", "blob", "feed", "jar")))
    spelt = data.draw(st.sampled_from(LEADING))
    for letter in scheme:
        case = data.draw(
            st.sampled_from((letter, letter.upper(), f"&#{ord(letter)};", f"&#x{ord(letter):x};"))
        )
        spelt += case + data.draw(st.sampled_from(UNSEEN))
    colon = data.draw(st.sampled_from((":", "&#58;", "&#x3a;")))
    tag = data.draw(st.sampled_from(('<a href="%s">x</a>', '<img src="%s"/>', '<q cite="%s">x</q>')))
    div = "<div>" + tag % (spelt + colon + "alert(1)") + "</div>"
    assert not is_inert_xhtml(div), div
    assert is_inert_xhtml("<div>" + tag % "https://h.example/a:b" + "</div>")
    assert is_inert_xhtml("<div>" + tag % "Patient/1?x=a:b#c" + "</div>")


@pytest.mark.parametrize(("div", "accepted"), DIVS.items())
def test_narratives(div: str, accepted: bool) -> None:
    node = {**PATIENT, "text": {"status": "generated", "div": div}}
    assert (issues_of(encode(node)) == ()) is accepted
