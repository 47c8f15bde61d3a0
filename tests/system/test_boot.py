"""The service under a real systemd: a machine boots with it installed, and much happens to it.

One boot for all tests here. ``boot/proof.py`` does the things in the machine and notes what it saw;
each test reads the notes of one of them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.boot.machine import BOOT_SECONDS_MAX, ROOT, WATCHDOG_SECONDS, NoBootError, boot

Notes = dict[str, Any]

SECRETS = [
    "finance-token", "hsm-1-pin", "sm2-1",
    "ukey-cmb", "ukey-cmb.crt", "ukey-pingan", "ukey-pingan.crt",
]  # fmt: skip
DRAIN_SECONDS = 10.0


@pytest.fixture(scope="module")
def machine(module_directory: Path) -> Notes:
    try:
        notes = boot(module_directory)
    except NoBootError as error:
        pytest.fail(str(error))
    for file in ("boot.log", "proof.log"):
        print((module_directory / "share" / file).read_text("utf-8", "replace")[-3000:])
    return notes


@pytest.fixture
def seen(machine: Notes, request: pytest.FixtureRequest) -> Notes:
    """What the step that the test names saw."""
    (mark,) = request.node.iter_markers("step")
    notes: Notes = machine.get(mark.args[0], {"failed": "the machine did not come so far"})
    if "failed" in notes:
        pytest.fail(f"{mark.args[0]}: {notes['failed']}")
    return notes


def once(seen: Notes) -> None:
    """See to it that each payment of a step ended well and is in the bank's book once."""
    assert seen["states"]
    assert set(seen["states"].values()) == {"succeeded"}
    assert seen["booked"] == dict.fromkeys(seen["states"], 1)


@pytest.mark.step("started")
@pytest.mark.slow
def test_it_comes_up_with_the_machine_and_is_ready(seen: Notes) -> None:
    assert seen["unit"] == {
        "ActiveState": "active",
        "SubState": "running",
        "NRestarts": "0",
        "Type": "notify",
    }
    assert seen["ready"]["status"] == 0
    # What install-service found in /etc/fep is what runs.
    assert seen["config"] is True


@pytest.mark.step("started")
def test_it_runs_as_a_user_of_its_own_without_rights(seen: Notes) -> None:
    assert seen["known"] == ["fep"]
    assert 61184 <= seen["uid"] <= 65519, "systemd's range of dynamic users"
    status = dict(re.findall(r"^(\w+):\s+(.*)$", seen["process_status"], re.MULTILINE))
    nothing = "0" * 16
    held = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    assert {status[name] for name in held} == {nothing}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@pytest.mark.step("status_line")
def test_systemctl_status_shows_a_line_of_health(seen: Notes) -> None:
    assert seen["line"] == "0 tasks open; 0 alarms"
    assert f'Status: "{seen["line"]}"' in seen["page"]
    assert "/opt/fep/bin/fep run" in seen["page"]


@pytest.mark.step("credentials")
def test_secrets_come_as_credentials_that_nobody_else_reads(seen: Notes) -> None:
    assert seen["names"] == SECRETS
    # On the disk they are encrypted.
    assert len(seen["plain"]) == 5
    assert not any(seen["plain"].values())
    assert seen["stranger"]["status"] != 0
    assert "Permission denied" in seen["stranger"]["err"]


@pytest.mark.step("credentials")
def test_keys_of_every_kind_open_in_the_sandbox(seen: Notes) -> None:
    """Software keys, SM2 by libcrypto, and a foreign PKCS#11 library with its PIN."""
    slots = dict.fromkeys(["ukey-pingan", "ukey-cmb", "sm2-1", "hsm-1"], "ready")
    assert seen["slots"] == slots


@pytest.mark.step("never_given_up")
def test_the_card_service_is_reached_from_the_sandbox(seen: Notes) -> None:
    assert seen["card"] == "no_reader", "it was told that there is none"
    assert seen["pcscd"] == "active"


@pytest.mark.step("socket_rights")
def test_members_of_the_group_may_speak_and_strangers_may_not(seen: Notes) -> None:
    assert seen["owner"] == {"group": "fep-ops", "mode": "0o660"}
    assert seen["member"]["status"] == 0
    assert '"slots"' in seen["member"]["out"]
    assert seen["stranger"]["status"] == 1
    assert "only members of the socket's group (fep-ops) may" in seen["stranger"]["err"]


@pytest.mark.step("socket_rights")
def test_a_member_has_the_rights_of_its_uid_and_no_more(seen: Notes) -> None:
    assert seen["viewer_pays"]["status"] == 1
    assert "NOT_PERMITTED" in seen["viewer_pays"]["err"]
    assert "viewer" in seen["viewer_pays"]["err"]


@pytest.mark.step("console")
def test_the_console_works_in_the_sandbox(seen: Notes) -> None:
    assert seen["made"]["status"] == 0, seen["made"]["err"]
    # Passwords are hashed by foreign code, which must not need writable and executable memory.
    assert (seen["login"], seen["wrong"], seen["right"]) == (200, 401, 303)
    assert seen["overview"] == [200, True]
    # Its page of the configuration does not complain that the file can't be written.
    assert seen["settings"] == [200, False]
    assert seen["static"] == [200, "text/css; charset=utf-8"]


@pytest.mark.step("console")
def test_the_store_is_looked_at_by_a_process_of_its_own_in_the_sandbox(seen: Notes) -> None:
    assert seen["asked"] == 303
    assert "pill good" in seen["check"]


@pytest.mark.step("payments")
def test_it_pays_at_both_banks_in_the_sandbox(seen: Notes) -> None:
    once(seen)


@pytest.mark.step("reloads")
def test_a_reload_of_a_good_file_is_applied_by_the_same_process(seen: Notes) -> None:
    assert seen["applied"]["status"] == 0, seen["applied"]["err"]
    assert seen["changed"] is True
    assert seen["back"]["status"] == 0
    assert seen["digest"] is True
    assert seen["same_process"] is True


@pytest.mark.step("reloads")
def test_a_reload_of_a_faulty_file_is_refused_and_changes_nothing(seen: Notes) -> None:
    assert seen["refused"]["status"] != 0
    assert seen["unchanged"] is True
    assert seen["state"] == "active"
    assert any("must be a whole number" in line for line in seen["told"])


@pytest.mark.step("saved")
def test_an_administrator_can_save_the_configuration_from_the_sandbox(seen: Notes) -> None:
    assert seen["written"] == [True, True]
    assert [one["changed"] for one in seen["answers"]] == [["cmb", "pingan"]] * 2
    # The service wrote it, whoever owned it before; others read it, and write nothing there.
    assert (seen["mode"], seen["group"]) == ("0o644", "fep-config")
    assert seen["owner"] >= 61184
    assert seen["restart"]["status"] == 0
    assert seen["stranger"]["status"] != 0
    assert seen["told"] == []


@pytest.mark.step("killed")
def test_after_kill_9_the_next_process_answers_all_who_connected_meanwhile(seen: Notes) -> None:
    assert [one for one in seen["answers"] if "refused" in one] == []
    assert len(seen["answers"]) >= 10
    assert all(one["uptime_s"] < seen["seconds"] for one in seen["answers"])
    assert seen["restarts"] == 1
    assert seen["new"] not in (0, seen["old"])


@pytest.mark.step("killed")
def test_what_was_at_the_bank_at_a_kill_9_is_paid_once(seen: Notes) -> None:
    once(seen)


@pytest.mark.step("stuck")
def test_a_loop_that_stands_still_is_ended_by_the_watchdog(seen: Notes) -> None:
    assert seen["restarts"] == 1
    # Half its time is the pace at which it is fed.
    assert seen["seconds"] > WATCHDOG_SECONDS / 2
    assert "Watchdog timeout" in seen["journal"]
    stack = seen["journal"].partition("Fatal Python error: Aborted")[2]
    assert "stuck_bank.py" in stack, "the journal says where it stood"


@pytest.mark.step("stuck")
def test_what_a_stuck_loop_held_up_is_paid_once(seen: Notes) -> None:
    once(seen)


@pytest.mark.step("stopped")
def test_a_stop_waits_for_the_banks_as_long_as_it_says_and_ends_well(seen: Notes) -> None:
    assert DRAIN_SECONDS / 2 < seen["seconds"] < DRAIN_SECONDS * 3
    assert (seen["result"], seen["exit"]) == ("success", "0")


@pytest.mark.step("stopped")
def test_what_is_at_a_bank_at_a_stop_is_neither_lost_nor_paid_twice(seen: Notes) -> None:
    # One bank answered while it stopped; the other one was far too slow.
    assert seen["booked_at_stop"] == {"STOP-QUICK": 1, "STOP-SLOW-1": 0, "STOP-SLOW-2": 0}
    once(seen)
    lost = {name for name, events in seen["why"].items() if "outcome_lost" in events}
    assert lost == {"STOP-SLOW-1", "STOP-SLOW-2"}
    for name in lost:
        assert seen["why"][name].count("send_begun") == 1
        assert seen["why"][name][-1] == "proved_done"


@pytest.mark.step("stopped")
def test_after_a_stop_the_next_connect_starts_it_again(seen: Notes) -> None:
    assert seen["socket"] == "active"
    assert seen["woken"].get("uptime_s", 1000) < 60, seen["woken"]
    assert seen["new"] is True
    assert seen["active"] == "active"


@pytest.mark.step("never_given_up")
def test_a_start_that_fails_over_and_over_is_not_given_up(seen: Notes) -> None:
    assert seen["asked"]["status"] != 0, "who restarts it by hand is told at once"
    assert seen["between"] == ["activating", "active"]
    assert "uptime_s" in seen["answer"], seen["answer"]
    assert seen["after"] is True


@pytest.mark.step("not_ready")
def test_ready_tells_by_its_exit_status_that_a_bank_is_down(seen: Notes) -> None:
    assert seen["status"] == 1
    assert "link cmb" in seen["out"]
    assert "pingan" not in seen["out"]


@pytest.mark.step("gone")
def test_stopped_with_its_socket_it_stays_down(seen: Notes) -> None:
    assert seen["stop"]["status"] == 0
    assert seen["connected"] is False


@pytest.mark.step("gone")
def test_uninstalled_it_is_gone_and_the_payments_are_not(seen: Notes) -> None:
    assert seen["removed"]["status"] == 0, seen["removed"]["err"]
    assert seen["load"] == "not-found"
    assert (seen["config"], seen["store"]) == (True, True)
    assert '"sound":true' in seen["sound"]["out"]


@pytest.mark.step("installed_again")
def test_installed_without_a_configuration_it_waits_for_one(seen: Notes) -> None:
    assert seen["example"]["status"] == 0, seen["example"]["err"]
    assert "not enabled: /etc/fep/fep.toml is still the example" in seen["example"]["out"]
    assert seen["idle"] == "inactive"
    assert seen["faulty"]["status"] == 1
    assert "nonsense" in seen["faulty"]["err"]


@pytest.mark.step("installed_again")
def test_installed_again_it_starts_with_the_tasks_it_had(seen: Notes) -> None:
    assert seen["right"]["status"] == 0, seen["right"]["err"]
    assert "systemd finds no fault" in seen["right"]["out"]
    assert seen["active"] == "active"
    assert seen["enabled"] == ["enabled", "enabled"]
    assert set(seen["states"].values()) == {"succeeded"}


@pytest.mark.step("installed_again")
def test_a_second_install_changes_nothing_and_disturbs_nobody(seen: Notes) -> None:
    assert seen["again"]["status"] == 0
    assert "written" not in seen["again"]["out"]
    assert seen["same_process"] is True


@pytest.mark.step("installed_again")
def test_only_root_installs(seen: Notes) -> None:
    assert seen["stranger"]["status"] == 1
    assert "only root can install a service" in seen["stranger"]["err"]


def test_where_no_machine_can_be_booted_it_says_what_is_missing(directory: Path) -> None:
    code = "import pathlib, sys; from tests.system.boot.machine import boot; boot(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_admin", sys.executable, "-c", code, str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=BOOT_SECONDS_MAX,
    )
    assert done.returncode == 1
    assert "NoBootError: the machine did not boot" in done.stderr
    assert "unshare: unshare failed: Operation not permitted" in done.stderr
