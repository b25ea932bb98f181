import sys

import pytest

from salon.errors import InvalidRequest
from services.hosting import load_rewards

BARE = """
from services.reward import Reward

class Bare(Reward):
    name = "bare"

    def score(self, samples):
        return [0.0 for _ in samples]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module and give its name; `module(source)`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source):
        package = tmp_path / "owned"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "judge.py").write_text(source)
        return "owned.judge"

    yield write
    for name in ("owned.judge", "owned"):
        sys.modules.pop(name, None)


def test_rewards_come_in_the_order_their_module_defines_them():
    names = [reward.name for reward in load_rewards("jpeg")]
    assert names == ["jpeg_compressibility", "jpeg_incompressibility"]


def test_a_class_that_lacks_facts_is_named_with_them(module):
    with pytest.raises(InvalidRequest, match=r"owned\.judge\.Bare must set version, description"):
        load_rewards(module(BARE))


def test_a_missing_dependency_is_not_taken_for_a_missing_module(module):
    name = module("import a_package_nobody_has\n")
    with pytest.raises(ModuleNotFoundError, match="a_package_nobody_has"):
        load_rewards(name)


@pytest.mark.parametrize("name", ["beauty", "owned.beauty", "no.such.module"])
def test_a_module_that_does_not_exist_lists_those_that_do(name, module):
    module("")
    with pytest.raises(InvalidRequest, match=r"choose one of .*jpeg"):
        load_rewards(name)
