"""Nothing hears the network but on loopback, unless the configuration says so."""

from __future__ import annotations

import pytest

from fep.sandbox.scene import BANKS, Scene
from fep.sandbox.ukey.rig import UkeyRig
from tests.system.demo_run import DemoRun
from tests.system.processes import Listener, listeners, parse_table


@pytest.mark.req("FEP-01")
@pytest.mark.slow
def test_daemon_and_banks_listen_on_loopback_only(running: Scene) -> None:
    assert running.daemon is not None
    at_daemon = listeners(running.daemon.pid)
    assert [(one.protocol, one.port) for one in at_daemon] == [("tcp", running.port)]
    assert all(one.is_loopback for one in at_daemon)
    for host in running.hosts.values():
        assert host.process is not None
        (one,) = listeners(host.process.pid)
        assert (one.port, one.is_loopback) == (host.port, True)


def test_the_private_card_service_is_not_on_the_network(rig: UkeyRig) -> None:
    for pid in (rig.pcscd_pid, rig.card_server_pid):
        assert pid is not None
        assert listeners(pid) == []


@pytest.mark.slow
def test_the_demo_listens_on_loopback_only(demo_run: DemoRun) -> None:
    assert [one for one in demo_run.listeners if not one.is_loopback] == []
    # The look saw them: the daemon's one TCP listener, and one at each bank.
    assert len(demo_run.listeners) == 1 + len(BANKS)


def test_the_look_sees_what_other_machines_could_reach() -> None:
    table = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1
   1: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 102 1
   2: 0100007F:1F92 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 103 1
"""
    rows = parse_table(table, "tcp")
    assert rows == [("101", "0.0.0.0", 0x1F90), ("102", "127.0.0.1", 0x1F91)]
    table6 = """\
  sl  local_address                         remote_address                        st
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0 0 0 0 0 104
   1: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 0 0 0 0 0 105
   2: 0000000000000000FFFF00000100007F:1F92 00000000000000000000000000000000:0000 0A 0 0 0 0 0 106
"""
    rows += parse_table(table6, "tcp6")
    seen = [Listener("", "tcp", address, port).is_loopback for _, address, port in rows]
    assert seen == [False, True, False, True, True]
    assert {inode for inode, _, _ in rows} == {"101", "102", "104", "105", "106"}
