"""Envelopes over real sockets: resumable uploads, audited and resumable downloads."""

import asyncio
import base64
import gc
import hashlib
import random
import resource
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self

import aiohttp
import msgspec
import pytest
from node_world import until
from world import World, make_world

from fastledger import Purpose, SealedRecord
from fastledger.errors import Code
from fastledger.node.service import NodeService
from fastledger.rpc.blobs import BlobService, blob_routes
from fastledger.rpc.http.ranges import parse_range
from fastledger.rpc.options import AccessOptions, BlobOptions, ClientRule, RateOptions, RpcOptions
from fastledger.rpc.protocol import DIGEST_HEADER, TICKET_HEADER, TUS_TYPE, TXID_HEADER
from fastledger.rpc.server import Extras, RpcServer
from fastledger.storage.blobs.options import UploadLimits
from fastledger.subjects.consent import CONSENT_MISSING

TOKENS = {"alice": "a" * 40, "bob": "b" * 40}
TUS = {"Tus-Resumable": "1.0.0"}
ENVELOPE = random.Random(11).randbytes(3_000_000)


@dataclass
class Site:
    """A node with blobs, its world, and an HTTP session."""

    world: World
    blobs: BlobService
    server: RpcServer
    http: aiohttp.ClientSession

    def as_(self, name: str | None) -> dict[str, str]:
        return {} if name is None else {"Authorization": f"Bearer {TOKENS[name]}"}

    async def put(self, content: bytes) -> SealedRecord:
        sealed = self.world.patient.put_record("vitals", content, ())
        outcome = await asyncio.to_thread(self.world.ledger.submit, [sealed.transaction], [sealed.blob])
        outcome[0].raise_for_status()
        return sealed

    async def submit(self, *transactions: object) -> None:
        await asyncio.to_thread(self.world.submit, *transactions)  # type: ignore[arg-type]

    async def begin(self, data: bytes, name: str | None = "alice", digest: bytes | None = None) -> str:
        status, headers = await self.post(len(data), digest or sha256(data).digest(), name)
        assert status == 201
        return headers["Location"]

    async def post(
        self, size: int, digest: bytes, name: str | None = "alice"
    ) -> tuple[int, Mapping[str, str]]:
        metadata = f"name eA==,sha256 {base64.b64encode(digest).decode()}"
        headers = {**TUS, "Upload-Length": str(size), "Upload-Metadata": metadata, **self.as_(name)}
        async with self.http.post("/v1/uploads", headers=headers) as answer:
            return answer.status, answer.headers

    async def patch(
        self, place: str, offset: int, data: object, name: str | None = "alice", kind: str = TUS_TYPE
    ) -> tuple[int, Mapping[str, str]]:
        headers = {**TUS, "Upload-Offset": str(offset), "Content-Type": kind, **self.as_(name)}
        async with self.http.patch(place, headers=headers, data=data) as answer:
            return answer.status, answer.headers

    async def head(self, place: str, name: str | None = "alice") -> tuple[int, Mapping[str, str]]:
        async with self.http.head(place, headers={**TUS, **self.as_(name)}) as answer:
            return answer.status, answer.headers

    async def read(self, access: bytes, name: str | None = "alice") -> tuple[int, Mapping[str, str], bytes]:
        async with self.http.post("/v1/reads", data=access, headers=self.as_(name)) as answer:
            return answer.status, answer.headers, await answer.read()

    async def resume(
        self, ticket: str, name: str | None = "alice", **headers: str
    ) -> tuple[int, Mapping[str, str], bytes]:
        wanted = {key.replace("_", "-"): value for key, value in headers.items()}
        async with self.http.get(f"/v1/reads/{ticket}", headers={**wanted, **self.as_(name)}) as answer:
            return answer.status, answer.headers, await answer.read()


@asynccontextmanager
async def open_site(path: Path, *, timeout_ms: int = 30_000, **limits: int) -> AsyncIterator[Site]:
    world = await asyncio.to_thread(make_world, path)
    service = await NodeService.start(world.ledger)
    uploads = world.ledger.open_uploads(UploadLimits(**limits))
    blobs = BlobService(world.ledger, service.ingest.submit, uploads, BlobOptions(tickets_max=3, orphan_age_ms=1_000))
    rules = [
        ClientRule(name=name, token_sha256=sha256(token.encode()).hexdigest(), roles=("reader", "submitter"))
        for name, token in TOKENS.items()
    ]
    server = RpcServer(
        service,
        RpcOptions(request_timeout_ms=timeout_ms, write_timeout_ms=timeout_ms),
        AccessOptions(clients=rules),
        extras=Extras(routes=blob_routes(blobs)),
    )
    await server.start()
    async with aiohttp.ClientSession(server.url) as http:
        yield Site(world, blobs, server, http)
    await server.stop()
    await blobs.close()
    await service.stop()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(tmp_path / "ledger") as made:
        yield made


# Uploads.


async def test_an_upload_in_pieces_becomes_an_envelope(site: Site) -> None:  # SPEC-UPL-7
    place = await site.begin(ENVELOPE)
    digest = sha256(ENVELOPE).digest()
    offset = 0
    for end in (1, 100_000, 2_000_000, len(ENVELOPE)):
        status, headers = await site.patch(place, offset, ENVELOPE[offset:end])
        assert (status, headers["Upload-Offset"]) == (204, str(end))
        offset = end
    assert headers[DIGEST_HEADER] == digest.hex()
    assert site.world.ledger.missing_blobs([digest]) == []
    status, headers = await site.head(place)
    assert (status, headers["Upload-Offset"], headers["Upload-Length"]) == (200, str(offset), str(offset))
    assert headers["Upload-Metadata"].split()[1] == base64.b64encode(digest).decode()
    assert (headers["Cache-Control"], headers["Tus-Resumable"]) == ("no-store", "1.0.0")
    assert headers["Upload-Expires"].endswith(" GMT")


async def test_what_is_spoken_of_tus(site: Site) -> None:  # SPEC-UPL-7
    async with site.http.options("/v1/uploads") as answer:
        assert answer.status == 204
        assert answer.headers["Tus-Extension"] == "creation,expiration,termination"
        assert int(answer.headers["Tus-Max-Size"]) == 2**30
    for method, path in (("POST", "/v1/uploads"), ("HEAD", "/v1/uploads/x"), ("PATCH", "/v1/uploads/x")):
        async with site.http.request(method, path, headers={"Tus-Resumable": "0.2.2"}) as answer:
            assert (answer.status, answer.headers["Tus-Version"]) == (412, "1.0.0")


async def test_each_mistake_of_an_upload_has_its_answer(site: Site) -> None:  # SPEC-UPL-7
    digest = sha256(ENVELOPE).digest()
    assert (await site.post(2**30 + 1, digest))[0] == 413
    assert (await site.post(0, digest))[0] == 400
    assert (await site.post(10, digest[:31]))[0] == 400
    for headers in ({}, {"Upload-Length": "5"}, {"Upload-Length": "-1"}, {"Upload-Metadata": "sha256"}):
        async with site.http.post("/v1/uploads", headers={**TUS, **headers}) as answer:
            assert answer.status == 400
    place = await site.begin(ENVELOPE)
    assert (await site.patch(place, 0, b"x", kind="text/plain"))[0] == 415
    status, headers = await site.patch(place, 7, b"x")
    assert (status, headers["Upload-Offset"]) == (409, "0")
    assert (await site.patch(place, 0, bytes(len(ENVELOPE) + 1)))[0] == 413
    assert (await site.head(place))[1]["Upload-Offset"] == "0"
    for other in ("bob", None):
        assert (await site.head(place, other))[0] == 404  # SPEC-UPL-5
        assert (await site.patch(place, 0, b"x", other))[0] == 404
    assert (await site.patch(place, 0, bytes(len(ENVELOPE))))[0] == 422
    assert (await site.head(place))[0] == 404
    assert (await site.head(f"{place[:-1]}%2e"))[0] == 404


async def test_a_body_longer_than_it_says_is_cut_at_the_end(site: Site) -> None:  # SPEC-UPL-7
    place = await site.begin(ENVELOPE[:100_000])

    async def pieces() -> AsyncIterator[bytes]:  # chunked: no length is announced
        for _ in range(30):
            yield ENVELOPE[:10_000]

    assert (await site.patch(place, 0, pieces()))[0] == 413
    assert int((await site.head(place))[1]["Upload-Offset"]) <= 100_000


async def test_abandoned_and_expired(tmp_path: Path) -> None:  # SPEC-UPL-4
    async with open_site(tmp_path / "ledger", uploads_max=1, lifetime_ms=1_000) as site:
        place = await site.begin(ENVELOPE)
        status, headers = await site.post(5, sha256(b"").digest())
        assert status == 503
        assert int(headers["Retry-After"]) >= 1
        async with site.http.delete(place, headers={**TUS, **site.as_("alice")}) as answer:
            assert answer.status == 204
        assert (await site.head(place))[0] == 404
        place = await site.begin(ENVELOPE)
        site.world.clock.advance(1_000)
        assert (await site.head(place))[0] == 404
        await site.blobs.tidy()
        assert list((tmp_path / "ledger" / "uploads").iterdir()) == []


async def test_tidying_touches_no_file_on_the_loop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(site.blobs._uploads, "expire", lambda: threads.append(threading.get_ident()))
    await site.blobs.tidy()
    assert threads
    assert threading.get_ident() not in threads


async def _cut_off(site: Site, place: str, offset: int, sent: bytes) -> None:
    """Announces the rest, sends ``sent`` of it and hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
    head = (
        f"PATCH {place} HTTP/1.1\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\n"
        f"Authorization: Bearer {TOKENS['alice']}\r\nContent-Type: {TUS_TYPE}\r\n"
        f"Content-Length: {len(ENVELOPE) - offset}\r\n\r\n"
    )
    writer.write(head.encode() + sent)
    await writer.drain()
    await asyncio.sleep(0.02)
    writer.transport.abort()
    del reader


@pytest.mark.parametrize("restart", [False, True])
async def test_resumed_after_cuts_at_any_byte(
    tmp_path: Path, restart: bool
) -> None:  # SPEC-UPL-2, SPEC-UPL-7
    rng = random.Random(5)
    async with open_site(tmp_path / "ledger") as site:
        place = await site.begin(ENVELOPE)
        offset = 0
        for _ in range(5):
            await _cut_off(site, place, offset, ENVELOPE[offset:][: rng.randrange(800_000)])
            while True:
                before, offset = offset, int((await site.head(place))[1]["Upload-Offset"])
                if before == offset:
                    break
                await asyncio.sleep(0.05)
        assert offset > 0
        if restart:
            site.blobs._uploads.close()
            site.blobs._uploads = site.world.ledger.open_uploads()
            assert int((await site.head(place))[1]["Upload-Offset"]) == offset
        while offset < len(ENVELOPE):
            status, headers = await site.patch(place, offset, ENVELOPE[offset:])
            offset = int(headers["Upload-Offset"])
        assert status == 204
        assert headers[DIGEST_HEADER] == sha256(ENVELOPE).hexdigest()


async def test_a_sender_that_stalls_is_told_and_keeps_what_it_sent(tmp_path: Path) -> None:  # SPEC-UPL-7
    async with open_site(tmp_path / "ledger", timeout_ms=150) as site:
        place = await site.begin(ENVELOPE)
        reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        writer.write(
            f"PATCH {place} HTTP/1.1\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
            f"Content-Type: {TUS_TYPE}\r\nAuthorization: Bearer {TOKENS['alice']}\r\n"
            f"Content-Length: 1000\r\n\r\n".encode()
            + ENVELOPE[:77]
        )
        assert b" 408 " in await reader.readline()
        writer.close()
        assert (await site.head(place))[1]["Upload-Offset"] == "77"


# Downloads.


async def test_a_read_is_audited_and_comes_whole(site: Site) -> None:  # SPEC-READ-1
    for content in (b"small", ENVELOPE):
        sealed = await site.put(content)
        access = site.world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)
        status, headers, body = await site.read(access.encoded)
        assert (status, body) == (200, sealed.blob)
        assert headers[DIGEST_HEADER] == sha256(sealed.blob).hexdigest()
        assert headers[TXID_HEADER] == access.txid.hex()
        assert headers["Content-Length"] == str(len(sealed.blob))
        assert len(headers[TICKET_HEADER]) == 64
        assert site.world.ledger.get(access.txid).code == Code.OK


async def test_what_is_not_granted_sends_nothing(site: Site) -> None:  # SPEC-READ-2
    sealed = await site.put(b"private")
    stranger = site.world.doctor.access(sealed.record, Purpose.TREATMENT)
    status, headers, body = await site.read(stranger.encoded)
    assert status == 403
    assert TICKET_HEADER not in headers
    assert sealed.blob not in body
    assert site.world.ledger.get(stranger.txid).code == CONSENT_MISSING
    access = site.world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)
    assert (await site.read(access.encoded))[0] == 200
    status, _, body = await site.read(access.encoded)  # the same again
    assert status == 400
    assert b"duplicate" in body
    for rubbish in (b"", b"\x00" * 100, sealed.transaction.encoded, access.encoded[:-1] + b"\x01"):
        assert (await site.read(rubbish))[0] == 400
    assert (await site.read(bytes(70_000)))[0] == 413


async def test_reads_count_as_transactions(site: Site) -> None:  # SPEC-RPC-7
    sealed = await site.put(b"small")
    site.server.rates._options = RateOptions(transactions_per_second=0.001, transactions_burst=1)
    count = site.world.ledger.transaction_count
    statuses = []
    for _ in range(2):
        access = site.world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)
        statuses.append((await site.read(access.encoded))[0])
    assert statuses == [200, 429]
    assert site.world.ledger.transaction_count == count + 1


async def test_ranges_of_a_read(site: Site) -> None:  # SPEC-READ-3
    sealed = await site.put(ENVELOPE)
    blob, size = sealed.blob, len(sealed.blob)
    access = site.world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)
    _, headers, _ = await site.read(access.encoded)
    ticket, etag = headers[TICKET_HEADER], headers["ETag"]
    count = site.world.ledger.transaction_count
    for wanted, start, end in (
        ("bytes=0-", 0, size),
        ("bytes=0-0", 0, 1),
        ("bytes=1234567-", 1_234_567, size),
        ("bytes=262143-524289", 262_143, 524_290),
        ("bytes=-5", size - 5, size),
        (f"bytes=7-{size * 2}", 7, size),
    ):
        for condition in ({}, {"If_Range": etag}):
            status, headers, body = await site.resume(ticket, Range=wanted, **condition)
            assert (status, body) == (206, blob[start:end])
            assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
    for headers_given in ({}, {"Range": "bytes=5-1"}, {"Range": "bytes=0-1,5-6"}, {"Range": "items=0-1"}):
        status, headers, body = await site.resume(ticket, **headers_given)
        assert (status, body == blob) == (200, True)
    status, _, body = await site.resume(ticket, Range="bytes=5-", If_Range='"other"')
    assert (status, len(body)) == (200, size)
    status, headers, _ = await site.resume(ticket, Range=f"bytes={size}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{size}")
    assert site.world.ledger.transaction_count == count  # one read, one entry


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-9", (0, 10)),
        ("BYTES = 0-9", None),
        ("bytes=-0", ValueError),
        ("bytes=10-", ValueError),
        ("bytes=9-99999999999999999999", None),
        ("bytes=--5", None),
        ("bytes=-", None),
        ("bytes=٣-", None),
        ("bytes=-99", (0, 10)),
    ],
)
def test_range_headers(header: str, expected: object) -> None:  # SPEC-READ-3
    if expected is ValueError:
        with pytest.raises(ValueError, match="range"):
            parse_range(header, None, size=10, etag='"x"')
        return
    found = parse_range(header, None, size=10, etag='"x"')
    assert (None if found is None else (found.start, found.end)) == expected


async def test_a_ticket_is_its_callers_and_ends(site: Site) -> None:  # SPEC-READ-4
    sealed = await site.put(b"x")

    async def ticket() -> str:
        access = site.world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)
        return (await site.read(access.encoded))[1][TICKET_HEADER]

    first = await ticket()
    assert (await site.resume(first))[0] == 200
    for other in ("bob", None):
        assert (await site.resume(first, other))[0] == 404
    for wrong in ("0" * 64, "zz", first[:-2], first.upper() + "0"):
        assert (await site.resume(wrong))[0] == 404
    others = [await ticket() for _ in range(3)]  # there is room for three
    assert [(await site.resume(one))[0] for one in (first, *others)] == [404, 200, 200, 200]
    site.world.clock.advance(15 * 60 * 1000)
    assert (await site.resume(others[2]))[0] == 404
    await ticket()
    assert len(site.blobs.tickets) == 1


async def test_a_ticket_dies_with_the_consent_and_with_the_envelope(site: Site) -> None:  # SPEC-READ-4
    world = site.world
    sealed = await site.put(b"x")
    grant = await asyncio.to_thread(world.grant, world.doctor)
    access = world.doctor.access(sealed.record, Purpose.TREATMENT)
    doctors = (await site.read(access.encoded))[1][TICKET_HEADER]
    mine = (await site.read(world.patient.access(sealed.record, Purpose.PATIENT_REQUEST).encoded))[1][
        TICKET_HEADER
    ]
    assert (await site.resume(doctors))[0] == 200
    await site.submit(world.patient.revoke_consent(grant.body.consent))
    assert (await site.resume(doctors))[0] == 403
    assert (await site.resume(doctors))[0] == 404
    assert (await site.resume(mine))[0] == 200
    await site.submit(world.patient.erase_record(sealed.record))
    assert (await site.resume(mine))[0] == 403
    assert (await site.resume(mine))[0] == 404


async def _slow_reader(site: Site, access: bytes) -> "tuple[asyncio.StreamReader, asyncio.StreamWriter]":
    reader, writer = await asyncio.open_connection("127.0.0.1", site.server.port, limit=64 * 1024)
    writer.write(
        f"POST /v1/reads HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(access)}\r\n\r\n".encode()
        + access
    )
    assert b" 200 " in await reader.readline()
    return reader, writer


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """Everything until the other side ends, however it ends."""
    data = b""
    try:
        while piece := await reader.read(1 << 20):
            data += piece
    except ConnectionError:
        pass
    return data


BIG = hashlib.shake_256(b"big").digest(1 << 20) * 24


async def test_erased_under_way_the_answer_breaks_off_and_holds_no_zeros(site: Site) -> None:  # SPEC-READ-5
    sealed = await site.put(BIG)
    access = site.world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)
    reader, writer = await _slow_reader(site, access.encoded)
    await asyncio.sleep(0.1)
    await site.submit(site.world.patient.erase_record(sealed.record))
    data = (await _rest(reader)).partition(b"\r\n\r\n")[2]
    writer.close()
    assert len(data) < len(sealed.blob)
    assert data == sealed.blob[: len(data)]


async def test_a_client_that_stops_reading_is_cut(tmp_path: Path) -> None:  # SPEC-READ-6
    async with open_site(tmp_path / "ledger", timeout_ms=150) as site:
        sealed = await site.put(BIG)
        access = site.world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)
        reader, writer = await _slow_reader(site, access.encoded)
        await asyncio.sleep(0.6)
        assert len(await _rest(reader)) < len(sealed.blob)
        writer.close()


async def test_a_client_that_hangs_up_is_no_incident(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:  # SPEC-RPC-5
    sealed = await site.put(BIG)
    access = site.world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)
    _, writer = await _slow_reader(site, access.encoded)
    await asyncio.sleep(0.2)
    writer.transport.abort()
    place = await site.begin(ENVELOPE)
    await _cut_off(site, place, 0, ENVELOPE[:10])
    await until(lambda: site.server.listener.open_connections <= 1)
    await asyncio.sleep(0.1)
    assert not caplog.records


class MemoryWatch:
    """How far the resident memory rose above where it was, in bytes, while the block ran."""

    async def __aenter__(self) -> Self:
        gc.collect()
        self.start = self.peak = _resident_bytes()
        self._task = asyncio.create_task(self._look())
        return self

    async def _look(self) -> None:
        while True:
            self.peak = max(self.peak, _resident_bytes())
            await asyncio.sleep(0.005)

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    @property
    def growth(self) -> int:
        return self.peak - self.start


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def test_memory_stays_flat(site: Site) -> None:  # SPEC-READ-6, SPEC-UPL-7
    block = random.Random(1).randbytes(1 << 20)
    size, hasher = 64 << 20, sha256()
    for _ in range(64):
        hasher.update(block)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield block

    async with MemoryWatch() as upload:
        _, headers = await site.post(size, hasher.digest())
        status, headers = await site.patch(headers["Location"], 0, body())
    assert (status, headers[DIGEST_HEADER]) == (204, hasher.hexdigest())
    assert upload.growth < 16 << 20
    # Any bytes will do for a record: nobody opens this envelope.
    sealed = site.world.patient.put_record("vitals", b"x", ())
    record = msgspec.structs.replace(sealed.transaction.body, digest=hasher.digest(), size=size)
    await site.submit(site.world.patient.sign(record))
    access = site.world.patient.access(sealed.record, Purpose.PATIENT_REQUEST)
    received, count = sha256(), 0
    async with MemoryWatch() as download, site.http.post("/v1/reads", data=access.encoded) as answer:
        async for piece in answer.content.iter_chunked(1 << 18):
            received.update(piece)
            count += len(piece)
    assert (count, received.digest()) == (size, hasher.digest())
    assert download.growth < 16 << 20
