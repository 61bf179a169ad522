"""What a new subject has from its declaration alone: ``tests/support/demo_subject.py``, and nothing else is written."""

import asyncio
import importlib
import inspect
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from commands import PASSWORD, Cli
from conformance import check_subject
from fork_world import EASY_BITS, mining
from hospital import CHEAP_KDF
from world import Clock, make_world

from fastledger import Client, Genesis, Keystore, Ledger, Role, SigningKey, Wallet
from fastledger.cli.derived.pages import subjects_page
from fastledger.cli.output import Exit
from fastledger.clock import system_clock_ms
from fastledger.crypto.hpke import KemSuite
from fastledger.errors import Code, NotFoundError
from fastledger.model.genesis import WorkParameters
from fastledger.node.service import NodeService
from fastledger.rpc.server import RpcServer
from fastledger.subjects.catalogue import REGISTRY
from fastledger.subjects.identity import UNKNOWN_SIGNER

DAY_MS = 86_400_000
DIGEST = bytes(range(32))


class SystemClock(Clock):
    """The machine's clock, for a miner: the command line signs by it."""

    def __init__(self) -> None:
        """Nothing is set."""

    @property
    def now_ms(self) -> int:
        return system_clock_ms()

    @now_ms.setter
    def now_ms(self, value: int) -> None:
        raise AssertionError("the machine's clock is not set")

    def advance(self, milliseconds: int) -> None:
        time.sleep(0.005)


@pytest.fixture(scope="module")
def demo() -> Iterator[ModuleType]:
    """The subject, declared for the tests of this module and withdrawn behind them."""
    module = importlib.import_module("demo_subject")
    yield module
    module.certificates.withdraw()
    del sys.modules["demo_subject"]
    assert not any("certificate" in name for name in (*REGISTRY.kinds, *REGISTRY.tables))


def make_pow(path: Path, authorities: tuple[Any, ...]) -> Ledger:
    key = SigningKey.generate()
    work = WorkParameters(spacing_ms=1_000, initial_bits=EASY_BITS, limit_bits=EASY_BITS, finality_depth=2)
    genesis = Genesis.create(
        created_ms=system_clock_ms() - DAY_MS,
        proposers=(key.public_key,),
        authorities=authorities,
        engine="pow",
        work=work,
    )
    return Ledger.join(path, genesis, node_key=key)


@contextmanager
def served(ledger: Ledger) -> Iterator[str]:
    """The URL of a node over an open ledger, on a loop of its own."""
    ready, box = threading.Event(), SimpleNamespace()

    async def serve() -> None:
        service = await NodeService.start(ledger)
        server = RpcServer(service)
        await server.start()
        box.url, box.stop, box.loop = server.url, asyncio.Event(), asyncio.get_running_loop()
        ready.set()
        await box.stop.wait()
        await server.stop()
        await service.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield box.url
    finally:
        box.loop.call_soon_threadsafe(box.stop.set)
        thread.join(30)


class Place:
    """A ledger of either engine with a hospital and a patient, under a node, and a command line with their wallets."""

    def __init__(self, engine: str, folder: Path, stack: ExitStack) -> None:
        regulator, self.hospital, self.patient = (Wallet.create(suite=KemSuite.X25519) for _ in range(3))
        self.path = folder / "ledger"
        if engine == "solo":
            self.ledger = Ledger.create(self.path, authorities=[regulator.authority])
        else:
            self.ledger = make_pow(self.path, (regulator.authority,))
        for wallet in (regulator, self.hospital, self.patient):
            wallet.join(self.ledger.chain_id)
        self.url = stack.enter_context(served(self.ledger))
        if engine == "pow":  # it ends before the node closes the ledger
            stack.enter_context(mining(self.ledger, SystemClock()))
        self.cli = Cli(folder)
        keystore = Keystore.create(self.cli.keystore, PASSWORD, **CHEAP_KDF)
        self.hospital.save(keystore, "hospital")
        self.patient.save(keystore, "patient")
        keystore.save()
        self.submit(
            self.hospital.register(Role.ORGANISATION),
            self.patient.register(Role.PATIENT),
            regulator.endorse(self.hospital.identity, Role.ORGANISATION),
        )

    def submit(self, *transactions: Any) -> list[Any]:
        return self.ledger.submit(transactions)

    def rpc(self, method: str, **params: Any) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/rpc", data=body, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["result"]


@pytest.fixture(scope="module", params=["solo", "pow"])
def place(
    request: pytest.FixtureRequest, demo: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(request.param, tmp_path_factory.mktemp(request.param), stack)


def issued(demo: ModuleType, place: Place, certificate: bytes) -> Any:
    body = demo.CertificateIssue(
        certificate=certificate,
        digest=DIGEST,
        holder=place.patient.identity,
        until_ms=system_clock_ms() + DAY_MS,
    )
    (outcome,) = place.submit(place.hospital.sign(body))
    assert outcome.ok
    return outcome


def test_it_is_one_short_file(demo: ModuleType) -> None:
    lines = [line for line in inspect.getsource(demo).splitlines() if line.strip()]
    assert len(lines) <= 40


def test_acceptance_and_refusal(demo: ModuleType, place: Place) -> None:
    certificate = b"accept and refus"
    issued(demo, place, certificate)
    revoke = demo.CertificateRevoke(certificate=certificate)
    stranger = Wallet.create(place.ledger.chain_id, suite=KemSuite.X25519)
    again = demo.CertificateIssue(
        certificate=certificate, digest=DIGEST, holder=place.patient.identity, until_ms=1
    )
    outcomes = place.submit(
        place.hospital.sign(again), place.patient.sign(revoke), stranger.sign(again), place.hospital.sign(revoke)
    )
    codes = [outcome.code for outcome in outcomes]
    assert codes == [demo.CERTIFICATE_EXISTS, demo.NOT_THE_ISSUER, UNKNOWN_SIGNER, 0]
    with pytest.raises(NotFoundError):
        place.ledger.entity(demo.CERTIFICATES, certificate)
    (rejected,) = place.submit(place.hospital.sign(demo.CertificateRevoke(certificate=b"short")))
    assert (rejected.status, rejected.code) == ("rejected", Code.BAD_BODY)


def test_index_query_entity_and_list(demo: ModuleType, place: Place) -> None:
    certificate = b"index and query!"
    txid = issued(demo, place, certificate).txid
    with Client.connect(place.url) as client:
        for api in (place.ledger, client):
            for conditions in (
                {"certificate": certificate},
                {"kind": "certificate.issue"},
                {"subject": place.patient.identity},
                {"signed_by": place.hospital.identity},
            ):
                assert txid in [entry.txid for entry in api.query(**conditions)]
            assert api.query(certificate=bytes(16)).entries == []
            found = api.entity(demo.CERTIFICATES, certificate)
            assert (found.issuer, found.digest) == (place.hospital.identity, DIGEST)
            listed = api.entities(demo.CERTIFICATES, by={"holder": place.patient.identity})
            assert (certificate,) in [item.key for item in listed.items]
            assert api.entities(demo.CERTIFICATES, by={"issuer": place.patient.identity}).items == []
    place.submit(place.patient.sign(demo.CertificateRevoke(certificate=certificate)))
    refused = place.ledger.query(code=demo.NOT_THE_ISSUER, newest_first=True)
    assert refused.entries[0].transaction.kind == "certificate.revoke"
    assert refused.entries[0] in place.ledger.query(alerts=True, limit=1000).entries


def test_methods_and_schemas(demo: ModuleType, place: Place) -> None:
    certificate = b"rpc and schemas!"
    issued(demo, place, certificate)
    got = place.rpc("certificate.get", certificate=certificate.hex())
    assert (got["holder"], got["digest"]) == (place.patient.identity.hex(), DIGEST.hex())
    assert got in place.rpc("certificate.list", holder=place.patient.identity.hex())["items"]
    found = place.rpc("transaction.query", ids={"certificate": certificate.hex()})
    assert [entry["kind"] for entry in found["entries"]] == ["certificate.issue"]
    with urllib.request.urlopen(f"{place.url}/openrpc.json", timeout=30) as answer:
        document = json.load(answer)
    assert {"certificate.get", "certificate.list"} <= {method["name"] for method in document["methods"]}
    schema = document["components"]["schemas"]["CertificateIssue"]
    assert schema["x-kind"] == "certificate.issue"
    assert set(schema["required"]) == {"certificate", "digest", "holder", "until_ms"}


def test_the_command_line(demo: ModuleType, place: Place) -> None:
    cli = place.cli
    holder = place.patient.identity.hex()
    until = ("--until", "2031-05-06T07:08+02:00")
    fields = ("--holder", holder, "--digest", DIGEST.hex(), *until, "--as", "hospital")
    told = cli.json("tx", "certificate", "issue", place.url, "--certificate", "new", *fields)
    assert (told["status"], told["code"], told["holder"]) == ("durable", "ok", holder)
    assert told["kind"] == "certificate.issue"
    certificate = told["certificate"]
    shown = cli.json("show", "certificate", place.url, certificate)
    assert (shown["issuer"], shown["until_ms"]) == (place.hospital.identity.hex(), 1_935_810_480_000)
    by = ("--by", f"holder={holder}", "--by", f"issuer={place.hospital.identity.hex()}")
    assert shown in cli.json("show", "certificate", place.url, *by)["items"]
    (entry,) = cli.json("query", place.url, "--id", f"certificate={certificate}")["entries"]
    assert (entry["txid"], entry["certificate"]) == (told["txid"], certificate)
    again = cli.json("tx", "certificate", "issue", place.url, "--certificate", certificate, *fields, code=Exit.WRONG)
    assert (again["status"], again["code"]) == ("refused", "certificate-exists")
    assert again["reason"] == "the certificate's id is taken"
    bad = cli.run("tx", "certificate", "issue", place.url, "--certificate", "xyz", *fields, code=Exit.USAGE)
    assert "'--certificate'" in bad.stderr
    cli.run("tx", "certificate", "revoke", place.url, "--certificate", certificate, "--as", "hospital")
    assert cli.error("show", "certificate", place.url, certificate)["error"] == "not-found"


def test_the_documentation(demo: ModuleType) -> None:
    page = subjects_page()
    for line in (
        "| 250 | [certificate](#certificate) | What an issuer certifies to a holder, and until when | `issue`,",
        "### `certificate.issue`",
        "| `until_ms` | time | no |",
        "### Table `certificate`",
        "| 25002 | `not-the-issuer` | the signer issued no such certificate |",
    ):
        assert line in page


def test_it_conforms(demo: ModuleType, tmp_path: Path) -> None:
    world = make_world(tmp_path / "ledger")
    check_subject(demo.certificates, world)
    assert world.ledger.verify().ok
    world.close()


def test_the_chain_verifies_from_disk(demo: ModuleType, place: Place) -> None:
    issued(demo, place, b"chain and verify")
    report = place.ledger.verify()
    assert (report.ok, report.problems) == (True, [])
    kinds = {entry.transaction.kind for entry in place.ledger.query(limit=1000)}
    assert "certificate.issue" in kinds
