"""Ledger, AsyncLedger, Client and AsyncClient: one body of tests asks all four for the same (SPEC-CLI-1)."""

import asyncio
import inspect
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from client_world import wallet

from fastledger import (
    AsyncClient,
    AsyncLedger,
    Client,
    Code,
    Ledger,
    Purpose,
    Role,
    Wallet,
)
from fastledger.client.aio import ClientOptions
from fastledger.client.http import ClientTls
from fastledger.client.retry import Retry
from fastledger.crypto.keystore import KdfParams
from fastledger.errors import (
    InputError,
    LedgerClosedError,
    NotFoundError,
    OperationCancelledError,
    TransactionError,
)
from fastledger.model.reports import ExportReport, SnapshotReport, VerifyReport
from fastledger.node.service import NodeService
from fastledger.rpc.blobs import BlobService, blob_routes
from fastledger.rpc.server import Extras, RpcServer
from fastledger.streams import BATCH_TRANSACTIONS
from fastledger.subjects.record import RECORDS

WAIT_S = 30
OPTIONS = ClientOptions(retry=Retry(base_ms=5, wait_ms_max=100, deadline_ms=10_000))
FOUR = ("Ledger", "AsyncLedger", "Client", "AsyncClient")
# What only a daemon has: its server takes no operator's methods in a test that runs no process.
KEEPERS = ("Ledger", "AsyncLedger")


class Api:
    """One of the four, asked in the same way whether it blocks or not."""

    def __init__(self, it: Any, ledger: Ledger) -> None:
        self.it = it
        self.ledger = ledger
        self.blocks = isinstance(it, Ledger | Client)

    async def do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The result of a method; what blocks does so on a thread of its own."""
        method = getattr(self.it, name)
        if self.blocks:
            return await asyncio.wait_for(asyncio.to_thread(method, *args, **kwargs), WAIT_S)
        found = method(*args, **kwargs)
        return await asyncio.wait_for(found, WAIT_S) if inspect.isawaitable(found) else found

    async def take(self, name: str, count: int, *args: Any, **kwargs: Any) -> list[Any]:
        """The first items of an iterator, which is closed then."""
        items = getattr(self.it, name)(*args, **kwargs)
        found: list[Any] = []
        if self.blocks:

            def run() -> None:
                while len(found) < count:
                    found.append(next(items))
                items.close()

            await asyncio.wait_for(asyncio.to_thread(run), WAIT_S)
        else:
            while len(found) < count:
                found.append(await asyncio.wait_for(anext(items), WAIT_S))
            await items.aclose()
        return found

    async def all(self, name: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Every item of an iterator that ends."""
        items = getattr(self.it, name)(*args, **kwargs)
        if self.blocks:
            return await asyncio.wait_for(asyncio.to_thread(list, items), WAIT_S)
        return [item async for item in items]


@pytest_asyncio.fixture(params=FOUR)
async def api(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Api]:
    ledger = await asyncio.to_thread(Ledger.create, tmp_path / "ledger")
    if request.param == "Ledger":
        yield Api(ledger, ledger)
        await asyncio.to_thread(ledger.close)
        return
    if request.param == "AsyncLedger":
        async with AsyncLedger(ledger) as it:
            yield Api(it, ledger)
        return
    async with served(ledger) as url:
        if request.param == "Client":
            client = await asyncio.to_thread(Client.connect, url, options=OPTIONS)
            yield Api(client, ledger)
            await asyncio.to_thread(client.close)
        else:
            async with await AsyncClient.connect(url, options=OPTIONS) as it:
                yield Api(it, ledger)


@asynccontextmanager
async def served(ledger: Ledger) -> AsyncIterator[str]:
    """The address of a node over a ledger, on this loop; the ledger is closed with it."""
    service = await NodeService.start(ledger)
    blobs = BlobService(ledger, service.ingest.submit, ledger.open_uploads())
    server = RpcServer(service, extras=Extras(routes=blob_routes(blobs)))
    await server.start()
    yield server.url
    await server.stop()
    await blobs.close()
    await service.stop()


async def patient_of(api: Api) -> Wallet:
    """A patient whose registration and folder are durable."""
    patient = wallet(api.it.chain_id)
    outcomes = await api.do("submit", [patient.register(Role.PATIENT), patient.open_folders("vitals")])
    assert [outcome.status for outcome in outcomes] == ["durable", "durable"]
    return patient


async def test_submitting_as_far_as_wait_says(api: Api) -> None:
    patient = await patient_of(api)
    for wait, status in (("accepted", "accepted"), ("ordered", "durable"), ("durable", "durable")):
        (outcome,) = await api.do("submit", [patient.open_folders(wait)], wait=wait)
        assert outcome.status == status
        entry = await api.do("wait_for", outcome.txid, timeout_ms=20_000)
        assert entry.txid == outcome.txid
    with pytest.raises(InputError) as error:
        await api.do("submit", [patient.open_folders("x")], wait="soon")
    assert error.value.code == Code.BAD_QUERY
    with pytest.raises(NotFoundError):
        await api.do("wait_for", bytes(32), timeout_ms=50)


async def test_a_stream_is_answered_in_its_order(api: Api) -> None:
    patient = await patient_of(api)
    stream = [patient.open_folders(f"f{number}") for number in range(30)]
    outcomes = await api.all("submit_stream", iter(stream), in_flight=2)
    assert [outcome.txid for outcome in outcomes] == [transaction.txid for transaction in stream]
    assert all(outcome.ok for outcome in outcomes)
    with pytest.raises(InputError):
        await api.all("submit_stream", stream, in_flight=0)


async def test_a_record_goes_in_and_comes_out(api: Api) -> None:
    patient = await patient_of(api)
    sealed = await api.do("put_record", patient, "vitals", b"72 bpm", ["code:x|1"])
    assert await api.do("read_record", patient, sealed.record, Purpose.PATIENT_REQUEST) == b"72 bpm"
    access = patient.access(sealed.record, Purpose.PATIENT_REQUEST)
    assert await api.do("read", access) == sealed.blob
    assert (await api.do("entity", RECORDS, sealed.record)).version == 1
    assert [item.key for item in (await api.do("entities", RECORDS)).items] == [(sealed.record,)]
    assert (await api.do("record_version", sealed.record)).size == len(sealed.blob)
    with pytest.raises(TransactionError):
        await api.do("put_record", wallet_with_folder(api), "vitals", b"nobody's")
    statement = await api.do("prove", sealed.transaction.txid, verify=True)
    assert api.it.verify_statement(statement, sealed.transaction.txid).code == Code.OK
    with pytest.raises(NotFoundError):
        await api.do("prove", bytes(32))


def wallet_with_folder(api: Api) -> Wallet:
    """A wallet that the chain does not know."""
    stranger = wallet(api.it.chain_id)
    stranger.open_folders("vitals")
    return stranger


async def test_envelopes_are_stored_ahead(api: Api) -> None:
    patient = await patient_of(api)
    sealed = patient.put_record("vitals", b"72 bpm")
    digest = sealed.transaction.body.digest
    assert await api.do("missing_blobs", [digest]) == [digest]
    assert await api.do("store_blobs", [sealed.blob]) == [digest]
    assert await api.do("missing_blobs", [digest]) == []
    assert (await api.do("submit", [sealed.transaction]))[0].ok


async def test_the_tip_and_the_genesis_document(api: Api) -> None:
    await patient_of(api)
    tip = await api.do("tip")
    assert (tip.height, tip.head, tip.transaction_count) == (api.ledger.height, api.ledger.head, 2)
    assert api.it.genesis == api.ledger.genesis
    assert api.it.chain_id == api.ledger.chain_id
    assert (await api.do("status"))["height"] == tip.height
    assert api.it.chain_id.hex() in repr(api.it)
    assert type(api.it).__name__ in repr(api.it)


async def test_following_from_the_beginning_and_from_now_on(api: Api) -> None:  # SPEC-SUB-1
    patient = await patient_of(api)
    events = await api.take("follow", 2, cursor=0)
    assert [event.cursor for event in events] == [1, 2]
    (behind,) = await api.take("follow", 1, cursor=1)
    assert behind.entry == events[1].entry
    blocks = await api.take("follow", api.ledger.height + 1, "blocks", cursor=0)
    assert [event.block.height for event in blocks] == list(range(api.ledger.height + 1))
    assert blocks[-1].block.block_id == api.ledger.head
    (first,) = await api.take("follow_pages", 1)
    assert (first.events, first.cursor, first.caught_up) == ([], 2, True)
    waiting = asyncio.create_task(
        api.take("follow", 1, cursor=2, kind="folder.open", signed_by=patient.identity)
    )
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await asyncio.to_thread(api.ledger.submit, [wallet(api.it.chain_id).register(Role.PATIENT)])
    late = patient.open_folders("late")
    await asyncio.to_thread(api.ledger.submit, [late])
    (event,) = await waiting
    assert event.entry.txid == late.txid
    for topic, conditions in (("blocks", {"kind": "record.put"}), ("weather", {}), ("transactions", {"kind": "x.y"})):
        with pytest.raises(InputError) as error:
            await api.take("follow", 1, topic, cursor=0, **conditions)
        assert error.value.code == Code.BAD_QUERY


async def test_exporting(api: Api) -> None:
    await patient_of(api)
    out, told = io.BytesIO(), []
    report = await api.do("export_ndjson", out, progress=lambda *each: told.append(each))
    assert isinstance(report, ExportReport)
    assert (report.transactions, report.byte_count) == (2, len(out.getvalue()))
    assert out.getvalue().count(b"\n") == 2
    assert told
    with pytest.raises(InputError):
        await api.do("export_ndjson", io.BytesIO(), from_height=10**6)


@pytest.mark.parametrize("api", KEEPERS, indirect=True)
async def test_keeping(api: Api, tmp_path: Path) -> None:
    await patient_of(api)
    assert await api.do("checkpoint") == 1
    report = await api.do("verify")
    assert isinstance(report, VerifyReport)
    assert (report.ok, report.transactions) == (True, 2)
    snapshot = await api.do("snapshot", tmp_path / "snapshot")
    assert isinstance(snapshot, SnapshotReport)
    assert snapshot.height == 1
    backup = await api.do("backup", tmp_path / "backup", include_snapshot=True)
    assert backup.block_id == api.ledger.head
    with pytest.raises(InputError):
        await api.do("prune")


@pytest.mark.parametrize("api", KEEPERS, indirect=True)
async def test_what_progress_raises_ends_the_work_and_comes_back(api: Api) -> None:
    await patient_of(api)

    def told(stage: str, done: int, total: int) -> None:
        raise ZeroDivisionError(stage)

    with pytest.raises(ZeroDivisionError):
        await api.do("export_ndjson", io.BytesIO(), progress=told)
    assert (await api.do("verify")).ok  # nothing is left under way


@pytest.mark.parametrize("api", ["Ledger", "Client"], indirect=True)
async def test_an_event_calls_off_what_blocks(api: Api) -> None:
    await patient_of(api)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(OperationCancelledError):
        await api.do("export_ndjson", io.BytesIO(), cancel=cancel)


async def test_cancelling_a_task_ends_its_work(tmp_path: Path) -> None:
    ledger = await asyncio.to_thread(Ledger.create, tmp_path / "ledger")
    async with AsyncLedger(ledger) as api:
        begun, ended = threading.Event(), threading.Event()

        def verify(*, cancel: threading.Event, **settings: Any) -> VerifyReport:
            begun.set()
            assert cancel.wait(WAIT_S)
            ended.set()
            raise OperationCancelledError("called off")

        ledger.verify = verify  # type: ignore[method-assign, assignment]
        task = asyncio.create_task(api.verify())
        await asyncio.to_thread(begun.wait, WAIT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()


async def test_closing_wakes_who_follows_and_who_waits(tmp_path: Path) -> None:
    ledger = await asyncio.to_thread(Ledger.create, tmp_path / "ledger")
    api = AsyncLedger(ledger)
    waits: list[Any] = [
        asyncio.create_task(anext(api.follow())),
        asyncio.create_task(api.wait_for(bytes(32))),
        asyncio.create_task(asyncio.to_thread(next, ledger.follow(), None)),
        asyncio.create_task(asyncio.to_thread(ledger.wait_for, bytes(32))),
    ]
    await asyncio.sleep(0.1)
    await api.close()
    for wait in waits:
        with pytest.raises(LedgerClosedError):
            await asyncio.wait_for(wait, WAIT_S)
    assert ledger._wakers == ()


# Event loops.


class Threads:
    """On which threads functions ran."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self.seen: dict[str, set[int]] = {}

    def watch(self, owner: Any, name: str) -> None:
        original = inspect.getattr_static(owner, name)
        bare: Callable[..., Any] = original.__func__ if isinstance(original, classmethod) else original

        def spy(*args: Any, **kwargs: Any) -> Any:
            self.seen.setdefault(name, set()).add(threading.get_ident())
            return bare(*args, **kwargs)

        self._patch.setattr(owner, name, classmethod(spy) if isinstance(original, classmethod) else spy)

    def none_on_the_loop(self, *names: str) -> None:
        assert set(names) <= self.seen.keys()
        for name, threads in self.seen.items():
            assert threading.get_ident() not in threads, f"{name} ran on the event loop"


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    yield Threads(monkeypatch)


async def test_an_asynchronous_ledger_works_off_the_loop(
    threads: Threads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads.watch(KdfParams, "derive")
    for name in ("create", "open", "reindex", "close"):
        threads.watch(Ledger, name)
    path, password = tmp_path / "ledger", "a sealed node key"
    async with await AsyncLedger.create(path, password=password) as ledger:
        chain_id = ledger.chain_id
    async with await AsyncLedger.reindex(path, password=password):
        pass
    async with await AsyncLedger.open(path, replica=True) as replica:
        assert (await replica.verify()).ok
    work = sorted(
        {"begin", "read", "get", "query", "prove", "put_record", "read_record", "store_blobs", "missing_blobs"}
        | {"entity", "entities", "record_version", "status", "tip", "verify", "backup", "snapshot", "prune"}
        | {"export_ndjson", "export_blocks", "checkpoint", "block", "authorise_read", "collect_orphans"}
    )
    for name in work:
        threads.watch(Ledger, name)
    async with await AsyncLedger.open(path, password=password) as ledger:
        patient = wallet(chain_id)
        await ledger.submit([patient.register(Role.PATIENT), patient.open_folders("vitals")])
        sealed = await ledger.put_record(patient, "vitals", b"72 bpm")
        await ledger.read_record(patient, sealed.record, Purpose.PATIENT_REQUEST)
        await ledger.read(patient.access(sealed.record, Purpose.PATIENT_REQUEST))
        await ledger.authorise_read(patient.access(sealed.record, Purpose.PATIENT_REQUEST))
        await ledger.get(sealed.transaction.txid)
        await ledger.wait_for(sealed.transaction.txid)
        await ledger.query()
        await ledger.prove(sealed.transaction.txid)
        await ledger.store_blobs([sealed.blob])
        await ledger.missing_blobs([bytes(32)])
        await ledger.entity(RECORDS, sealed.record)
        await ledger.entities(RECORDS)
        await ledger.record_version(sealed.record)
        await ledger.status()
        await ledger.tip()
        await ledger.block(1)
        await ledger.checkpoint()
        await ledger.verify()
        await ledger.backup(tmp_path / "backup")
        await ledger.snapshot(tmp_path / "snapshot")
        await ledger.prune(keep_blocks=100)
        await ledger.export_ndjson(io.BytesIO())
        await ledger.export_blocks(io.BytesIO())
        await ledger.collect_orphans(10**9)
        async for _ in ledger.follow(cursor=0):
            break
        async for _ in ledger.submit_stream([patient.open_folders("more")]):
            pass
    threads.none_on_the_loop("derive", "create", "open", "reindex", "close", *work)


async def test_an_asynchronous_client_does_heavy_work_off_the_loop(
    threads: Threads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fastledger.client.submission
    import fastledger.wallet.wallet

    threads.watch(ClientTls, "context")
    threads.watch(fastledger.wallet.wallet, "seal")
    threads.watch(fastledger.wallet.wallet, "open_envelope")
    ledger = await asyncio.to_thread(Ledger.create, tmp_path / "ledger")
    async with served(ledger) as url, await AsyncClient.connect(url, options=OPTIONS) as client:
        patient = wallet(client.chain_id)
        await client.submit([patient.register(Role.PATIENT), patient.open_folders("vitals")])
        sealed = await client.put_record(patient, "vitals", b"72 bpm" * 1000)
        content = await client.read_record(patient, sealed.record, Purpose.PATIENT_REQUEST)
        assert content == b"72 bpm" * 1000
        threads.watch(fastledger.client.submission, "scan_many")
        outcomes = await client.submit([sealed.transaction.encoded] * 100)
        assert all(outcome.duplicate for outcome in outcomes)
        (outcome,) = await client.submit([b"garbage"])  # few are scanned at once
        assert outcome.status == "rejected"
        assert len(threads.seen.pop("scan_many")) == 2
    with pytest.raises(Exception, match="unreachable"):
        await AsyncClient.connect("https://127.0.0.1:1", options=ClientOptions(retry=Retry(deadline_ms=0)))
    threads.none_on_the_loop("context", "seal", "open_envelope")


def test_a_batch_of_a_stream_is_what_a_request_takes() -> None:
    assert ClientOptions().batch_transactions == BATCH_TRANSACTIONS
