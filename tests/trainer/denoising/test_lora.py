"""Adapters fused into the weights while sampling."""

import pytest
import torch

from trainer.denoising.lora import fused_lora, has_lora
from trainer.denoising.policy import DenoisingPolicy
from trainer.denoising.schedule import Schedule

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture
def adapted(diffusion):
    """With adapters that training has moved as far as it would in a long run."""
    diffusion.add_lora(rank=4, alpha=4, target_modules=ATTENTION, seed=0)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in diffusion.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return diffusion


def weights(unet):
    return {name: p.detach().clone() for name, p in unet.named_parameters()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def predict(diffusion):
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    told = diffusion.encode(["a", "b"]).embeddings
    with torch.no_grad():
        return diffusion.unet(latents, torch.tensor([1, 700]), told).sample


def test_fusing_changes_weights_but_not_the_prediction_and_is_undone_exactly(adapted):
    before, apart = weights(adapted.unet), predict(adapted)
    calls = []
    layer = next(m for n, m in adapted.unet.named_modules() if n.endswith("to_q.lora_A.default"))
    hook = layer.register_forward_hook(lambda *_: calls.append(1))
    with fused_lora(adapted.unet):
        together = predict(adapted)
        changed = weights(adapted.unet)
    assert not calls  # no adapter runs beside its layer
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    name = next(n for n in before if n.endswith("to_q.base_layer.weight"))
    assert not torch.equal(changed[name], before[name])
    assert_equal(weights(adapted.unet), before)
    assert torch.equal(predict(adapted), apart)
    assert calls
    hook.remove()
    assert all("lora" in name for name in adapted.trainable())


def test_an_error_while_sampling_leaves_the_weights_as_they_were(adapted):
    before = weights(adapted.unet)
    with pytest.raises(RuntimeError, match="out of memory"), fused_lora(adapted.unet):
        raise RuntimeError("out of memory")
    assert_equal(weights(adapted.unet), before)


def test_ratios_of_fused_sampling_stay_far_within_the_clip_range(adapted):
    schedule = Schedule.of(adapted.scheduler("ddim"), steps=5, eta=1.0, device=torch.device("cpu"))
    policy = DenoisingPolicy(
        adapted.unet, schedule, guidance_scale=5.0, unconditional=adapted.unconditional()
    )
    conditioning = adapted.encode(["a", "b"])
    noise = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    path = policy.sample(conditioning, noise)
    for i in range(5):
        again = policy.log_prob(
            path.latents[:, i], path.latents[:, i + 1], torch.full((2,), i), conditioning
        )
        assert (torch.exp(again - path.log_probs[:, i]) - 1).abs().max() < 1e-5


def test_weights_in_reduced_precision_are_not_fused(diffusion):
    diffusion.precision = "bf16"
    diffusion.add_lora(rank=4, alpha=4, target_modules=ATTENTION, seed=0)
    before = weights(diffusion.unet)
    with fused_lora(diffusion.unet):
        assert_equal(weights(diffusion.unet), before)


def test_a_unet_without_adapters_has_nothing_to_fuse(diffusion):
    assert not has_lora(diffusion.unet)
    before = weights(diffusion.unet)
    with fused_lora(diffusion.unet):
        assert_equal(weights(diffusion.unet), before)
