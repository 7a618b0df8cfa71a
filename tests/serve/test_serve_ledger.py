"""What outlives the server: rules, counts and history in a file that may be slow, full, damaged or taken."""

import logging
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_serve_traffic import BOTH, THREE, answer, events, run_experiment

from serve import state as states
from serve.traffic import Traffic


def restarted(traffic, folder, versions=BOTH):
    traffic.close()
    again = Traffic(folder, seed=1, every=0)
    again.see("digits", versions)
    return again


def test_rules_counts_and_history_survive_a_restart(tmp_path):
    first = Traffic(tmp_path, seed=0, every=0)
    first.see("digits", THREE)
    first.pin("digits", "2")
    first.canary("digits", "3", 0.25)
    first.shadow("digits", "1", 0.5)
    first.watch("digits", slower=3)
    answer(first, "2", 70, failing=3)
    answer(first, "3", 30)
    first.disagreed("digits", "2", "1", [0, 1], [0, 2], ["a", "b", "c"], [0.5, 0.5], [0.5, 0.75])
    before, told = first.describe("digits"), first.history()
    again = restarted(first, tmp_path, THREE)
    assert again.describe("digits") == before
    assert again.history() == told
    keys = [str(number) for number in range(100)]
    assert [first.choose("digits", THREE, key)[0] for key in keys] == [
        again.choose("digits", THREE, key)[0] for key in keys
    ]
    again.close()


def test_an_experiment_goes_on_after_a_restart_where_it_was(tmp_path):
    first = Traffic(tmp_path, seed=0, every=0)
    first.see("digits", BOTH)
    first.experiment("digits", "1", "2", alpha=0.01)
    run_experiment(first, {"1": 0.5, "2": 0.55}, 300)
    given, _ = first.choose("digits", BOTH, "user")
    before = first.describe("digits")
    again = restarted(first, tmp_path)
    assert again.describe("digits") == before
    assert again.choose("digits", BOTH, "user")[0] == given
    assert "counted before" in again.outcome("digits", 1, version="1", request="0-0")["reason"]
    assert again.outcome("digits", 1, version="1", request="new")["counted"]
    again.close()


def test_a_version_that_was_taken_back_is_still_held_after_a_restart(tmp_path):
    first = Traffic(tmp_path, seed=0, every=0)
    first.see("digits", BOTH)
    first.choose("digits", THREE)
    answer(first, "3", 20, failing=20)
    again = restarted(first, tmp_path, THREE)
    assert again.choose("digits", THREE) == ("2", None)
    assert events(again) == ["arrived", "rolled_back"]
    again.close()


def test_a_version_that_arrives_while_the_server_is_down_is_watched(tmp_path):
    first = Traffic(tmp_path, seed=0, every=0)
    first.see("digits", BOTH)
    answer(first, "2", 200)
    again = restarted(first, tmp_path, THREE)
    assert again.describe("digits")["fresh"]["base"] == "2"
    answer(again, "3", 60, failing=10)
    again.tick()
    assert again.choose("digits", THREE) == ("2", None)
    assert "0 of 200 at version 2" in again.describe("digits")["held"]["3"]
    again.close()


def test_rules_about_versions_that_are_gone_are_told_and_wait(tmp_path, caplog):
    first = Traffic(tmp_path, seed=0, every=0)
    first.see("digits", THREE)
    first.pin("digits", "2")
    first.canary("digits", "3", 0.5)
    first.shadow("digits", "1")
    with caplog.at_level(logging.WARNING, "serve"):
        again = restarted(first, tmp_path, ["4"])
    assert again.choose("digits", ["4"]) == ("4", None)
    assert len(again.describe("digits")["ignored"]) == 3
    assert "the pin names version '2', which is not served" in caplog.text
    assert {again.choose("digits", [*THREE, "4"])[0] for _ in range(8)} == {"2", "3"}
    assert again.describe("digits")["ignored"] == []
    again.close()


def test_what_was_flushed_survives_a_kill(tmp_path):
    code = (
        "import sys, time; from serve.traffic import Traffic; t = Traffic(sys.argv[1], every=0.05);"
        "t.see('digits', ['1', '2']); t.pin('digits', '1');"
        "t.record('digits', '1', status=200, seconds=0.01, rows=1); print('up', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(tmp_path)]
    server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == "up\n"
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not rows(tmp_path, "SELECT * FROM tallies"):
            time.sleep(0.02)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait(10)
        server.stdout.close()
    again = Traffic(tmp_path, every=0)
    again.see("digits", BOTH)
    assert again.state.problem == ""
    assert again.choose("digits", BOTH) == ("1", None)
    assert again.describe("digits")["answers"]["1"]["requests"] == 1
    again.close()


def rows(folder, query):
    """Rows of a state file that another process may be writing; none before it is there."""
    file = folder / states.FILE
    if not file.exists():
        return []
    connection = sqlite3.connect(file)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def test_choosing_and_recording_never_wait_for_the_disk(tmp_path):
    traffic = Traffic(tmp_path, every=0)
    traffic.see("digits", BOTH)
    traffic.canary("digits", "2", 0.5)

    def requests():
        for _ in range(100):
            version, _ = traffic.choose("digits", BOTH, "key")
            traffic.record("digits", version, status=200, seconds=0.01, rows=1)

    with traffic.state._lock:  # as a write that hangs holds it
        flush = threading.Thread(target=traffic.flush)
        flush.start()
        worker = threading.Thread(target=requests, daemon=True)
        worker.start()
        worker.join(5)
        assert not worker.is_alive()
    flush.join(5)
    assert traffic.flush()
    traffic.close()


def test_the_thread_writes_without_being_asked_and_ends_with_its_owner(tmp_path):
    traffic = Traffic(tmp_path, every=0.02)
    assert traffic._ledger._thread is None
    traffic.see("digits", BOTH)
    traffic.pin("digits", "1")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and not rows(tmp_path, "SELECT * FROM history WHERE event = 'pinned'"):
        time.sleep(0.02)
    assert rows(tmp_path, "SELECT model, version FROM history WHERE event = 'pinned'") == [("digits", "1")]
    thread = traffic._ledger._thread
    traffic.close()
    assert not thread.is_alive()


def test_a_folder_that_cannot_be_written_is_told_and_the_server_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    traffic = Traffic(tmp_path / "file" / "state", every=0)
    traffic.see("digits", BOTH)
    traffic.pin("digits", "1")
    assert not traffic.flush()
    assert traffic.choose("digits", BOTH) == ("1", None)
    assert "cannot be written" in traffic.describe("digits")["state"]["problem"]
    assert caplog.text.count("cannot be written") == 1  # once, not every second
    assert ("zoo_state_saved", "gauge", {}, 0.0) in traffic.samples()
    (tmp_path / "file").unlink()
    assert traffic.flush()
    assert traffic.describe("digits")["state"] == {"saved": True, "problem": ""}
    again = restarted(traffic, tmp_path / "file" / "state")
    assert again.choose("digits", BOTH) == ("1", None)
    again.close()


def test_rules_in_a_folder_that_may_only_be_read_are_followed(tmp_path, monkeypatch):
    first = Traffic(tmp_path, every=0)
    first.see("digits", BOTH)
    first.pin("digits", "1")
    first.close()

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(states.os, "open", refuse)  # a superuser, as in a container, may write what is read-only
    monkeypatch.setattr(states.os, "access", lambda *_: False)
    traffic = Traffic(tmp_path, every=0)
    assert traffic.choose("digits", BOTH) == ("1", None)
    traffic.clear("digits")
    assert not traffic.flush()
    assert traffic.choose("digits", BOTH) == ("2", None)
    assert traffic.describe("digits")["state"]["problem"] == f"{tmp_path} cannot be written (Permission denied)"
    traffic.close()


def test_a_full_disk_is_told_and_everything_is_written_once_there_is_room(tmp_path, caplog):
    traffic = Traffic(tmp_path, every=0)
    traffic.see("digits", BOTH)
    assert traffic.flush()
    connection = traffic.state._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite then says is what it says of a full disk
    for number in range(300):
        traffic.see(f"model {number}", BOTH)
        traffic.pin(f"model {number}", "1")
    assert not traffic.flush()
    assert "full" in traffic.describe("digits")["state"]["problem"]
    assert traffic.choose("model 7", BOTH) == ("1", None)
    traffic.tick()  # patient: it does not try again every second
    assert "full" in traffic.state.problem
    assert traffic.flush()  # its new connection has no such limit
    assert "saved again" in caplog.text
    again = Traffic(tmp_path, every=0)
    assert again.state.problem.startswith("another server writes")
    traffic.close()
    assert len(again.models()) == 301
    again.close()


@pytest.mark.parametrize(
    "damage", [lambda file: file.write_bytes(b"nonsense" * 1000), lambda file: file.write_bytes(flipped(file))]
)
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(tmp_path, damage, caplog):
    first = Traffic(tmp_path, every=0)
    first.see("digits", BOTH)
    first.pin("digits", "1")
    first.close()
    damage(tmp_path / states.FILE)
    again = Traffic(tmp_path, every=0)
    assert "was moved to" in caplog.text
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1
    again.see("digits", BOTH)
    again.pin("digits", "2")
    assert again.flush()
    third = restarted(again, tmp_path)
    assert third.describe("digits")["pin"] == "2"
    third.close()


def flipped(file):
    """The bytes of a file with the middle of every page overwritten."""
    data = bytearray(file.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 100] = b"\xff" * 100
    return bytes(data)


def test_a_file_that_is_lost_while_the_server_runs_is_begun_anew_with_everything(tmp_path):
    traffic = Traffic(tmp_path, every=0)
    traffic.see("digits", BOTH)
    traffic.pin("digits", "1")
    answer(traffic, "1", 5)
    assert traffic.flush()
    traffic.state.close()
    for file in tmp_path.glob(f"{states.FILE}*"):
        file.unlink()
    traffic.shadow("digits", "2")
    assert traffic.flush()
    again = restarted(traffic, tmp_path)
    assert again.describe("digits")["pin"] == "1"
    assert again.describe("digits")["answers"]["1"]["requests"] == 5
    again.close()


def test_a_file_of_a_newer_scheme_is_left_alone(tmp_path, caplog):
    Traffic(tmp_path, every=0).close()
    connection = sqlite3.connect(tmp_path / states.FILE)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    traffic = Traffic(tmp_path, every=0)
    traffic.see("digits", BOTH)
    assert not traffic.flush()
    assert "is of scheme 99, this server knows" in traffic.state.problem
    traffic.close()
    assert rows(tmp_path, "PRAGMA user_version") == [(99,)]


def test_a_file_of_an_older_scheme_is_brought_up_and_keeps_its_rows(tmp_path, monkeypatch):
    first = Traffic(tmp_path, every=0)
    first.see("digits", BOTH)
    first.pin("digits", "1")
    first.close()
    more = "ALTER TABLE plans ADD COLUMN note TEXT NOT NULL DEFAULT 'none'"
    monkeypatch.setattr(states, "MIGRATIONS", (*states.MIGRATIONS, more))
    again = Traffic(tmp_path, every=0)
    again.see("digits", BOTH)
    assert again.choose("digits", BOTH) == ("1", None)
    again.close()
    assert rows(tmp_path, "SELECT model, note FROM plans") == [("digits", "none")]
    assert rows(tmp_path, "PRAGMA user_version") == [(len(states.MIGRATIONS),)]


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    Traffic(tmp_path, every=0).close()
    wrong = "CREATE TABLE extra (id INTEGER); INSERT INTO nowhere VALUES (1)"
    monkeypatch.setattr(states, "MIGRATIONS", (*states.MIGRATIONS, wrong))
    traffic = Traffic(tmp_path, every=0)
    assert "nowhere" in traffic.state.problem
    traffic.close()
    assert rows(tmp_path, "PRAGMA user_version") == [(len(states.MIGRATIONS) - 1,)]
    assert rows(tmp_path, "SELECT name FROM sqlite_master WHERE name = 'extra'") == []


def test_one_server_writes_and_the_next_takes_over(tmp_path):
    first = Traffic(tmp_path, every=0)
    first.see("digits", BOTH)
    first.pin("digits", "1")
    assert first.flush()
    second = Traffic(tmp_path, every=0)
    second.see("digits", BOTH)
    assert second.choose("digits", BOTH) == ("1", None)  # it reads what there is
    assert "another server writes" in second.describe("digits")["state"]["problem"]
    second.pin("digits", "2")
    assert not second.flush()
    first.close()
    assert second.flush()
    again = restarted(second, tmp_path)
    assert again.choose("digits", BOTH) == ("2", None)
    again.close()


def test_stored_rules_that_cannot_be_read_are_left_out(tmp_path, caplog):
    first = Traffic(tmp_path, every=0)
    first.see("digits", BOTH)
    first.see("other", BOTH)
    first.pin("other", "1")
    first.flush()
    first.close()
    connection = sqlite3.connect(tmp_path / states.FILE)
    with connection:
        connection.execute("UPDATE plans SET plan = '{\"pin\": 7}' WHERE model = 'digits'")
        connection.execute("INSERT INTO tallies VALUES ('digits', '1', 'answers', '[]')")
    connection.close()
    again = Traffic(tmp_path, every=0)
    assert "the stored rules of digits cannot be read" in caplog.text
    assert again.choose("digits", BOTH) == ("2", None)
    assert again.choose("other", BOTH) == ("1", None)
    again.close()
