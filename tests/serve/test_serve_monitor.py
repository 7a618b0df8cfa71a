"""Figures, log lines and traces: what is counted, what is never held up, what is never told."""

import contextlib
import gzip
import http.client
import http.server
import json
import logging
import os
import queue
import re
import subprocess
import sys
import threading
import time
import urllib.request
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from small_bundles import write_image

from serve import create_app
from serve.lines import Lines, LinesHandler
from serve.monitor import METRICS, ROWS, SECONDS, Monitor, code_of
from serve.store import Store


def samples(monitor):
    """Every sample of the text format: (name, labels) -> value."""
    families = list(text_string_to_metric_families(monitor.text().decode()))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def answer(monitor, status=200, seconds=0.004, **more):
    facts = dict(model="digits", version="1", route="/v2/models/<model>/infer", status=status, seconds=seconds)
    monitor.answered(**facts | more)


def finished(status=200, seconds=0.01, rows=2, shadow=False, waited=0.05):
    call = SimpleNamespace(model="digits", version="1", shadow=shadow, started=time.monotonic() - waited - seconds)
    return call, SimpleNamespace(version="1", status=status, seconds=seconds, rows=rows, tokens=0, first=None)


def test_requests_are_counted_by_status_and_their_times_by_bucket():
    monitor = Monitor()
    for seconds in (0.0001, 0.001, 0.0011, 7, 99):
        answer(monitor, seconds=seconds)
    answer(monitor, status=422, seconds=0.2, code="bad_shape")
    found = samples(monitor)
    labels = (("model", "digits"), ("route", "/v2/models/<model>/infer"))
    assert found["zoo_requests_total", (*labels, ("status", "200"), ("version", "1"))] == 5
    assert found["zoo_requests_total", (*labels, ("status", "422"), ("version", "1"))] == 1

    def bucket(edge):
        return found["zoo_request_seconds_bucket", (("le", edge), *labels, ("version", "1"))]

    assert [bucket(edge) for edge in ("0.0005", "0.001", "0.0025", "10.0", "30.0", "+Inf")] == [1, 2, 3, 5, 5, 6]
    assert found["zoo_request_seconds_sum", (*labels, ("version", "1"))] == pytest.approx(106.2022)
    assert found["zoo_request_seconds_count", (*labels, ("version", "1"))] == 6


def test_errors_are_counted_by_code_and_rejections_by_reason():
    monitor = Monitor()
    answer(monitor, status=422, code="bad_shape")
    answer(monitor, status=503, code="overloaded")
    answer(monitor, status=429, code="rate_limited")
    answer(monitor, status=500)
    found = samples(monitor)
    errors = {dict(labels)["code"]: n for (name, labels), n in found.items() if name == "zoo_errors_total"}
    assert errors == {"bad_shape": 1, "overloaded": 1, "rate_limited": 1, "http_500": 1}
    rejected = {dict(labels)["reason"]: n for (name, labels), n in found.items() if name == "zoo_rejected_total"}
    assert rejected == {"overloaded": 1, "rate_limited": 1}


def test_inferences_tell_computing_from_waiting_and_answers_from_shadows():
    monitor = Monitor()
    for _ in range(3):
        monitor.observe(*finished())
    monitor.observe(*finished(shadow=True, rows=5))
    monitor.observe(*finished(status=504, rows=0))
    found = samples(monitor)
    version = (("model", "digits"), ("version", "1"))
    roles = {
        (dict(labels)["role"], dict(labels)["status"]): n
        for (name, labels), n in found.items()
        if name == "zoo_inferences_total"
    }
    assert roles == {("answer", "200"): 3, ("answer", "504"): 1, ("shadow", "200"): 1}
    assert found["zoo_rows_total", version] == 11
    assert found["zoo_compute_seconds_sum", version] == pytest.approx(0.05)
    assert found["zoo_queue_seconds_sum", version] == pytest.approx(0.25, abs=0.05)


def test_answers_from_the_cache_took_no_time_in_a_worker():
    monitor = Monitor()
    monitor.observe(*finished())
    monitor.observe(*finished(seconds=3.0, waited=-2.9))  # computed in 3 s, long ago
    found = samples(monitor)
    version = (("model", "digits"), ("version", "1"))
    assert found["zoo_rows_total", version] == 4 and found["zoo_compute_seconds_count", version] == 1
    assert found["zoo_compute_seconds_sum", version] == pytest.approx(0.01)


def test_batches_are_counted_by_rows():
    monitor = Monitor()
    for rows in (1, 3, 1024, 5000):
        monitor.batch("digits", "1", rows)
    found = samples(monitor)
    edges = [
        found["zoo_batch_rows_bucket", (("le", edge), ("model", "digits"), ("version", "1"))]
        for edge in ("1.0", "2.0", "4.0", "1024.0", "+Inf")
    ]
    assert edges == [1, 1, 2, 3, 4] and ROWS[-1] == 1024
    assert found["zoo_batch_rows_sum", (("model", "digits"), ("version", "1"))] == 6028


def test_a_fleets_rows_are_not_counted_twice():
    monitor = Monitor()
    monitor.rows("digits", "1", 4)
    monitor.watch(store=SimpleNamespace(observers=[], index=list, draining=False, models={}))
    monitor.rows("digits", "1", 4)
    assert samples(monitor)["zoo_rows_total", (("model", "digits"), ("version", "1"))] == 4


def test_workers_queues_memory_and_cache_are_told():
    workers = [
        {"pid": 1, "state": "ready", "restarts": 2, "resident": 100, "bytes": 7},
        {"pid": 2, "state": "starting", "restarts": 1, "resident": 50, "bytes": 0},
    ]
    queue = {"waiting": 3, "writing": 2, "bytes": 700, "seconds": 0.1, "workers": 1}
    state = {
        "workers": workers,
        "queues": {"digits": {"1": queue, "2": {**queue, "waiting": 4}}},
        "memory": {"limit": None, "models": 7},
        "cache": {"hits": 5, "misses": 6, "bytes": 1, "limit": 2},
    }
    index = [
        {"name": "digits", "version": "1", "state": "READY"},
        {"name": "bad", "version": "1", "state": "UNAVAILABLE"},
    ]
    monitor = Monitor()
    monitor.watch(store=SimpleNamespace(state=lambda: state, index=lambda: index, draining=True, models={}))
    found = samples(monitor)
    assert found["zoo_queue_length", ()] == 7 and found["zoo_queue_bytes", ()] == 1400
    assert found["zoo_model_queue_length", (("model", "digits"), ("version", "2"))] == 4
    assert found["zoo_texts_writing", (("model", "digits"), ("version", "1"))] == 2
    assert found["zoo_workers", (("state", "ready"),)] == 1 and found["zoo_workers", (("state", "dead"),)] == 0
    assert found["zoo_worker_restarts_total", ()] == 3
    assert found["zoo_resident_memory_bytes", (("process", "worker 1"),)] == 50
    assert found["zoo_resident_memory_bytes", (("process", "front"),)] > 2**20
    assert (found["zoo_cache_hits_total", ()], found["zoo_cache_misses_total", ()]) == (5, 6)
    assert found["zoo_model_served", (("model", "bad"), ("version", "1"))] == 0
    assert found["zoo_draining", ()] == 1


def test_a_part_that_fails_hides_no_other(caplog):
    def broken():
        raise OSError("gone")

    monitor = Monitor()
    monitor.watch(store=SimpleNamespace(index=broken, draining=False, models={}))
    answer(monitor)
    assert any(name == "zoo_requests_total" for name, _ in samples(monitor))
    assert "figures of store are missing: OSError: gone" in caplog.text


def test_whatever_is_published_is_declared_with_its_labels(store_folder):
    monitor = Monitor()
    app = create_app(Store(store_folder, threads=1), monitor=monitor)
    client = app.test_client()
    client.post("/predict/dose", json={"age": 1})
    client.post("/predict/dose", json={"age": "x"})
    monitor.observe(*finished())
    monitor.batch("digits", "1", 3)
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    own = {name: family for name, family in families.items() if not name.startswith("process_")}
    declared = {name.removesuffix("_total"): metric for name, metric in METRICS.items()}
    assert own and own.keys() <= declared.keys()
    for name, family in own.items():
        metric = declared[name]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        assert {frozenset(set(sample.labels) - {"le"}) for sample in family.samples} == {frozenset(metric.labels)}


def test_counts_hold_under_threads():
    monitor = Monitor()

    def work():
        for _ in range(5000):
            answer(monitor, status=503, code="overloaded")
            monitor.observe(*finished())

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            monitor.text()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    found = samples(monitor)
    assert found["zoo_rejected_total", (("model", "digits"), ("reason", "overloaded"))] == 20_000
    assert found["zoo_rows_total", (("model", "digits"), ("version", "1"))] == 40_000


def read_all(descriptor, until, limit=5.0):
    """Lines that arrive until there are so many."""
    data, end = b"", time.monotonic() + limit
    while data.count(b"\n") < until and time.monotonic() < end:
        data += os.read(descriptor, 2**20)
    return data.splitlines()


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):  # the test may have closed it
            os.close(descriptor)


def test_log_lines_hold_the_request_and_its_trace(pipe):
    reader, writer = pipe
    monitor = Monitor()
    monitor.lines = Lines(writer, pause=0.001)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer(monitor, status=422, code="bad_shape", traceparent=trace, request_id="abc", method="POST")
    answer(monitor, traceparent="00-no-trace")
    first, second = map(json.loads, read_all(reader, 2))
    monitor.lines.close()
    assert first["time"].startswith("20") and first["time"].endswith("+00:00") and len(first["time"]) == 29
    assert {key: first[key] for key in ("status", "ms", "code", "request_id", "trace_id", "parent_id")} == {
        "status": 422,
        "ms": 4.0,
        "code": "bad_shape",
        "request_id": "abc",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "parent_id": "00f067aa0ba902b7",
    }
    assert "trace_id" not in second and "code" not in second


def test_a_reader_that_sleeps_holds_up_nobody_and_what_is_lost_is_counted(pipe):
    reader, writer = pipe
    monitor = Monitor()
    monitor.lines = lines = Lines(writer, limit=500, pause=0.001)
    begun = time.perf_counter()
    for _ in range(20_000):  # far more than a pipe and the queue hold
        answer(monitor)
    assert time.perf_counter() - begun < 5
    assert lines.dropped > 10_000
    kept = read_all(reader, 20_000 - lines.dropped)
    assert len(kept) + lines.dropped == 20_000
    assert samples(monitor)["zoo_log_lines_dropped_total", ()] == lines.dropped
    lines.close()


def test_a_closed_standard_error_is_counted_and_harmless(pipe):
    reader, writer = pipe
    os.close(reader)
    monitor = Monitor()
    monitor.lines = Lines(writer, pause=0.001)
    for _ in range(5):
        answer(monitor)
    monitor.lines.close()
    assert monitor.lines.dropped == 5


def test_closing_writes_what_waits(pipe):
    reader, writer = pipe
    lines = Lines(writer, pause=0.2)
    for number in range(100):
        lines.write(b"%d" % number)
    lines.close()
    assert read_all(reader, 100) == [b"%d" % number for number in range(100)]


def test_other_records_become_json_lines_without_the_text_of_errors(pipe):
    reader, writer = pipe
    lines = Lines(writer, pause=0.001)
    logger = logging.Logger("serve.test")
    logger.addHandler(LinesHandler(lines))
    try:
        raise ValueError("what a client sent")
    except ValueError:
        logger.exception("request %s failed", "r1")
    logger.info("too quiet")
    (line,) = read_all(reader, 1)
    lines.close()
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"], told["error"]) == (
        "error", "serve.test", "request r1 failed", "ValueError",
    )  # fmt: skip
    assert b"client" not in line


def test_codes_are_read_from_both_forms_of_error():
    assert code_of(b'{"error": "no", "code": "a"}') == "a"
    assert code_of(b'{"error": {"code": "b", "message": "no"}}') == "b"
    assert code_of(b"") == code_of(b"[1]") == code_of(b'{"error": 3}') == ""


def test_errors_of_the_app_are_counted_by_their_code(store):
    monitor = Monitor()
    client = create_app(store, monitor=monitor).test_client()
    client.post("/predict/nothing", json={})
    client.get("/nowhere")
    codes = {dict(labels)["code"] for (name, labels), _ in samples(monitor).items() if name == "zoo_errors_total"}
    assert codes == {"unknown_model", "unknown_path"}


def test_spans_continue_the_senders_trace():
    trace = pytest.importorskip("opentelemetry.trace")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    kept = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(kept))
    monitor = Monitor(tracing=True, provider=provider)
    sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    answer(monitor, seconds=0.5, traceparent=sent, method="POST")
    answer(monitor, status=500)
    unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    answer(monitor, traceparent=unsampled)
    first, second = kept.get_finished_spans()
    assert f"{first.context.trace_id:032x}" == sent[3:35] and f"{first.parent.span_id:016x}" == sent[36:52]
    assert (first.name, first.kind) == ("POST /v2/models/<model>/infer", trace.SpanKind.SERVER)
    assert first.end_time - first.start_time == 500_000_000
    assert first.attributes["zoo.model"] == "digits" and first.attributes["http.response.status_code"] == 200
    assert second.parent is None and second.status.status_code is trace.StatusCode.ERROR


def test_a_server_sends_its_spans_by_otlp(store_folder):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    proto = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    received = queue.SimpleQueue()

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.put((self.path, gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        command = [sys.executable, "-m", "serve", str(store_folder), "--port", "0", "--workers", "1", "--tracing"]
        server = subprocess.Popen(
            [*command, "--no-access-log"], stdout=subprocess.PIPE, text=True, env={**os.environ, **settings}
        )
        try:
            url = next(line for line in server.stdout if line.startswith("serving")).split()[-1]
            sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
            asked = urllib.request.Request(f"{url}/v2/models/dose", headers={"traceparent": sent})
            with urllib.request.urlopen(asked, timeout=10) as answer:
                assert answer.status == 200
            path, body = received.get(timeout=10)
        finally:
            server.terminate()
            assert server.wait(15) == 0
            server.stdout.close()
            collector.shutdown()
    message = proto.ExportTraceServiceRequest.FromString(body)
    (span,) = (span for group in message.resource_spans for scope in group.scope_spans for span in scope.spans)
    assert path == "/v1/traces" and span.trace_id.hex() == sent[3:35] and span.parent_span_id.hex() == sent[36:52]
    assert span.name == "GET /v2/models/<model>"


def test_tracing_without_opentelemetry_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ModuleNotFoundError, match="pip install opentelemetry-sdk"):
        Monitor(tracing=True)


def test_drift_is_published_by_column(tmp_path):
    write_image(tmp_path)
    features = [
        {"part": "inputs", "name": "brightness", "psi": 0.5},
        {"part": "classes", "name": "classes", "psi": 0.0},
    ]
    told = {"state": "drifted", "rows": 900, "features": features}
    monitor = Monitor()
    monitor.watch(store=Store(tmp_path, threads=1), drift=SimpleNamespace(describe=lambda name, version: told))
    found = samples(monitor)
    version = (("model", "sides"), ("version", "1"))
    assert (found["zoo_drift_state", version], found["zoo_drift_rows", version]) == (2, 900)
    labels = (("column", "brightness"), ("model", "sides"), ("part", "inputs"), ("version", "1"))
    assert found["zoo_drift_psi", labels] == 0.5


def test_buckets_rise():
    assert list(SECONDS) == sorted(SECONDS) and list(ROWS) == sorted(ROWS)


@pytest.mark.parametrize("reader", ["asleep", "gone"])
def test_a_server_answers_and_stops_when_nobody_reads_its_log(store_folder, reader):
    read, write = os.pipe()
    command = [sys.executable, "-m", "serve", str(store_folder), "--port", "0", "--workers", "1"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=write, text=True)
    os.close(write)
    try:
        url = next(line for line in server.stdout if line.startswith("serving")).split()[-1]
        if reader == "gone":
            os.close(read)
        host, port = url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        for _ in range(600):  # their lines are more than the 64 KiB a pipe holds
            connection.request("GET", "/v2/health/live")
            answer = connection.getresponse()
            assert answer.status == 200 and answer.read()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        assert 'route="/v2/health/live",status="200",version=""} 600.0' in text
        dropped = float(re.search(r"^zoo_log_lines_dropped_total (\S+)", text, re.M)[1])
        assert (dropped > 0) == (reader == "gone")  # asleep, they wait
    finally:
        server.terminate()
        assert server.wait(15) == 0
        server.stdout.close()
        if reader == "asleep":
            os.close(read)
