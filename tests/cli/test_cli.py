"""The command line: every command, and what it answers in JSON."""

import json
import lzma
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from commands import PASSWORD, Cli, cheapen, make_cli
from hospital import CHEAP_KDF, observation, patient, person, write_bundle, write_ndjson

from fastledger import Keystore, Ledger, Purpose, Wallet
from fastledger.cli.output import Exit
from fastledger.subjects.consent import CONSENT_MISSING
from fastledger.subjects.identity import IDENTITIES
from fastledger.times import time_text


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return make_cli(tmp_path_factory.mktemp("cli"))


@pytest.fixture
def cli(made: Cli, tmp_path: Path) -> Cli:
    """A copy of the ledger for a test that changes it."""
    copy = Cli(tmp_path)
    shutil.copytree(made.ledger, copy.ledger)
    shutil.copy(made.keystore, copy.keystore)
    return copy


# Making and looking.


def test_init_makes_a_ledger_that_the_api_opens(made: Cli) -> None:
    with Ledger.open(made.ledger) as ledger:
        keystore = Keystore.open(made.keystore, PASSWORD)
        organisation = Wallet.load(keystore, "organisation")
        assert organisation.chain_id == ledger.chain_id
        assert ledger.entity(IDENTITIES, organisation.identity).endorser == Wallet.load(keystore, "regulator").identity
        assert ledger.entity(IDENTITIES, Wallet.load(keystore, "regulator").identity).role == "regulator"
    assert oct(Path(made.keystore).stat().st_mode & 0o777) == "0o600"


def test_status_tells_where_the_ledger_stands(made: Cli) -> None:
    answer = made.json("status", made.ledger)
    keys = {
        "chain_id",
        "engine",
        "height",
        "first_height",
        "head",
        "transactions",
        "queue_depth",
        "replayed_blocks",
        "rules",
    }
    assert keys | {"index", "blobs", "backend"} == set(answer)
    assert (answer["engine"], answer["queue_depth"], answer["replayed_blocks"]) == ("solo", 0, 0)
    assert answer["transactions"] == answer["index"]["txids"]
    assert "transactions: " in made.run("status", made.ledger).stdout


def test_init_spoils_nothing_that_is_there(cli: Cli, tmp_path: Path) -> None:
    before = Path(cli.keystore).read_bytes()
    assert cli.error("init", tmp_path / "another")["error"] == "bad-keystore"
    assert Path(cli.keystore).read_bytes() == before
    assert not (tmp_path / "another").exists()
    fresh = tmp_path / "fresh.keystore"
    cli.error("init", cli.ledger, "--keystore", fresh)
    assert not fresh.exists(), "a keystore without a ledger is left, and with it the next init refused"
    assert cli.json("verify", cli.ledger)["ok"]
    cli.json("init", tmp_path / "another", "--keystore", fresh)


# Keys.


def test_keystores_are_made_listed_and_sealed_anew(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    assert cli.json("keys", "create") == {"keystore": cli.keystore}
    assert cli.error("keys", "create")["error"] == "bad-keystore"
    cheapen(cli.keystore)
    assert cli.json("keys", "list") == {"wallets": []}
    made = cli.json("keys", "new", "clinic", "--suite", "x25519", "--chain", "00112233445566ff")
    assert set(made) == {"name", "identity", "public_key"}
    hybrid = cli.json("keys", "new", "regulator")
    assert cli.error("keys", "new", "clinic")["error"] == "bad-keystore"
    listed = cli.json("keys", "list")["wallets"]
    assert [(item["name"], item["identity"], item["folders"]) for item in listed] == [
        ("clinic", made["identity"], 0),
        ("regulator", hybrid["identity"], 0),
    ]
    keystore = Keystore.open(cli.keystore, PASSWORD)
    assert Wallet.load(keystore, "clinic").chain_id.hex() == "00112233445566ff"
    assert len(Wallet.load(keystore, "regulator").kem_public) > len(
        Wallet.load(keystore, "clinic").kem_public
    )
    (tmp_path / "new").write_text("another password\n")
    assert cli.json("keys", "passwd", "--new-password-file", tmp_path / "new") == {"keystore": cli.keystore}
    assert cli.error("keys", "list")["error"] == "wrong-password"
    cli.password = "another password"
    assert len(cli.json("keys", "list")["wallets"]) == 2


def test_a_keystore_lists_what_is_no_wallet_too(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    keystore = Keystore.create(cli.keystore, PASSWORD, **CHEAP_KDF)
    keystore.put("node", bytes(32))
    keystore.save()
    cli.run("keys", "new", "a")
    listed = cli.json("keys", "list")["wallets"]
    assert [(item["name"], item["identity"] is None) for item in listed] == [("a", False), ("node", True)]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (PASSWORD.encode(), 0),
        (f"{PASSWORD}\nmore".encode(), 0),
        (f"{PASSWORD}\r\n".encode(), 0),
        (b"", 3),
        (b"\n", 3),
        (b"wrong", 3),
        (b"\xff\xfe", 3),
        (b"x" * 10_000, 3),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_password_files(made: Cli, tmp_path: Path, content: bytes, code: int) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    made.run("keys", "list", "--password-file", file, code=code)
    made.error("keys", "list", "--password-file", tmp_path / "absent")


def test_a_password_is_asked_for(tmp_path: Path) -> None:
    cli = Cli(tmp_path, password=None)
    result = cli.run("keys", "create", typed=f"{PASSWORD}\n{PASSWORD}\n")
    assert "Password" in result.stderr
    cheapen(cli.keystore)
    cli.run("keys", "list", typed=f"{PASSWORD}\n")
    cli.run("keys", "list", typed="wrong\n", code=Exit.INPUT)
    # Nobody there to answer.
    cli.run("keys", "list", typed="", code=Exit.INPUT)
    cli.run("keys", "passwd", typed=f"{PASSWORD}\nnew\nother\n", code=Exit.INPUT)


# Ingest.


def tar_of(target: Path, members: list[Path]) -> Path:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            archive.add(member, member.name)
    target.write_bytes(lzma.compress(buffer.getvalue(), preset=0))
    return target


def test_ingest_reads_archives_and_lines(cli: Cli, tmp_path: Path) -> None:
    before = cli.json("status", cli.ledger)["transactions"]
    members = [
        write_bundle(tmp_path / f"{name}.json", patient(name), observation(f"Patient/{name}"))
        for name in "ab"
    ]
    lines = write_ndjson(
        tmp_path / "c.ndjson", patient("c"), observation("Patient/c"), observation("Patient/a", id="o")
    )
    report = cli.json("ingest", cli.ledger, tar_of(tmp_path / "a.tar.xz", members), lines)
    assert (report["bundles"], report["patients"], report["resources"], report["committed"]) == (3, 3, 7, 7)
    assert (report["refused"], report["unreadable"], report["refusals"], report["failures"]) == (0, 0, [], {})
    assert cli.json("status", cli.ledger)["transactions"] == before + report["transactions"]
    names = {item["name"] for item in cli.json("keys", "list")["wallets"]}
    assert {"organisation", "regulator", *(f"patient:{person(name)}" for name in "abc")} <= names


def test_ingest_tells_what_it_refused(cli: Cli, tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "a.json", patient("a"), observation("Patient/a", status="Wilhelmina"))
    report = cli.json("ingest", cli.ledger, source, code=Exit.WRONG)
    assert (report["committed"], report["refused"]) == (1, 1)
    ((origin, path, problem),) = report["refusals"]
    assert (origin, path) == ("source 1, entry 2", "Observation.status")
    assert problem
    text = cli.run("ingest", cli.ledger, source, code=Exit.WRONG).output
    assert "Observation.status" in text
    assert "Wilhelmina" not in text
    (tmp_path / "broken.json").write_text("{")
    report = cli.json("ingest", cli.ledger, tmp_path / "broken.json", code=Exit.WRONG)
    assert (report["unreadable"], report["refused"]) == (1, 0)


def test_ingest_needs_a_wallet_that_is_there(cli: Cli, tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "a.json", patient("a"))
    assert cli.error("ingest", cli.ledger, source, "--as", "clinic")["error"] == "not-found"
    # The regulator's wallet is no organisation's, but its keys stay its own.
    before = [item["identity"] for item in cli.json("keys", "list")["wallets"]]
    cli.json("ingest", cli.ledger, source, "--as", "regulator")
    after = {item["name"]: item["identity"] for item in cli.json("keys", "list")["wallets"]}
    assert set(before) <= set(after.values())


# Finding, reading, proving.


def test_query_finds_and_pages(made: Cli) -> None:
    everything = made.entries("--limit", 1000)
    keys = {"txid", "height", "index", "time_ms", "kind", "signer_key", "code"}
    assert all(keys <= set(entry) for entry in everything)
    records = made.entries("--kind", "record.put", "--limit", 1000)
    assert [entry for entry in everything if entry["kind"] == "record.put"] == records
    one = records[7]
    assert made.entries("--id", f"record={one['record']}") == [one]
    assert one in made.entries("--id", f"folder={one['folder']}", "--code", "ok", "--limit", 1000)
    assert made.entries("--code", "consent-missing") == made.entries("--code", int(CONSENT_MISSING)) == []
    assert made.entries("--newest-first", "--limit", 1) == [everything[-1]]
    page = made.json("query", made.ledger, "--limit", 3)
    following = made.json("query", made.ledger, "--limit", 3, "--cursor", page["next_cursor"])
    assert page["entries"] + following["entries"] == everything[:6]
    height, time_ms = everything[0]["height"], everything[0]["time_ms"]
    for bounds in (
        ("--from-height", height, "--to-height", height),
        ("--from-time", time_ms, "--to-time", time_text(int(time_ms))),
    ):
        assert made.entries(*bounds) == [entry for entry in everything if entry["height"] == height]
    wallets = {item["name"]: item["identity"] for item in made.json("keys", "list")["wallets"]}
    organisation = wallets["organisation"]
    assert made.entries("--signed-by", organisation, "--kind", "identity.register")
    assert made.entries("--subject", organisation, "--kind", "identity.endorse")
    assert made.entries("--token", "00" * 16) == []
    assert one["txid"] in made.run("query", made.ledger, "--kind", "record.put").stdout


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        (("--kind", "record.shred"), Exit.INPUT),
        (("--code", "no-such-code"), Exit.INPUT),
        (("--code", "99999"), Exit.INPUT),
        (("--code", "²"), Exit.INPUT),
        (("--code", ""), Exit.INPUT),
        (("--signed-by", "xyz"), Exit.USAGE),
        (("--id", "record=00"), Exit.USAGE),
        (("--limit", "0"), Exit.USAGE),
        (("--limit", "1001"), Exit.USAGE),
        (("--from-height", "low"), Exit.USAGE),
        (("--patient", "1"), Exit.USAGE),
        (("--from-height", "9" * 30), Exit.OK),
        (("--to-time", "-5"), Exit.OK),
        (("--cursor", "9" * 30), Exit.OK),
    ],
)
def test_queries_that_make_no_sense(made: Cli, conditions: tuple[str, ...], code: Exit) -> None:
    made.run("query", made.ledger, *conditions, code=code)


def test_read_is_audited_and_gives_the_very_bytes(cli: Cli) -> None:
    record = next(entry for entry in cli.entries("--kind", "record.put", "--limit", 1000))["record"]
    reading = ("read", cli.ledger, record, "--as", "organisation", "--purpose", "TREAT")
    answer = cli.json(*reading)
    assert set(answer) == {"txid", "version", "content"}
    assert answer["version"] == 1
    assert json.loads(answer["content"])["resourceType"]
    assert cli.run(*reading).stdout == answer["content"] + "\n"
    audit = cli.entries("--kind", "access.read", "--id", f"record={record}")
    assert [entry["code"] for entry in audit] == ["ok", "ok"]
    assert audit[0]["txid"] == answer["txid"]


def test_a_refused_read_names_its_audit_entry(cli: Cli) -> None:
    record = cli.entries("--kind", "record.put", "--limit", 1000)[-1]["record"]
    cli.run("keys", "new", "stranger", "--chain", cli.json("status", cli.ledger)["chain_id"])
    refusal = cli.error("read", cli.ledger, record, "--as", "stranger", "--purpose", "TREAT")
    assert refusal["error"] == "unknown-signer"
    (entry,) = cli.entries("--kind", "access.read", "--code", "unknown-signer")
    assert entry["txid"] == refusal["txid"]
    refusal = cli.error("read", cli.ledger, record, "--as", "organisation", "--purpose", "HRESCH")
    assert refusal["error"] == "purpose-not-allowed"
    assert (
        cli.error("read", cli.ledger, record, "--as", "organisation", "--purpose", "GOSSIP")["error"]
        == "bad-body"
    )
    assert (
        cli.error("read", cli.ledger, record, "--as", "nobody", "--purpose", "TREAT")["error"] == "not-found"
    )
    unknown = cli.error("read", cli.ledger, "00" * 16, "--as", "organisation", "--purpose", "TREAT")
    assert unknown["error"] == "unknown-record"


def test_read_shows_content_that_is_no_text(cli: Cli) -> None:
    """What another client stored through the API need not be FHIR."""
    keystore = Keystore.open(cli.keystore, PASSWORD)
    name = next(name for name in keystore.names() if name.startswith("patient:"))
    wallet = Wallet.load(keystore, name)
    with Ledger.open(cli.ledger) as ledger:
        sealed = wallet.put_record(next(iter(wallet.labels)), b"\xff\x00\xfe")
        ledger.submit([sealed.transaction], [sealed.blob])[0].raise_for_status()
    reading = (
        "read",
        cli.ledger,
        sealed.record.hex(),
        "--as",
        name,
        "--purpose",
        Purpose.PATIENT_REQUEST.value,
    )
    assert cli.json(*reading)["content_hex"] == "ff00fe"
    assert cli.run(*reading).stdout_bytes == b"\xff\x00\xfe\n"


def test_a_receipt_is_written_and_verifies_offline(made: Cli, tmp_path: Path) -> None:
    txid = made.entries("--kind", "record.put")[3]["txid"]
    receipt, genesis = tmp_path / "proof.receipt", tmp_path / "genesis.cbor"
    answer = made.json("prove", made.ledger, txid, "-o", receipt)
    assert (answer["txid"], answer["bytes"]) == (txid, receipt.stat().st_size)
    shutil.copy(Path(made.ledger) / "genesis.cbor", genesis)
    checking = ("verify-receipt", receipt, "--genesis", genesis)
    # Nothing of the ledger is needed, not even that it can be opened.
    with Ledger.open(made.ledger):
        verified = made.json(*checking)
    keys = {"valid", "txid", "kind", "code", "height", "index", "block_id", "time_ms"}
    assert keys == set(verified)
    assert (verified["valid"], verified["txid"], verified["code"]) == (True, txid, "ok")
    assert "valid: True" in made.run(*checking).stdout
    damaged = bytearray(receipt.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    receipt.write_bytes(damaged)
    refused = made.json(*checking, code=Exit.WRONG)
    assert refused["valid"] is False
    assert refused["reason"]
    for content in (b"", b"receipt", bytes(2 * 1024 * 1024)):
        receipt.write_bytes(content)
        assert made.json(*checking, code=Exit.WRONG)["valid"] is False


def test_a_receipt_of_another_chain_is_wrong(made: Cli, tmp_path: Path) -> None:
    receipt = tmp_path / "proof.receipt"
    made.run("prove", made.ledger, made.entries()[0]["txid"], "-o", receipt)
    Ledger.create(tmp_path / "other").close()
    checking = ("verify-receipt", receipt, "--genesis")
    assert made.json(*checking, tmp_path / "other" / "genesis.cbor", code=Exit.WRONG)["valid"] is False
    made.error(*checking, receipt)
    made.run(*checking, tmp_path / "absent", code=Exit.USAGE)
    made.run("verify-receipt", receipt, code=Exit.USAGE)


def test_prove_fails_with_a_reason(made: Cli, tmp_path: Path) -> None:
    txid = made.entries()[0]["txid"]
    assert made.error("prove", made.ledger, "00" * 32, "-o", tmp_path / "x")["error"] == "not-found"
    failure = made.error("prove", made.ledger, txid, "-o", tmp_path / "no" / "x", code=Exit.LEDGER)
    assert failure["error"] == "storage"
    made.run("prove", made.ledger, txid, code=Exit.USAGE)
    made.run("prove", made.ledger, "00", "-o", tmp_path / "x", code=Exit.USAGE)


# Checking and mending.


def test_verify_and_reindex_a_sound_ledger(cli: Cli) -> None:
    report = cli.json("verify", cli.ledger)
    assert set(report) == {"ok", "blocks", "transactions", "log_bytes", "blobs", "problems"}
    assert (report["ok"], report["problems"]) == (True, [])
    before = cli.json("status", cli.ledger)
    rebuilt = cli.json("reindex", cli.ledger)
    assert rebuilt == {
        "height": before["height"],
        "transactions": before["transactions"],
        "replayed_blocks": before["height"] + 1,
    }
    shutil.rmtree(Path(cli.ledger) / "index")
    after = cli.json("status", cli.ledger)
    assert (after["head"], after["replayed_blocks"]) == (before["head"], before["height"] + 1)
    assert cli.json("verify", cli.ledger)["ok"]


def flip_in_log(cli: Cli) -> None:
    """Damages one bit of the first block with transactions."""
    (segment,) = (Path(cli.ledger) / "log").glob("*.seg")
    content = bytearray(segment.read_bytes())
    content[content.index(b"identity.register") + 5] ^= 1
    segment.write_bytes(content)


def test_verify_finds_a_flipped_bit(cli: Cli) -> None:
    flip_in_log(cli)
    report = cli.json("verify", cli.ledger, code=Exit.WRONG)
    assert report["ok"] is False
    assert report["problems"]
    assert "ok: False" in cli.run("verify", cli.ledger, code=Exit.WRONG).stdout


def test_a_damaged_log_cannot_be_reindexed(cli: Cli) -> None:
    flip_in_log(cli)
    assert cli.error("reindex", cli.ledger, code=Exit.LEDGER)["error"] == "corrupt"
