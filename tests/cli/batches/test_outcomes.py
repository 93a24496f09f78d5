"""What a batch leaves of each execution in its output folder, when there is much of it."""

from __future__ import annotations

import hashlib

from tests.cli.person import Person


def test_output_of_megabytes_is_left_whole(person: Person) -> None:
    person.write("run.sh", "head -c 3000000 /dev/urandom | tee /dev/stderr | sha256sum > sum\n")
    person.write("said.sh", 'head -c 9000 /dev/zero; head -c "$1" /dev/zero >&2\n')
    assert person.run("batch", "local", "run.sh").returncode == 0
    (folder,) = (person.folder / "batch").iterdir()
    written = (folder / "stderr").read_bytes()
    assert hashlib.sha256(written).hexdigest() == (folder / "sum").read_text().split()[0]
    assert person.run("batch", "local", "said.sh", "-o", "said", "--", "5").returncode == 0
    assert (person.folder / "said/stdout").read_bytes() == bytes(9000)
    assert (person.folder / "said/stderr").read_bytes() == bytes(5)
