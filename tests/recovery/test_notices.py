"""The notice of a cloud, from a real HTTP server that plays its metadata service."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch import nn

from holdfast import Checkpointer, every
from holdfast.errors import InvalidInput
from holdfast.records import Kind
from holdfast.recovery.environment import notices
from holdfast.recovery.environment.launcher import cloud_here
from holdfast.recovery.environment.notices import Lookout, Metadata, metadata_of
from holdfast.recovery.training import opening


class Service:
    """What a metadata service of one cloud answers; refuses what that cloud refuses."""

    def __init__(self, cloud: str) -> None:
        self.cloud, self.notice, self.broken, self.asked = cloud, None, False, []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer("GET")

            def do_PUT(self) -> None:
                self._answer("PUT")

            def _answer(self, method: str) -> None:
                service.asked.append(self.path)
                code, body = service.answer(method, self.path.partition("?")[0], self.headers)
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, method: str, path: str, headers) -> tuple[int, str]:
        if self.broken:
            return 500, "out of order"
        return getattr(self, f"_{self.cloud}")(method, path, headers)

    def _aws(self, method, path, headers):
        if path == "/latest/api/token":
            return (200, "secret") if method == "PUT" and headers["X-aws-ec2-metadata-token-ttl-seconds"] else (405, "")
        if headers["X-aws-ec2-metadata-token"] != "secret":
            return 401, ""
        assert path == "/latest/meta-data/spot/instance-action"
        ends = datetime.fromtimestamp(self.notice or 0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return (200, json.dumps({"action": "stop", "time": ends})) if self.notice else (404, "")

    def _gce(self, method, path, headers):
        assert path == "/computeMetadata/v1/instance/preempted"
        if headers["Metadata-Flavor"] != "Google":
            return 403, ""
        return 200, "TRUE" if self.notice else "FALSE"

    def _azure(self, method, path, headers):
        if headers["Metadata"] != "true":
            return 400, ""
        if path == "/metadata/instance/compute/name":
            return 200, "mine"
        assert path == "/metadata/scheduledevents"
        before = format_datetime(datetime.fromtimestamp(self.notice or 0, UTC), usegmt=True)
        other = {"EventType": "Preempt", "Resources": ["other"], "NotBefore": before}
        mine = {"EventType": "Preempt", "Resources": ["mine"], "NotBefore": before}
        restart = {"EventType": "Freeze", "Resources": ["mine"], "NotBefore": before}
        return 200, json.dumps({"DocumentIncarnation": 1, "Events": [other, restart, *([mine] if self.notice else [])]})


@pytest.fixture(params=["aws", "gce", "azure"])
def service(request):
    one = Service(request.param)
    yield one
    one.server.shutdown()
    one.server.server_close()


def test_there_is_a_notice_when_the_cloud_gives_it(service) -> None:
    metadata = Metadata(service.cloud, service.base)
    assert metadata.look() is None
    service.notice = time.time() + 100
    found = metadata.look()
    assert found is not None
    if service.cloud != "gce":
        assert abs(found.ends - service.notice) <= 1
    assert "this machine" in found.text


def test_an_answer_that_makes_no_sense_is_no_notice_and_the_next_look_counts(service, caplog) -> None:
    asked: list[tuple] = []
    service.broken = True
    with Lookout(Metadata(service.cloud, service.base), lambda *words: asked.append(words), pause=0.01):
        while len(service.asked) < 3:
            time.sleep(0.01)
        assert asked == []
        service.broken, service.notice = False, time.time() + 100
        while not asked:
            time.sleep(0.01)
    ((text, grace),) = asked
    assert "this machine" in text
    assert 0 < grace.seconds <= 100
    assert sum("cannot be asked" in one.message for one in caplog.records if one.levelname == "WARNING") == 1


def test_a_notice_ends_a_training_with_a_checkpoint(service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users-ask 8: the machine is taken back without any signal to the process."""
    monkeypatch.setattr(opening, "metadata_of", lambda notice: Metadata(notice, service.base))
    monkeypatch.setattr(Lookout.__init__, "__defaults__", (0.01,))
    model = nn.Linear(4, 4)
    state = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
    with Checkpointer(tmp_path / "s", state=state, save=every(steps=10**6), notice=service.cloud) as ckpt:
        for step in ckpt.steps(10**6):
            state["optimizer"].step()
            if step == 3:
                service.notice = time.time() + 1000
            time.sleep(0.001)
    assert ckpt.preempted is not None
    assert ckpt.preempted.durable
    assert "this machine" in ckpt.preempted.signal
    assert ckpt.last.kind is Kind.PREEMPTED
    assert 0 < ckpt.preempted.left <= 1000


def test_nobody_is_asked_unless_somebody_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "cloud_here", lambda: "gce")
    assert metadata_of(None) is None
    assert metadata_of("auto") is not None
    monkeypatch.setattr(notices, "cloud_here", lambda: None)
    assert metadata_of("auto") is None
    with pytest.raises(InvalidInput, match="notice='moon'"):
        metadata_of("moon")


def test_one_process_of_a_machine_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert metadata_of("aws") is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert metadata_of("aws") is not None


@pytest.mark.parametrize(
    ("table", "text", "cloud"),
    [
        ("sys_vendor", "Amazon EC2", "aws"),
        ("product_name", "Google Compute Engine", "gce"),
        ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", "azure"),
        ("sys_vendor", "Dell Inc.", None),
    ],
)
def test_firmware_tables_name_the_cloud(tmp_path: Path, table: str, text: str, cloud: str | None) -> None:
    (tmp_path / table).write_text(f"{text}\n")
    assert cloud_here(tmp_path) == cloud
