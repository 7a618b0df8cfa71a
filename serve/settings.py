"""What a server can be told.

Each option is declared once: both command lines, `run`, the cluster and the docs read it here.
"""

import argparse
import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

ENGINES = ("onnxruntime", "openvino", "auto")
UNITS = " KMGT"  # of sizes, in powers of 1024
GROUPS = ("connections", "computation", "store", "figures", "security", "cluster")


# ruff: noqa: RUF009 - what `_option` makes is a `field`, for each class its own


def _option(default: Any, help: str, group: str = "", **more: Any) -> Any:
    """A field of `Settings`; `more` are other attributes of `Option`."""
    return field(default=default, metadata={"help": help, "group": group, **more})


@dataclass(frozen=True)
class Settings:
    """Every option of the server, converted and checked.

    Paths may be given as text and sizes in words, such as "16MB". `python -m serve --help` and docs/serving.md list
    them all.

    Raises:
        ValueError: a value cannot be used, or an option does not apply to what is asked for.
    """

    store: Path = _option(Path("store"), "folder with <name>/<version> bundles; with --tune a model's folder in it")
    tune: bool = _option(
        False,
        "measure STORE/MODEL on this machine, write the best settings, and end",
        not_in_cluster="measure on one machine: zoo serve --tune STORE/MODEL",
    )
    cluster: bool = _option(False, "serve on Ray; what applies there: python -m serve.cluster --help")

    host: str = _option("127.0.0.1", "address to listen on, 0.0.0.0 for all", "connections")
    port: int = _option(8000, "TCP port, 0 for a free one", "connections", least=0, most=65535)
    connections: int = _option(
        10_000,
        "open connections; one more is answered with 503",
        "connections",
        least=1,
        not_in_cluster="Ray's proxies hold the connections; leave it out",
    )
    max_body: int = _option(
        16 * 2**20, "largest request body, as sent and unpacked", "connections", unit="bytes", least=1
    )
    max_pixels: int = _option(25_000_000, "most pixels that an image may declare", "connections", least=1)
    timeout: float = _option(
        30.0, "for an inference, unless its client sends X-Request-Timeout", "connections", unit="seconds", above=0
    )
    explain_timeout: float = _option(30.0, "for an explanation", "connections", unit="seconds", above=0)
    drain: float = _option(10.0, "to finish requests at a stop", "connections", unit="seconds", least=0)

    precision: str | None = _option(
        None,
        "stored form to serve: fp32, fp16, int8, w8 or w4",
        "computation",
        otherwise="each bundle's own",
        tunes=True,
    )
    engine: str | None = _option(
        None, "what computes; auto for the faster one here", "computation", otherwise=ENGINES[0], choices=ENGINES
    )
    workers: int | None = _option(
        None,
        "processes that compute",
        "computation",
        otherwise="what --tune found, else one per core",
        least=1,
        not_in_cluster="every replica is one process; say how many with --replicas",
    )
    threads: int | None = _option(
        None, "threads of the engine in each process", "computation", otherwise="its share of the cores", least=1
    )
    ahead: int | None = _option(
        None,
        "batches a worker is given before it has answered the first",
        "computation",
        otherwise="1",
        least=1,
        not_in_cluster="replicas make no batches; leave it out",
    )
    texts: int = _option(
        16,
        "texts that a process writes at a time, each beam as one; more wait",
        "computation",
        least=1,
    )
    max_batch: int = _option(
        1024,
        "most rows of a request, and of one run of the engine; fewer of a model whose answers take over 1 GB",
        "computation",
        least=1,
    )
    queue: int = _option(
        2048, "inferences that wait for one version; more are answered with 503", "computation", least=1
    )
    memory: int | None = _option(
        None,
        "for models, in all workers; the least used leave first",
        "computation",
        unit="bytes",
        otherwise="no limit",
        least=1,
        not_in_cluster="every replica holds all models of the store; serve some of them from a store of their own",
    )
    cache: int = _option(
        0,
        "of answers kept for requests that come again",
        "computation",
        unit="bytes",
        otherwise="none",
        least=0,
        not_in_cluster="replicas keep no answers; put a cache in front of them",
    )

    watch: float = _option(1.0, "between two looks for new versions, 0 for none", "store", unit="seconds", least=0)
    trust: Path | None = _option(
        None,
        "serve bundles signed by this key, or by one of a folder, alone",
        "store",
        metavar="PUB",
        otherwise="every whole bundle",
    )
    rules: Path | None = _option(
        None,
        "traffic rules of models, the same for all replicas that read it; see docs/traffic.md",
        "store",
        metavar="FILE",
        otherwise="none, operators make them",
    )
    state: Path | None = _option(
        None,
        "keeps traffic rules and counts over a restart",
        "store",
        metavar="FOLDER",
        otherwise="STORE/.state",
        not_in_cluster="replicas keep nothing; give traffic rules in a file, with --rules",
    )

    access_log: bool = _option(True, "log as JSON, with a line for each request", "figures")
    tracing: bool = _option(False, "make an OpenTelemetry span of each request", "figures")

    keys: Path | None = _option(
        None, "API keys made by zoo keys", "security", metavar="FILE", otherwise="none, and admin routes are off"
    )
    anonymous: str | None = _option(
        None,
        "open without a key, such as predict,metrics",
        "security",
        metavar="SCOPES",
        otherwise="predict,explain,metrics; with --keys metrics alone",
    )
    key_rate: str | None = _option(
        None, "requests a second of each key, such as 100/200", "security", metavar="RATE[/BURST]", otherwise="no limit"
    )
    peer_rate: str | None = _option(
        None,
        "requests a second of each address without a key",
        "security",
        metavar="RATE[/BURST]",
        otherwise="no limit",
    )
    proxies: int = _option(0, "reverse proxies in front whose X-Forwarded-For is believed", "security", least=0)
    origins: tuple[str, ...] = _option(
        (),
        "web origin whose pages may call, as https://shop.example; repeatable",
        "security",
        flag="origin",
        metavar="ORIGIN",
        otherwise="none",
    )
    jwt_key: Path | None = _option(
        None,
        "take JSON Web Tokens too: PEM public key, JWKS file or secret",
        "security",
        metavar="FILE",
        otherwise="none are taken",
    )
    jwt_audience: str | None = _option(
        None, "audience that such tokens are made for; needed with --jwt-key", "security"
    )
    jwt_issuer: str | None = _option(None, "issuer they must come from", "security", otherwise="any")
    jwt_scopes: str = _option("scope", "claim that lists their scopes", "security")

    address: str | None = _option(
        None,
        "running Ray cluster to join, or auto",
        "cluster",
        otherwise="what RAY_ADDRESS says, else a new one on this machine",
    )
    replicas: int = _option(1, "processes to start with, and to keep at least", "cluster", least=1)
    most_replicas: int | None = _option(
        None, "processes that there may be under load", "cluster", otherwise="as --replicas", least=1
    )
    cpus: float = _option(1.0, "cores of each replica, and threads of its engine", "cluster", above=0)
    ingress: str = _option(
        "every", "machines that take HTTP: every one, or the head alone", "cluster", choices=("every", "head")
    )

    def __post_init__(self) -> None:
        for option in options():
            object.__setattr__(self, option.name, option.read(getattr(self, option.name)))
        given = [option for option in options() if getattr(self, option.name) != option.default]
        for option in given:
            reason = self._no_use(option)
            if reason:
                raise ValueError(f"{option.flag} {reason}")
        if self.cluster and self.port == 0:
            raise ValueError(
                "--port 0 does not apply with --cluster: Ray's proxies take one port on every machine; name it"
            )
        if self.most_replicas is not None and self.most_replicas < self.replicas:
            raise ValueError(f"--most-replicas must be at least --replicas, {self.replicas}, got {self.most_replicas}")

    def _no_use(self, option: "Option") -> str:
        """Why an option that was given does nothing; "" if it does."""
        if self.cluster and option.not_in_cluster:
            return f"does not apply with --cluster: {option.not_in_cluster}"
        if option.group == "cluster" and not self.cluster:
            return "is about a cluster; add --cluster, or leave it out"
        if self.tune and not (option.tunes or option.name in ("store", "tune")):
            return "does not apply with --tune, which measures and ends; leave it out"
        return ""

    def of(self, group: str) -> dict[str, Any]:
        """Values of one group of options by name."""
        return {option.name: getattr(self, option.name) for option in options() if option.group == group}

    def resolved(self) -> "Settings":
        """The same with absolute paths, for processes that work elsewhere."""
        paths: dict[str, Any] = {name: value.resolve() for name, value in vars(self).items() if isinstance(value, Path)}
        return replace(self, **paths)


@dataclass(frozen=True)
class Option:
    """How one setting is asked for.

    Attributes:
        name: of the field.
        kind: bool, int, float, str or Path; of each part, for one that is repeatable.
        default: value if it is not given.
        help: what it is, as the middle of a sentence.
        group: heading under which it is listed; "" for what comes first.
        optional: whether None is a value.
        repeated: whether it may be given several times.
        unit: "bytes" for sizes in words, "seconds".
        otherwise: what happens if it is not given, where the default does not say it.
        metavar: placeholder of the value.
        choices: values that it may have.
        least, above, most: limits of a number.
        not_in_cluster: why it does nothing with --cluster, and what to do; "" if it applies.
        tunes: whether it applies with --tune.
        flag: long form on a command line.
    """

    name: str
    kind: type
    default: Any
    help: str
    group: str
    optional: bool
    repeated: bool
    unit: str = ""
    otherwise: str = ""
    metavar: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    not_in_cluster: str = ""
    tunes: bool = False
    flag: str = ""

    @property
    def size(self) -> bool:
        """Whether it is a number of bytes, which command lines take in words."""
        return self.unit == "bytes"

    @property
    def shown(self) -> str:
        """What happens if it is not given, in words; "" for a switch that is off."""
        if self.otherwise or self.default is None or self.default is False:
            return self.otherwise
        if self.kind is bool:
            return "on"
        return in_words(self.default) if self.size else f"{self.default:g}" if self.kind is float else str(self.default)

    def read(self, value: Any) -> Any:
        """A value as the setting has it.

        Raises:
            ValueError: it is of another kind, or out of range.
        """
        if value is None and self.optional:
            return None
        if self.repeated:
            return tuple(value or ())
        if self.size and isinstance(value, str):
            value = in_bytes(self.flag, value)
        elif self.kind is Path and isinstance(value, str):
            value = Path(value)
        elif self.kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, self.kind) or (self.kind is int and isinstance(value, bool)):
            raise ValueError(f"{self.flag} takes {_KINDS[self.kind]}, got {value!r}")
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.flag} must be one of {', '.join(self.choices)}, got {value!r}")
        if isinstance(value, int | float):
            self._check_range(value)
        return value

    def _check_range(self, value: float) -> None:
        unit = "" if self.size or not self.unit else f" {self.unit}"
        if not math.isfinite(value):
            raise ValueError(f"{self.flag} must be a finite number, got {value}")
        if self.above is not None and not value > self.above:
            raise ValueError(f"{self.flag} must be above {self.above:g}{unit}, got {value:g}")
        if self.least is not None and value < self.least:
            raise ValueError(f"{self.flag} must be at least {self.least:g}{unit}, got {value:g}")
        if self.most is not None and value > self.most:
            raise ValueError(f"{self.flag} must be at most {self.most:g}{unit}, got {value:g}")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


@cache
def options() -> tuple[Option, ...]:
    """Every option, in the order in which they are listed."""
    return tuple(map(_described, fields(Settings)))


def _described(declared: Field[Any]) -> Option:
    kind, optional, repeated = declared.type, False, False
    if isinstance(kind, types.UnionType):
        kind, _ = get_args(kind)
        optional = True
    if get_origin(kind) is tuple:
        kind, repeated = get_args(kind)[0], True
    assert isinstance(kind, type) and declared.default is not MISSING
    more: Mapping[str, Any] = declared.metadata
    known = dict(name=declared.name, kind=kind, default=declared.default, optional=optional, repeated=repeated, **more)
    placeholder = {"bytes": "SIZE", "seconds": "SECONDS"}.get(known.get("unit", ""), "")
    known["metavar"] = (
        known.get("metavar") or placeholder or {int: "NUMBER", float: "NUMBER", Path: "PATH"}.get(kind, "")
    )
    known["metavar"] = known["metavar"] or declared.name.rpartition("_")[2].upper()
    known["flag"] = "--" + (known.get("flag") or declared.name).replace("_", "-")
    return Option(**known)


def listed(*, cluster: bool = False) -> Iterator[Option]:
    """Options that a command line takes, but for the store.

    Args:
        cluster: only those that apply on a cluster.
    """
    for option in options():
        if option.name != "store" and not (cluster and (option.not_in_cluster or option.name == "cluster")):
            yield option


def parser(*, cluster: bool = False) -> argparse.ArgumentParser:
    """A command line with every option; its result is the arguments of `Settings`.

    Args:
        cluster: only the options that apply on a cluster.
    """
    on = " on a Ray cluster" if cluster else ""
    made = argparse.ArgumentParser(
        prog=f"python -m serve{'.cluster' if cluster else ''}",
        description=f"Serve the bundles of a store over HTTP{on}.",
    )
    store = options()[0]
    made.add_argument("store", nargs="?", default=str(store.default), help=f"{store.help} (default: %(default)s)")
    groups: dict[str, Any] = {"": made}
    for option in listed(cluster=cluster):
        if option.group not in groups:
            groups[option.group] = made.add_argument_group(option.group)
        note = f" (default: {option.shown})" if option.shown else ""
        given: dict[str, Any] = {"dest": option.name, "help": f"{option.help}{note}".replace("%", "%%")}
        if option.kind is bool and option.default:
            given |= {"action": argparse.BooleanOptionalAction, "default": True}
        elif option.kind is bool:
            given |= {"action": "store_true"}
        elif option.repeated:
            given |= {"action": "append", "default": [], "metavar": option.metavar}
        else:
            given |= {"type": str if option.size else option.kind, "default": option.default}
            given |= {"choices": option.choices} if option.choices else {"metavar": option.metavar}
        groups[option.group].add_argument(option.flag, **given)
    return made


def in_bytes(option: str, text: str) -> int:
    """Bytes of a size such as 500KB, 16MB or 2GB, in powers of 1024.

    Args:
        option: named in the message.
        text: a number with or without a unit.

    Raises:
        ValueError: no such size.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*(?:([KMGT]?)I?B?)?", text.strip().upper())
    if found is None:
        raise ValueError(f"{option} takes bytes, or a size such as 500KB, 16MB or 2GB, got {text!r}")
    return int(float(found[1]) * 1024 ** UNITS.index(found[2] or " "))


def in_words(size: int) -> str:
    """A number of bytes with the largest unit that leaves a whole number, as `in_bytes` reads it."""
    power = 0
    while size and size % 1024 == 0 and power < len(UNITS) - 1:
        size, power = size // 1024, power + 1
    return f"{size}{UNITS[power].strip()}B" if power else str(size)
