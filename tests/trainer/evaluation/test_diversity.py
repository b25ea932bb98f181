import shutil
from itertools import combinations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPModel

from salon.errors import InvalidRequest
from trainer.evaluation.diversity import ImageEmbedder, mean_pairwise_distance


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 48, 40, 3), dtype=np.uint8)


def test_the_mean_over_pairs_is_that_of_brute_force():
    rows = torch.nn.functional.normalize(torch.randn(7, 5), dim=1)
    pairs = [1 - float(a @ b) for a, b in combinations(rows, 2)]
    assert mean_pairwise_distance(rows) == pytest.approx(sum(pairs) / 21, abs=1e-6)


def test_numbers_worked_by_hand():
    alike = torch.tensor([[1.0, 0.0]] * 3)
    assert mean_pairwise_distance(alike) == 0
    # Distances 1 (orthogonal), 2 (opposite), 1: their mean is 4/3.
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert mean_pairwise_distance(rows) == pytest.approx(4 / 3)


def test_images_that_are_all_alike_are_at_no_distance_below_zero():
    one = torch.tensor([[0.6, 0.8]])
    assert one.double().square().sum() > 1, "by rounding, it is longer than a unit vector"
    assert 0 <= mean_pairwise_distance(one.expand(64, -1)) < 1e-15


def test_embeddings_are_those_of_the_whole_model(clip_folder):
    images = pictures(5)
    embedder = ImageEmbedder.load(str(clip_folder), "cpu", batch_size=2)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    with torch.no_grad():
        tensors = processor(list(images), return_tensors="pt")
        text = torch.zeros(5, 2, dtype=torch.long)
        expected = model(input_ids=text, **tensors).image_embeds
    torch.testing.assert_close(embedder.embed(images), expected, atol=1e-6, rtol=1e-5)


def test_images_of_one_kind_are_less_diverse(clip_folder):
    embedder = ImageEmbedder.load(str(clip_folder), "cpu", batch_size=8)
    same = np.repeat(pictures(1), 6, axis=0)
    shades = np.linspace(0, 255, 6).astype(np.uint8)[:, None, None, None]
    different = np.broadcast_to(shades, (6, 48, 40, 3)).copy()
    assert mean_pairwise_distance(embedder.embed(same)) == pytest.approx(0, abs=1e-6)
    assert mean_pairwise_distance(embedder.embed(different)) > 1e-3


@pytest.mark.parametrize("kind", ["absent", "another class"])
def test_a_model_that_is_no_clip_is_named_with_the_way_out(tmp_path, blip_folder, kind):
    folder = tmp_path / "nothing" if kind == "absent" else blip_folder
    with pytest.raises(InvalidRequest, match=r"evaluation\.diversity_model .* as a CLIPModel"):
        ImageEmbedder.load(str(folder), "cpu", batch_size=2)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.pop("visual_projection.weight"), "lacks 1 weight, such as visual_projection"),
        (
            lambda s: s.update({"vision_model.encoder.layers.9.mlp.fc1.bias": torch.zeros(4)}),
            "has 1 weight, such as vision_model.encoder.layers.9",
        ),
        (lambda s: s.update({"visual_projection.weight": torch.zeros(3, 4)}), "other shapes are"),
        (
            lambda s: s["visual_projection.weight"].fill_(torch.nan),
            "NaN or infinity, as float32, in 1 weight, such as visual_projection.weight of model.s",
        ),
        (
            lambda s: s.update({"visual_projection.weight": s["visual_projection.weight"].int()}),
            r"has 1 weight, such as visual_projection.weight \(i32\), which is no type",
        ),
    ],
    ids=["missing", "layer", "shape", "nan", "int"],
)
def test_weights_that_are_not_the_models_are_named(clip_folder, tmp_path, edit, words):
    shutil.copytree(clip_folder, tmp_path / "clip")
    state = load_file(tmp_path / "clip" / "model.safetensors")
    edit(state)
    save_file(state, tmp_path / "clip" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidRequest, match=f"as a CLIPModel: it .*{words}"):
        ImageEmbedder.load(str(tmp_path / "clip"), "cpu", batch_size=2)
