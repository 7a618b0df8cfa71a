"""Files under deploy/: they name only metrics, options, files and routes that exist. ZOO_ACCEPT=1 refreshes the list."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve import create_app
from serve.declared import load
from serve.monitor import METRICS
from serve.store import Store
from tests.serve.small_bundles import write_image

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
yaml = pytest.importorskip("yaml", reason="PyYAML reads the manifests and rules")

PROCESS = {"process_cpu_seconds_total": (), "process_open_fds": (), "process_resident_memory_bytes": ()}
TARGET = {"instance", "job", "namespace", "pod"}  # labels that Prometheus adds to every series


def series():
    """Every name that an expression may use, with its labels."""
    found = {name: set(labels) | TARGET for name, labels in PROCESS.items()}
    found["up"] = TARGET
    for name, metric in METRICS.items():
        if metric.kind == "histogram":
            for suffix in ("_bucket", "_sum", "_count"):
                found[name + suffix] = {*metric.labels, *TARGET, *(("le",) if suffix == "_bucket" else ())}
        else:
            found[name] = {*metric.labels, *TARGET}
    return found


def check(expression):
    """A PromQL expression's metrics exist and have the labels it selects and groups by."""
    known = series()
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\b(?:zoo|process)_\w+|\bup\b", bare))
    assert names, expression
    assert names <= known.keys(), f"{names - known.keys()} in {expression}"
    for name, selector in re.findall(r"\b((?:zoo|process)_\w+|up)\{([^}]*)\}", bare):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        assert labels <= known[name], f"{name} has no label {labels - known[name]}"
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", bare) for label in re.split(r",\s*", group)}
    assert grouped <= set.union(*(known[name] for name in names)), expression


def dashboard():
    return json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))


def panels():
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions():
    """Every PromQL expression under deploy/, with Grafana's variables filled in."""
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")
    for note in dashboard()["annotations"]["list"]:
        yield note["expr"]
    for rule in alerts():
        yield rule["expr"]


def alerts():
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return group["rules"]


def manifests():
    folder = DEPLOY / "kubernetes"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in folder.glob("*.yaml") if path.name != "kustomization.yaml")
    return {
        document["kind"]: document for name in listed for document in yaml.safe_load_all((folder / name).read_text())
    }


def test_the_list_of_metrics_is_fresh():
    path = ROOT / "docs" / "monitoring.md"
    rows = ["| metric | type | labels | what it says |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        rows.append(f"| `{name}` | {metric.kind} | {', '.join(metric.labels) or '–'} | {metric.help} |")
    table = "\n".join(rows)
    before, rest = path.read_text(encoding="utf-8").split("<!-- metrics -->\n")
    found, after = rest.split("<!-- /metrics -->")
    if os.environ.get("ZOO_ACCEPT"):
        path.write_text(f"{before}<!-- metrics -->\n{table}\n<!-- /metrics -->{after}", encoding="utf-8")
    else:
        assert found.strip() == table, "run: ZOO_ACCEPT=1 python -m pytest tests/test_deploy.py"


@pytest.mark.parametrize("name", METRICS)
def test_names_follow_prometheus_conventions(name):
    metric = METRICS[name]
    assert re.fullmatch(r"zoo_[a-z]+(_[a-z]+)*", name)
    assert name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|kilobytes|megabytes|percent)\b", name)
    assert metric.help.endswith(".") and all(re.fullmatch("[a-z]+", label) for label in metric.labels)


def test_panels_and_rules_name_what_exists():
    for expression in expressions():
        check(expression)


@pytest.mark.parametrize(
    "expression", ["zoo_nothing", 'zoo_queue_length{model="a"}', "sum by (color) (zoo_queue_length)"]
)
def test_the_check_itself_finds_mistakes(expression):
    with pytest.raises(AssertionError):
        check(expression)


def test_expressions_are_promql():
    parser = pytest.importorskip("promql_parser", reason="no PromQL parser is installed")
    for expression in expressions():
        parser.parse(expression)


def test_every_metric_is_on_the_dashboard():
    text = " ".join(target["expr"] for panel in panels() for target in panel["targets"])
    assert [name for name in METRICS if not re.search(rf"\b{name}(_bucket|_sum|_count)?\b", text)] == []


def test_panels_lie_beside_each_other_and_have_names_of_their_own():
    board = dashboard()
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    for key in ("id", "title"):
        values = [panel[key] for panel in board["panels"]]
        assert len(set(values)) == len(values)


def test_alerts_say_what_happened_and_what_to_do():
    rules = alerts()
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 10
    for rule in rules:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"} and rule["labels"]["severity"] in (
            "page",
            "ticket",
        )
        assert rule["annotations"].keys() == {"summary", "action"}
        assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
        used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        names = re.findall(r"\b(zoo_\w+|up)\b", re.sub(r'"[^"]*"', "", rule["expr"]))
        grouped = re.findall(r"by \(([^)]*)\)", rule["expr"])
        left = set(re.split(r",\s*", grouped[0])) if grouped else series()[names[0]]
        assert used <= left, rule["alert"]


def test_manifests_are_what_kubernetes_takes():
    validator = pytest.importorskip("kubernetes_validate", reason="no schema validator is installed")
    for kind, document in manifests().items():
        assert validator.validate(document, "1.30", strict=True), kind
    broken = json.loads(json.dumps(manifests()["Deployment"]))
    broken["spec"]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(broken, "1.30", strict=True)


def test_kustomize_puts_them_together():
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes")]
    made = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    documents = {document["kind"]: document for document in yaml.safe_load_all(made)}
    assert documents.keys() == manifests().keys()
    assert documents["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == "zooroad:latest"


def container():
    (found,) = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


def test_the_pod_is_restricted():
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] >= 10000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    context = container()["securityContext"]
    assert context["readOnlyRootFilesystem"] and context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert set(container()["resources"]["limits"]) == {"cpu", "memory", "ephemeral-storage"}
    mounts = {mount["mountPath"]: mount for mount in container()["volumeMounts"]}
    assert mounts["/store"]["readOnly"] and {"/state", "/tmp"} <= mounts.keys()
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}


def test_probes_ask_routes_that_answer(tmp_path):
    write_image(tmp_path)
    store = Store(tmp_path, threads=1)
    client = create_app(store).test_client()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container()[probe]["httpGet"]
        assert client.get(asked["path"]).status_code == 200 and asked["port"] == container()["ports"][0]["name"]
    store.draining = True
    assert client.get(container()["readinessProbe"]["httpGet"]["path"]).status_code == 503
    assert client.get(container()["livenessProbe"]["httpGet"]["path"]).status_code == 200


def test_the_parts_belong_together():
    found = manifests()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    assert "replicas" not in found["Deployment"]["spec"] and scaler["minReplicas"] >= 2
    (metric,) = (entry["pods"]["metric"]["name"] for entry in scaler["metrics"])
    assert METRICS[metric].kind == "gauge"
    (rule,) = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yaml").read_text())["rules"]["custom"]
    assert re.match(rule["name"]["matches"], metric) and rule["name"]["as"] == metric
    policy = found["NetworkPolicy"]["spec"]
    assert policy["egress"] == [] and set(policy["policyTypes"]) == {"Ingress", "Egress"}
    drain = container()["args"][container()["args"].index("--drain") + 1]
    wait = container()["lifecycle"]["preStop"]["exec"]["command"][1]
    assert float(drain) + float(wait) < found["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]


def test_every_replica_reads_its_traffic_rules_from_one_map(tmp_path):
    found = manifests()
    folder = Path(container()["args"][container()["args"].index("--rules") + 1])
    (mount,) = (mount for mount in container()["volumeMounts"] if mount["mountPath"] == folder.parent.as_posix())
    assert mount["readOnly"] and "subPath" not in mount  # a sub-path would never change
    volumes = found["Deployment"]["spec"]["template"]["spec"]["volumes"]
    (volume,) = (volume for volume in volumes if volume["name"] == mount["name"])
    assert volume["configMap"] == {"name": found["ConfigMap"]["metadata"]["name"]}
    (tmp_path / folder.name).write_text(found["ConfigMap"]["data"][folder.name])
    assert load(tmp_path / folder.name) == {}
    (example,) = re.findall(r"^# +({.*})$", (DEPLOY / "kubernetes" / "traffic.yaml").read_text(), re.M)
    (tmp_path / "example").write_text(example)
    assert load(tmp_path / "example")["digits"].canary.weight == 0.1


def dockerfile():
    """Instructions of the container file: (name, rest)."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M)).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def test_the_container_file_copies_what_exists_and_ends_as_nobody():
    instructions = dockerfile()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for name, rest in instructions:
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and f"!{source}" in ignored
    assert ignored[0] == "*"
    assert [rest for name, rest in instructions if name == "USER"][-1] == "10001:10001"
    assert {name for name, _ in instructions} <= {
        "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD",
    }  # fmt: skip


def test_the_containers_command_is_one_the_server_takes(tmp_path):
    entry, arguments = (json.loads(rest) for name, rest in dockerfile() if name in ("ENTRYPOINT", "CMD"))
    assert entry == ["python", "-m", "serve"]
    for given in (arguments, container()["args"]):
        missing = [str(tmp_path / "nowhere") if word == "/store" else word for word in given]
        done = subprocess.run(
            [sys.executable, "-m", "serve", *missing], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
        )
        assert done.returncode == 1 and "no folder called" in done.stderr, shlex.join(given) + done.stderr
