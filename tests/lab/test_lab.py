"""The lab itself: what other tests take for granted."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab import claims
from tests.lab.hosts import Lab
from tests.lab.machine import wait_until

pytestmark = pytest.mark.lab

MakeLab = Callable[..., Lab]


def test_each_host_has_its_own_name_home_tmp_and_boot_id(lab: Lab) -> None:
    script = "hostname; cat /proc/sys/kernel/random/boot_id; touch ~/mine /tmp/mine; ls ~ /tmp | grep -c mine"
    told = [lab.ssh(host.alias, script).stdout.split() for host in lab.hosts]
    assert [name for name, *_ in told] == ["h1", "h2", "h3"]
    assert len({boot_id for _, boot_id, _ in told}) == 3
    assert all((host.home / "mine").exists() and host.path("/tmp/mine").exists() for host in lab.hosts)
    for host in lab.hosts:
        host.run("rm ~/mine /tmp/mine")


def test_a_jump_chain_reaches_what_cannot_be_reached_directly(lab: Lab) -> None:
    assert lab.ssh("behind3", "hostname").stdout == "h3\n"
    direct = subprocess.run(
        ["ssh", "-F", str(lab.ssh_config), "-o", "ProxyJump=none", "-o", "ConnectTimeout=1", "behind3", "true"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert direct.returncode == 255


def test_a_reboot_ends_every_process_and_keeps_the_home(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    lab.ssh(
        "h1",
        "touch ~/kept /tmp/gone; nohup sleep 600 >/dev/null 2>&1 </dev/null & cat /proc/sys/kernel/random/boot_id",
    )
    before = host.run("cat /proc/sys/kernel/random/boot_id").stdout
    assert host.pids_matching("sleep 600")
    host.reboot()
    assert lab.ssh("h1", "ls ~ /tmp").stdout.split() == ["/root:", "kept", "/tmp:"]
    assert not host.pids_matching("sleep 600")
    assert host.run("cat /proc/sys/kernel/random/boot_id").stdout != before


def test_a_cut_host_is_silent_and_comes_back(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    for break_it in (lab.host("h1").cut, lab.host("h1").drop_packets):
        break_it()
        with pytest.raises(subprocess.TimeoutExpired):
            lab.ssh("h1", "true", timeout_s=0.8)
        lab.host("h1").restore()
        assert lab.ssh("h1", "echo back").stdout == "back\n"


def test_sshd_is_started_with_other_limits_and_keys(make_lab: MakeLab) -> None:
    lab = make_lab(1, MaxSessions=1)
    host = lab.host("h1")
    assert "MaxSessions 1\n" in (host.etc / "sshd_config").read_text()
    host.change_host_key()
    assert lab.ssh("h1", "true", check=False).returncode == 255
    lab.trust()
    assert lab.ssh("h1", "true").returncode == 0
    host.stop_sshd(sessions=True)
    assert lab.ssh("h1", "true", check=False).returncode == 255
    host.start_sshd(MaxSessions=10)
    assert lab.ssh("h1", "true").returncode == 0


def test_a_full_disk_is_full_only_where_it_was_filled(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    lab.host("h1").fill_disk("/root/small", "1m")
    wrote = lab.ssh("h1", "head -c 5000 /dev/zero > ~/small/f", check=False)
    assert "No space left" in wrote.stderr
    assert lab.ssh("h1", "head -c 5000 /dev/zero > ~/f").returncode == 0
    lab.host("h1").free_disk("/root/small")
    assert lab.ssh("h1", "head -c 5000 /dev/zero > ~/small/f").returncode == 0


def test_a_far_host_answers_later_by_the_delay(lab: Lab) -> None:
    far = lab.delay_proxy("h1", 0.1)
    start = time.monotonic()
    assert lab.ssh(far, "hostname").stdout == "h1\n"
    # A login takes at least three round trips of 0.2 s.
    assert time.monotonic() - start > 0.6


def test_accounts_have_the_shells_they_are_known_for(lab: Lab) -> None:
    assert lab.ssh("kim@h1", "echo $shell").stdout == "/bin/csh\n"
    assert lab.ssh("finn@h1", "echo $SHELL; set -l x fish; echo $x").stdout == "/usr/bin/fish\nfish\n"
    assert lab.ssh("nora@h1", "true", check=False).returncode == 1


def test_a_host_lives_in_control_groups_of_its_own(lab: Lab) -> None:
    if not claims.cgroup_roots():
        pytest.skip("no writable control groups here")
    root = claims.cgroup_roots()[0]
    lab.ssh("h1", f"mkdir {root}/mine")
    assert not (root / "mine").exists()
    assert (root / f"olab-{lab.number}" / "h1" / "mine").exists()
    lab.ssh("h1", f"rmdir {root}/mine")


def test_what_a_killed_owner_left_is_removed(make_lab: MakeLab) -> None:
    code = "from tests.lab.hosts import Lab; import time; print(Lab(1).start().number, flush=True); time.sleep(600)"
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root) as owner:
        assert owner.stdout is not None
        number = int(owner.stdout.readline())
        assert Path(f"/sys/class/net/olab-{number}").exists()
        owner.send_signal(signal.SIGKILL)
    # The host's processes end by themselves, with their owner.
    wait_until("the host's end", lambda: not Path(f"/sys/class/net/olab-{number}-1").exists())
    assert make_lab(1).number != number
    assert not Path(f"/sys/class/net/olab-{number}").exists()
    assert not (claims.ROOT / str(number)).exists()
