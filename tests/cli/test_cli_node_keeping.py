"""The commands that keep a ledger, on a node: the same answers as on its directory, with the work done over there."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from client_world import ONE_TRY, PATIENT_RETRY, WITH_BLOBS, NodeWorld, make_node_world, wallet
from commands import Cli
from feeds import small_files
from net_faults import Proxy

from fastledger import AsyncClient, Client, Ledger, Role
from fastledger.cli.output import Exit
from fastledger.client.operating import report_as
from fastledger.errors import InputError, LedgerBusyError, UnreachableError
from fastledger.model.reports import BackupReport

SLOW = 2_000  # bytes a second: long enough for any test to call it off


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeWorld]:
    folder = tmp_path_factory.mktemp("node")
    config = WITH_BLOBS + f'\n[backup]\ndirectory = "{folder}/backups"\n'
    (folder / "backups").mkdir()
    made = make_node_world(folder, config)
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(world: NodeWorld) -> Client:
    made = world.connect()
    for number in range(60):
        sealed = world.patient.put_record("vitals", os.urandom(20_000), [f"term {number}"])
        made.submit([sealed.transaction], [sealed.blob])[0].raise_for_status()
    return made


@pytest.fixture(scope="module")
def backups(world: NodeWorld) -> Path:
    return world.node.folder / "backups"


@pytest.fixture
def cli(tmp_path: Path, client: Client) -> Cli:
    return Cli(tmp_path)


def settled(client: Client, job: str) -> str:
    """The state in which a job ended."""
    deadline = time.monotonic() + 30
    while (view := client.job(job)).state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return view.state


def running(client: Client, operation: str) -> str:
    """The id of a running job, once there is one."""
    deadline = time.monotonic() + 30
    while True:
        for job in client.jobs():
            if (job.operation, job.state) == (operation, "running"):
                return job.job
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Load:
    """Registrations that go on while something else happens."""

    def __init__(self, world: NodeWorld) -> None:
        self._client = world.connect()
        self._chain_id = world.chain_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.durable = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            batch = [wallet(self._chain_id).register(Role.PATIENT) for _ in range(2)]
            self.durable += sum(outcome.ok for outcome in self._client.submit(batch))
            time.sleep(0.02)

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)


def test_a_backup_under_load_restores_elsewhere(
    cli: Cli, world: NodeWorld, backups: Path, tmp_path: Path
) -> None:  # SPEC-CLI-8
    with Load(world) as load:
        while not load.durable:
            time.sleep(0.01)
        made = cli.json("backup", world.node.url, "nightly", "--rate", 2_000_000)
        at_the_end = load.durable
    assert at_the_end > 5
    restored = cli.json("restore", backups / "nightly", tmp_path / "elsewhere")
    for name in ("height", "block_id", "state_root"):
        assert restored[name] == made[name]
    verified = cli.json("verify", tmp_path / "elsewhere")
    assert (verified["ok"], verified["blobs"]) == (True, 60)
    again = cli.json("backup", world.node.url, backups / "nightly", "--include-snapshot", "--recheck")
    assert 0 < again["copied_bytes"] <= again["total_bytes"]
    assert set(again) == set(made)


@pytest.mark.parametrize("place", ["../outside", "/tmp/outside", ".", "a/../../outside"])
def test_a_node_writes_into_its_backup_directory_alone(cli: Cli, world: NodeWorld, place: str) -> None:
    for command in (("backup",), ("snapshot", "create")):
        assert cli.error(*command, world.node.url, place)["error"] == "bad-query"


def test_a_snapshot_restores_elsewhere(cli: Cli, world: NodeWorld, backups: Path, tmp_path: Path) -> None:
    made = cli.json("snapshot", "create", world.node.url, "state")
    genesis = world.node.ledger / "genesis.cbor"
    restored = cli.json("snapshot", "restore", backups / "state", tmp_path / "r", "--genesis", genesis)
    assert {name: made[name] for name in ("chain_id", "height", "block_id", "state_root")} == {
        name: restored[name] for name in ("chain_id", "height", "block_id", "state_root")
    }
    assert len(bytes.fromhex(made["root"])) == 32
    assert made["chunks"] > 0 and made["entries"] > 60


def test_lines_are_the_same_from_node_and_directory(
    cli: Cli, world: NodeWorld, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-CLI-10
    monkeypatch.setattr("fastledger.client.export.PAGE_TRANSACTIONS", 7)
    cli.json("backup", world.node.url, "for-export")
    copy = tmp_path / "copy"
    cli.json("restore", world.node.folder / "backups" / "for-export", copy)
    for name, bounds in {
        "all": (),
        "some": ("--from-height", 3, "--to-height", 20),
        "end": ("--from-height", 9),
    }.items():
        there, here = tmp_path / f"{name}.node", tmp_path / f"{name}.directory"
        reports = [
            cli.json("export", place, file, *bounds)
            for place, file in ((world.node.url, there), (copy, here))
        ]
        assert there.read_bytes() == here.read_bytes() != b""
        assert reports[0] == reports[1]
    piped = cli.run("export", world.node.url, "-", "--to-height", 1, "--rate", 10**9).stdout
    assert [json.loads(line)["height"] for line in piped.splitlines()] == [1] * 6
    for bounds in (("--from-height", 10**6), ("--from-height", 5, "--to-height", 4)):
        for place in (world.node.url, copy):
            assert (
                cli.error("export", place, tmp_path / f"none {bounds} {place != copy}", *bounds)["error"]
                == "bad-query"
            )


def test_verification_at_a_rate_and_offline(cli: Cli, world: NodeWorld) -> None:
    for choice in (("--online", "--rate", 10**9), ("--offline",)):
        assert cli.json("verify", world.node.url, *choice)["ok"]


def test_verification_of_a_directory_takes_the_same_options(cli: Cli, tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger").close()
    for choice in (("--online",), ("--offline",), ("--rate", 10**9)):
        assert cli.json("verify", tmp_path / "ledger", *choice)["ok"]


def test_a_node_prunes_and_frees_what_it_says(tmp_path: Path) -> None:  # SPEC-CLI-8
    with small_files():
        made = make_node_world(tmp_path)
    try:
        made.node.stop()
        with small_files(), Ledger.open(made.node.ledger) as ledger:
            for _ in range(60):
                ledger.submit([wallet(made.chain_id).register(Role.PATIENT)])
        made.node.start()
        cli, log = Cli(tmp_path), made.node.ledger / "log"
        before = sum(path.stat().st_size for path in log.iterdir())
        answer = cli.json("prune", made.node.url, "--keep-blocks", 10)
        assert answer["freed_bytes"] == before - sum(path.stat().st_size for path in log.iterdir()) > 0
        assert answer["first_height"] == cli.json("status", made.node.url)["first_height"] > 0
        lines = tmp_path / "kept"
        assert cli.json("export", made.node.url, lines)["from_height"] == answer["first_height"]
        assert cli.error("export", made.node.url, tmp_path / "gone", "--from-height", 0)["error"] == "pruned"
        assert cli.error("prune", made.node.url)["error"] == "bad-query"
    finally:
        made.close()


def test_what_needs_a_directory_says_so(cli: Cli, world: NodeWorld, tmp_path: Path) -> None:  # SPEC-CLI-8
    (tmp_path / "file").touch()
    url, file = world.node.url, tmp_path / "file"
    for command in (
        ("export", url, tmp_path / "chain.blocks", "--format", "blocks"),
        ("collect-orphans", url),
        ("restore", tmp_path, url),
        ("import", file, url),
        ("snapshot", "restore", tmp_path, url, "--genesis", file),
        ("backup", tmp_path, url),
    ):
        assert "not on a node" in cli.run(*command, code=Exit.USAGE).stderr
    assert "a node" in cli.run("node", "checkpoint", tmp_path, code=Exit.USAGE).stderr


def test_the_process_is_asked_by_its_commands(cli: Cli, world: NodeWorld, client: Client) -> None:
    assert cli.json("node", "checkpoint", world.node.url)["height"] == client.tip().height
    assert cli.json("node", "reload", "--node", world.node.url)["reloaded"] == client.reload()
    begun = threading.Thread(
        target=_failure, args=(client.backup, "slow"), kwargs={"rate_bytes_per_second": SLOW}
    )
    begun.start()
    job = running(client, "backup")
    listed = cli.json("node", "jobs", world.node.url)["jobs"]
    assert (listed[0]["job"], listed[0]["state"]) == (job, "running")
    assert cli.json("node", "cancel", world.node.url, job)["job"] == job
    begun.join(30)
    assert settled(client, job) == "cancelled"
    assert cli.error("node", "cancel", world.node.url, job)["error"] == "malformed"
    assert cli.error("node", "cancel", world.node.url, "j999")["error"] == "not-found"
    assert client.node_status()["jobs"][0]["job"] == job


# Jobs whose answers are lost, and waits that end early.


def test_a_job_is_begun_once_when_its_answer_is_lost(world: NodeWorld, client: Client) -> None:  # SPEC-CLI-9
    with Proxy(world.node.port) as proxy:
        through = world.connect(proxy.url)
        before = len(client.jobs())
        proxy.cut_answers(0, 20)
        assert through.verify().ok
        assert proxy.cut_count == 2
        through.close()
    jobs = client.jobs()
    assert (len(jobs) - before, jobs[0].operation, jobs[0].state) == (1, "verify", "done")


def test_another_job_is_waited_for_and_never_taken_for_ones_own(
    world: NodeWorld, client: Client
) -> None:  # SPEC-CLI-9
    outcome: list[Any] = []
    other = threading.Thread(
        target=lambda: outcome.append(_failure(client.backup, "other", rate_bytes_per_second=SLOW))
    )
    other.start()
    job = running(client, "backup")
    hasty = world.connect(options=ONE_TRY)
    with pytest.raises(LedgerBusyError):
        hasty.backup("mine")
    client.cancel_job(job)
    other.join(30)
    assert isinstance(outcome[0], Exception) and not isinstance(outcome[0], UnreachableError)
    assert not (world.node.folder / "backups" / "mine").exists()


def _failure(function: Any, *arguments: Any, **options: Any) -> Exception | None:
    try:
        function(*arguments, **options)
    except Exception as error:
        return error
    return None


def test_progress_that_raises_calls_the_job_off(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:  # SPEC-CLI-9
    called_off: list[str] = []

    async def cancel_job(_self: AsyncClient, job: str) -> None:
        called_off.append(job)

    monkeypatch.setattr(AsyncClient, "cancel_job", cancel_job)
    seen: list[tuple[str, int, int]] = []

    def tell(*progress: Any) -> None:
        seen.append(progress)
        raise InputError("enough")

    with pytest.raises(InputError, match="enough"):
        client.backup("enough", progress=tell)
    assert len(seen) == 1
    assert called_off == [client.jobs()[0].job]
    settled(client, called_off[0])


async def test_a_cancelled_wait_calls_the_job_off(world: NodeWorld, client: Client) -> None:  # SPEC-CLI-9
    async with await AsyncClient.connect(world.node.url, options=PATIENT_RETRY) as waiting:
        for delay_s in (0.0, 0.3):
            task = asyncio.create_task(waiting.backup("cancelled", rate_bytes_per_second=SLOW))
            await asyncio.sleep(delay_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            jobs = await waiting.jobs()
            state = await asyncio.to_thread(settled, client, jobs[0].job)
            if delay_s:
                assert (jobs[0].operation, state) == ("backup", "cancelled")


def test_an_interrupted_command_calls_its_job_off(world: NodeWorld, client: Client) -> None:  # SPEC-CLI-9
    command = [
        sys.executable,
        "-m",
        "fastledger",
        "backup",
        world.node.url,
        "interrupted",
        "--rate",
        str(SLOW),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    job = running(client, "backup")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert settled(client, job) == "cancelled"


def test_reports_of_another_shape_are_no_reports() -> None:
    whole = {
        "height": 1,
        "block_id": "aa" * 32,
        "state_root": "bb" * 32,
        "files": 1,
        "total_bytes": 2,
        "copied_bytes": 3,
        "dropped_objects": 4,
    }
    assert report_as(BackupReport, whole).block_id == b"\xaa" * 32
    for wrong in ({}, {**whole, "block_id": "xx"}, {**whole, "block_id": None}, {**whole, "files": "1"}):
        with pytest.raises(UnreachableError):
            report_as(BackupReport, wrong)
