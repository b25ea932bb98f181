"""What is committed as results, and what the documentation shows, is of no one machine."""

import re

import pytest

from benchmarks.machine import portable
from tests.fixtures.service import REPOSITORY

PATH = re.compile(r"(?<![\w.~}])/(?:home|root|work|workspace|tmp|Users|private)/[\w.-]+")


def texts():
    for folder in ("benchmarks/results", "docs", "models", "jobs"):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".json", ".md", ".txt", ".yaml"):
                yield path.relative_to(REPOSITORY), path.read_text(encoding="utf-8")


def test_results_and_pages_name_no_path_of_a_machine():
    found = {str(name): PATH.findall(text) for name, text in texts()}
    assert "benchmarks/results/scoring.json" in found
    assert {name: paths for name, paths in found.items() if paths} == {}


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        (str(REPOSITORY / "models" / "tiny-sd-digits"), "models/tiny-sd-digits"),
        ("/somewhere/else/my-model", "my-model"),
        ("CompVis/stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-4"),
    ],
)
def test_a_result_names_its_model_without_the_machine(model, shown):
    assert portable(model) == shown
