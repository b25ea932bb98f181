import re
import subprocess
import sys

import pytest

from salon.errors import InvalidRequest, RewardFailed
from salon.serving import catalogue
from services.server.reward_modules import choose_rewards
from tests.fixtures.rewards import load_rewards
from tests.fixtures.service import REPOSITORY

BARE = """
from salon.serving import Reward

class Bare(Reward):
    name = "bare"

    def score(self, samples):
        return [0.0 for _ in samples]
"""

CONFIGURED = """
from salon.serving import ModelConfig, Reward, RewardConfig

class LargeConfig(ModelConfig):
    model: str = "owner/large"
    layers: int = 2

class Large(Reward):
    Config = LargeConfig
    name, version, description = "large", "1", "Nothing."

    def __init__(self, config):
        if config.model == "broken":
            raise OSError("no such file")
        self.config = config

    def score(self, samples):
        return [0.0 for _ in samples]

class Plain(Large):
    Config = None
    name = "plain"

    def __init__(self):
        self.config = None
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
    with pytest.raises(InvalidRequest, match=r"owned\.judge\.Bare must set description"):
        load_rewards(module(BARE))


def test_a_version_may_be_set_by_the_instance_but_must_be_set(module):
    described = BARE.replace('name = "bare"', 'name = "bare"; description = "Always 0."')
    with pytest.raises(InvalidRequest, match=r"owned\.judge\.Bare must set version"):
        load_rewards(module(described))


def test_modules_of_the_working_folder_and_their_classes_are_suggested(tmp_path, monkeypatch):
    (tmp_path / "sparseness.py").write_text(BARE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match=r"'sparsenes': did you mean sparseness\?"):
        choose_rewards("sparsenes")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(InvalidRequest, match=r"no complete Bear, .*Reward; it has Bare$"):
            choose_rewards("sparseness:Bear")
    finally:
        sys.modules.pop("sparseness", None)


def test_a_missing_dependency_is_not_taken_for_a_missing_module(module):
    name = module("import a_package_nobody_has\n")
    with pytest.raises(InvalidRequest, match=r"cannot be imported.*a_package_nobody_has"):
        load_rewards(name)


@pytest.mark.parametrize("name", ["beauty", "owned.beauty", "no.such.module"])
def test_a_module_that_does_not_exist_lists_those_that_do(name, module):
    module("")
    with pytest.raises(InvalidRequest, match=r"choose one of .*jpeg"):
        load_rewards(name)


def test_each_reward_gets_the_options_it_knows(module):
    name = module(CONFIGURED)
    large, plain = load_rewards(name, {"layers": "3", "device": "cpu", "dtype": "float16"})
    assert large.config.model_dump() == {
        "model": "owner/large",
        "device": "cpu",
        "dtype": "float16",
        "layers": 3,
    }
    assert plain.config is None
    [large] = load_rewards(f"{name}:Large")
    assert (large.config.layers, large.config.device, large.config.dtype) == (2, "auto", "float32")


@pytest.mark.parametrize(
    ("reward", "options", "words"),
    [
        ("", {"size": "3"}, "large has no option 'size'; known: device, dtype, layers, model"),
        ("", {"layers": "many"}, r"option layers of large: .*integer.* \(got 'many'\)"),
        ("", {"dtype": "int8"}, r"option dtype of large: .*'float32'.* \(got 'int8'\)"),
        (":Plain", {"device": "cpu"}, "plain has no option 'device'; known: none"),
        (":Small", {}, r"module owned\.judge defines no complete Small, a subclass of"),
    ],
)
def test_options_and_classes_that_do_not_exist_are_named(module, reward, options, words):
    with pytest.raises(InvalidRequest, match=words):
        choose_rewards(module(CONFIGURED) + reward, options)


def test_a_reward_that_fails_to_load_is_named_with_its_error(module):
    with pytest.raises(RewardFailed, match=r"owned\.judge\.Large failed to load: OSError: no such"):
        load_rewards(module(CONFIGURED), {"model": "broken"})


def test_a_reward_whose_dependency_is_missing_says_how_to_install_it():
    code = "import sys; sys.modules['torch'] = None\n"
    code += "from services.server.reward_modules import choose_rewards\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "choose_rewards('clip_score')"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "InvalidRequest: reward module clip_score needs torch" in done.stderr
    assert "pip install 'salon[models]'" in done.stderr


@pytest.mark.parametrize("reward", catalogue.own())
def test_a_reward_is_found_by_its_name(reward):
    names = [choice.reward.name for choice in choose_rewards(reward)]
    # perceptual is the name of a module, too, which has another reward beside it.
    assert names == (["perceptual", "style"] if reward == "perceptual" else [reward])


def test_a_module_comes_before_a_reward_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "style.py").write_text(BARE.replace('"bare"', '"mine"\n    description = "Mine."'))
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert [choice.reward.name for choice in choose_rewards("style")] == ["mine"]
    finally:
        sys.modules.pop("style", None)


JUDGES = {
    "judges/__init__.py": "from judges.real import Real as Judge\n",
    "judges/real.py": """
from salon.serving import Reward
class Real(Reward):
    name, version, description = "judge", "1", "a"
    def score(self, samples): return [1.0] * len(samples)
class Another(Real):
    name = "another"
""",
}


def test_a_reward_that_an_installed_package_registers_is_found_by_its_name(installed):
    site = installed(JUDGES, judge="judges.real:Real", another="judges:Judge", jpeg="judges:Judge")
    (site / "judge.py").write_text("raise SystemExit('a module of the user’s')")
    assert [choice.reward.name for choice in choose_rewards("judge")] == ["judge"]
    with pytest.raises(InvalidRequest, match="registered as 'another' and its name is 'judge'"):
        choose_rewards("another")
    own = [choice.reward.name for choice in choose_rewards("jpeg")]
    assert own == ["jpeg_compressibility", "jpeg_incompressibility"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "jpeg_compresibility",
            "'jpeg_compresibility': did you mean jpeg_compressibility? Else choose one of "
            "aesthetic, caption_bertscore, clip_score",
        ),
        ("jpeg_compressibility:JpegCompressibility", "did you mean jpeg?"),
        ("jpeg_compressibility:Other", "no reward module 'jpeg_compressibility'"),
        ("", "no reward module ''"),
        (".jpeg", "no reward module '.jpeg'"),
    ],
)
def test_what_is_neither_reward_nor_module_is_named(name, words):
    with pytest.raises(InvalidRequest, match=re.escape(words)):
        choose_rewards(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class Broken\n    pass\n", r"judge\.py, line 1: SyntaxError: expected ':'"),
        ("import os\nimport nosuchmodule\n", r"judge\.py, line 2: ModuleNotFoundError: .*'nosuch"),
        ("\nraise SystemExit('no')\n", r"judge\.py, line 2: SystemExit: no"),
        (
            "from salon.serving import Reward\nclass Broken(Reward):\n    name = 'broken'\n",
            r"defines no complete reward: Broken lacks score",
        ),
    ],
)
def test_a_broken_module_is_named_with_its_line(module, text, words):
    name = module(text)
    with pytest.raises(InvalidRequest, match=words):
        choose_rewards(name)


REWARD = """
from salon.serving import Reward
class A(Reward):
    name, version, description = "same", "1", "a"
    def score(self, samples): return [1.0] * len(samples)
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class B(A):\n    pass\n", "A and B have the same name 'same'"),
        ("A.version = 1\n", "A: version cannot be 1"),
        ("A.name = '../x'\n", r"A: name cannot be '\.\./x'"),
        ("A.description = None\n", "A: description cannot be None"),
        ("A.threads = 0\n", "A: threads cannot be 0"),
        ("A.direction = 'up'\n", "A: direction cannot be 'up'"),
        ("A.direction = 0\n", "A: direction cannot be 0"),
        ("A.inputs = 'all'\n", "A: inputs cannot be 'all'"),
        ("A.inputs = 1\n", "A: inputs cannot be 1"),
        ("A.inputs = None\n", "A: inputs cannot be None"),
        ("A.inputs = [0]\n", r"A: inputs cannot be \[0\]"),
        ("A.max_delay_seconds = '0.1'\n", "A: max_delay_seconds cannot be '0.1'"),
        ("A.max_delay_seconds = float('inf')\n", "A: max_delay_seconds cannot be inf"),
        ("A.max_batch = '8'\n", "A: max_batch cannot be '8'"),
        ("A.lower_bound = '0'\n", "A: lower_bound cannot be '0'"),
        ("A.upper_bound = float('nan')\n", "A: upper_bound cannot be nan"),
        ("A.stand_in = 'yes'\n", "A: stand_in cannot be 'yes'"),
    ],
)
def test_what_a_class_says_of_itself_is_checked_before_it_is_served(module, text, words):
    with pytest.raises(InvalidRequest, match=words):
        choose_rewards(module(REWARD + text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def begin(self): self.version = 3\nA.__init__ = begin\n", "A: version cannot be 3"),
        ("A.version = property(lambda self: None)\n", "A: version cannot be None"),
        ("def begin(self): self.stand_in = 1\nA.__init__ = begin\n", "A: stand_in cannot be 1"),
        ("A.unit = property(lambda self: 5)\n", "A: unit cannot be 5"),
    ],
)
def test_what_it_says_of_itself_once_it_is_made_is_checked_too(module, text, words):
    [choice] = choose_rewards(module(REWARD + text))
    with pytest.raises(InvalidRequest, match=words):
        choice.load()


def test_a_property_that_fails_is_a_reward_that_fails_to_load(module):
    [choice] = choose_rewards(module(REWARD + "A.version = property(lambda self: 1 / 0)\n"))
    with pytest.raises(RewardFailed, match="A failed to load: ZeroDivisionError"):
        choice.load()


@pytest.mark.parametrize(
    "text",
    [
        "A.version = property(lambda self: '1')\n",
        "B = A\n",
        "import numpy\nA.lower_bound, A.threads = numpy.float32(0), numpy.int64(2)\n",
        "A.inputs = frozenset({1, 2})\n",
    ],
)
def test_what_serves_well_is_not_refused(module, text):
    [reward] = load_rewards(module(REWARD + text))
    assert (reward.name, reward.version) == ("same", "1")


def test_a_reward_that_imports_from_where_it_was_before_is_served(module):
    before = REWARD.replace(
        "from salon.serving import Reward", "from services.reward import Reward"
    )
    assert before != REWARD
    assert [reward.name for reward in load_rewards(module(before))] == ["same"]
