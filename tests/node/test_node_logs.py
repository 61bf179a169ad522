"""Logs: JSON lines of known fields, and no word of a payload whatever is thrown at them."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastledger.daemon.notify import Notifier
from fastledger.errors import Code, InputError, NotFoundError
from fastledger.node.logs import AccessLog, Log, allowed_fields, new_request_id, request_context
from fastledger.node.options import LogOptions

CLINICAL = (
    "Erika Mustermann",
    "HIV positive",
    "1970-01-01",
    "Patient/123",
    "E11.9",
    "+49 30 1234567",
    "born 1970",
)


class Clock:
    now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms


def make(tmp_path: Path, level: str = "debug") -> tuple[Log, Path]:
    path = tmp_path / "node.log"
    return Log(LogOptions(level=level, path=str(path)), clock_ms=Clock()), path  # type: ignore[arg-type]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line(tmp_path: Path) -> None:  # SPEC-NODE-121
    log, path = make(tmp_path, "info")
    log.debug("batch")
    log.info("batch", height=5, txid=b"\x01" * 32, duration_us=12, slug="busy")
    with request_context("0011223344556677"):
        log.error("halted", error=NotFoundError("x"))
    assert lines(path) == [
        {
            "time_ms": Clock.now_ms,
            "level": "info",
            "event": "batch",
            "height": 5,
            "txid": "01" * 32,
            "duration_us": 12,
            "slug": "busy",
        },
        {
            "time_ms": Clock.now_ms,
            "level": "error",
            "event": "halted",
            "request_id": "0011223344556677",
            "slug": "not-found",
            "error_type": "NotFoundError",
        },
    ]


FIELD_NAMES = (
    "height",
    "txid",
    "method",
    "client",
    "slug",
    "address",
    "name",
    "payload",
    "body",
    "request_id",
    "version",
)


@pytest.mark.parametrize("text", CLINICAL)
def test_no_clinical_text_gets_in(tmp_path: Path, text: str) -> None:  # SPEC-NODE-122
    log, path = make(tmp_path)
    access = AccessLog(log, lines_per_second_max=1, clock_ms=Clock())
    hidden = [name for name in FIELD_NAMES if name not in ("method", "client", "version")]
    for write in (log.debug, log.info, log.warning, log.error):
        write(text, **dict.fromkeys(hidden, text))  # type: ignore[operator]
        write("event", **{text: text, "nested": {text: text}, "many": [text], "raw": text.encode()})  # type: ignore[operator]
        write("event", txid=text.encode(), upload_id=[text])  # type: ignore[operator]
    log.error("failed", error=ValueError(text))
    log.error("failed", error=InputError(text))
    with request_context(text) as given:
        assert given != text
        log.info("inside")
    for _ in range(3):
        access.request(method="ledger.status", status=200, code=Code.OK, duration_us=5, length=9)
    access.flush()
    written = path.read_text()
    assert text not in written
    assert text.encode().hex() not in written
    assert written.count("\n") == 17
    assert all(line["fields_dropped"] == len(hidden) for line in lines(path)[0:12:3])


WORDS = ("name", "note", "patient", "display", "text", "family", "value")


@given(
    st.dictionaries(
        st.sampled_from((*FIELD_NAMES, *WORDS)), st.text() | st.binary() | st.floats() | st.none()
    )
)
def test_only_known_forms_stand(fields: dict[str, Any]) -> None:  # SPEC-NODE-122
    kept = allowed_fields(fields)
    assert not set(kept) & set(WORDS)
    assert kept.pop("fields_dropped", 0) == len(fields) - len(kept)
    for value in kept.values():
        assert isinstance(value, str)
        assert value.isascii()
        assert " " not in value


def test_rotation(tmp_path: Path) -> None:  # SPEC-NODE-123
    log, path = make(tmp_path)
    log.info("one")
    path.rename(tmp_path / "node.log.1")
    log.info("two")
    log.reopen()
    log.info("three")
    assert [line["event"] for line in lines(tmp_path / "node.log.1")] == ["one", "two"]
    assert [line["event"] for line in lines(path)] == ["three"]
    path.unlink()
    path.mkdir()
    log.reopen()  # the name cannot be opened: the old file goes on
    assert log.file.dropped == 0
    log.file.close()
    log.info("late")
    assert log.file.dropped == 1


def test_requests_are_summed_beyond_a_rate(tmp_path: Path) -> None:  # SPEC-NODE-124
    log, path = make(tmp_path)
    clock = Clock()
    access = AccessLog(log, lines_per_second_max=2, clock_ms=clock)
    for number in range(1_000):
        code = Code.BUSY if number % 10 == 0 else Code.OK
        access.request(method="tx.submit", status=200, code=code, duration_us=3, length=2, client="lab")
    assert len(lines(path)) == 2
    clock.now_ms += 1_000
    access.request(method="tx.submit", status=200, code=Code.OK, duration_us=3)
    access.flush()
    told = lines(path)
    assert [line["event"] for line in told] == ["access", "access", "access.rest", "access"]
    assert told[2] | {"time_ms": 0} == {
        "time_ms": 0,
        "level": "info",
        "event": "access.rest",
        "requests": 998,
        "errors": 99,
        "bytes": 1_996,
        "duration_us": 2_994,
    }
    assert told[0]["client"] == "lab"


def test_request_ids_differ() -> None:
    assert len({new_request_id() for _ in range(100)}) == 100


def test_the_service_manager_is_told(tmp_path: Path) -> None:  # SPEC-NODE-131
    for address in (str(tmp_path / "notify"), f"@fastledger-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind("\0" + address[1:] if address[0] == "@" else address)
            notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
            assert notifier.watchdog_interval_ms == 15_000
            assert notifier.ready()
            assert notifier.watchdog()
            assert notifier.status("height 5\nREADY=0")
            assert notifier.stopping()
            assert [manager.recv(200) for _ in range(4)] == [
                f"READY=1\nMAINPID={os.getpid()}".encode(),
                b"WATCHDOG=1",
                b"STATUS=height 5 READY=0",
                b"STOPPING=1",
            ]


def test_without_a_service_manager_nothing_happens(tmp_path: Path) -> None:  # SPEC-NODE-131
    assert not Notifier({}).ready()
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    assert Notifier({}).watchdog_interval_ms == 0
    assert Notifier({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_interval_ms == 0
