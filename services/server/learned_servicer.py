"""LearnedRewardService: the calls of the contract that fit, export, import and delete instances."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc

from salon.errors import DeadlineExceeded, InvalidRequest, Overloaded
from salon.reward.v1 import learned_reward_pb2
from salon.serving import Example, Exported, FitOrder, LearnedReward
from salon.wire.limits import check_bounds
from salon.wire.structs import to_dict, to_struct
from services.learned.examples import ExampleReader
from services.learned.transfers import TransferPlaces, watched
from services.scoring.call import Call
from services.scoring.decoding import DecodedPixels
from services.scoring.limits import Limits
from services.scoring.sample_reader import SampleReader
from services.server.answers import Answering, read_request, write
from services.server.named_rewards import NamedRewards

SERVICE = learned_reward_pb2.DESCRIPTOR.services_by_name["LearnedRewardService"].full_name
PIECE_BYTES = 1024 * 1024
"""Most bytes of an export in one message."""
FRAME_BYTES = 512
"""More than what such a message takes beside them."""
REQUEST_ID_CHARACTERS = 128


class LearnedServicer:
    """Answers for the hosted learned rewards; the first of them is the default."""

    def __init__(self, limits: Limits, answering: Answering, held: DecodedPixels) -> None:
        """Answer within `limits`, in the way of `answering`; `held` is all calls' together."""
        self._limits = limits
        self._held = held
        self._answering = answering
        self._places = TransferPlaces()
        self._rewards = NamedRewards[LearnedReward]("learned reward")

    def host(self, rewards: Sequence[LearnedReward]) -> None:
        """Answer for these; before that, nobody must be let in."""
        self._rewards.host({reward.name: reward for reward in rewards})

    def add_to(self, server: grpc.Server) -> None:
        """Answer on `server`, which must not have started."""
        answering = self._answering
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Fit": answering.unary(self.Fit),
            "Export": answering.unary_stream(self.Export),
            "Import": grpc.stream_unary_rpc_method_handler(self.Import, None, write),
            "Delete": answering.unary(self.Delete),
        }
        server.add_registered_method_handlers(SERVICE, handlers)

    def Fit(  # noqa: N802
        self, payload: bytes, context: grpc.ServicerContext
    ) -> learned_reward_pb2.FitResponse:
        """Fit an instance, as a serialized FitRequest says."""

        def fit(call: Call) -> learned_reward_pb2.FitResponse:
            request = read_request("FitRequest", payload, self._parse_fit)
            call.reward = self._rewards.shown(request.reward)
            call.samples = len(request.examples)
            reward = self._rewards.find(request.reward)
            _check_id(request)
            order = FitOrder(
                request.request_id,
                request.base_version,
                self._examples(reward, request, call),
                request.steps,
                to_dict(request.hyperparameters),
            )
            fitted = reward.fit(request.instance, order, lambda: call.given_up() is None)
            return learned_reward_pb2.FitResponse(
                reward=reward.name, version=fitted.version, metrics=to_struct(fitted.metrics)
            )

        return self._answering.answer(context, fit, method="Fit")

    def Export(  # noqa: N802
        self, payload: bytes, context: grpc.ServicerContext
    ) -> Iterator[learned_reward_pb2.ExportResponse]:
        """Give an instance's bytes piece by piece; `payload` is a serialized ExportRequest."""

        def export(call: Call) -> Iterator[learned_reward_pb2.ExportResponse]:
            kind = learned_reward_pb2.ExportRequest
            request = read_request("ExportRequest", payload, kind.FromString)
            call.reward = self._rewards.shown(request.reward)
            reward = self._rewards.find(request.reward)
            with self._places.one():
                exported = reward.export(request.instance)
                with watched(context) as moved:
                    for piece in self._pieces(exported):
                        yield piece
                        moved()

        return self._answering.stream(context, export, method="Export")

    def Import(  # noqa: N802
        self, payloads: Iterator[bytes], context: grpc.ServicerContext
    ) -> learned_reward_pb2.ImportResponse:
        """Make or replace an instance from a series of serialized ImportRequests."""

        def import_(call: Call) -> learned_reward_pb2.ImportResponse:
            with self._places.one():
                with watched(context) as moved:
                    pieces = _arriving(payloads, moved)
                    first = next(pieces, learned_reward_pb2.ImportRequest())
                    call.reward = self._rewards.shown(first.reward)
                    reward = self._rewards.find(first.reward)
                    data = _collected(first, pieces, reward.max_import_bytes)
                version = reward.import_(first.instance, data)
            return learned_reward_pb2.ImportResponse(reward=reward.name, version=version)

        return self._answering.answer(context, import_, method="Import")

    def Delete(  # noqa: N802
        self, payload: bytes, context: grpc.ServicerContext
    ) -> learned_reward_pb2.DeleteResponse:
        """Forget an instance, as a serialized DeleteRequest says."""

        def delete(call: Call) -> learned_reward_pb2.DeleteResponse:
            kind = learned_reward_pb2.DeleteRequest
            request = read_request("DeleteRequest", payload, kind.FromString)
            call.reward = self._rewards.shown(request.reward)
            self._rewards.find(request.reward).delete(request.instance)
            return learned_reward_pb2.DeleteResponse()

        return self._answering.answer(context, delete, method="Delete")

    def _parse_fit(self, payload: bytes) -> learned_reward_pb2.FitRequest:
        request = learned_reward_pb2.FitRequest
        check_bounds(payload, request.DESCRIPTOR, "examples", self._limits.max_samples)
        return request.FromString(payload)

    def _pieces(self, exported: Exported) -> Iterator[learned_reward_pb2.ExportResponse]:
        most = min(PIECE_BYTES, self._limits.max_message_bytes - FRAME_BYTES)
        for start in range(0, len(exported.data), most):
            version = "" if start else exported.version
            data = exported.data[start : start + most]
            yield learned_reward_pb2.ExportResponse(version=version, data=data)

    def _examples(
        self, reward: LearnedReward, request: learned_reward_pb2.FitRequest, call: Call
    ) -> Iterator[Example]:
        """Those of `request`; not even the shared file is read before the first is asked for."""
        with self._answering.opened(request.shared_file) as shared:
            reader = SampleReader(reward, self._limits, shared, call, self._held)
            yield from ExampleReader(reader, self._held, call).read(request.examples)


def _check_id(request: learned_reward_pb2.FitRequest) -> None:
    if not 1 <= len(request.request_id) <= REQUEST_ID_CHARACTERS:
        raise InvalidRequest(
            f"request_id must be 1 to {REQUEST_ID_CHARACTERS} characters, it is "
            f"{len(request.request_id)}: pass a UUID, the same one when the request is repeated"
        )


def _arriving(
    payloads: Iterator[bytes], moved: Callable[[], None]
) -> Iterator[learned_reward_pb2.ImportRequest]:
    kind = learned_reward_pb2.ImportRequest
    try:
        for payload in payloads:
            moved()
            yield read_request("ImportRequest", payload, kind.FromString)
    except grpc.RpcError:
        raise DeadlineExceeded(
            "the caller left, or stood still, before all had arrived, and nothing was imported"
        ) from None


def _collected(
    first: learned_reward_pb2.ImportRequest,
    rest: Iterator[learned_reward_pb2.ImportRequest],
    limit: int,
) -> bytes:
    data = bytearray(first.data)
    for piece in rest:
        data += piece.data
        if len(data) > limit:
            raise Overloaded(
                f"the import is larger than {limit} bytes, the most that an instance may take "
                "here: start the service with a higher --set max_instance_bytes"
            )
    return bytes(data)
