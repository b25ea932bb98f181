"""What is read of rewards in their sources is what their classes say once they are imported."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

from salon.errors import InvalidRequest
from salon.reward.v1 import reward_pb2
from salon.serving import LearnedReward, Reward, catalogue
from services import rewards
from tests.fixtures.packages import SHARP
from tests.fixtures.service import REPOSITORY


def defined():
    """The reward classes that the modules of `services.rewards` define."""
    return {
        value.name: value
        for found in pkgutil.iter_modules(rewards.__path__, f"{rewards.__name__}.")
        for value in vars(importlib.import_module(found.name)).values()
        if inspect.isclass(value)
        and issubclass(value, Reward)
        and value.__module__ == found.name
        and hasattr(value, "name")
    }


def test_every_reward_there_is_is_found_with_what_it_says():
    classes = defined()
    assert catalogue.own().keys() == classes.keys()
    for name, reward in classes.items():
        listed = catalogue.own()[name]
        assert (listed.module, listed.class_name) == (reward.__module__, reward.__name__)
        assert listed.local_options == reward.local_options
        inputs = {
            reward_pb2.Input.Name(value).removeprefix("INPUT_").lower() for value in reward.inputs
        }
        if issubclass(reward, LearnedReward):
            inputs.add("instance")
        assert inputs - {"image", "prompt"} == {listed.needs} - {"nothing"}


def test_the_options_for_the_local_stack_are_known_to_the_reward():
    for reward in defined().values():
        known = reward.Config.model_fields.keys() if reward.Config is not None else set()
        given = {option.partition("=")[0] for option in reward.local_options}
        assert given <= known
        assert ("model" in known) <= ("model" in given), "it would fetch a large one"


def test_nothing_is_imported_to_read_it():
    code = "import sys; sys.modules['torch'] = None\n"
    code += "from salon.serving import catalogue\n"
    code += "print([r.needs and r.local_options for r in catalogue.own().values()])\n"
    code += "assert not [name for name in sys.modules if name.startswith('services')]"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=REPOSITORY, check=False)
    assert done.returncode == 0


def test_another_packages_reward_is_read_through_its_bases(installed):
    installed(SHARP, sharp="sharps.judge:Sharp", l2="sharps.judge:Sharp", **{"../x": "a:B"})
    assert catalogue.of_other_packages().keys() == {"sharp"}, "no name of ours, and no path"
    sharp = catalogue.known()["sharp"]
    assert (sharp.needs, sharp.local_options) == ("reference", ("threshold=3",))


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("class A(Reward): pass", "nothing"),
        ("class A(Reward): inputs = [pb.INPUT_IMAGE, pb.INPUT_METADATA]", "metadata"),
        ("class A(Reward): inputs = of('reference')", None),
        ("class A(Reward): inputs = (pb.INPUT_IMAGE, *more)", None),
        ("from elsewhere import Base\nclass A(Base): pass", None),
        ("class A(A): pass", None),
        ("from . import A", None),
        ("class A(", None),
    ],
)
def test_what_a_source_does_not_say_is_not_known(installed, text, needs):
    installed({"loose.py": f"from salon.serving import Reward\n{text}\n"}, a="loose:A")
    assert catalogue.known()["a"].needs == needs
    assert catalogue.known()["a"].local_options == ()


@pytest.mark.parametrize("options", ["{'model': 'x'}", "('model',)", "(1,)", "tiny()", "'a=b'"])
def test_options_that_cannot_be_read_are_no_reason_to_take_the_large_model(installed, options):
    installed({"loose.py": f"class A:\n    local_options = {options}\n"}, a="loose:A")
    with pytest.raises(InvalidRequest, match=r"loose\.A: local_options must be a tuple of texts"):
        _ = catalogue.known()["a"].local_options


def test_what_a_package_registers_amiss_is_in_nobodys_way(installed, caplog):
    installed(
        SHARP,
        sharp="sharps.judge:Sharp",
        hyphen="my-sharps.judge:Sharp",
        module="sharps.judge",
        jpeg="sharps.judge:Sharp",
        jpeg_compressibility="sharps.judge:Sharp",
    )
    assert list(catalogue.of_other_packages()) == ["sharp"]
    assert catalogue.known()["jpeg_compressibility"].module == "services.rewards.jpeg"
    left_out = [record.getMessage() for record in caplog.records]
    assert len(left_out) == 4
    assert any("jpeg = sharps.judge:Sharp: the name is taken" in line for line in left_out)
