"""Options of the server: what one declaration makes of them."""

import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
from typer.main import get_command

from serve import __main__, cluster, host, tune
from serve.settings import Settings, in_bytes, in_words, listed, options, parser
from zoo.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(monkeypatch):
    """What the server, the cluster and the tuner are called with, in place of calling them."""
    found = []
    monkeypatch.setattr(host, "run", lambda settings: found.append(("server", settings)))
    monkeypatch.setattr(cluster, "run", lambda settings: found.append(("cluster", settings)))
    monkeypatch.setattr(tune, "tune", lambda store, precision: found.append(("tune", store, precision)))
    return found


def by_argparse(*words):
    __main__.start(Settings(**vars(parser().parse_args(words))))


def by_typer(*words):
    get_command(app).main(["serve", *words], standalone_mode=False)


EVERY = (
    "shop", "--host", "0.0.0.0", "--port", "9000", "--connections", "5", "--max-body", "1.5MB", "--max-pixels", "100",
    "--timeout", "2", "--explain-timeout", "3.5", "--drain", "0", "--precision", "int8", "--engine", "auto", "--workers", "3",
    "--threads", "2", "--ahead", "4", "--texts", "8", "--max-batch", "64", "--queue", "7", "--memory", "2GB", "--cache", "10KB", "--watch", "0",
    "--trust", "release.pub", "--state", "kept", "--rules", "rules.json", "--no-access-log", "--tracing", "--keys", "keys.json", "--anonymous", "",
    "--key-rate", "5", "--peer-rate", "1/9", "--proxies", "1", "--origin", "https://a", "--origin", "https://b",
    "--jwt-key", "jwks", "--jwt-audience", "shop", "--jwt-issuer", "me", "--jwt-scopes", "roles",
)  # fmt: skip


@pytest.mark.parametrize("call", [by_argparse, by_typer])
def test_both_command_lines_give_the_same_settings(started, call):
    call(*EVERY)
    call()
    expected = Settings(
        Path("shop"), host="0.0.0.0", port=9000, connections=5, max_body=1_572_864, max_pixels=100, timeout=2.0,
        explain_timeout=3.5, drain=0.0, precision="int8", engine="auto", workers=3, threads=2, ahead=4, texts=8, max_batch=64, queue=7,
        memory=2**31, cache=10_240, watch=0.0, trust=Path("release.pub"), state=Path("kept"), rules=Path("rules.json"), access_log=False, tracing=True,
        keys=Path("keys.json"), anonymous="", key_rate="5", peer_rate="1/9", proxies=1, origins=("https://a", "https://b"),
        jwt_key=Path("jwks"), jwt_audience="shop", jwt_issuer="me", jwt_scopes="roles",
    )  # fmt: skip
    assert started == [("server", expected), ("server", Settings())]
    unsaid = {option.name for option in options() if getattr(expected, option.name) == option.default}
    assert unsaid == {"tune", "cluster", *Settings().of("cluster")}


@pytest.mark.parametrize("call", [by_argparse, by_typer])
def test_a_cluster_and_the_tuner_are_started_by_their_options(started, call):
    call("shop", "--cluster", "--replicas", "2", "--most-replicas", "4", "--cpus", "0.5", "--ingress", "head")
    call("shop/dose", "--tune", "--precision", "int8")
    asked = Settings("shop", cluster=True, replicas=2, most_replicas=4, cpus=0.5, ingress="head")
    assert started == [("cluster", asked), ("tune", Path("shop/dose"), "int8")]


def test_every_option_is_of_a_kind_that_command_lines_know():
    for option in options():
        assert option.kind in (bool, int, float, str, Path)
        assert option.help and not option.help.endswith(".") and option.flag.startswith("--")
        assert option.optional == (option.default is None)
    flags = [option.flag for option in options()]
    assert len(set(flags)) == len(flags) == len(fields(Settings))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timeout": 0}, "--timeout must be above 0 seconds, got 0"),
        ({"timeout": float("nan")}, "--timeout must be a finite number, got nan"),
        ({"port": 65536}, "--port must be at most 65535, got 65536"),
        ({"port": -1}, "--port must be at least 0, got -1"),
        ({"port": "80"}, "--port takes a whole number, got '80'"),
        ({"workers": True}, "--workers takes a whole number, got True"),
        ({"engine": "tensorrt"}, "--engine must be one of onnxruntime, openvino, auto, got 'tensorrt'"),
        ({"memory": "lots"}, "--memory takes bytes, or a size such as 500KB, 16MB or 2GB, got 'lots'"),
        ({"max_body": 0}, "--max-body must be at least 1, got 0"),
        ({"replicas": 2}, "--replicas is about a cluster; add --cluster, or leave it out"),
        ({"tune": True, "cluster": True}, "--tune does not apply with --cluster: measure on one machine"),
        ({"tune": True, "workers": 1}, "--workers does not apply with --tune, which measures and ends; leave it out"),
        ({"cluster": True, "replicas": 3, "most_replicas": 2}, "must be at least --replicas, 3, got 2"),
        ({"cluster": True, "replicas": 0}, "--replicas must be at least 1, got 0"),
        ({"cluster": True, "cpus": 0}, "--cpus must be above 0, got 0"),
        ({"cluster": True, "ingress": "some"}, "--ingress must be one of every, head, got 'some'"),
        ({"cluster": True, "port": 0}, "--port 0 does not apply with --cluster"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Settings(**values)


OTHER = {bool: True, int: 3, float: 3.0, str: "3", Path: Path("3")}


@pytest.mark.parametrize(
    "option", [option for option in options() if option.not_in_cluster], ids=lambda each: each.name
)
def test_an_option_that_does_nothing_on_a_cluster_is_refused_there(option):
    assert option.name not in vars(parser(cluster=True).parse_args([]))
    Settings(**{option.name: OTHER[option.kind]})
    with pytest.raises(
        ValueError, match=f"^{option.flag} does not apply with --cluster: .+; |: measure on one machine"
    ):
        Settings(**{option.name: OTHER[option.kind]}, cluster=True)


def test_the_clusters_own_command_line_has_all_that_applies_there():
    given = vars(parser(cluster=True).parse_args(["shop", "--replicas", "2", "--queue", "9", "--max-body", "1MB"]))
    found = Settings(**given, cluster=True)
    assert (found.store, found.replicas, found.queue, found.max_body) == (Path("shop"), 2, 9, 2**20)
    assert {"store", "cluster", *given} == {option.name for option in options() if not option.not_in_cluster}


def test_paths_are_made_absolute_for_other_machines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Settings("store", keys="keys.json", cluster=True).resolved()
    assert (found.store, found.keys, found.trust) == (tmp_path / "store", tmp_path / "keys.json", None)
    assert found.cluster


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("1500", 1500), ("500KB", 512_000), ("1.5 mb", 1_572_864), ("2GiB", 2**31)]
)
def test_sizes_in_words(text, expected):
    assert in_bytes("--memory", text) == expected
    assert in_bytes("--memory", in_words(expected)) == expected


@pytest.mark.parametrize("text", ["", "many", "-1", "1XB", "1e3", "9" * 99])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="--memory takes bytes, or a size such as 500KB, 16MB or 2GB, got"):
        in_bytes("--memory", text)


def test_help_lists_every_option_under_a_heading(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    plain = " ".join(parser().format_help().split())
    for option in listed():
        assert f"{option.flag} " in plain and option.help in plain
    assert "(default: 16MB)" in plain and "security:" in plain
    command = get_command(app).commands["serve"]
    told = {name: option for option in command.params for name in option.opts}
    for option in listed():
        assert told[option.flag].rich_help_panel == (option.group.capitalize() or None)
        assert option.help[1:] in told[option.flag].help and option.shown in told[option.flag].help


def table():
    """Options as docs/serving.md lists them."""
    rows = ["| option | default | what it is | with `--cluster` |", "|---|---|---|---|"]
    for option in listed():
        value = "" if option.kind is bool else f" {'/'.join(option.choices) or option.metavar}"
        flag = f"--[no-]{option.flag[2:]}" if option.kind is bool and option.default else option.flag
        alone = (
            f"no: {option.not_in_cluster}" if option.not_in_cluster else "only" if option.group == "cluster" else "yes"
        )
        where = "" if option.name == "cluster" else alone
        rows.append(
            f"| `{flag}{value}` | {option.shown or ('off' if option.kind is bool else '–')} | {option.help} | {where} |"
        )
    return "\n".join(rows)


def test_the_list_of_options_is_fresh():
    path = ROOT / "docs" / "serving.md"
    before, rest = path.read_text(encoding="utf-8").split("<!-- options -->\n")
    found, after = rest.split("<!-- /options -->")
    if os.environ.get("ZOO_ACCEPT"):
        path.write_text(f"{before}<!-- options -->\n{table()}\n<!-- /options -->{after}", encoding="utf-8")
    else:
        assert found.strip() == table(), "run: ZOO_ACCEPT=1 python -m pytest tests/serve/test_serve_settings.py"
