"""Parts of a pass at once: order, errors, and torch's threads."""

import threading

import pytest
import torch

from trainer.denoising.config import DenoisingConfig
from trainer.denoising.finetuner import Finetuner
from trainer.denoising.pipelines.stable_diffusion import Diffusion
from trainer.denoising.row_threads import RowThreads


@pytest.fixture(autouse=True)
def four_threads():
    """Of torch's, in this thread, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def where(part):
    return part.start, part.stop, torch.get_num_threads(), threading.get_ident()


@pytest.mark.parametrize(
    ("count", "rows", "expected"),
    [
        (1, 5, [(0, 5, 4)]),
        (2, 5, [(0, 2, 2), (2, 5, 2)]),
        (3, 5, [(0, 1, 1), (1, 3, 1), (3, 5, 1)]),
        (3, 2, [(0, 1, 2), (1, 2, 2)]),
        (3, 1, [(0, 1, 4)]),
        (8, 8, [(i, i + 1, 1) for i in range(8)]),
    ],
)
def test_every_row_is_in_one_part_and_the_threads_are_shared(count, rows, expected):
    found = RowThreads(count).map(where, rows)
    assert [part[:3] for part in found] == expected
    assert torch.get_num_threads() == 4


def test_parts_are_at_work_at_the_same_time():
    meeting = threading.Barrier(3, timeout=60)
    assert sorted(RowThreads(3).map(lambda part: meeting.wait(), 3)) == [0, 1, 2]


def test_a_part_that_fails_is_told_after_all_have_ended():
    ended = []

    def fail_first(part):
        if part.start == 0:
            raise ValueError(f"rows {part.start} to {part.stop}")
        ended.append(part.start)

    threads = RowThreads(4)
    with pytest.raises(ValueError, match="rows 0 to 1"):
        threads.map(fail_first, 4)
    assert sorted(ended) == [1, 2, 3]
    assert torch.get_num_threads() == 4
    assert len(threads.map(where, 4)) == 4


def finetuner_of(diffusion, row_threads, **changes):
    values = {"sampling_steps": 4, "guidance_scale": 2.0, "row_threads": row_threads}
    config = DenoisingConfig(name="none", **{**values, **changes})
    return Finetuner(diffusion, config, ["a", "b"], seed=0)


@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 1.0}, {"lora": {"rank": 2}}])
def test_samples_do_not_depend_on_the_threads_that_share_them(diffusion, changes):
    noise = torch.randn(5, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditioning = diffusion.encode(list("abcde"))
    one = finetuner_of(diffusion, 1, **changes)
    for name, parameter in one.parameters.items():
        if "lora_B" in name:  # zero at first, so that adapters would add nothing
            torch.nn.init.normal_(parameter, std=0.1)
    many = finetuner_of(diffusion, 3, **{**changes, "lora": None}).policy
    one = one.policy.sample(conditioning, noise)
    other = many.sample(conditioning, noise)
    torch.testing.assert_close(other.latents, one.latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.log_probs, one.log_probs, rtol=1e-4, atol=1e-5)
    again = many.sample(conditioning, noise)
    assert torch.equal(again.latents, other.latents)
    assert not other.latents.is_inference()


def gradients(finetuner, noise, weights=(1.0,) * 5, passes=1):
    """Of a sum over rows of noise; rows of weight 0 have none."""
    conditioning = finetuner.diffusion.encode(list("abcde"))
    timesteps = torch.tensor([901, 21, 417, 3, 600])
    for _ in range(passes):
        output = finetuner.policy.predict(noise, timesteps, conditioning)
        rows = output.square().flatten(1).sum(1)
        loss = 1e-3 * (rows * torch.tensor(weights)).sum()  # or fp16 overflows
        finetuner.optimization.backward(loss)
    found = {name: p.grad for name, p in finetuner.parameters.items()}
    for parameter in finetuner.parameters.values():
        parameter.grad = None
    return found


def noise_of_five():
    return torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)
    assert any(gradient.abs().max() > 0 for gradient in expected.values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora": {"rank": 2}},
        {"gradient_checkpointing": True},
        {"precision": "bf16"},
        {"precision": "fp16"},
    ],
    ids=str,
)
def test_gradients_are_the_same_to_the_last_bit_each_time(diffusion, changes):
    finetuner, noise = finetuner_of(diffusion, 3, **changes), noise_of_five()
    first = gradients(finetuner, noise, passes=2)
    for _ in range(5):
        again = gradients(finetuner, noise, passes=2)
        for name, gradient in first.items():
            assert torch.equal(gradient, again[name]), name
    assert any(gradient.abs().max() > 0 for gradient in first.values())


@pytest.mark.parametrize("weights", [(1.0,) * 5, (0, 1.0, 1.0, 0, 0), (2.0, 0, 0, 0, 0.5)])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_gradients_do_not_depend_on_the_threads(pipeline_folder, weights, lora):
    found = []
    for threads in (1, 3):
        finetuner = finetuner_of(Diffusion.load(pipeline_folder), threads, lora=lora)
        for name, parameter in finetuner.parameters.items():
            if "lora_B" in name:
                seed = torch.Generator().manual_seed(len(name))
                torch.nn.init.normal_(parameter, std=0.1, generator=seed)
        found.append(gradients(finetuner, noise_of_five(), weights))
    assert_close(found[1], found[0])


def test_a_part_whose_output_has_no_gradient_is_not_gone_through_again():
    weight = torch.nn.Parameter(torch.ones(3))
    differentiated = []

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, tensor, start):
            ctx.start = start
            return tensor.clone()

        @staticmethod
        def backward(ctx, gradient):
            differentiated.append(ctx.start)
            return gradient, None

    def function(part):
        rows = torch.arange(6.0)[part, None] * weight
        return Noted.apply(rows, part.start)

    output = RowThreads(3).output(function, 6, [weight])
    assert torch.equal(output, torch.arange(6.0)[:, None] * torch.ones(3))
    (output[:2].sum() + output[4:].sum()).backward()
    assert sorted(differentiated) == [0, 4]
    assert torch.equal(weight.grad, torch.full((3,), 0.0 + 1 + 4 + 5))


def test_a_gradient_that_is_no_number_is_not_taken_for_none():
    weight = torch.nn.Parameter(torch.ones(()))
    output = RowThreads(2).output(lambda part: torch.ones(4)[part] * weight, 4, [weight])
    (output * torch.tensor([0, 0, 0, float("nan")])).sum().backward()
    assert weight.grad.isnan()


@pytest.mark.parametrize("trained", [True, False])
def test_without_gradients_there_is_no_graph(trained):
    weight = torch.nn.Parameter(torch.ones(2), requires_grad=trained)
    threads = RowThreads(2)
    with torch.no_grad():
        assert (
            threads.output(lambda part: torch.ones(4, 2)[part] * weight, 4, [weight]).grad_fn
            is None
        )
    output = threads.output(lambda part: torch.ones(4, 2)[part] * weight, 4, [weight])
    assert output.requires_grad is trained
