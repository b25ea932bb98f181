"""What a collector samples, submits, waits for and puts together."""

from concurrent.futures import Future

import numpy as np
import pytest
import torch

from salon.errors import InvalidRequest, RewardFailed
from tests.fixtures.rows import bare
from trainer.ddpo.config import DDPOConfig
from trainer.denoising.finetuner import Finetuner
from trainer.denoising.rollout import Collector
from trainer.runtime.ranks import Ranks
from trainer.spec.prompts.rows import Row

STEPS, BATCH = 3, 2
PROMPTS = ["a", "b", "c"]


@pytest.fixture
def collector(diffusion, scorer):
    config = DDPOConfig(sampling_steps=STEPS, guidance_scale=2.0)
    finetuner = Finetuner(diffusion, config, PROMPTS, seed=0)

    def make(ranks=None, samples=6, rows=None, **changes):
        return Collector(
            diffusion,
            finetuner.policy,
            scorer,
            rows or bare(PROMPTS),
            samples=samples,
            batch_size=BATCH,
            seed=5,
            ranks=ranks or Ranks.alone(),
            **changes,
        )

    return make


def test_a_rollout_is_what_was_submitted(collector, scorer, diffusion):
    rollout = collector().collect(4)
    images = np.concatenate([images for images, _ in scorer.submitted])
    assert rollout.keys == [p for _, prompts in scorer.submitted for p in prompts]
    assert rollout.batches.tolist() == [0, 0, 1, 1, 2, 2]
    assert rollout.own.tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(rollout.per_reward["brightness"], images.mean((1, 2, 3)) / 255)
    assert rollout.latents.shape == (6, STEPS + 1, 4, 8, 8)
    assert rollout.log_probs.shape == (6, STEPS)
    decoded = np.concatenate([diffusion.decode(part) for part in rollout.latents[:, -1].split(2)])
    np.testing.assert_array_equal(decoded, images)
    expected = diffusion.encode(rollout.keys).embeddings
    assert torch.equal(rollout.conditioning.embeddings, expected)
    assert (rollout.dropped, rollout.sampled_after) == (0, 4)


def test_what_a_row_carries_goes_to_the_rewards_and_not_to_the_generator(collector, scorer):
    collector().collect(4)
    plain = [images.tobytes() for images, _ in scorer.submitted]
    assert scorer.carried == [(None, None)] * 3
    scorer.submitted.clear()
    scorer.carried.clear()
    rows = [
        Row(prompt="a", metadata={"mark": 1}),
        Row(prompt="b", reference="/b.png"),
        Row(prompt="c"),
    ]
    rollout = collector(rows=rows).collect(4)
    assert [images.tobytes() for images, _ in scorer.submitted] == plain
    drawn = [rows["abc".index(p)] for _, prompts in scorer.submitted for p in prompts]
    assert {row.prompt for row in drawn} == {"a", "b", "c"}, "else the seed tells nothing"
    assert rollout.keys == [row.key for row in drawn]
    for part, (metadata, references) in zip(
        (drawn[:2], drawn[2:4], drawn[4:]), scorer.carried, strict=True
    ):
        marked = [row.metadata or None for row in part]
        assert metadata == (marked if any(marked) else None)
        compared = [row.reference for row in part]
        assert references == (compared if any(compared) else None)


def test_every_rank_samples_its_batches_and_none_of_the_others(collector, scorer):
    whole = collector().collect(0)
    sent = [images.tobytes() for images, _ in scorer.submitted]
    for rank in (0, 1):
        scorer.submitted.clear()
        flight = collector(Ranks(rank, 2, torch.device("cpu"))).start(0, 0)
        assert [batch.number for batch in flight.batches] == [[0, 2], [1]][rank]
        assert [images.tobytes() for images, _ in scorer.submitted] == sent[rank::2]
        latents = torch.cat([batch.path.latents for batch in flight.batches])
        assert torch.equal(latents, whole.latents[whole.batches % 2 == rank])


def test_samples_without_a_reward_are_left_out(collector, scorer):
    scorer.refuse_first = True
    rollout = collector().collect(0)
    whole = [
        (i, p) for images, prompts in scorer.submitted for i, p in zip(images, prompts, strict=True)
    ]
    assert rollout.dropped == 3
    assert rollout.batches.tolist() == [0, 1, 2]
    assert rollout.own.tolist() == [0, 1, 2]
    assert rollout.keys == [prompt for _, prompt in whole[1::2]]
    assert len(rollout.latents) == len(rollout.log_probs) == len(rollout.conditioning) == 3
    assert np.isfinite(rollout.per_reward["brightness"]).all()


def test_of_images_alone_the_path_is_not_kept(collector):
    whole, last = collector().collect(0), collector(whole_paths=False).collect(0)
    assert torch.equal(last.latents, whole.latents[:, -1:])
    assert last.log_probs.shape == (6, 0)


def test_what_was_in_flight_is_scored_again(collector, scorer):
    first = collector()
    flight = first.start(7, 6)
    tensors = first.tensors(flight)
    expected = first.finish(flight)
    sent = [(images.tobytes(), prompts) for images, prompts in scorer.submitted]
    scorer.submitted.clear()
    second = collector()
    rollout = second.finish(second.resume(tensors, 7, 6))
    assert [(images.tobytes(), prompts) for images, prompts in scorer.submitted] == sent
    assert rollout.keys == expected.keys
    assert rollout.sampled_after == 6
    assert torch.equal(rollout.latents, expected.latents)
    assert torch.equal(rollout.log_probs, expected.log_probs)
    np.testing.assert_array_equal(rollout.per_reward["redness"], expected.per_reward["redness"])


def test_the_first_failure_ends_the_wait_for_the_others(collector, scorer):
    answers = [Future(), Future(), Future()]
    answers[1].set_exception(RewardFailed("refused"))
    scorer.submit = lambda *_: answers.pop(0)
    with pytest.raises(RewardFailed, match="refused"):
        collector().collect(0)


def test_an_error_of_sampling_is_raised_where_ranks_agree(collector, scorer):
    sent = scorer.submitted
    submit = scorer.submit

    def fail_second(*batch):
        if len(sent) == 1:
            raise OSError("no route to the jury")
        return submit(*batch)

    scorer.submit = fail_second
    flight = collector().start(0, 0)
    assert len(flight.batches) == 1
    with pytest.raises(OSError, match="no route"):
        collector().finish(flight)


def test_a_rank_without_a_batch_is_refused(collector):
    with pytest.raises(InvalidRequest, match=r"3 batches for 4 processes: raise samples_per_it"):
        collector(Ranks(0, 4, torch.device("cpu")))
