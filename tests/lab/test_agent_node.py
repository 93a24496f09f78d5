"""The agent on real hosts: over sshd, through reboots, killed connections and other people's accounts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from liborch.agent.pack import packed
from liborch.drive import bootstrap
from tests.agent.harness import Client, until
from tests.lab.hosts import Host, Lab
from tests.lab.machine import wait_until

pytestmark = pytest.mark.lab

MakeLab = Callable[..., Lab]


def connect(lab: Lab, alias: str, owner: str = "me", ack: int = 0, **fields: Any) -> Client:
    """A client over the real ssh, attached."""
    marker = bootstrap.new_marker()

    def see_through(client: Client) -> None:
        seen = b""
        while not (at := seen.find(marker.encode())) >= 0 or b"\n" not in seen[at:]:
            seen += client.read()
        word, rest = seen[at + len(marker) :].split(b"\n", 1)
        if word == b"need":
            data = packed()[1]
            client.write(b"%d\n" % len(data) + data)
        else:
            assert word == b"have", seen
        client._take(rest)

    argv = ["ssh", "-F", str(lab.ssh_config), alias, bootstrap.command(marker)]
    client = Client(argv, prelude=see_through)
    client.attach(owner, ack, **fields)
    return client


def pids(host: Host, name: str) -> list[int]:
    return [
        p.pid
        for p in host.processes()
        if host.path(f"/proc/{p.pid}/comm").read_text().strip() == f"orch-{name}"
    ]


def test_a_reboot_loses_what_ran_once_and_keeps_what_was_finished(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    client = connect(lab, "h1", cpus=2)
    boot = client.hello["boot_id"]
    client.run("exit 5", "done")
    client.sh("ran", "echo so far; sleep 300")
    client.event("started", "ran")
    pid = client.settle()["runs"][0]["pid"]
    host.reboot()
    # Somebody else's process gets the old number.
    host.run(
        f"echo {pid - 1} > /proc/sys/kernel/ns_last_pid; setsid sleep 299 >/dev/null 2>&1 </dev/null & echo $!"
    )
    wait_until("somebody else's process", lambda: host.pids_matching("sleep 299"))
    bystanders = host.pids_matching("sleep 299")
    again = connect(lab, "h1")
    assert again.hello["boot_id"] != boot
    assert again.ended("done")["code"] == 5
    end = again.ended("ran")
    assert (end["reason"], end["code"], end["out"]) == ("lost", None, "so far\n")
    assert end["why"].startswith("reboot:")
    again.tell("cancel", "ran")
    assert again.run("echo on", "next")["out"] == "on\n"
    assert again.count("ended", "ran") == 1
    assert host.pids_matching("sleep 299") == bystanders
    # And only once: the next client hears the same, not more.
    last = connect(lab, "h1")
    assert [event[:5] for event in last.events] == [event[:5] for event in again.events]
    for each in (client, again, last):
        each.kill()


def test_executions_outlive_every_sshd_of_their_node(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    client = connect(lab, "h1")
    client.sh("x", "until [ -e /tmp/go ]; do sleep 0.02; done; echo whole; exit 3", live=True)
    client.event("started", "x")
    host.stop_sshd(sessions=True)
    host.path("/tmp/go").touch()
    host.start_sshd()
    again = connect(lab, "h1")
    end = again.ended("x")
    assert (end["code"], end["out"]) == (3, "whole\n")
    client.kill()
    again.kill()


def test_talker_and_keeper_are_two_processes_and_either_may_be_killed(make_lab: MakeLab) -> None:
    lab = make_lab(1)
    host = lab.host("h1")
    client = connect(lab, "h1", cpus=1)
    client.sh("x", "sleep 0.5; exit 4")
    client.sh("y", "echo later")
    client.event("started", "x")
    for pid in pids(host, "talker"):
        host.kill(pid)
    again = connect(lab, "h1")
    assert again.ended("x")["code"] == 4
    again.sh("z", "sleep 300")
    again.event("started", "z")
    again.ended("y")
    for pid in pids(host, "keeper"):
        host.kill(pid)
    assert again.ended("z")["why"].startswith("keeper:")
    until("its end", lambda: not host.pids_matching("sleep 300"))
    client.kill()
    again.kill()


def test_without_a_cgroup_memory_is_watched_and_said_so(lab: Lab) -> None:
    account = lab.add_alias("h1-sue", HostName=lab.host("h1").address, User="sue")
    client = connect(lab, account)
    assert client.attached["room"]["means"]["memory"] == "watching"
    client.order(
        (
            "x",
            {
                "argv": ["python3", "-c", "x = bytearray(300 << 20); import time; time.sleep(60)"],
                "mem": 90 << 20,
            },
        )
    )
    end = client.ended("x")
    assert (end["reason"], end["signal"], end["means"]) == ("oom", 9, ["memory:watching"])
    assert "seen:" in end["why"]
    client.kill()


def test_with_a_cgroup_memory_is_the_kernels_to_keep_also_for_children(lab: Lab) -> None:
    client = connect(lab, "h1", "cgroup")
    if not client.attached["room"]["means"]["memory"].startswith("cgroup"):
        pytest.skip("this kernel offers its hosts no memory cgroup")
    hog = "python3 -c 'x = bytearray(300 << 20)'"
    end = client.run(f"setsid {hog}; exit 9", "x", mem=60 << 20)
    assert (end["reason"], end["code"]) == ("oom", 9)
    # One that copes with its child's death did not end by it.
    assert client.run(f"{hog}; exit 0", "y", mem=60 << 20)["reason"] == "exit"
    client.kill()


def test_login_shells_and_noise_do_not_matter(lab: Lab) -> None:
    for account in ("sue", "bob", "kim", "finn"):
        alias = lab.add_alias(f"h2-{account}", HostName=lab.host("h2").address, User=account)
        client = connect(lab, alias)
        assert client.run("cd /tmp; pwd; a='X Y'; echo $a; false || exit 3", account)["out"] == "/tmp\nX Y\n"
        client.kill()


def test_the_argument_list_is_not_on_the_connections_command_line(lab: Lab) -> None:
    client = connect(lab, "h1", "secret")
    client.sh("arguments", "sleep 300 # very-secret-word")
    client.event("started", "arguments")
    shown = subprocess.run(
        ["ps", "-ww", "-o", "args", "-p", str(client.process.pid)], capture_output=True, text=True, check=True
    )
    assert "very-secret-word" not in shown.stdout
    assert sys.executable not in shown.stdout
    client.tell("cancel", "arguments")
    client.ended("arguments")
    client.kill()
