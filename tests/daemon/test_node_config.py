"""The node's configuration: lines, bounds, relations, the environment, and the text made of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastledger.chain.options import LedgerOptions
from fastledger.daemon.config.lines import locate_keys
from fastledger.daemon.config.settings import LedgerConfig, NodeConfig, RpcConfig, is_loopback
from fastledger.daemon.config.text import load_config, parse_config, render_config, settings, settings_table
from fastledger.errors import Code, ConfigError
from fastledger.node.options import IngestOptions, ServerTlsOptions
from fastledger.rpc.options import AccessOptions, ClientRule, RpcOptions

ROOT = Path(__file__).resolve().parents[2]
LEAST = '[ledger]\npath = "x"\n'


def parse(text: str | bytes, **environ: str) -> NodeConfig:
    data = text.encode() if isinstance(text, str) else text
    variables = {f"FASTLEDGER_NODE__{name}": value for name, value in environ.items()}
    return parse_config(data, label="node.toml", base=Path("/etc/fl"), environ=variables)


def problems(text: str | bytes, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        parse(text, **environ)
    assert raised.value.code is Code.BAD_CONFIG
    return raised.value.problems


def test_a_relative_path_starts_at_the_file(tmp_path: Path) -> None:  # SPEC-NODE-101
    file = tmp_path / "node.toml"
    file.write_text(LEAST + '[log]\npath = "/var/log/fl.log"\n')
    config = load_config(file, {})
    assert config.ledger.path == str(tmp_path / "x")
    assert config.log.path == "/var/log/fl.log"
    assert config.ledger.password_file == ""
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        load_config(tmp_path / "absent.toml", {})


def test_every_problem_is_told_with_its_line() -> None:  # SPEC-NODE-102
    text = """\
[ledger]
path = "x"
pasword_file = \"\"\"a
[rpc]
\"\"\"
[rpc]
port = 70000
host = ""
tls.key = 5
access.anonymous_roles = [
  "reader", # ]
  "chief"]
[[rpc.access.client]]
name = "a"
roles = ["reader"]
[[rpc.access.client]]
name = "b c"
[foo]
"""
    assert problems(text) == (
        "node.toml:3: ledger.pasword_file: no such setting; did you mean password_file?",
        "node.toml:7: rpc.port: expected an integer 0..65535",
        "node.toml:8: rpc.host: expected a string of 1..255 characters",
        "node.toml:9: rpc.tls.key: expected a string",
        "node.toml:10: rpc.access.anonymous_roles: expected a list of"
        ' one of "operator", "reader", "submitter"',
        "node.toml:16: rpc.access.client.1.roles: is missing: expected a list of"
        ' one of "operator", "reader", "submitter", 1 or more',
        "node.toml:17: rpc.access.client.1.name: expected a string matching ^[A-Za-z0-9._-]{1,64}$",
        "node.toml:18: foo: no such setting",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "node.toml:1: ledger.path: is missing: expected a string that is not empty"),
        ("ledger = 3", "node.toml:1: ledger: expected a table"),
        ('[ledger]\npath = "secret', "node.toml:2: is not TOML: "),
        (b"# \xff\n", "node.toml:1: is not UTF-8"),
        (LEAST + "[rpc]\nport = true", "node.toml:4: rpc.port: expected an integer 0..65535"),
        (LEAST + "[rpc]\nport = 1.0", "node.toml:4: rpc.port: expected an integer 0..65535"),
        (LEAST + "[rpc]\ninsecure = 1", "node.toml:4: rpc.insecure: expected true or false"),
        (LEAST + "[rpc.access]\nclient = 1", "expected an array of tables"),
        (LEAST + 'a = "\\u0000"', "no such setting"),
        ("[ledger]\npath = 'a' # '\n[log]\nlevel = 'all'", "node.toml:4: log.level: expected one of"),
        ("x = " + "[" * 5000, "node.toml"),
    ],
)
def test_bad_documents(text: str | bytes, problem: str) -> None:  # SPEC-NODE-102
    assert any(problem in found for found in problems(text))
    assert not any("secret" in found for found in problems(text))


def test_the_environment_goes_over_the_file() -> None:  # SPEC-NODE-103
    config = parse(
        LEAST + "[rpc]\nport = 1",
        RPC__PORT="2",
        RPC__ACCESS__ANONYMOUS_ROLES="reader, operator",
        LEDGER__REQUIRE_BLOBS="false",
        BACKUP__DIRECTORY="b",
    )
    assert (config.rpc.port, config.ledger.require_blobs) == (2, False)
    assert config.rpc.access.anonymous_roles == {"reader", "operator"}
    assert config.backup.directory == "/etc/fl/b"
    assert problems(LEAST, RPC__PORT="x", RPC__PROT="5", LEDGER__REQUIRE_BLOBS="yes") == (
        "FASTLEDGER_NODE__LEDGER__REQUIRE_BLOBS: expected true or false",
        "FASTLEDGER_NODE__RPC__PORT: expected an integer 0..65535",
        "FASTLEDGER_NODE__RPC__PROT: no such setting; did you mean FASTLEDGER_NODE__RPC__PORT?",
    )
    assert parse("", LEDGER__PATH="/l").ledger.path == "/l"


def test_a_rate_may_be_less_than_one_a_second() -> None:
    assert parse(LEAST + "[rpc.rate]\nrequests_per_second = 0.5").rpc.rate.requests_per_second == 0.5
    assert parse(LEAST, RPC__RATE__REQUESTS_PER_SECOND="0.25").rpc.rate.requests_per_second == 0.25
    assert parse(LEAST + "[rpc.rate]\nrequests_per_second = 2").rpc.rate.requests_per_second == 2.0
    expected = "rpc.rate.requests_per_second: expected a number 0..10000000"
    for value in ("-0.5", "nan", "inf", "1e9", '"2"', "true"):
        assert expected in problems(LEAST + f"[rpc.rate]\nrequests_per_second = {value}")[0]


def test_a_section_is_the_struct_that_its_part_takes() -> None:
    """So nothing is copied by hand from the file to the parts; what is for programs alone is no setting of a file."""
    config = parse(LEAST + "[rpc]\nport = 1\n[ingest]\nbatch_age_ms = 7\n[blobs.uploads]\nuploads_max = 3\n")
    assert isinstance(config.ledger, LedgerOptions)
    assert isinstance(config.rpc, RpcOptions)
    assert type(config.ingest) is IngestOptions
    assert (config.rpc.port, config.ingest.batch_age_ms, config.blobs.uploads.uploads_max) == (1, 7, 3)
    for name in ("rpc.backlog", "ledger.clock_ms", "ledger.verify_threads", "blobs.threads", "federation.agent"):
        section, _, field = name.partition(".")
        assert f"{name}: no such setting" in problems(f'[{section}]\n{field} = 1')[-1]


def test_reading_the_settings_starts_no_engine() -> None:
    """The file can choose a native backend, which is chosen once, when the kernels are loaded."""
    program = "import sys, fastledger.daemon.config.text; print(*sys.modules, sep=chr(10))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "fastledger.daemon.config.settings" in loaded
    assert not {"fastledger._native", "fastledger.chain.ledger", "lmdb", "aiohttp"} & loaded


TLS = '[rpc.tls]\ncertificate = "c"\nkey = "k"\n'
NO_READER = '[rpc.access]\nanonymous_roles = ["submitter"]\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "[rpc]\nconnections_max = 5",
            "rpc.connections_per_address_max: must not exceed rpc.connections_max",
        ),
        ("[rpc]\nheader_timeout_ms = 9000\nrequest_timeout_ms = 8999", "must not exceed rpc.request_timeout"),
        ("[blobs]\norphan_age_ms = 60000", "blobs.uploads.lifetime_ms: must not exceed blobs.orphan_age_ms"),
        ("[ingest]\npending_transactions_max = 9", "node.toml:3: ingest.batch_transactions: must not exceed"),
        ('[rpc.tls]\nkey = "k"', "rpc.tls.certificate: certificate and key go together"),
        ('[rpc.tls]\nclient_certificates = "optional"', "needs rpc.tls.authorities, certificate and key"),
        ('[rpc.tls]\nrevoked = "r"', "rpc.tls.revoked: needs rpc.tls.authorities"),
        ("[rpc.rate]\ntransactions_per_second = 9\ntransactions_burst = 10", "a full batch never passes"),
        ('[[rpc.access.client]]\nname = "a"\nroles = ["reader"]', "needs exactly one of"),
        (
            f'[[rpc.access.client]]\nname = "a"\nroles = ["reader"]\ntoken_sha256 = "{"0" * 64}"\n'
            f'[[rpc.access.client]]\nname = "b"\nroles = ["reader"]\ntoken_sha256 = "{"0" * 64}"',
            "node.toml:10: rpc.access.client.1.token_sha256: another client has the same",
        ),
        (
            '[[rpc.access.client]]\nname = "a"\nroles = ["reader"]\ncertificate_name = "b"',
            "needs rpc.tls.client_certificates",
        ),
    ],
)
def test_relations(text: str, problem: str) -> None:  # SPEC-NODE-104
    found = problems(LEAST + text)
    assert len(found) == 1
    assert problem in found[0]


@pytest.mark.parametrize(
    ("text", "problems_of"),
    [
        ('peers = ["a:1"]', ["federation.peers: needs federation.tls"]),
        ('listen = "0.0.0.0:8471"', ["federation.listen: needs federation.tls"]),
        ('advertise = "a.example:8471"', ["federation.advertise: needs federation.listen"]),
        ('tls.certificate = "c"', ["federation.tls.key: certificate, key and authorities go together"]),
        ('tls.revoked = "r"', ["federation.tls.revoked: needs federation.tls.authorities"]),
        (
            'listen = "a:65536"\ntls.certificate = "c"\ntls.key = "k"\ntls.authorities = "b"',
            ["federation.listen: a port is at most 65535"],
        ),
        ("limits.outbound_links = 65", ["federation.limits.outbound_links: must not exceed"]),
        ("limits.links_max = 3", ["links_per_organisation_max: must not", "outbound_links: must not"]),
        ('peers = ["nobody"]', ["federation.peers: expected a list of"]),
    ],
)
def test_a_federation_needs_its_certificates(text: str, problems_of: list[str]) -> None:  # SPEC-FED-1
    found = problems(LEAST + f"[federation]\n{text}\n")
    assert len(found) == len(problems_of)
    for problem, expected in zip(found, problems_of, strict=True):
        assert expected in problem


def test_an_open_address_needs_tls_or_a_word() -> None:  # SPEC-NODE-105
    host = '[rpc]\nhost = "0.0.0.0"\n'
    assert [found.split(": ")[1] for found in problems(LEAST + host)] == [
        "rpc.access.anonymous_roles",
        "rpc.host",
    ]
    assert len(problems(LEAST + host + TLS)) == 1
    assert len(problems(LEAST + host + NO_READER)) == 1
    assert parse(LEAST + host + TLS + NO_READER).rpc.host == "0.0.0.0"
    assert parse(LEAST + host + "insecure = true\n").rpc.insecure
    assert [
        is_loopback(name) for name in ("127.0.0.9", "::1", "[::1]", "localhost", "node.example", "::")
    ] == ([True] * 4 + [False] * 2)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@given(path=TEXTS, port=st.integers(0, 65535), blobs=st.booleans(), names=st.sets(st.integers(0, 9)))
def test_what_is_rendered_reads_back(  # SPEC-NODE-106
    path: str, port: int, blobs: bool, names: set[int]
) -> None:
    clients = tuple(
        ClientRule(name=f"c{number}", roles=frozenset({"reader"}), token_sha256=f"{number:064x}")
        for number in sorted(names)
    )
    config = NodeConfig(
        ledger=LedgerConfig(path=f"/{path}", require_blobs=blobs),
        rpc=RpcConfig(port=port, tls=ServerTlsOptions(), access=AccessOptions(clients=clients)),
    )
    assert parse(render_config(config)) == config


def test_the_template_has_every_setting_and_the_documentation_too() -> None:  # SPEC-NODE-106
    template = render_config(NodeConfig(ledger=LedgerConfig(path="/l")))
    names = [item.name for item in settings()]
    assert len(names) == len(set(names)) > 45
    for item in settings():
        assert re.search(rf"^(# )?{item.name.rpartition('.')[2]} = ", template, re.MULTILINE), item.name
        assert item.text.endswith("."), item.name
    # Taking the marks off the defaults gives the same configuration.
    spelt_out = re.sub(r"^# ([a-z0-9_]+ = (?!\.\.\.))", r"\1", template, flags=re.MULTILINE)
    assert spelt_out != template
    assert parse(spelt_out) == parse(template)
    assert settings_table() in (ROOT / "docs" / "operating.md").read_text()


@given(st.text(alphabet="[]\"'=.#ab1 \n\\{},", max_size=60))
def test_no_text_holds_or_breaks_the_reader(text: str) -> None:  # SPEC-NODE-102
    locate_keys(text)
    try:
        parse(text)
    except ConfigError as error:
        assert error.problems
