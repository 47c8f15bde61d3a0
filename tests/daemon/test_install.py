"""``fep install-service`` into the image of a machine; test_boot.py installs on a running one."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from fep.daemon.install import Image
from fep.daemon.main import main

ROOT = Path(__file__).parent.parent.parent
UNITS = "etc/systemd/system"
ALL = [
    f"{UNITS}/fep.service",
    f"{UNITS}/fep.socket",
    "etc/sysusers.d/fep.conf",
    "etc/tmpfiles.d/fep.conf",
    "etc/fep/fep.toml",
    "usr/local/bin/fep",
    "usr/local/bin/fepctl",
]
UNSHARE = ["unshare", "--mount", "--propagation", "private"]
RUN_SECONDS_MAX = 60.0


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A machine's files: systemd's own units, and a fep in /opt/fep."""
    top = tmp_path / "image"
    shutil.copytree("/usr/lib/systemd/system", top / "usr/lib/systemd/system", symlinks=True)
    program(top, "opt/fep")
    return top


def program(top: Path, prefix: str) -> None:
    """Put commands that can be run into an environment of the image."""
    folder = top / prefix / "bin"
    folder.mkdir(parents=True)
    for name in ("fep", "fepctl", "python"):
        (folder / name).write_text("#!/bin/sh\n", "utf-8")
        (folder / name).chmod(0o755)


def install(top: Path, *more: str) -> int:
    return main(["install-service", "--root", str(top), "--prefix", "/opt/fep", *more])


def tree(top: Path) -> dict[str, str]:
    """Return everything in the image with its content, its target, or its kind."""
    return {
        str(path.relative_to(top)): f"-> {path.readlink()}"
        if path.is_symlink()
        else path.read_bytes().hex()
        if path.is_file()
        else "folder"
        for path in sorted(top.rglob("*"))
    }


def test_all_is_installed_and_found_good_by_systemd(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = os.umask(0o077)
    try:
        assert install(image) == 0
    finally:
        os.umask(old)
    said = capsys.readouterr().out
    for name in ALL:
        assert f"/{name}" in said
        assert os.path.lexists(image / name)
    assert "the units are checked: systemd finds no fault" in said
    assert "next: edit /etc/fep/fep.toml" in said
    # Whatever the umask: the service's own user reads them.
    for name in ALL[:5]:
        assert stat.S_IMODE((image / name).stat().st_mode) == 0o644
        folder = (image / name).parent
        assert stat.S_IMODE(folder.stat().st_mode) == (0o2775 if folder.name == "fep" else 0o755)
    groups = dict(
        line.split(":")[0:3:2] for line in (image / "etc/group").read_text("utf-8").splitlines()
    )
    assert {"fep-ops", "fep-config"} <= set(groups)
    # An administrator's page may write the configuration, by the service's group.
    assert (image / "etc/fep").stat().st_gid == int(groups["fep-config"])
    assert (image / "etc/fep/fep.toml").stat().st_uid == 0
    assert (image / "etc/fep/fep.toml").read_bytes() == (ROOT / "config/fep.toml").read_bytes()
    assert str((image / "usr/local/bin/fepctl").readlink()) == "/opt/fep/bin/fepctl"
    # Nothing half-written, and nothing that was not told of.
    assert [path.name for path in image.rglob("*.new")] == []
    assert not (image / UNITS / "multi-user.target.wants").exists()


def test_a_second_run_finds_nothing_to_do(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert install(image) == 0
    before = tree(image), {name: (image / name).lstat().st_mtime_ns for name in ALL}
    capsys.readouterr()
    assert install(image) == 0
    said = capsys.readouterr().out
    assert said.count("is as it should be") == len(ALL)
    assert "written" not in said
    assert (tree(image), {name: (image / name).lstat().st_mtime_ns for name in ALL}) == before


def test_the_sites_own_configuration_is_never_touched(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image / "etc/fep").mkdir(parents=True)
    (image / "etc/fep/fep.toml").write_text('mode = "demo"\n', "utf-8")
    assert install(image) == 0
    assert (image / "etc/fep/fep.toml").read_text("utf-8") == 'mode = "demo"\n'
    said = capsys.readouterr().out
    assert "/etc/fep/fep.toml: kept as it is" in said
    assert "next: edit" not in said


def test_an_older_unit_is_written_anew_and_kept_beside(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image / UNITS).mkdir(parents=True)
    (image / UNITS / "fep.service").write_text("[Service]\nExecStart=/old/fep run\n", "utf-8")
    (image / "usr/local/bin").mkdir(parents=True)
    (image / "usr/local/bin/fep").symlink_to("/old/bin/fep")
    assert install(image) == 0
    assert "/opt/fep/bin/fep run" in (image / UNITS / "fep.service").read_text("utf-8")
    assert "/old/fep" in (image / UNITS / "fep.service.old").read_text("utf-8")
    assert str((image / "usr/local/bin/fep").readlink()) == "/opt/fep/bin/fep"
    assert "written anew; the one before is fep.service.old" in capsys.readouterr().out


def test_a_command_that_is_not_ours_is_kept(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image / "usr/local/bin").mkdir(parents=True)
    (image / "usr/local/bin/fep").write_text("something else\n", "utf-8")
    assert install(image) == 0
    assert "/usr/local/bin/fep -> /opt/fep/bin/fep: kept as it is" in capsys.readouterr().out
    assert install(image, "--uninstall") == 0
    assert (image / "usr/local/bin/fep").read_text("utf-8") == "something else\n"
    assert not (image / "usr/local/bin/fepctl").is_symlink()


def test_a_dry_run_shows_it_all_and_changes_nothing(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image / UNITS).mkdir(parents=True)
    (image / UNITS / "fep.socket").write_text("[Socket]\nListenStream=/run/old\n", "utf-8")
    before = tree(image)
    assert install(image, "--dry-run", "--enable") == 0
    assert tree(image) == before
    said = capsys.readouterr().out
    assert "/etc/systemd/system/fep.service: would be written\n" in said
    assert "+ExecStart=/opt/fep/bin/fep run\n" in said
    assert "-ListenStream=/run/old\n" in said
    assert "would run: systemctl enable fep.service fep.socket" in said
    assert install(image, "--uninstall", "--dry-run") == 0
    assert tree(image) == before
    assert "/etc/systemd/system/fep.socket: would be removed" in capsys.readouterr().out


def own_configuration(image: Path) -> None:
    (image / "etc/fep").mkdir(parents=True, exist_ok=True)
    (image / "etc/fep/fep.toml").write_text("# ours\n", "utf-8")


def test_the_example_is_not_started_with_the_machine(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert install(image, "--enable") == 0
    assert "not enabled: /etc/fep/fep.toml is still the example" in capsys.readouterr().out
    assert not (image / UNITS / "multi-user.target.wants").exists()


def test_enabled_it_starts_with_the_machine(image: Path) -> None:
    own_configuration(image)
    assert install(image, "--enable") == 0
    for target, unit in (("multi-user", "fep.service"), ("sockets", "fep.socket")):
        link = image / UNITS / f"{target}.target.wants" / unit
        assert str(link.readlink()) == f"/{UNITS}/{unit}"


def test_uninstalled_only_what_the_site_made_is_left(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(tree(image))
    own = ["etc/fep/fep.toml", "etc/fep/pin.cred", f"{UNITS}/fep.service.d/site.conf"]
    own_configuration(image)
    assert install(image, "--enable") == 0
    (image / UNITS / "fep.service.d").mkdir()
    for name in own:
        (image / name).write_text("[Service]\n", "utf-8")
    (image / UNITS / "fep.socket").write_text("changed by hand\n", "utf-8")
    assert install(image) == 0  # leaves fep.socket.old
    for _ in range(2):
        assert install(image, "--uninstall") == 0
        left = {name for name, what in tree(image).items() if what != "folder"} - before
        left -= {name for name in left if name.startswith(("etc/group", "etc/gshadow", "etc/.pwd"))}
        assert left == set(own)
    assert "kept: /etc/fep" in capsys.readouterr().out


# -- what is refused ------------------------------------------------------------------------------


def refused(top: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """Return why it was refused; nothing must have changed."""
    before = tree(top)
    assert main(["install-service", "--root", str(top), *more]) == 1
    assert tree(top) == before
    said = capsys.readouterr().err
    assert said.startswith("fep install-service: ")
    assert "Traceback" not in said
    return said


def test_an_image_without_the_program_is_refused(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(image, capsys, "--prefix", "/opt/other")
    assert f"there is no fep at {image}/opt/other/bin" in said
    # Without --prefix it is the environment that runs this, and the image has none there.
    assert "there is no fep at" in refused(image, capsys)


def test_a_program_in_a_place_that_the_service_does_not_see_is_refused(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path("home", "x", "fep")
    program(image, str(place))
    said = refused(image, capsys, "--prefix", f"/{place}")
    assert "the service sees nothing below /home (ProtectHome= in fep.service)" in said


def test_a_program_behind_a_link_to_such_a_place_is_refused(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(image, "tmp/fep")
    shutil.rmtree(image / "opt/fep")
    (image / "opt/fep").symlink_to("/tmp/fep")
    assert "PrivateTmp" in refused(image, capsys, "--prefix", "/opt/fep")


@pytest.mark.parametrize(
    ("closed", "mode", "told"),
    [
        ("opt", 0o750, "/opt is closed to other users; chmod o+x"),
        ("opt/fep/bin", 0o700, "/opt/fep/bin is closed to other users; chmod o+x"),
        ("opt/fep/bin/fep", 0o750, "is closed to other users; chmod o+r"),
    ],
)
def test_a_program_that_the_services_user_can_not_read_is_refused(
    image: Path, capsys: pytest.CaptureFixture[str], closed: str, mode: int, told: str
) -> None:
    (image / closed).chmod(mode)
    assert told in refused(image, capsys, "--prefix", "/opt/fep")


def test_a_place_with_a_meaning_of_its_own_is_refused(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program(image, "opt/my fep")
    assert "characters that mean something else" in refused(
        image, capsys, "--prefix", "/opt/my fep"
    )


def test_no_such_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install-service", "--root", str(tmp_path / "none")]) == 1
    assert "none is no directory" in capsys.readouterr().err


def test_links_of_an_image_do_not_lead_out_of_it(image: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (image / "etc").mkdir()
    (image / "etc/fep").symlink_to(outside)
    (image / "usr/local").symlink_to("../../../../../srv/local")
    assert install(image) == 0
    assert list(outside.iterdir()) == []
    assert (image / str(outside)[1:] / "fep.toml").is_file()
    assert (image / "srv/local/bin/fep").is_symlink()


def test_a_path_of_an_image_stays_in_it(tmp_path: Path) -> None:
    top = tmp_path / "image"
    (top / "a/b").mkdir(parents=True)
    (top / "a/up").symlink_to("../../../..")
    (top / "a/root").symlink_to("/")
    (top / "a/next").symlink_to("b/../../c")
    image = Image(top)
    for path, place in {
        "/": "",
        "/a/b": "a/b",
        "/a/b/../../../x": "x",
        "/a/up/a/b": "a/b",
        "/a/root/a/root/y": "y",
        "/a/next/z": "c/z",
    }.items():
        assert image.place(PurePosixPath(path)) == top / place


def test_a_circle_of_links_is_told(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image / "etc").mkdir()
    (image / "etc/systemd").symlink_to("/etc/systemd2")
    (image / "etc/systemd2").symlink_to("/etc/systemd")
    assert "too many symbolic links" in refused(image, capsys, "--prefix", "/opt/fep")


def test_a_folder_in_the_place_of_a_file_is_told(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image / UNITS / "fep.service").mkdir(parents=True)
    said = refused(image, capsys, "--prefix", "/opt/fep")
    assert "fep.service: Is a directory" in said


def test_what_systemd_finds_wrong_is_told(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image / UNITS / "fep.service.d").mkdir(parents=True)
    (image / UNITS / "fep.service.d/site.conf").write_text("[Service]\nRestartSeconds=1\n", "utf-8")
    assert install(image, "--enable") == 1
    said = capsys.readouterr().err
    assert "site.conf:2: Unknown key" in said
    # It does not start with the machine before that is put right.
    assert not (image / UNITS / "multi-user.target.wants").exists()
    assert "systemd finds faults in the units" in said


def test_an_image_without_systemd_is_installed_unchecked(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(image / "usr/lib/systemd")
    assert install(image) == 0
    assert "the units are not checked" in capsys.readouterr().out


def on_a_machine(prepare: str, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with another /run, so that it is not this machine's systemd that it finds."""
    inside = f'mount -t tmpfs tmpfs /run && {prepare} && exec "$@"'
    return subprocess.run(
        [*UNSHARE, "sh", "-ec", inside, "sh", sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS_MAX,
    )


def test_a_machine_that_systemd_does_not_run_is_refused() -> None:
    code = "from fep.daemon.main import main; exit(main(['install-service', '--dry-run']))"
    done = on_a_machine("true", code)
    assert done.returncode == 1, done.stderr
    assert done.stderr == (
        "fep install-service: systemd does not run this machine; "
        "--root DIR installs into an image of one\n"
    )


def test_somebody_else_than_root_is_refused() -> None:
    code = (
        "import os; from fep.daemon.main import main; import fep.daemon.install; os.seteuid(65534);"
        "exit(main(['install-service']))"
    )
    done = on_a_machine("mkdir -p /run/systemd/system", code)
    assert done.returncode == 1, done.stderr
    assert done.stderr == (
        "fep install-service: only root can install a service; --dry-run shows what it would do\n"
    )


def test_to_enable_and_to_uninstall_at_once_is_wrong_usage(image: Path) -> None:
    with pytest.raises(SystemExit) as usage:
        install(image, "--enable", "--uninstall")
    assert usage.value.code == 2
