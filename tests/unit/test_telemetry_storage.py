"""What boto3's own client tells of its calls, against a small server that fails to order."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra import telemetry


def test_calls_of_an_object_store_are_counted_with_retries_and_bytes(tmp_path: Path) -> None:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.exceptions import ClientError

    faults = {"/b/busy": [503, 503]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            left = faults.get(self.path.partition("?")[0], [])
            status = left.pop() if left else (404 if self.path.startswith("/b/none") else 200)
            body = b"x" * 1234 if status == 200 else b""
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    telemetry.begin([], {"MEDLOOM_METRICS": "1"})
    config = Config(signature_version=UNSIGNED, retries={"mode": "standard", "total_max_attempts": 4},
                    request_checksum_calculation="when_required")
    client = boto3.session.Session(region_name="us-east-1").client(
        "s3", endpoint_url=f"http://127.0.0.1:{server.server_port}", config=config
    )
    telemetry.watch(client)
    try:
        for key in ("one", "busy"):
            assert len(client.get_object(Bucket="b", Key=key)["Body"].read()) == 1234
        with pytest.raises(ClientError):
            client.get_object(Bucket="b", Key="none")
        client.put_object(Bucket="b", Key="two", Body=b"y" * 99)
    finally:
        client.close()
        server.shutdown()
        server.server_close()
    path = telemetry.write(tmp_path)
    assert path is not None
    told = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(path.read_text()) for sample in family.samples
    }
    telemetry.end()
    get = ("operation", "GetObject")
    assert told["medloom_storage_total", (get, ("outcome", "ok"))] == 2
    assert sum(v for (name, labels), v in told.items() if name == "medloom_storage_total" and get in labels) == 3
    assert told["medloom_storage_retries_total", ()] == 2
    assert told["medloom_storage_bytes_total", (("direction", "in"),)] == 2468
    assert told["medloom_storage_bytes_total", (("direction", "out"),)] == 99
    assert told["medloom_storage_seconds_count", (get,)] == 3
    assert not [labels for _, labels in told if "two" in str(labels)]
