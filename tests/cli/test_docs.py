"""The documents tell the truth: what they show as a profile is one, and no key is left out."""

from __future__ import annotations

import re

import pytest

from liborch.profiles.load import KEYS, KEYS_2020, load_bytes
from tests.architecture.reading import ROOT

PROFILES = ROOT / "docs" / "profiles.md"
TEXTS = ("README.md", "ARCHITECTURE.md", "GLOSSARY.md", "CHANGELOG.md", "docs/profiles.md")


def blocks(name: str, language: str) -> list[str]:
    """Return the fenced blocks of a language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)


def keys_explained() -> set[str]:
    """Return the words in the first column of the tables of docs/profiles.md."""
    cells = [line.split("|")[1] for line in PROFILES.read_text().splitlines() if line.startswith("| `")]
    return {word for cell in cells for word in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize("name", ["README.md", "docs/profiles.md"])
def test_profiles_in_the_documents_are_profiles(name: str) -> None:
    found = blocks(name, "yaml")
    assert found
    for text in found:
        assert load_bytes(f"{name}.yaml", text.encode())


def test_every_key_of_both_forms_is_explained_and_shown() -> None:
    shown = "\n".join(blocks("docs/profiles.md", "yaml"))
    for key in KEYS.keys() | KEYS_2020.keys():
        assert key in keys_explained(), key
        assert re.search(rf"\b{key}:", shown), key
    for key in ("count", "cpus", "gpus", "memory", "nodes", "walltime", "most", "options"):
        assert key in keys_explained(), key


def test_links_between_documents_lead_somewhere() -> None:
    for name in TEXTS:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / name).read_text()):
            if not target.startswith(("http://", "https://")):
                assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`)make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
