"""What a submitted job is told of its models, device and keys before anything starts."""

import json
import os
import shutil
import sys

import psutil
import pytest

from salon.errors import InvalidRequest
from salon.settings import Settings
from salon.stack.state import state_file
from trainer.spec import submission
from trainer.spec.credentials import check_credentials
from trainer.spec.job_spec import read_record

HERE = Settings(redis_url="redis://127.0.0.1:6390/0")
ELSEWHERE = Settings(redis_url="redis://redis.cluster:6379/0")
SPEC = {
    "name": "tiny",
    "model": "some/hub-id",
    "prompts": ["a cat"],
    "rewards": [{"name": "jpeg_compressibility"}],
    "iterations": 1,
    "algorithm": {"name": "ddpo"},
    "evaluation": {"prompts": ["a bird"]},
}


def spec_with(**changes):
    return read_record(SPEC | changes)


@pytest.fixture
def stack_here(tmp_path):
    """Settings of a state folder from which a stack runs: this process."""
    settings = HERE.model_copy(update={"state_dir": tmp_path / "state"})
    record = {"pid": os.getpid(), "command": psutil.Process().cmdline(), "children": []}
    state_file(settings).parent.mkdir()
    state_file(settings).write_text(json.dumps(record))
    return settings


def with_lora(*targets):
    return {"name": "ddpo", "lora": {"target_modules": targets}}


def test_a_hub_id_and_a_whole_folder_are_accepted(pipeline_folder):
    spec_with().check_inputs(HERE, here=True)
    targets = with_lora("to_q", "to_out.0", "ff.net.0.proj", "conv1")
    spec_with(model=str(pipeline_folder), algorithm=targets).check_inputs(HERE)


def test_a_folder_that_is_not_here_may_be_where_the_trainers_are(tmp_path, stack_here):
    spec = spec_with(model=str(tmp_path / "model"))
    spec.check_inputs(ELSEWHERE)
    spec.check_inputs(HERE)  # the end of a tunnel, maybe
    spec.check_inputs(stack_here.model_copy(update={"redis_url": ELSEWHERE.redis_url}))
    with pytest.raises(InvalidRequest, match=f"model: there is no folder {tmp_path}/model"):
        spec.check_inputs(stack_here)
    with pytest.raises(InvalidRequest, match=f"model: there is no folder {tmp_path}/model"):
        spec.check_inputs(HERE, here=True)
    evaluation = {"prompts": ["a bird"], "diversity_model": str(tmp_path / "clip")}
    with pytest.raises(InvalidRequest, match=r"evaluation\.diversity_model: there is no folder"):
        spec_with(evaluation=evaluation).check_inputs(stack_here)
    (tmp_path / "clip").mkdir()
    with pytest.raises(InvalidRequest, match=r"evaluation\.diversity_model: .* no config\.json"):
        spec_with(evaluation=evaluation).check_inputs(HERE)


@pytest.mark.parametrize("settings", [HERE, ELSEWHERE], ids=["here", "elsewhere"])
def test_a_folder_that_is_here_is_judged(pipeline_folder, tmp_path, settings):
    shutil.copytree(pipeline_folder, tmp_path / "model")
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(InvalidRequest, match=r"unet/diffusion_pytorch_model\.safetensors cannot"):
        spec_with(model=str(tmp_path / "model")).check_inputs(settings)
    (tmp_path / "one.safetensors").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="is a file: give a folder"):
        spec_with(model=str(tmp_path / "one.safetensors")).check_inputs(settings)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("conv_1", r"did you mean conv1 for conv_1\? those of attention"),
        ("nowhere", "has such a name; those of attention are to_q"),
    ],
)
def test_lora_on_layers_that_are_not_there_is_refused(pipeline_folder, target, words):
    spec = spec_with(model=str(pipeline_folder), algorithm=with_lora("to_q", target))
    with pytest.raises(InvalidRequest, match=rf"lora.target_modules \['{target}'\].*{words}"):
        spec.check_inputs(HERE)


def test_a_gpu_that_torch_does_not_see_is_told_where_the_trainers_run_here(
    stack_here, monkeypatch, tmp_path
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("raise SystemExit(0)")  # the user's own is not asked
    submission._sees_gpu.cache_clear()
    spec_with(device="cuda").check_inputs(ELSEWHERE)
    spec_with(device="cuda").check_inputs(HERE)
    with pytest.raises(InvalidRequest, match="device: cuda was asked for, but torch sees no GPU"):
        spec_with(device="cuda").check_inputs(stack_here)
    # For a further seed it is known.
    monkeypatch.setattr(submission, "_SEES_GPU", "")
    with pytest.raises(InvalidRequest, match="device: cuda was asked for, but torch sees no GPU"):
        spec_with(device="cuda", seed=1).check_inputs(HERE, here=True)
    submission._sees_gpu.cache_clear()


def test_wandb_without_a_key_is_told_where_the_key_would_be(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    spec = spec_with(trackers=["wandb"])
    spec.check_inputs(HERE)  # of a worker's environment nothing is known
    with pytest.raises(InvalidRequest, match=r"wandb has no key: set WANDB_API_KEY .*offline"):
        spec.check_inputs(HERE, here=True)
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_API_KEY", "a" * 40)):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            spec.check_inputs(HERE, here=True)


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)  # how Python marks it as absent
    with pytest.raises(InvalidRequest, match=r"trackio is not installed .* pip install trackio"):
        check_credentials(["trackio"], None)


def test_an_upload_without_a_token_is_told(monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(InvalidRequest, match="push_to_hub: me/it: there is no token"):
        check_credentials([], "me/it")
