"""RewardService: the two calls of the contract, their errors and their log lines."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import grpc
import structlog

from salon.errors import InvalidRequest, RewardFailed, SalonError, UnknownReward
from salon.reward.v1 import reward_pb2, reward_pb2_grpc
from services.drain import Drain
from services.limits import Limits
from services.reward import Reward
from services.scoring import BatchScorer

logger = structlog.get_logger()

_Response = TypeVar("_Response")
_Log = structlog.typing.FilteringBoundLogger


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Answers for the hosted rewards; the first of them is the default."""

    def __init__(self, rewards: Sequence[Reward], limits: Limits, drain: Drain) -> None:
        """Host `rewards` within `limits`; `drain` decides who is let in."""
        self._rewards = {reward.name: reward for reward in rewards}
        self._default = rewards[0].name
        self._limits = limits
        self._drain = drain

    def GetReward(  # noqa: N802
        self, request: reward_pb2.GetRewardRequest, context: grpc.ServicerContext
    ) -> reward_pb2.GetRewardResponse:
        """Describe one reward."""

        def describe(_log: _Log) -> reward_pb2.GetRewardResponse:
            reward = self._find(request.reward)
            return reward_pb2.GetRewardResponse(
                reward=reward_pb2.Reward(
                    name=reward.name,
                    version=reward.version,
                    description=reward.description,
                    inputs=reward.inputs,
                    lower_bound=reward.lower_bound,
                    upper_bound=reward.upper_bound,
                    direction=reward.direction,
                    limits=self._limits.message(),
                )
            )

        log = logger.bind(method="GetReward", reward=request.reward[:80] or self._default)
        return self._answer(context, log, describe)

    def Score(  # noqa: N802
        self, request: reward_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        """Score one batch."""

        def score(log: _Log) -> reward_pb2.ScoreResponse:
            reward = self._find(request.reward)
            self._check_count(len(request.samples))
            scorer = BatchScorer(reward, self._limits, lambda: _wanted(context), log)
            return reward_pb2.ScoreResponse(
                reward=reward.name,
                version=reward.version,
                outcomes=scorer.score(request.samples),
            )

        log = logger.bind(
            method="Score",
            reward=request.reward[:80] or self._default,
            samples=len(request.samples),
            # Not request.ByteSize(), which serializes the pixels once more to count them.
            image_bytes=sum(len(sample.image.data) for sample in request.samples),
        )
        return self._answer(context, log, score)

    def _answer(
        self,
        context: grpc.ServicerContext,
        log: _Log,
        handle: Callable[[_Log], _Response],
    ) -> _Response:
        """Run one call, write its line in the log, and turn what it raised into a status."""
        started = time.monotonic()
        call = secrets.token_hex(4)
        log = log.bind(call=call)
        try:
            self._drain.admit(context)
            response = handle(log)
        except SalonError as error:
            _refuse(context, log, error, started)
        except Exception:
            log.exception("call failed")
            failure = RewardFailed(f"the service failed; its log has the traceback of call {call}")
            _refuse(context, log, failure, started)
        if isinstance(response, reward_pb2.ScoreResponse):
            log = log.bind(errors=sum(outcome.HasField("error") for outcome in response.outcomes))
        log.info("call", code="OK", seconds=_since(started))
        return response

    def _find(self, name: str) -> Reward:
        reward = self._rewards.get(name or self._default)
        if reward is None:
            raise UnknownReward(
                f"no reward {name[:80]!r} here; this service hosts {', '.join(self._rewards)}"
            )
        return reward

    def _check_count(self, samples: int) -> None:
        if samples == 0:
            raise InvalidRequest("the batch is empty: send at least one sample")
        if samples > self._limits.max_samples:
            raise InvalidRequest(
                f"{samples} samples in one call, at most {self._limits.max_samples} are accepted: "
                "split the batch, as salon.RewardClient does"
            )


def _refuse(
    context: grpc.ServicerContext, log: _Log, error: SalonError, started: float
) -> NoReturn:
    code = error.grpc_code
    log.info("call", code=code.name, seconds=_since(started), reason=str(error))
    context.abort(code, str(error))


def _wanted(context: grpc.ServicerContext) -> bool:
    remaining = context.time_remaining()
    return context.is_active() and (remaining is None or remaining > 0)


def _since(started: float) -> float:
    return round(time.monotonic() - started, 6)
