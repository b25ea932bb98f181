"""Ask a reward for a batch's scores so that what cannot be scored fails alone.

samples -> reward.score -> one outcome a sample
               |
               +-- it raised: each half by itself, down to the samples that raise alone
"""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet

import structlog

from salon.errors import RewardFailed, SalonError, SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Reward, Sample, Score
from salon.wire.structs import to_struct
from services.scoring.call import Call
from services.scoring.metrics import Metrics

logger = structlog.get_logger()

Result = float | Score | SampleError

REST_BYTES, OUTCOME_BYTES = 512, 8
"""Of a reply, more than what it takes beside its outcomes, and than what frames one of them."""
_LESS = (
    "let the reward return less in details, ask for fewer samples in one call, or raise the "
    "service's --max-message-bytes and the caller's max_message_bytes"
)
_WANTED = (
    "it must return a list with one float, Score or SampleError for each sample, in their order"
)


class IsolatingScorer:
    """Turns batches into outcomes, whatever the reward does; used by one thread."""

    def __init__(
        self, name: str, score: Callable[[Sequence[Sample]], Sequence[Result]], metrics: Metrics
    ) -> None:
        """Ask `score`, the method of the reward of that name."""
        self._name = name
        self._score = score
        self._metrics = metrics
        self.fitting: int | None = None
        """After a batch that the device's memory could not hold, though it held each of its samples
        alone: the most of them that it held at once. None after any other batch, since one sample
        too large for the memory tells nothing of others."""
        self.all_raised = False
        """Whether each sample of the last batch made the reward raise, alone."""
        self.failure = ""
        """What the last sample that did so ended in, as callers are told."""

    def score(self, samples: Sequence[Sample], calls: Sequence[Call]) -> list[reward_pb2.Outcome]:
        """One outcome for each sample, in order; `calls` holds the call of each."""
        self.fitting = None
        self._largest = 0
        self._raised = 0
        self._out_of_memory = self._too_large_alone = False
        outcomes = self._halve_until_scored(samples, calls, whole=True)
        if self._out_of_memory and not self._too_large_alone:
            self.fitting = max(self._largest, 1)
        self.all_raised = self._raised == len(samples)
        return outcomes

    def _halve_until_scored(
        self, samples: Sequence[Sample], calls: Sequence[Call], *, whole: bool = False
    ) -> list[reward_pb2.Outcome]:
        try:
            outcomes = self._ask(samples)
        # A reward is other people's code: whatever it raises must not reach other samples.
        except Exception as error:
            if len(samples) == 1:
                return [self._failure(error, calls[0])]
            memory = _is_out_of_memory(error)
            if whole:
                logger.exception("batch failed, halving it", reward=self._name, size=len(samples))
        else:
            self._largest = max(self._largest, len(samples))
            return outcomes
        # Here the exception is gone, and with it the tensors that its frames held.
        if memory:
            self._out_of_memory = True
            _free_device_memory()
        middle = len(samples) // 2
        return self._halve_until_scored(samples[:middle], calls[:middle]) + (
            self._halve_until_scored(samples[middle:], calls[middle:])
        )

    def _ask(self, samples: Sequence[Sample]) -> list[reward_pb2.Outcome]:
        started = time.monotonic()
        try:
            results = self._score(samples)
        finally:
            self._metrics.executed(self._name, len(samples), time.monotonic() - started)
        self._check(results, len(samples))
        return [self._outcome(result) for result in results]

    def _check(self, results: object, samples: int) -> None:
        """Raises RewardFailed for what is no series of results: a mapping's are its keys."""
        # Arrays, tensors and Series have a number of dimensions, the last of them keys, too.
        keyed = hasattr(results, "keys") and not hasattr(results, "ndim")
        unordered = isinstance(results, Mapping | AbstractSet | str | bytes | bytearray)
        try:
            count = -1 if keyed or unordered else len(results)  # type: ignore[arg-type]
        except TypeError:  # None, a number, a generator, an array without dimensions
            count = -1
        if count < 0:
            raise RewardFailed(f"{self._name}.score returned {_called(results)}; {_WANTED}")
        if count != samples:
            raise RewardFailed(
                f"{self._name}.score returned {count} results for {samples} samples; {_WANTED}"
            )

    def _outcome(self, result: Result) -> reward_pb2.Outcome:
        if isinstance(result, SampleError):
            return failed(result)
        score = result if isinstance(result, Score) else Score(result)
        value = self._number(score.value)
        try:
            details = to_struct(score.details) if score.details else None
        except (TypeError, ValueError) as wrong:
            raise RewardFailed(f"the details of {self._name} cannot be sent: {wrong}") from wrong
        if math.isfinite(value):
            return reward_pb2.Outcome(score=value, details=details)
        error = reward_pb2.SampleError(
            code=reward_pb2.ERROR_CODE_NON_FINITE_SCORE,
            message=f"reward {self._name} computed {value} for this sample",
        )
        return reward_pb2.Outcome(error=error, details=details)

    def _number(self, value: object) -> float:
        # Of an array's complex number float() takes the real part, and of a text what it spells.
        kind = getattr(value, "dtype", None)
        complex_valued = getattr(kind, "kind", "") == "c" or getattr(kind, "is_complex", False)
        if not complex_valued and not isinstance(value, str | bytes | bytearray):
            try:
                return float(value)  # type: ignore[arg-type]
            except (TypeError, ValueError, RuntimeError, OverflowError):
                pass
        raise RewardFailed(f"{self._name}.score gave {_called(value)} for a score; {_WANTED}")

    def _failure(self, error: Exception, call: Call) -> reward_pb2.Outcome:
        if isinstance(error, SampleError):
            return failed(error)
        self._raised += 1
        self.failure = told(error)
        self._too_large_alone |= _is_out_of_memory(error)
        call.log_failure(self._name, error)
        return failed(
            SampleError(
                reward_pb2.ERROR_CODE_REWARD_FAILED,
                f"reward {self._name} failed on this sample ({told(error)}); the service's log "
                f"has the traceback{f' of call {call.identity}' if call.identity else ''}",
            )
        )


def told(error: Exception) -> str:
    """What callers are told of it: its class, and its text where that was written for them.

    The text of other people's exceptions may hold anything, paths and secrets, too.
    """
    return str(error) if isinstance(error, SalonError) else type(error).__name__


def cost_of(reward: Reward, sample: Sample) -> float:
    """What `reward` says that `sample` counts toward its largest batch.

    Raises:
        RewardFailed: it raised, or says no finite number of at least 0, by which no batch can be
            formed.
    """
    try:
        cost = float(reward.cost(sample))
    # A reward is other people's code.
    except Exception as error:
        logger.exception("cost failed", reward=reward.name)
        raise RewardFailed(
            f"{reward.name}.cost failed ({told(error)}); the service's log has the traceback"
        ) from error
    if not math.isfinite(cost) or cost < 0:
        raise RewardFailed(f"{reward.name}.cost gave {cost}; it must give a number of at least 0")
    return cost


def failed(error: SampleError) -> reward_pb2.Outcome:
    """The outcome of a sample that ended in `error`."""
    return reward_pb2.Outcome(error=reward_pb2.SampleError(code=error.code, message=str(error)))


def fit_reply(response: reward_pb2.ScoreResponse, limit: int) -> reward_pb2.ScoreResponse:
    """`response`, in at most `limit` bytes: a sample that takes more than its share fails alone.

    Raises:
        RewardFailed: not even the others fit.
    """
    whole = response.ByteSize()
    if whole <= limit:
        return response
    count = len(response.outcomes)
    share = (limit - REST_BYTES) // count - OUTCOME_BYTES
    for outcome in response.outcomes:
        size = outcome.ByteSize()
        if size > share:
            words = (
                f"what reward {response.reward} tells of this sample takes {size} bytes, and "
                f"{count} share a reply of {limit}"
            )
            outcome.CopyFrom(
                failed(SampleError(reward_pb2.ERROR_CODE_REWARD_FAILED, f"{words}: {_LESS}"))
            )
    if response.ByteSize() > limit:
        raise RewardFailed(
            f"the reply of reward {response.reward} to {count} samples takes {whole} bytes, at "
            f"most {limit} may be sent: {_LESS}"
        )
    return response


def _called(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}{f' of shape {list(shape)}' if shape is not None else ''}"


def _is_out_of_memory(error: Exception) -> bool:
    # By name: torch is not imported here, and other frameworks use the same one.
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _free_device_memory() -> None:
    """Give back what torch's allocator keeps, so that the next try finds it in one piece."""
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()
