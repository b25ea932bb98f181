"""What the README shows works as shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from trainer.spec.file import load_spec

README = Path(__file__).parents[2] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run_and_print_the_score(code, jpeg_service, photo, tmp_path):
    Image.open(photo).save(tmp_path / "photo.png")
    Image.open(photo).save(tmp_path / "photo.jpg", quality=95)
    kilobytes = (tmp_path / "photo.jpg").stat().st_size / 1000
    code = code.replace("127.0.0.1:50051", jpeg_service.target)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[0]) == pytest.approx(-kilobytes)


def test_the_spec_example_is_valid(tmp_path, monkeypatch):
    (block,) = blocks("yaml")
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(block)
    spec = load_spec(Path("job.yaml"), [])
    assert spec.model == yaml.safe_load(block)["model"]
    assert spec.algorithm.lora.rank == 4


def test_every_local_link_leads_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert len(links) > 5
    for link in links:
        assert (README.parent / link).exists(), link
