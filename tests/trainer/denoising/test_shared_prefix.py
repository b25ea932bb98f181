"""Sharing what both halves of guidance have in common against passes that share nothing."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from trainer.denoising.shared_prefix import shared_prefix


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def plain_unet():
    """A UNet whose only attention is in the middle, as that of models/tiny-sd-digits."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def batch(diffusion, rows=3):
    """Latents and timesteps twice, and another text for each half."""
    latents, timesteps = draw(0, rows, 4, 8, 8), torch.tensor([901, 21, 417][:rows])
    texts = diffusion.encode([f"a {i}" for i in range(2 * rows)])
    return torch.cat([latents] * 2), torch.cat([timesteps] * 2), texts.embeddings


def gradients(unet, loss):
    unet.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}


def rows_seen(module, seen):
    return module.register_forward_hook(lambda m, inputs, output: seen.append(len(inputs[0])))


@pytest.mark.parametrize("lora", [False, True])
def test_outputs_and_gradients_are_those_of_a_whole_pass(diffusion, lora):
    if lora:
        diffusion.add_lora(rank=2, alpha=2, target_modules=["to_q", "to_v"], seed=0)
        for name, parameter in diffusion.unet.named_parameters():
            if "lora_B" in name:  # zero at first, which would leave half of the gradients zero
                torch.nn.init.normal_(parameter, std=0.1)
    unet, inputs = diffusion.unet, batch(diffusion)
    whole = unet(*inputs).sample
    direction = draw(1, *whole.shape)
    expected = gradients(unet, (whole * direction).sum())
    with shared_prefix(unet):
        shared = unet(*inputs).sample
        found = gradients(unet, (shared * direction).sum())
    torch.testing.assert_close(shared, whole, rtol=1e-6, atol=1e-6)
    assert expected.keys() == found.keys()
    assert any(g.abs().max() > 0 for g in expected.values())
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_the_layers_before_the_text_see_half_of_the_rows(diffusion):
    unet, inputs, first, after = diffusion.unet, batch(diffusion), [], []
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    hooks = [rows_seen(attention, first), rows_seen(unet.conv_out, after)]
    with shared_prefix(unet):
        unet(*inputs)
    unet(*inputs)  # outside, nothing is left of it
    for hook in hooks:
        hook.remove()
    assert first == [3, 6]
    assert after == [6, 6]


def test_blocks_without_attention_see_half_of_the_rows_and_no_block_after_the_text(plain_unet):
    latents, timesteps = draw(0, 2, 4, 8, 8), torch.tensor([901, 21])
    inputs = torch.cat([latents] * 2), torch.cat([timesteps] * 2), draw(1, 4, 5, 16)
    expected = gradients(plain_unet, plain_unet(*inputs).sample.square().sum())
    seen: dict[str, list[int]] = {}
    down, middle = plain_unet.down_blocks, plain_unet.mid_block
    layers = {
        "first resnet": down[0].resnets[0].conv1,
        "downsampler": down[0].downsamplers[0].conv,
        "last resnet": down[1].resnets[0].conv1,
        "middle, before the text": middle.attentions[0].transformer_blocks[0].attn1.to_q,
        "middle, after it": middle.resnets[1].conv1,
        "up": plain_unet.up_blocks[0].resnets[0].conv1,
    }
    hooks = [rows_seen(layer, seen.setdefault(name, [])) for name, layer in layers.items()]
    with shared_prefix(plain_unet):
        found = gradients(plain_unet, plain_unet(*inputs).sample.square().sum())
    for hook in hooks:
        hook.remove()
    assert list(seen.values()) == [[2], [2], [2], [2], [4], [4]]
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


def test_a_prompt_that_reaches_the_timestep_embedding_shares_nothing(xl_diffusion):
    unet, seen = xl_diffusion.unet, []
    latents, timesteps, _ = batch(xl_diffusion)
    texts = xl_diffusion.encode([f"a {i}" for i in range(6)])
    added = {"text_embeds": texts.pooled, "time_ids": texts.time_ids}
    hook = rows_seen(unet.conv_in, seen)
    with shared_prefix(unet), torch.no_grad():
        unet(latents, timesteps, texts.embeddings, added_cond_kwargs=added)
    hook.remove()
    assert seen == [6]


def test_gradient_checkpointing_computes_the_same_again_after_it(diffusion):
    unet, inputs = diffusion.unet, batch(diffusion)
    expected = gradients(unet, unet(*inputs).sample.square().sum())
    unet.train()
    unet.enable_gradient_checkpointing()
    with shared_prefix(unet):
        loss = unet(*inputs).sample.square().sum()
    for name, gradient in gradients(unet, loss).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_a_compiled_unet_shares_too(diffusion):
    unet, inputs, compiled = diffusion.unet, batch(diffusion), []

    def backend(graph, examples):
        compiled.append(graph)
        return graph.forward

    with torch.no_grad():
        whole = unet(*inputs).sample
        unet.compile(backend=backend)
        with shared_prefix(unet):
            shared = unet(*inputs).sample
        torch.testing.assert_close(shared, whole, rtol=1e-6, atol=1e-6)
    rows = [
        len(node.meta["example_value"])
        for graph in compiled
        for node in graph.graph.nodes
        if node.op == "call_function" and node.target is torch.conv2d
    ]
    assert rows[0] == 3
    assert rows[-1] == 6


def test_entering_twice_is_refused(diffusion):
    again = pytest.raises(RuntimeError, match="shared already")
    with shared_prefix(diffusion.unet), again, shared_prefix(diffusion.unet):
        pass
    with shared_prefix(diffusion.unet):  # the refusal leaves nothing behind
        pass


def test_an_error_within_leaves_nothing_behind(diffusion):
    unet, inputs = diffusion.unet, batch(diffusion)
    with torch.no_grad():
        whole = unet(*inputs).sample
        with pytest.raises(RuntimeError), shared_prefix(unet):
            unet(inputs[0][:, :3], *inputs[1:])
        assert torch.equal(unet(*inputs).sample, whole)
