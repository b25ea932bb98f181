"""RewardService: the calls of the contract that describe rewards and score with them."""

from collections.abc import Sequence
from typing import Any

import grpc

from salon.errors import InvalidRequest
from salon.reward.v1 import reward_pb2
from salon.serving import Reward
from salon.wire import frames
from salon.wire.frames import Received
from services.scoring.call import Call
from services.scoring.hosted_reward import HostedReward
from services.scoring.limits import Limits
from services.server.answers import Answering, read_request
from services.server.health import SERVICE
from services.server.named_rewards import NamedRewards


class RewardServicer:
    """Answers for the hosted rewards; the first of them is the default."""

    def __init__(self, limits: Limits, answering: Answering) -> None:
        """Answer within `limits`, in the way of `answering`."""
        self._limits = limits
        self._answering = answering
        self._rewards = NamedRewards[HostedReward]("reward")

    def host(self, rewards: Sequence[HostedReward]) -> None:
        """Answer for these; before that, nobody must be let in."""
        self._rewards.host({hosted.reward.name: hosted for hosted in rewards})

    def add_to(self, server: grpc.Server) -> None:
        """Answer on `server`, which must not have started."""
        unary = self._answering.unary
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ListRewards": unary(self.ListRewards),
            "GetReward": unary(self.GetReward),
            "Score": unary(self.Score),
        }
        server.add_registered_method_handlers(SERVICE, handlers)

    def ListRewards(  # noqa: N802
        self, payload: bytes, context: grpc.ServicerContext
    ) -> reward_pb2.ListRewardsResponse:
        """Describe all hosted rewards."""

        def describe(_call: Call) -> reward_pb2.ListRewardsResponse:
            kind = reward_pb2.ListRewardsRequest
            read_request("ListRewardsRequest", payload, kind.FromString)
            rewards = [self._describe(hosted.reward) for hosted in self._rewards]
            return reward_pb2.ListRewardsResponse(rewards=rewards)

        return self._answering.answer(context, describe, method="ListRewards")

    def GetReward(  # noqa: N802
        self, payload: bytes, context: grpc.ServicerContext
    ) -> reward_pb2.GetRewardResponse:
        """Describe one reward."""

        def describe(call: Call) -> reward_pb2.GetRewardResponse:
            kind = reward_pb2.GetRewardRequest
            request = read_request("GetRewardRequest", payload, kind.FromString)
            call.reward = self._rewards.shown(request.reward)
            reward = self._rewards.find(request.reward).reward
            return reward_pb2.GetRewardResponse(reward=self._describe(reward))

        return self._answering.answer(context, describe, method="GetReward")

    def Score(  # noqa: N802
        self, payload: bytes, context: grpc.ServicerContext
    ) -> reward_pb2.ScoreResponse:
        """Score one batch, a serialized ScoreRequest."""

        def score(call: Call) -> reward_pb2.ScoreResponse:
            received = self._read(payload)
            call.reward = self._rewards.shown(received.request.reward)
            call.samples = len(received.samples)
            hosted = self._rewards.find(received.request.reward)
            if not received.samples:
                raise InvalidRequest("the batch is empty: send at least one sample")
            return hosted.score(
                received, call, self._answering.opened(received.request.shared_file)
            )

        return self._answering.answer(context, score, method="Score")

    def _read(self, payload: bytes) -> Received:
        most = self._limits.max_samples
        return read_request("ScoreRequest", payload, lambda given: frames.parse(given, most))

    def _describe(self, reward: Reward) -> reward_pb2.Reward:
        return reward_pb2.Reward(
            name=reward.name,
            version=reward.version,
            description=reward.description,
            inputs=reward.inputs,
            lower_bound=reward.lower_bound,
            upper_bound=reward.upper_bound,
            direction=reward.direction,
            stand_in=reward.stand_in,
            unit=reward.unit,
            limits=self._limits.message(self._answering.shared_marker),
        )
