"""The samples of one call on their way to the reward and back, in bounded memory.

received -> checked -> room taken -> decoded -> scored in slices -> one outcome a sample, in order
               |                        |
               +------ SampleError -----+
"""

from collections.abc import Callable, Iterator, Sequence

from salon.errors import SampleError
from salon.reward.v1 import reward_pb2
from salon.serving import Sample
from salon.wire.frames import ReceivedSample
from services.scoring.call import Call
from services.scoring.decoding import SLICE_PIXELS, DecodedPixels
from services.scoring.isolation import failed
from services.scoring.sample_reader import SampleReader


class CallScorer:
    """Scores the samples of one call."""

    def __init__(
        self,
        call: Call,
        reader: SampleReader,
        held: DecodedPixels,
        score: Callable[[Sequence[Sample]], Sequence[reward_pb2.Outcome]],
    ) -> None:
        """Prepare to score.

        Args:
            call: who waits.
            reader: decodes the samples.
            held: what all calls together have decoded.
            score: gives the outcomes of decoded samples.
        """
        self._call = call
        self._reader = reader
        self._held = held
        self._score = score

    def score(self, samples: Sequence[ReceivedSample]) -> list[reward_pb2.Outcome]:
        """One outcome for each sample, in order.

        Raises:
            DeadlineExceeded: nobody waits any more; the rest was not computed.
            Overloaded: too many calls wait for room for a large image, as this one would have to.
            SalonError: what `score` of the constructor raises.
        """
        outcomes: dict[int, reward_pb2.Outcome] = {}
        for indices, part in self._slices(samples, outcomes):
            outcomes.update(zip(indices, self._score(part), strict=True))
            del part  # or it would be kept while the next slice is decoded
        return [outcomes[index] for index in range(len(samples))]

    def _slices(
        self, samples: Sequence[ReceivedSample], outcomes: dict[int, reward_pb2.Outcome]
    ) -> Iterator[tuple[list[int], list[Sample]]]:
        """Readable samples with their indices, slice by slice; `outcomes` gets the others."""
        indices: list[int] = []
        part: list[Sample] = []
        held: list[int] = []  # the pixels of each image that there is room for
        try:
            for index, received in enumerate(samples):
                self._call.check_wanted()
                try:
                    checked = self._reader.check(received)
                except SampleError as error:
                    outcomes[index] = failed(error)
                    continue
                size = checked.new_pixels
                if size:
                    if held and not self._has_room(size, held):
                        yield indices, part
                        indices, part = [], []
                        self._let_go(held)
                        self._held.take(size, self._call)
                    elif not held:
                        self._held.take(size, self._call)
                    held.append(size)
                try:
                    part.append(checked.read())
                except SampleError as error:
                    outcomes[index] = failed(error)
                    self._let_go(held, 1 if size else 0)
                    continue
                indices.append(index)
            if part:
                yield indices, part
        finally:
            self._let_go(held)

    def _has_room(self, size: int, held: list[int]) -> bool:
        return sum(held) + size <= SLICE_PIXELS and self._held.try_take(size)

    def _let_go(self, held: list[int], last: int | None = None) -> None:
        """Give back the room of the `last` images of those held; None: of all."""
        for _ in range(len(held) if last is None else last):
            self._held.give_back(held.pop())
