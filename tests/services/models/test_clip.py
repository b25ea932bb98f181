import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPProcessor

from salon.errors import InvalidRequest
from salon.serving import ModelConfig
from services.models.clip import Clip


@pytest.fixture(scope="module")
def clip(clip_folder):
    return Clip.load(ModelConfig(model=str(clip_folder)))


def published_way(folder, samples):
    """What CLIPModel's own forward makes of its own processor's inputs."""
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    images = [np.broadcast_to(sample.image, (*sample.image.shape[:2], 3)) for sample in samples]
    inputs = processor(
        text=[sample.prompt for sample in samples],
        images=list(images),
        padding=True,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return model(**inputs), model.logit_scale.exp().item()


def test_embeddings_are_those_of_the_model_itself(clip, clip_folder, samples):
    expected, scale = published_way(clip_folder, samples)
    images = clip.embed_images([sample.image for sample in samples])
    texts = clip.embed_texts([sample.prompt for sample in samples])
    # The tolerance of images is for the one level by which a resize may differ from Pillow's.
    torch.testing.assert_close(images, expected.image_embeds, rtol=0, atol=0.02)
    torch.testing.assert_close(images[0], expected.image_embeds[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(texts, expected.text_embeds, rtol=0, atol=1e-5)
    assert images.shape == (5, clip.width) and texts.dtype == torch.float32
    assert clip.logit_scale == pytest.approx(scale)


def test_cosines_pair_each_image_with_its_own_text(clip, clip_folder, samples):
    expected, scale = published_way(clip_folder, samples)
    cosines = clip.cosines(
        [sample.image for sample in samples], [sample.prompt for sample in samples]
    )
    logits = expected.logits_per_image.diagonal() / scale
    assert cosines == pytest.approx(logits.tolist(), abs=0.02)
    assert cosines[0] == pytest.approx(logits[0].item(), abs=1e-5)
    assert len(set(cosines)) == 5


def test_a_batch_scores_as_its_samples_do_alone(clip, samples):
    images, texts = [s.image for s in samples], [s.prompt for s in samples]
    alone = [clip.cosines([image], [text])[0] for image, text in zip(images, texts, strict=True)]
    assert clip.cosines(images, texts) == pytest.approx(alone, abs=1e-5)


def test_a_text_that_comes_again_is_encoded_once(clip):
    rows = []
    hook = clip.model.text_model.register_forward_pre_hook(
        lambda _module, _args, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    embeddings = clip.embed_texts(["a red one", "a blue two", "a red one", "a red one"])
    hook.remove()
    assert rows == [2]
    assert torch.equal(embeddings[0], embeddings[2]) and torch.equal(embeddings[2], embeddings[3])
    assert not torch.equal(embeddings[0], embeddings[1])


def test_a_long_text_is_cut_at_the_context_and_keeps_its_end(clip):
    long = "a red three on a blue background " * 9
    words = long.split()
    # The context has 16 places: start, 14 words of one token each, end.
    assert torch.equal(clip.embed_texts([long]), clip.embed_texts([" ".join(words[:14])]))
    assert not torch.equal(clip.embed_texts([long]), clip.embed_texts([" ".join(words[:13])]))


def test_half_precision_stays_close(clip, clip_folder, samples):
    half = Clip.load(ModelConfig(model=str(clip_folder), dtype="bfloat16"))
    images = [sample.image for sample in samples]
    assert half.model.dtype == torch.bfloat16
    assert half.embed_images(images).dtype == torch.float32
    torch.testing.assert_close(
        half.embed_images(images), clip.embed_images(images), rtol=0, atol=0.1
    )


def copy_but_weights(folder, target):
    """The folder's files but for its weights, which are returned."""
    for path in folder.iterdir():
        if path.suffix == ".json":
            (target / path.name).write_bytes(path.read_bytes())
    return load_file(folder / "model.safetensors")


def test_what_is_no_clip_is_refused(tmp_path, clip_folder):
    with pytest.raises(InvalidRequest, match="'models' cannot be loaded as CLIPModel"):
        Clip.load(ModelConfig(model="models"))
    weights = copy_but_weights(clip_folder, tmp_path)
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InvalidRequest, match="it lacks 1 weight, such as visual_projection"):
        Clip.load(ModelConfig(model=str(tmp_path)))


def test_weights_of_another_size_are_refused(tmp_path, clip_folder):
    weights = copy_but_weights(clip_folder, tmp_path)
    weights["visual_projection.weight"] = torch.zeros(5, 32)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InvalidRequest, match=r"weight \(5, 32\) for \(24, 32\)"):
        Clip.load(ModelConfig(model=str(tmp_path)))


def test_a_model_without_its_processor_is_refused(tmp_path, clip_folder):
    weights = copy_but_weights(clip_folder, tmp_path)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(InvalidRequest, match="cannot be loaded as AutoImageProcessor"):
        Clip.load(ModelConfig(model=str(tmp_path)))
