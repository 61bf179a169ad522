"""Durable signed transactions a second through ``Ledger.submit``, beside single-core coincurve in the same run.

Batches of 1,000 pre-signed ``record.put`` transactions with bodies of about 300 bytes, from three submitting threads;
envelopes are kept elsewhere (``require_blobs`` off), checkpoints run as they would. An fdatasync probe of the same
disk stands beside the figure.
"""

import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import coincurve

from fastledger import Ledger, LedgerOptions, Purpose, Role, Transaction, Wallet
from fastledger.crypto.hpke import KemSuite
from fastledger.model.body import body_map
from fastledger.model.codec import encode
from fastledger.subjects.record import RecordPut

BATCH = 1_000
SIGNERS = 16
# Distinct index tokens: a checkpoint of 50,000 records names each some 25 times.
TOKENS = 20_000


def coincurve_verifications_per_second(count: int = 4_000) -> float:
    """One core, one Python loop over ``PublicKey.verify`` with keys parsed beforehand and DER signatures."""
    keys = [coincurve.PrivateKey() for _ in range(SIGNERS)]
    publics = [key.public_key for key in keys]
    digests = [os.urandom(32) for _ in range(count)]
    signatures = [keys[i % SIGNERS].sign(digest, hasher=None) for i, digest in enumerate(digests)]
    begin = time.perf_counter()
    good = 0
    for i, digest in enumerate(digests):
        good += publics[i % SIGNERS].verify(signatures[i], digest, hasher=None)
    seconds = time.perf_counter() - begin
    if good != count:
        raise RuntimeError("the peer refused a good signature")
    return count / seconds


def fdatasync_ms(folder: Path, count: int = 30) -> float:
    """Median of an fdatasync after a 4 KiB overwrite of a preallocated file."""
    descriptor = os.open(folder / "probe", os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(descriptor, 0, count * 4096)
    taken = []
    for i in range(count):
        os.pwrite(descriptor, os.urandom(4096), i * 4096)
        begin = time.perf_counter()
        os.fdatasync(descriptor)
        taken.append((time.perf_counter() - begin) * 1e3)
    os.close(descriptor)
    return statistics.median(taken)


def signed_batches(wallet: Wallet, signers: list[Wallet], count: int) -> list[list[bytes]]:
    """``count`` batches of signed records; every body has 290 to 310 bytes."""
    key = wallet.folder_key("vitals")
    vocabulary = [os.urandom(16) for _ in range(TOKENS)]
    chance = random.Random(1)
    batches = []
    for _ in range(count):
        batch = []
        for i in range(BATCH):
            body = RecordPut(
                digest=os.urandom(32),
                epoch=key.epoch,
                folder=key.folder,
                record=os.urandom(16),
                size=2_000,
                tokens=chance.choices(vocabulary, k=10),
            )
            batch.append(signers[i % len(signers)].sign(body).encoded)
        batches.append(batch)
    body_bytes = len(encode(body_map(body)))
    if batches and not 280 <= body_bytes <= 320:
        raise RuntimeError(f"bodies have {body_bytes} bytes")
    return batches


def world_transactions(chain_id: bytes, regulator: Wallet) -> tuple[list[Transaction], Wallet, list[Wallet]]:
    """What makes a hospital whose practitioners may write into a patient's folder; the patient and they."""
    hospital, patient = (Wallet.create(suite=KemSuite.X25519) for _ in range(2))
    staff = [Wallet.create(suite=KemSuite.X25519) for _ in range(SIGNERS)]
    for wallet in (regulator, hospital, patient, *staff):
        wallet.join(chain_id)
    transactions = [
        hospital.register(Role.ORGANISATION),
        patient.register(Role.PATIENT),
        regulator.endorse(hospital.identity, Role.ORGANISATION),
        patient.open_folders("vitals"),
        patient.grant(
            hospital.identity, hospital.kem_public, ["vitals"], purposes=[Purpose.TREATMENT], rights=3
        ),
    ]
    for wallet in staff:
        transactions += [
            wallet.register(Role.PRACTITIONER),
            hospital.endorse(wallet.identity, Role.PRACTITIONER),
        ]
    return transactions, patient, staff


def open_world(folder: Path) -> tuple[Ledger, Wallet, list[Wallet]]:
    """A ledger with that hospital."""
    regulator = Wallet.create(suite=KemSuite.X25519)
    ledger = Ledger.create(
        folder / "ledger", authorities=[regulator.authority], options=LedgerOptions(require_blobs=False)
    )
    transactions, patient, staff = world_transactions(ledger.chain_id, regulator)
    for outcome in ledger.submit(transactions):
        outcome.raise_for_status()
    return ledger, patient, staff


def submit_all(ledger: Ledger, batches: list[list[bytes]], threads: int) -> float:
    """Seconds until every batch is durable."""
    waiting = list(reversed(batches))
    failures: list[Any] = []

    def work() -> None:
        while True:
            try:
                batch = waiting.pop()
            except IndexError:
                return
            failures.extend(outcome for outcome in ledger.submit(batch) if not outcome.ok)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - begin
    if failures:
        raise RuntimeError(f"{len(failures)} transactions failed, first as {failures[0].code.slug}")
    return seconds


def measure_ledger(*, batches: int = 60, rounds: int = 5, threads: int = 3) -> dict[str, Any]:
    """Durable transactions a second over coincurve verifications a second, round by round in one run.

    The peer is measured before and after each round. ``min``, ``median`` and ``max`` are of the ratio.
    """
    folder = Path(tempfile.mkdtemp(prefix="fastledger-bench-"))
    try:
        ledger, patient, staff = open_world(folder)
        durable, peers = [], []
        for _ in range(rounds):
            prepared = signed_batches(patient, staff, batches)
            before = coincurve_verifications_per_second()
            seconds = submit_all(ledger, prepared, threads)
            after = coincurve_verifications_per_second()
            durable.append(batches * BATCH / seconds)
            peers.append((before + after) / 2)
        ratios = [ours / peer for ours, peer in zip(durable, peers, strict=True)]
        stages = {name: round(total, 2) for name, (total, _) in ledger.times.snapshot().items()}
        height = ledger.height
        ledger.close()
        return {
            "name": f"Ledger.submit, {batches * BATCH * rounds:,} records, {threads} submitters",
            "ratio": {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)},
            "bar": 1.0,
            "durable_per_s": durable,
            "coincurve_per_s": peers,
            "fdatasync_ms": fdatasync_ms(folder),
            "blocks": height,
            "stages_s": stages,
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---- pytest ----


def test_submit(benchmark: Any, tmp_path: Path) -> None:
    ledger, patient, staff = open_world(tmp_path)
    prepared = signed_batches(patient, staff, 4)
    benchmark.pedantic(lambda: submit_all(ledger, [prepared.pop()], 1), rounds=3)
    ledger.close()


if __name__ == "__main__":
    print(measure_ledger())
