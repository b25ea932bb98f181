"""From the examples of one FitRequest to examples that a reward can learn from."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from salon.errors import InvalidRequest, SampleError
from salon.reward.v1 import learned_reward_pb2, reward_pb2
from salon.serving import Compared, Example, Labelled, Sample
from salon.wire.frames import ReceivedSample
from services.scoring.call import Call
from services.scoring.decoding import DecodedPixels
from services.scoring.sample_reader import SampleReader


class ExampleReader:
    """Reads the examples of one call."""

    def __init__(self, reader: SampleReader, held: DecodedPixels, call: Call) -> None:
        """Read the samples that `call` brings with `reader`, as far as `held` has room."""
        self._reader = reader
        self._held = held
        self._call = call

    def read(self, messages: Iterable[learned_reward_pb2.Example]) -> Iterator[Example]:
        """One after the other, checked and decoded: so only one at a time is held decoded.

        The fit that asks for the first one has begun: from then on it waits for room as long as it
        takes, whether or not its caller does.

        Raises:
            InvalidRequest: one cannot be used, which the message names.
        """
        self._call.must_finish = True
        for index, message in enumerate(messages):
            with ExitStack() as room:
                try:
                    example = self._example(message, room)
                except (InvalidRequest, SampleError) as error:
                    raise InvalidRequest(f"example {index}: {error}; none was taken") from None
                yield example

    def _example(self, message: learned_reward_pb2.Example, room: ExitStack) -> Example:
        if message.HasField("labelled"):
            return self._labelled(message.labelled, room)
        if message.HasField("comparison"):
            return self._comparison(message.comparison, room)
        raise InvalidRequest("it is neither labelled nor a comparison: set one of them")

    def _labelled(self, message: learned_reward_pb2.LabelledSample, room: ExitStack) -> Labelled:
        if message.origin not in (
            learned_reward_pb2.ORIGIN_REAL,
            learned_reward_pb2.ORIGIN_GENERATED,
        ):
            raise InvalidRequest(
                f"origin {message.origin} is neither ORIGIN_REAL nor ORIGIN_GENERATED"
            )
        real = message.origin == learned_reward_pb2.ORIGIN_REAL
        [sample] = self._samples([message.sample], room)
        return Labelled(sample, real)

    def _comparison(self, message: learned_reward_pb2.Comparison, room: ExitStack) -> Compared:
        # Written so that NaN is refused as well.
        if not 0 <= message.preference <= 1:
            raise InvalidRequest(
                f"preference {message.preference} is no probability: 1 prefers the first, 0 the "
                "second, 0.5 is a tie"
            )
        first, second = self._samples([message.first, message.second], room)
        return Compared(first, second, message.preference)

    def _samples(self, messages: Sequence[reward_pb2.Sample], room: ExitStack) -> list[Sample]:
        """Those of one example, which hold room for their pixels until `room` is left."""
        checked = [
            self._reader.check(
                ReceivedSample(
                    message, memoryview(message.image.data), memoryview(message.reference.data)
                )
            )
            for message in messages
        ]
        if size := sum(one.new_pixels for one in checked):
            self._held.take(size, self._call)
            room.callback(self._held.give_back, size)
        return [one.read() for one in checked]
