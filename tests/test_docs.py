"""What the documents say is run: README blocks, generated tables, the version. ZOO_ACCEPT=1 refreshes the tables."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import zoo
from zoo import registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ZOO = str(Path(sys.executable).with_name("zoo"))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def architectures():
    """The README's list, one row per builder."""
    families = {}
    for name, entry in registry.entries().items():
        families.setdefault(entry.family, []).append((name, entry))
    rows = ["| name | parameters | for | paper |", "|---|---|---|---|"]
    for members in families.values():
        names = ", ".join(f"`{name}`" + "".join(f" (`{alias}`)" for alias in entry.aliases) for name, entry in members)
        counts = sorted(entry.params for _, entry in members)
        size = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} – {counts[-1]:,}"
        rows.append(f"| {names} | {size} | {', '.join(members[0][1].tasks)} | {members[0][1].paper} |")
    return "\n".join(rows)


def test_the_list_of_architectures_is_fresh():
    start, end = "<!-- architectures -->\n", "<!-- /architectures -->"
    before, rest = README.split(start)
    table, after = rest.split(end)
    if os.environ.get("ZOO_ACCEPT"):
        (ROOT / "README.md").write_text(f"{before}{start}{architectures()}\n{end}{after}", encoding="utf-8")
    else:
        assert table.strip() == architectures(), "run: ZOO_ACCEPT=1 python -m pytest tests/test_docs.py"


def test_the_version_is_the_top_of_the_changelog():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1] == zoo.__version__


def test_links_in_the_documents_lead_somewhere():
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{document.name} links to {target}"


def test_the_python_example_runs(tmp_path):
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accuracy on 359 test rows" in done.stdout
    assert (tmp_path / "why.png").stat().st_size > 10_000
    assert (tmp_path / "store/digits/1/SHA256SUMS").exists()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A short demo, as `make demo` runs it."""
    folder = tmp_path_factory.mktemp("demo")
    command = [ZOO, "demo", "--model", "mlp", "--epochs", "4", "--out", "demo"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder, done.stdout


def test_the_demo_names_stages_figures_and_pictures(demo):
    folder, printed = demo
    for part in (
        "trained, FP32",
        "half the weights zero, FP32",
        "half the channels, INT8",
        "latency ms",
        "parity error",
        "additivity error",
    ):
        assert part in printed
    for picture in ("explanation.png", "run/confusion.png", "run/learning_curve.png", "digit.png"):
        assert (folder / "demo" / picture).exists() and picture in printed.replace("\n", "")


def test_the_demo_replaces_its_own_folder_only(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    done = subprocess.run(
        [ZOO, "demo", "--out", str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1 and "is not empty and no older demo's folder" in done.stderr
    assert (tmp_path / "mine.txt").exists()


def test_the_server_block_answers(demo):
    folder, _ = demo
    (block,) = blocks("bash")
    start, *requests = block.strip().splitlines()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shlex.split(start.removesuffix("&").replace("8000", str(port)))
    assert command[0] == "zoo"
    server = subprocess.Popen([ZOO, *command[1:]], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.1)
        answers = []
        for line in requests:
            words = shlex.split(line.replace("8000", str(port)))
            assert words[0] == "curl"
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=30, check=True)
            answers.append(done.stdout)
        assert '"probability"' in answers[0]
        assert '"inputs"' in answers[1]
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=20) == 0


def test_the_makefile_has_the_two_commands():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for verb in re.findall(r"^    make (\w+)", README, re.M):
        assert re.search(rf"^{verb}:", makefile, re.M)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
