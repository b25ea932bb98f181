"""The README of each package: short, and of what is there."""

import re

import pytest

from tests.fixtures.service import REPOSITORY

PACKAGES = ("salon", "services", "workers", "trainer", "tiny")


@pytest.mark.parametrize("package", PACKAGES)
def test_it_is_short_and_names_every_room_there_is_and_no_other(package):
    text = (REPOSITORY / package / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 30
    told = set(re.findall(r"`([\w.]+/)`", text))
    rooms = {f"{path.parent.name}/" for path in (REPOSITORY / package).glob("*/__init__.py")}
    assert rooms <= told
    folders = (REPOSITORY, REPOSITORY / package, REPOSITORY / package / "denoising")
    for name in told | set(re.findall(r"`(\w+\.py)`", text)):
        assert any((folder / name).exists() for folder in (*folders, *folders[1].iterdir())), name


@pytest.mark.parametrize("package", PACKAGES)
def test_its_links_lead_somewhere(package):
    readme = REPOSITORY / package / "README.md"
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", readme.read_text(encoding="utf-8")):
        assert (readme.parent / link).exists(), link
