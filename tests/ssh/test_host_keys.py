"""known_hosts is read as ssh reads it; unknown and changed keys are told apart, with file and line."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from liborch.errors import HostKeyChanged, HostKeyUnknown
from liborch.ssh.host_keys import Judge, fingerprint, lookup
from liborch.ssh.resolve import Endpoint

ED_1 = "AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
ED_2 = "AAAAC3NzaC1lZDI1NTE5AAAAIJ1DrzYmVJH8aQhYqBW1oRkXkC8hVvOJqFV1Np1kP5sZ"
ED = "ssh-ed25519"


def endpoint(
    known: Path, host: str = "gpu1", port: int = 22, alias: str | None = None, *, hashed: bool = False
) -> Endpoint:
    return Endpoint(
        "name",
        host,
        port,
        "me",
        user_known_hosts=(str(known),),
        host_key_alias=alias,
        hash_known_hosts=hashed,
    )


def known_hosts(tmp_path: Path, *lines: str) -> Path:
    file = tmp_path / "known_hosts"
    file.write_text("".join(line + "\n" for line in lines))
    return file


@pytest.mark.parametrize(
    ("names", "wanted", "matches"),
    [
        ("gpu1", "gpu1", True),
        ("gpu1", "gpu11", False),
        ("GPU1", "gpu1", True),
        ("a,gpu1,10.0.0.1", "10.0.0.1", True),
        ("gpu?", "gpu7", True),
        ("*.lab,!bad.lab", "good.lab", True),
        ("*.lab,!bad.lab", "bad.lab", False),
        ("[gpu1]:2222", "[gpu1]:2222", True),
        ("[gpu1]:2222", "gpu1", False),
        ("[*]:2222", "[gpu1]:2222", True),
        ("[gpu1]*", "g", False),
    ],
)
def test_names_match_as_in_ssh(tmp_path: Path, names: str, wanted: str, matches: bool) -> None:
    file = known_hosts(tmp_path, f"{names} {ED} {ED_1}")
    assert bool(lookup([str(file)], wanted)) is matches


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_names_hashed_by_ssh_keygen_are_found(tmp_path: Path) -> None:
    file = known_hosts(tmp_path, f"gpu1 {ED} {ED_1}", f"[gpu2]:2222 {ED} {ED_2}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert "gpu" not in file.read_text()
    assert [entry.line for entry in lookup([str(file)], "gpu1")] == [1]
    assert [entry.line for entry in lookup([str(file)], "[gpu2]:2222")] == [2]
    assert lookup([str(file)], "gpu2") == []


def test_lines_that_are_no_keys_are_passed_over(tmp_path: Path) -> None:
    file = known_hosts(
        tmp_path,
        "# gpu1",
        "",
        "gpu1",
        f"gpu1 {ED}",
        f"gpu1 {ED} notbase64!",
        f"gpu1 ssh-rsa {ED_1}",
        "|1|x|y a b",
    )
    assert lookup([str(file), str(tmp_path / "absent")], "gpu1") == []


def test_a_key_never_seen_is_unknown_and_names_the_files(tmp_path: Path) -> None:
    judge = Judge.of(endpoint(known_hosts(tmp_path, f"other {ED} {ED_1}")))
    judge.shown = (ED, ED_2)
    error = judge.error()
    assert isinstance(error, HostKeyUnknown)
    assert error.fingerprint == fingerprint(ED_2)
    assert str(tmp_path / "known_hosts") in str(error)
    assert judge.may_accept


def test_another_key_than_recorded_is_changed_and_names_file_and_line(tmp_path: Path) -> None:
    judge = Judge.of(endpoint(known_hosts(tmp_path, "# a comment", f"gpu1 {ED} {ED_1}")))
    judge.shown = (ED, ED_2)
    error = judge.error()
    assert isinstance(error, HostKeyChanged)
    assert f"{tmp_path}/known_hosts:2" in str(error)
    assert fingerprint(ED_1) in str(error)
    assert fingerprint(ED_2) in str(error)
    assert not judge.may_accept


def test_a_key_of_another_type_than_recorded_is_changed_too(tmp_path: Path) -> None:
    judge = Judge.of(endpoint(known_hosts(tmp_path, f"gpu1 {ED} {ED_1}")))
    judge.shown = ("ecdsa-sha2-nistp256", "AAAA")
    assert isinstance(judge.error(), HostKeyChanged)


def test_a_revoked_key_points_to_the_line_that_revokes_it(tmp_path: Path) -> None:
    judge = Judge.of(endpoint(known_hosts(tmp_path, f"gpu1 {ED} {ED_2}", f"@revoked * {ED} {ED_1}")))
    assert judge.keys("@revoked") == [f"{ED} {ED_1}".encode()]
    error = judge.error("Host key is revoked")
    assert isinstance(error, HostKeyChanged)
    assert (error.line, "revoked" in str(error)) == (2, True)


def test_an_authority_vouches_and_its_certificates_are_asked_for_first(tmp_path: Path) -> None:
    judge = Judge.of(endpoint(known_hosts(tmp_path, f"@cert-authority *.lab {ED} {ED_1}"), "gpu1.lab"))
    assert judge.keys("@cert-authority") == [f"{ED} {ED_1}".encode()]
    assert judge.keys("") == []
    assert (
        judge.algorithms(["ssh-ed25519", "ssh-ed25519-cert-v01@openssh.com"])[0]
        == "ssh-ed25519-cert-v01@openssh.com"
    )


def test_recorded_types_of_keys_are_asked_for_first_and_none_is_left_out(tmp_path: Path) -> None:
    judge = Judge.of(endpoint(known_hosts(tmp_path, f"gpu1 {ED} {ED_1}")))
    allowed = ["ssh-ed25519-cert-v01@openssh.com", "ecdsa-sha2-nistp256", "ssh-ed25519", "rsa-sha2-512"]
    assert judge.algorithms(allowed)[0] == "ssh-ed25519"
    assert sorted(judge.algorithms(allowed)) == sorted(allowed)


def test_the_port_is_part_of_the_name_but_a_key_without_it_will_do(tmp_path: Path) -> None:
    file = known_hosts(tmp_path, f"gpu1 {ED} {ED_1}")
    assert Judge.of(endpoint(file, port=2222)).keys("") == [f"{ED} {ED_1}".encode()]
    file = known_hosts(tmp_path, f"gpu1 {ED} {ED_1}", f"[gpu1]:2222 {ED} {ED_2}")
    assert Judge.of(endpoint(file, port=2222)).keys("") == [f"{ED} {ED_2}".encode()]


def test_an_alias_is_the_name_whatever_the_port(tmp_path: Path) -> None:
    file = known_hosts(tmp_path, f"thing {ED} {ED_1}")
    assert Judge.of(endpoint(file, port=2222, alias="thing")).keys("") == [f"{ED} {ED_1}".encode()]
    assert Judge.of(endpoint(file, port=2222)).keys("") == []


@pytest.mark.parametrize("hashed", [False, True])
def test_a_new_key_is_appended_for_the_person_alone(tmp_path: Path, hashed: bool) -> None:
    file = tmp_path / "new" / "known_hosts"
    judge = Judge.of(endpoint(file, port=2222, hashed=hashed))
    judge.shown = (ED, ED_1)
    judge.record()
    assert Judge.of(endpoint(file, port=2222)).keys("") == [f"{ED} {ED_1}".encode()]
    assert ("[gpu1]:2222" in file.read_text()) is not hashed
    assert oct(os.stat(file).st_mode & 0o777) == "0o600"
    assert oct(os.stat(file.parent).st_mode & 0o777) == "0o700"


def test_a_file_without_a_final_newline_is_not_torn(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"other {ED} {ED_2}")
    judge = Judge.of(endpoint(file))
    judge.shown = (ED, ED_1)
    judge.record()
    assert file.read_text() == f"other {ED} {ED_2}\ngpu1 {ED} {ED_1}\n"
