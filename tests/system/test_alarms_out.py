"""Alarms sent out by the real daemon: kill -9 between raising and telling loses none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fep.client import BlockingClient
from fep.sandbox.scene import BANKS, Scene, free_port


@contextmanager
def receiving(
    port: int, told: list[dict[str, Any]], came: threading.Event | None = None
) -> Iterator[None]:
    """Take what is posted to a port, until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["content-length"])
            told.append(json.loads(self.rfile.read(size)))
            if came is not None:
                came.set()
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def entries(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for message in told for one in message["alarms"]]


@pytest.fixture
def scene(directory: Path) -> Iterator[Scene]:
    """A bank that is nowhere, so that there is an alarm, and a channel to nobody yet."""
    with Scene(directory, banks=BANKS[:1], accounts_per_bank=2) as scene:
        scene.start_hosts()
        scene.hosts[BANKS[0].name].stop()
        yield scene


@pytest.mark.req("FEP-28", "FEP-31")
@pytest.mark.slow
def test_an_alarm_that_nobody_got_is_told_after_a_kill(scene: Scene) -> None:
    port = free_port()
    config = scene.configuration()
    channel = {"name": "hook", "kind": "webhook", "url": f"http://127.0.0.1:{port}/"}
    config["alarms"] = {"group_s": 0.1, "channel": [channel]}
    scene.write_config(config)
    scene.start_daemon()

    def failing(client: BlockingClient) -> Any:
        (one,) = client.call("alarm.channels")["channels"]
        alarms = client.call("alarm.list")["alarms"]
        return alarms if one["waiting"] and one["failures"] else None

    with scene.operator() as client:
        (alarm,) = scene.wait(client, failing, "an alarm that waits")
        tried = client.call("alarm.test", {"channel": "hook"})
        assert tried["delivered"] is False
        assert tried["told"].startswith("ConnectError")
    scene.kill_daemon()
    told: list[dict[str, Any]] = []
    with receiving(port, told):
        scene.start_daemon()
        with scene.operator() as client:

            def delivered(client: BlockingClient) -> bool:
                (one,) = client.call("alarm.channels")["channels"]
                return bool(one["told"]) and not one["waiting"]

            scene.wait(client, delivered, "the notice delivered")
            first = entries(told)[0]
            assert (first["alarm_id"], first["kind"]) == (alarm["alarm_id"], "LINK_DOWN")
            # Over at the daemon, and so told there too; then nothing is told of a place that is
            # no more, without a restart.
            scene.hosts[BANKS[0].name].start()
            scene.wait_ready(client)
            scene.wait(
                client,
                lambda _: [one["what"] for one in entries(told)] == ["raised", "cleared"],
                "that it is over",
            )
            assert client.call("alarm.test", {"channel": "hook"})["delivered"] is True
            del config["alarms"]["channel"]
            scene.write_config(config)
            client.call("config.apply")
            assert client.call("alarm.channels")["channels"] == []


@pytest.mark.req("FEP-28")
@pytest.mark.slow
def test_that_the_shared_database_is_away_is_told_without_it(directory: Path) -> None:
    port, nobody = free_port(), free_port()
    told: list[dict[str, Any]] = []
    came = threading.Event()
    with (
        receiving(port, told, came),
        Scene(directory, banks=BANKS[:1], accounts_per_bank=2) as scene,
    ):
        scene.start_hosts()
        config = scene.configuration()
        config["store"] = {"url": f"postgresql+psycopg://fep@127.0.0.1:{nobody}/fep"}
        channel = {"name": "hook", "kind": "webhook", "url": f"http://127.0.0.1:{port}/"}
        config["alarms"] = {"group_s": 0.1, "channel": [channel]}
        scene.write_config(config)
        scene.start_daemon()
        assert came.wait(30.0)
        first = entries(told)[0]
        assert (first["what"], first["kind"]) == ("raised", "STORE_DOWN")
