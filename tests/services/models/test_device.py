import pytest
import torch

from salon.errors import InvalidRequest
from salon.serving import ModelConfig
from services.models.device import resolve
from services.rewards.aesthetic import AestheticConfig
from services.rewards.caption_bertscore import CaptionBertscoreConfig
from services.rewards.clip_score import ClipScoreConfig
from services.rewards.hpsv2 import HpsV2Config
from services.rewards.imagereward import ImageRewardConfig
from services.rewards.perceptual import VggConfig
from services.rewards.pickscore import PickScoreConfig
from services.rewards.vqa_satisfaction import VqaSatisfactionConfig


def of(**options):
    return resolve(ModelConfig(model="any", **options))


def test_the_cpu_computes_in_float32_unless_told_otherwise():
    assert of(device="cpu", dtype="auto") == (torch.device("cpu"), torch.float32)
    assert of(device="cpu", dtype="bfloat16") == (torch.device("cpu"), torch.bfloat16)


def test_auto_takes_what_torch_sees():
    device, dtype = of(dtype="auto")
    assert device == torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    assert dtype == (torch.float16 if torch.cuda.is_available() else torch.float32)


@pytest.mark.parametrize(
    ("config", "default"),
    [
        (AestheticConfig, "float32"),
        (ClipScoreConfig, "float32"),
        (ImageRewardConfig, "float32"),
        (PickScoreConfig, "float32"),
        (VggConfig, "float32"),
        (CaptionBertscoreConfig, "auto"),
        (HpsV2Config, "auto"),
        (VqaSatisfactionConfig, "auto"),
    ],
)
def test_only_llava_and_hpsv2_take_half_precision_on_a_gpu_unasked(config, default):
    assert config().dtype == default


def test_a_gpu_that_is_not_there_is_an_error():
    gpus = torch.cuda.device_count()
    with pytest.raises(InvalidRequest, match=f"device 'cuda:{gpus}'.*torch .* sees"):
        of(device=f"cuda:{gpus}")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "mps", ""])
def test_other_names_are_an_error(name):
    with pytest.raises(InvalidRequest, match="none of auto, cpu, cuda and cuda:N"):
        of(device=name)
