"""Score a batch so that each sample ends in a score or an error of its own.

wire samples -> read and checked -> scored in slices -> one outcome a sample
                     |                    |
                     v                    v
                SampleError      a poison sample fails alone
"""

import math
from collections.abc import Callable, Iterator, Sequence

import structlog

from salon.errors import DeadlineExceeded, RewardFailed, SampleError
from salon.images import decode
from salon.reward.v1 import reward_pb2
from salon.structs import to_dict, to_struct
from services.limits import Limits
from services.reward import Reward, Sample, Score

SLICE_PIXELS = 2 * 4096 * 4096
"""Most decoded pixels held at once for one call, 100 MB of RGB: a 16 MB message of well-compressed
PNG files could otherwise unpack to many gigabytes."""


class BatchScorer:
    """Scores the samples of one call with one reward."""

    def __init__(
        self,
        reward: Reward,
        limits: Limits,
        wanted: Callable[[], bool],
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """Prepare to score.

        Args:
            reward: the reward to ask.
            limits: what a sample may hold.
            wanted: False once nobody waits for the answer any more.
            log: where failures of the reward go, with their tracebacks.
        """
        self._reward = reward
        self._limits = limits
        self._wanted = wanted
        self._log = log

    def score(self, samples: Sequence[reward_pb2.Sample]) -> list[reward_pb2.Outcome]:
        """One outcome for each sample, in order.

        Raises:
            DeadlineExceeded: nobody waits any more; the rest was not computed.
        """
        outcomes: dict[int, reward_pb2.Outcome] = {}
        for indices, part in self._slices(samples, outcomes):
            outcomes.update(zip(indices, self._score_slice(part), strict=True))
        return [outcomes[index] for index in range(len(samples))]

    def _slices(
        self, samples: Sequence[reward_pb2.Sample], outcomes: dict[int, reward_pb2.Outcome]
    ) -> Iterator[tuple[list[int], list[Sample]]]:
        """Readable samples with their indices, slice by slice; `outcomes` gets the others."""
        indices: list[int] = []
        part: list[Sample] = []
        pixels = 0
        for index, message in enumerate(samples):
            self._check_wanted()
            try:
                sample = self._read(message)
            except SampleError as error:
                outcomes[index] = _failed(error)
                continue
            size = sample.image.shape[0] * sample.image.shape[1]
            if part and pixels + size > SLICE_PIXELS:
                yield indices, part
                indices, part, pixels = [], [], 0
            indices.append(index)
            part.append(sample)
            pixels += size
        if part:
            yield indices, part

    def _read(self, message: reward_pb2.Sample) -> Sample:
        prompt_bytes = len(message.prompt.encode())
        if prompt_bytes > self._limits.max_prompt_bytes:
            raise SampleError(
                reward_pb2.ERROR_CODE_PROMPT_TOO_LONG,
                f"the prompt is {prompt_bytes} bytes of UTF-8, at most "
                f"{self._limits.max_prompt_bytes} are accepted: shorten it",
            )
        present = {
            reward_pb2.INPUT_IMAGE: message.HasField("image"),
            reward_pb2.INPUT_PROMPT: bool(message.prompt),
            reward_pb2.INPUT_METADATA: message.HasField("metadata"),
        }
        for needed in {reward_pb2.INPUT_IMAGE, *self._reward.inputs}:
            if not present[needed]:
                raise SampleError(
                    reward_pb2.ERROR_CODE_MISSING_INPUT,
                    f"reward {self._reward.name} needs {reward_pb2.Input.Name(needed)}, "
                    "and the sample has none",
                )
        return Sample(
            decode(message.image, self._limits.image), message.prompt, to_dict(message.metadata)
        )

    def _score_slice(self, samples: list[Sample]) -> list[reward_pb2.Outcome]:
        self._check_wanted()
        if len(samples) > 1:
            try:
                return self._ask(samples)
            # A reward is other people's code: whatever it raises must not reach other samples.
            except Exception:  # noqa: BLE001
                self._log.exception("batch failed, scoring its samples one by one")
        seen: set[str] = set()
        return [self._score_alone(sample, seen) for sample in samples]

    def _score_alone(self, sample: Sample, seen: set[str]) -> reward_pb2.Outcome:
        """The outcome of one sample; failures in `seen` have their traceback in the log already."""
        self._check_wanted()
        try:
            return self._ask([sample])[0]
        except SampleError as error:
            return _failed(error)
        except Exception as error:  # noqa: BLE001
            if repr(error) not in seen:
                seen.add(repr(error))
                self._log.exception("sample failed", reward=self._reward.name)
            return _failed(
                SampleError(
                    reward_pb2.ERROR_CODE_REWARD_FAILED,
                    f"reward {self._reward.name} failed on this sample "
                    f"({type(error).__name__}); the service's log has the traceback",
                )
            )

    def _ask(self, samples: list[Sample]) -> list[reward_pb2.Outcome]:
        results = self._reward.score(samples)
        if len(results) != len(samples):
            raise RewardFailed(
                f"{self._reward.name}.score returned {len(results)} results "
                f"for {len(samples)} samples"
            )
        return [self._outcome(result) for result in results]

    def _outcome(self, result: float | Score | SampleError) -> reward_pb2.Outcome:
        if isinstance(result, SampleError):
            return _failed(result)
        score = result if isinstance(result, Score) else Score(float(result))
        details = to_struct(score.details) if score.details else None
        value = float(score.value)
        if math.isfinite(value):
            return reward_pb2.Outcome(score=value, details=details)
        error = reward_pb2.SampleError(
            code=reward_pb2.ERROR_CODE_NON_FINITE_SCORE,
            message=f"reward {self._reward.name} computed {value} for this sample",
        )
        return reward_pb2.Outcome(error=error, details=details)

    def _check_wanted(self) -> None:
        if not self._wanted():
            raise DeadlineExceeded("the caller stopped waiting; what was left was not computed")


def _failed(error: SampleError) -> reward_pb2.Outcome:
    return reward_pb2.Outcome(error=reward_pb2.SampleError(code=error.code, message=str(error)))
