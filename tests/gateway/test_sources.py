"""Reading sources: exact bytes, fixed order, bounded memory, and damage that stays local."""

import gzip
import io
import json
import lzma
import os
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastledger.errors import FhirError
from fastledger.gateway import json_bounds, sources
from fastledger.gateway.json_bounds import has_more_items, values_most
from fastledger.gateway.sources import (
    Passed,
    ReadingProgress,
    SourceBundle,
    SourceError,
    SourceResource,
    read_bundles,
    read_resources,
)
from fastledger.limits import BUNDLE_NESTING_MAX
from fastledger.workload import generate, transaction_bundle

PATIENT = b'{"resourceType" : "Patient","id":"a", "multipleBirthInteger":1.0}'
OTHER = b'{"resourceType":"Observation","id":"b"}'
BUNDLE = (
    b'{"resourceType":"Bundle","type":"transaction","entry":[{"fullUrl":"urn:uuid:1","resource":'
    + PATIENT
    + b"},\n {"
    + b'"resource":   '
    + OTHER
    + b"  }]}"
)


def raws(*paths: Path) -> list[bytes | str]:
    """The bytes of every resource, and the texts of the errors."""
    return [item.raw if isinstance(item, SourceResource) else str(item) for item in read_resources(paths)]


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def test_bundle_entries_keep_their_bytes(tmp_path: Path) -> None:  # SPEC-FHIR-6
    path = tmp_path / "Alfina_Sampleton.json"
    path.write_bytes(BUNDLE)
    (bundle,) = read_bundles([path])
    assert isinstance(bundle, SourceBundle)
    assert [item.raw for item in bundle.resources] == [PATIENT, OTHER]
    assert [item.full_url for item in bundle.resources] == ["urn:uuid:1", None]
    assert [item.resource_type for item in bundle.resources] == ["Patient", "Observation"]
    assert (bundle.patient_id, bundle.patient_url) == ("a", "urn:uuid:1")
    assert bundle.resources[1].origin == "source 1, entry 2"
    assert bundle.resources[1].path == path


def test_nothing_printable_names_a_file_or_a_patient(tmp_path: Path) -> None:  # SPEC-FHIR-7
    for name, content in (("good.json", BUNDLE), ("bad.json", b"{"), ("x.txt", b"")):
        (tmp_path / f"Alfina_{name}").write_bytes(content)
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "Alfina_absent.json"]
    told = ""
    for bundle in read_bundles(paths):
        told += f"{bundle!r} {bundle}"
        if isinstance(bundle, SourceBundle):
            told += "".join(f"{item!r} {item.origin}" for item in bundle.resources)
    assert "source 4" in told
    for secret in ("Alfina", "urn:uuid:1", "multipleBirth", str(tmp_path)):
        assert secret not in told


def test_single_resource_and_ndjson(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_bytes(PATIENT + b"\n")
    (tmp_path / "2.ndjson").write_bytes(OTHER + b"\r\n\n" + PATIENT)
    assert raws(tmp_path) == [PATIENT + b"\n", OTHER, PATIENT]


@pytest.mark.parametrize("compress", [lzma.compress, gzip.compress])
@pytest.mark.parametrize("suffix", [".json", ".json.xz", ".json.gz"])
def test_compression_is_told_by_content(
    tmp_path: Path, compress: Callable[[bytes], bytes], suffix: str
) -> None:
    path = tmp_path / f"bundle{suffix}"
    path.write_bytes(compress(BUNDLE))
    assert raws(path) == [PATIENT, OTHER]


@pytest.mark.parametrize("mode", ["w", "w:xz", "w:gz"])
def test_tar(tmp_path: Path, mode: str) -> None:
    members = {
        "../../etc/1.json": BUNDLE,
        "notes.txt": b"x",
        "long" * 60 + ".ndjson.gz": gzip.compress(OTHER + b"\n" + OTHER),
        "broken.json": BUNDLE[:-3],
        "broken.ndjson.xz": lzma.compress(OTHER * 99)[:-20],
        "log.ndjson": b"{}",
        "last.json": PATIENT,
    }
    path = write_tar(tmp_path / "a.tar", members, mode)
    found = raws(path)
    assert [item for item in found if isinstance(item, bytes)] == [PATIENT, OTHER, OTHER, OTHER, PATIENT]
    assert [item.partition(": ")[2] for item in found if isinstance(item, str)] == [
        "source 1, member 4: neither a FHIR bundle nor a resource in JSON",
        "source 1, member 5: damaged archive or compression",
    ]
    assert [item.name for item in tmp_path.iterdir()] == ["a.tar"]


@pytest.mark.parametrize("mode", ["w", "w:xz", "w:gz"])
def test_damaged_archive_gives_what_it_can(tmp_path: Path, mode: str) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{n}.json": BUNDLE + b" " * 300_000 for n in range(5)}, mode)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    (tmp_path / "b.json").write_bytes(PATIENT)
    found = raws(tmp_path)
    assert any(isinstance(item, str) for item in found)
    assert found[-1] == PATIENT


def test_concatenated_streams_are_one(tmp_path: Path) -> None:
    for name, compress in (("a.ndjson.xz", lzma.compress), ("b.ndjson.gz", gzip.compress)):
        (tmp_path / name).write_bytes(compress(OTHER + b"\n") + compress(PATIENT))
    assert raws(tmp_path) == [OTHER, PATIENT] * 2


def test_bad_entries_are_reported_and_passed_over(tmp_path: Path) -> None:
    entries = b'{"fullUrl":5},7,{"request":{"method":"POST"}},{"resource":' + PATIENT + b'},{"resource":[]}'
    path = tmp_path / "a.json"
    path.write_bytes(b'{"resourceType":"Bundle","entry":[' + entries + b"]}")
    found = raws(path)
    assert found[0] == PATIENT
    assert [str(item).partition(": ")[2] for item in found[1:]] == [
        "source 1, entry 1: not a bundle entry",
        "source 1, entry 2: not a bundle entry",
        "source 1, entry 3: has no resource",
        "source 1, entry 5: not a resource in JSON",
    ]


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BUNDLE_BYTES_MAX", 500)
    monkeypatch.setattr(sources, "BUNDLE_ENTRIES_MAX", 1)
    monkeypatch.setattr(sources, "RESOURCE_BYTES_MAX", 100)
    (tmp_path / "1.json").write_bytes(BUNDLE)
    (tmp_path / "2.json").write_bytes(PATIENT + b" " * 500)
    (tmp_path / "3.json").write_bytes(PATIENT + b" " * 100)
    (tmp_path / "4.ndjson").write_bytes(
        OTHER + b"\n" + b"[" * 999 + b"\n" + PATIENT + b" " * 35 + b"\n" + OTHER
    )
    found = raws(tmp_path)
    assert [str(item).rpartition(": ")[2] for item in found if isinstance(item, str)] == [
        "has 2 entries, at most 1",
        "has more than 500 bytes",
        f"has {len(PATIENT) + 100} bytes, at most 100",
        "has more than 100 bytes",
    ]
    assert [item for item in found if isinstance(item, bytes)] == [OTHER, PATIENT, OTHER]


# What lies in a folder.


def codes(*paths: Path, passed: Passed | None = None) -> list[str]:
    """The faults of what cannot be read, and the ids of what can."""
    found = []
    for bundle in read_bundles(paths, passed=passed):
        if isinstance(bundle, SourceBundle):
            found += [item.resource_id or "" for item in bundle.resources]
            found += [str(problem.fault) for problem in bundle.problems]
        else:
            found.append(str(bundle.fault))
    return found


def test_links_never_lead_out_of_the_tree(tmp_path: Path) -> None:  # SPEC-FHIR-13
    """A folder behind a link was once passed over without a word; what it leads to is told, or read where it lies."""
    drop, elsewhere = tmp_path / "drop", tmp_path / "elsewhere"
    drop.mkdir()
    elsewhere.mkdir()
    (elsewhere / "p.json").write_bytes(PATIENT)
    (drop / "b.json").write_bytes(OTHER)
    (drop / "today").symlink_to(elsewhere)
    (drop / "one.json").symlink_to(elsewhere / "p.json")
    (drop / "dangling.json").symlink_to("nowhere.json")
    (drop / "round").symlink_to(drop)
    (drop / "again.json").symlink_to("b.json")
    (drop / "itself.json").symlink_to("itself.json")
    (drop / "up.json").symlink_to("../elsewhere/../elsewhere/p.json")
    passed = Passed()
    told = codes(drop, passed=passed)
    assert sorted(told) == sorted(
        ["b", *["link-out-of-the-tree"] * 3, *["link-to-nothing"] * 2],
    )
    assert (passed.links, passed.companions, passed.other_files) == (2, 0, 0)
    # What the operator names is taken as named.
    assert codes(drop / "today") == ["a"]
    assert codes(drop / "one.json") == ["a"]


def test_mounted_volumes_are_read_once(tmp_path: Path) -> None:
    """Volumes of orchestrators are folders of links to a hidden folder beside them."""
    real = tmp_path / "..2026_01"
    real.mkdir()
    (real / "p.json").write_bytes(PATIENT)
    (tmp_path / "..data").symlink_to("..2026_01")
    (tmp_path / "p.json").symlink_to("..data/p.json")
    assert codes(tmp_path) == ["a"]


def test_a_file_that_is_exchanged_while_reading_is_not_read(tmp_path: Path) -> None:  # SPEC-FHIR-13
    secret = tmp_path / "secret.json"
    secret.write_bytes(OTHER)
    drop = tmp_path / "drop"
    drop.mkdir()
    for name in ("1.json", "2.json", "3.json", "4.json"):
        (drop / name).write_bytes(PATIENT)
    reader = read_bundles([drop])
    assert isinstance(next(reader), SourceBundle)
    for name in ("2.json", "3.json", "4.json"):
        (drop / name).unlink()
    (drop / "2.json").symlink_to(secret)
    os.link(secret, drop / "3.json")
    os.mkfifo(drop / "4.json")
    faults = [item.fault for item in reader if isinstance(item, SourceError)]
    assert [str(fault) for fault in faults] == [
        "cannot-be-read",
        "changed-while-reading",
        "changed-while-reading",
    ]


def test_companions_and_other_files_are_counted(tmp_path: Path) -> None:  # SPEC-FHIR-13
    (tmp_path / "a.json").write_bytes(PATIENT)
    (tmp_path / "._a.json").write_bytes(b"\0\5\26\7")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "notes.txt").write_bytes(b"x")
    (tmp_path / "log.ndjson").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.json")
    members = {"b.jsonl": OTHER, "__MACOSX/._b.json": b"x", "._c.json": b"x", "d.zip": b"x"}
    write_tar(tmp_path / "z.tar", members)
    passed = Passed()
    assert codes(tmp_path, passed=passed) == ["a", "b"]
    assert (passed.companions, passed.links, passed.other_files) == (5, 0, 4)


def test_what_an_archive_hides_is_told(tmp_path: Path) -> None:  # SPEC-FHIR-13
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            header = tarfile.TarInfo(f"{kind!r}.json")
            header.type, header.linkname = kind, "/etc/hostname"
            archive.addfile(header)
        header = tarfile.TarInfo("inner.tar")
        archive.addfile(header, io.BytesIO())
    assert codes(tmp_path) == [*["link-in-an-archive"] * 3, "archive-in-an-archive"]


def test_arrays_are_their_items(tmp_path: Path) -> None:  # SPEC-FHIR-13
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf [" + PATIENT + b",7," + OTHER + b"]")
    (tmp_path / "b.json").write_bytes(b"[]")
    (tmp_path / "c.json").write_bytes(b"[" + PATIENT)
    assert codes(tmp_path) == ["a", "b", "not-a-resource", "not-json"]


def nest(levels: int, inner: bytes = PATIENT) -> bytes:
    for _ in range(levels):
        inner = b'{"resourceType":"Bundle","entry":[{"resource":' + inner + b"}]}"
    return inner


def test_bundles_nest_up_to_a_bound(tmp_path: Path) -> None:  # SPEC-FHIR-13
    for level, told in ((1, "a"), (BUNDLE_NESTING_MAX, "a"), (BUNDLE_NESTING_MAX + 2, "nested-too-deep")):
        (tmp_path / "a.json").write_bytes(nest(level))
        assert codes(tmp_path) == [told], level
    (tmp_path / "a.json").write_bytes(nest(3_000))
    assert codes(tmp_path) in (["nested-too-deep"], ["not-json"])
    broken = b'{"resourceType":"Parameters","parameter":7}'
    (tmp_path / "a.json").write_bytes(nest(1, broken))
    assert codes(tmp_path) == ["not-a-resource"]


@pytest.mark.parametrize(
    ("text", "count", "more"),
    [
        (b"[1,2,3]", 2, True),
        (b"[1,2,3]", 3, False),
        (b'{"a":[1,2],"entry":[1,{"b":[1,2,3,4]},"[,,,"]}', 5, False),
        (b'{"a":[1,2],"entry":[1,{"b":[1,2,3,4]},"[,,,"]}', 3, True),
        (b'["' + b"\\\\" * 9 + b'",",,,,"]', 2, False),
        (b'["unended', 99, True),
        (b"]]]]", 99, True),
    ],
)
def test_items_are_counted_without_decoding(
    monkeypatch: pytest.MonkeyPatch, text: bytes, count: int, more: bool
) -> None:  # SPEC-FHIR-14
    monkeypatch.setattr(json_bounds, "_CHEAP_VALUES", 0)
    assert has_more_items(text + b" " * 0, count) is (more and values_most(text) > count)


@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_values_are_never_more_than_counted(value: object) -> None:  # SPEC-FHIR-14
    def count(node: object) -> int:
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        return 1 + sum(map(count, inner))

    assert count(value) <= values_most(json.dumps(value).encode())


def test_a_bomb_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BUNDLE_BYTES_MAX", 1_000_000)
    monkeypatch.setattr(sources, "RESOURCE_BYTES_MAX", 1_000_000)
    for name in ("a.json.xz", "b.ndjson.xz"):
        with lzma.open(tmp_path / name, "wb", preset=0) as file:
            for _ in range(32):
                file.write(bytes(1024 * 1024))
    tracemalloc.start()
    found = list(read_resources([tmp_path]))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [isinstance(item, FhirError) for item in found] == [True, True]
    assert peak_bytes < 8_000_000


def test_an_xz_dictionary_is_bounded(tmp_path: Path) -> None:
    damaged = bytearray(lzma.compress(BUNDLE))
    # The block header (at 12) holds filter 0x21 with one property, the dictionary's size: 34 says 512 MiB.
    damaged[damaged.index(b"\x21\x01", 12) + 2] = 34
    end = 12 + damaged[12] * 4
    damaged[end : end + 4] = zlib.crc32(damaged[12:end]).to_bytes(4, "little")
    path = tmp_path / "a.json.xz"
    path.write_bytes(damaged)
    assert lzma.decompress(damaged) == BUNDLE
    assert raws(path) == ["bad-resource: source 1: damaged archive or compression"]


def test_a_large_tar_header_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", {"long" * 60 + ".json": PATIENT})
    assert raws(path) == [PATIENT]
    monkeypatch.setattr(sources, "TAR_HEADER_BYTES_MAX", 100)
    assert raws(path) == ["bad-resource: source 1: damaged archive or compression"]


def test_ndjson_is_grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "NDJSON_GROUP_LINES", 4)
    (tmp_path / "Patient.ndjson").write_bytes((PATIENT + b"\n") * 10)
    bundles = [item for item in read_bundles([tmp_path]) if isinstance(item, SourceBundle)]
    assert [len(item.resources) for item in bundles] == [4, 4, 2]
    assert [item.bundle_index for item in bundles] == [0, 1, 2]
    assert all(item.patient_id is None for item in bundles)
    assert bundles[2].resources[1].origin == "source 1, line 10"


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(BUNDLE)
    write_tar(tmp_path / "b.tar.gz", {"a.json": BUNDLE, "b.json": PATIENT}, "w:gz")
    (tmp_path / "c.json").write_bytes(b"{")
    progress = ReadingProgress()
    seen = [progress.bytes_read for _ in read_resources([tmp_path], progress)]
    assert seen == sorted(seen)
    assert progress.bytes_read == progress.bytes_total == sum(f.stat().st_size for f in tmp_path.iterdir())


def test_reading_is_lazy(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.json").write_bytes(BUNDLE)
    progress = ReadingProgress()
    reader = read_bundles([tmp_path], progress)
    next(reader)
    assert progress.bytes_read <= len(BUNDLE) < progress.bytes_total


def test_the_workload_survives_the_journey(tmp_path: Path) -> None:
    made = list(generate(4, 3))
    for bundle in made:
        (tmp_path / f"{bundle.bundle_index}.json").write_bytes(transaction_bundle(bundle))
    read = [item for item in read_bundles([tmp_path]) if isinstance(item, SourceBundle)]
    assert [[item.raw for item in bundle.resources] for bundle in read] == [
        [item.raw for item in bundle.resources] for bundle in made
    ]
    assert [bundle.patient_url for bundle in read] == [bundle.patient_url for bundle in made]
    assert [bundle.patient_id for bundle in read] == [bundle.patient_id for bundle in made]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_an_error_or_resources(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = data.draw(
        st.sampled_from([BUNDLE, lzma.compress(BUNDLE), gzip.compress(BUNDLE), PATIENT + b"\n" + OTHER])
    )
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    suffix = data.draw(st.sampled_from([".json", ".ndjson", ".tar"]))
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(damaged)
    assert all(isinstance(item, SourceResource | FhirError) for item in read_resources([path]))


@pytest.mark.data
def test_synthea_histories(shared_data: Path) -> None:
    folder = shared_data / "synthea-r4" / "pick"
    patients = 0
    for bundle in read_bundles([folder]):
        assert isinstance(bundle, SourceBundle)
        assert bundle.problems == ()
        text = json.loads(bundle.path.read_bytes()) if bundle.path else {}
        assert [json.loads(item.raw) for item in bundle.resources] == [
            entry["resource"] for entry in text["entry"]
        ]
        patients += bundle.patient_id is not None
    assert patients >= 5


@pytest.mark.data
def test_bulk_export(shared_data: Path) -> None:
    counts: dict[str, int] = {}
    for item in read_resources([shared_data / "synthea-bulk-ndjson" / "10-patients"]):
        assert isinstance(item, SourceResource)
        counts[item.resource_type] = counts.get(item.resource_type, 0) + 1
    lines = sum(
        len((lzma.open if file.suffix == ".xz" else open)(file, "rb").read().splitlines())
        for file in (shared_data / "synthea-bulk-ndjson" / "10-patients").iterdir()
        if not file.name.startswith("log.")
    )
    assert sum(counts.values()) == lines
    assert counts["Patient"] >= 10
