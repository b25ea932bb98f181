"""Parts of a pass at once: order, errors, and torch's threads."""

import threading

import pytest
import torch

from trainer.denoising.config import DenoisingConfig
from trainer.denoising.finetuner import Finetuner
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


def loss_of(finetuner, noise, silent=()):
    """A pass over rows of noise; parts that start with one of `silent` have no gradient."""
    conditioning = finetuner.diffusion.encode(list("abcde"))
    timesteps = torch.tensor([901, 21, 417, 3, 600])

    def passed(part):
        rows = noise[part], timesteps[part], conditioning[part]
        loss = 1e-3 * finetuner.policy.predict(*rows).square().sum()  # or fp16 overflows
        return (None if part.start in silent else loss), (part.start, float(loss.detach()))

    return passed


def gradients(finetuner, noise, passes=1, **options):
    with finetuner.policy.shared_prefix():
        for _ in range(passes):
            rest = finetuner.optimization.backward(loss_of(finetuner, noise, **options), len(noise))
    found = {name: p.grad for name, p in finetuner.parameters.items()}
    for parameter in finetuner.parameters.values():
        parameter.grad = None
    return found, rest


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
    finetuner = finetuner_of(diffusion, 3, **changes)
    noise = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    first, rest = gradients(finetuner, noise, passes=2)
    assert [start for start, _ in rest] == [0, 1, 3]
    for _ in range(5):
        again, _ = gradients(finetuner, noise, passes=2)
        for name, gradient in first.items():
            assert torch.equal(gradient, again[name]), name
    assert any(gradient.abs().max() > 0 for gradient in first.values())


def test_parts_without_gradient_add_nothing(diffusion):
    finetuner = finetuner_of(diffusion, 3)
    noise = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, _ = gradients(finetuner, noise, silent={0, 3})
    loss, _ = loss_of(finetuner, noise)(slice(1, 3))
    expected = torch.autograd.grad(loss, list(finetuner.parameters.values()))
    for name, gradient in zip(finetuner.parameters, expected, strict=True):
        scale = float(gradient.abs().max())
        torch.testing.assert_close(whole[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)
    none, _ = gradients(finetuner, noise, silent={0, 1, 3})
    assert set(none.values()) == {None}
