"""Room for decoded pixels: taken before they are decoded, given back whatever happens."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import structlog

from salon.errors import DeadlineExceeded, InvalidRequest, Overloaded
from salon.reward.v1 import learned_reward_pb2 as wire
from salon.reward.v1 import reward_pb2 as pb
from salon.wire.images import png
from salon.wire.outcomes import outcomes
from services.learned.examples import ExampleReader
from services.scoring import decoding
from services.scoring.call import Call
from services.scoring.decoding import DecodedPixels
from services.scoring.limits import Limits
from services.scoring.sample_reader import SampleReader
from tests.fixtures.service import wait_until
from tests.salon.files import encoded, noise
from tests.services.scoring.test_call_scorer import GOOD, Counting, codes, score_here

PNG = pb.IMAGE_FORMAT_PNG


def call(given_up=lambda: None):
    return Call(given_up, structlog.get_logger())


def waiting(room):
    return len(room._usual[0]._waiting)


def test_one_image_always_has_room_and_a_second_only_within_the_bound():
    room = DecodedPixels(100)
    room.take(1000, call())
    assert not room.try_take(1)
    room.give_back(1000)
    room.take(60, call())
    assert room.try_take(40)
    assert not room.try_take(1)
    assert room.held() == 100


def test_who_came_first_is_served_first_however_much_it_needs():
    room = DecodedPixels(100)
    room.take(60, call())
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(room.take, 100, call())
        wait_until(lambda: waiting(room) == 1, "it waits")
        assert not room.try_take(1), "small ones must not go past it without end"
        room.give_back(60)
        large.result(30)
    assert room.held() == 100


def test_whoever_gives_up_leaves_the_way_to_the_next(monkeypatch):
    monkeypatch.setattr(decoding, "CHECK_SECONDS", 0.01)
    room = DecodedPixels(100)
    room.take(60, call())
    gone = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(room.take, 100, call(lambda: "cancelled" if gone.is_set() else None))
        wait_until(lambda: waiting(room) == 1, "it waits")
        second = pool.submit(room.take, 40, call())
        wait_until(lambda: waiting(room) == 2, "the next waits")
        gone.set()
        with pytest.raises(DeadlineExceeded):
            first.result(30)
        second.result(30)
    assert room.held() == 100


def test_nothing_is_decoded_before_there_is_room_for_it(monkeypatch):
    decoded = []
    real = png.PngFile.decode
    monkeypatch.setattr(png.PngFile, "decode", lambda file: decoded.append(file) or real(file))
    room = DecodedPixels(1)
    room.take(1, call())
    sample = pb.Sample(image=GOOD)
    with ThreadPoolExecutor(1) as pool:
        results = pool.submit(score_here, Counting(), [sample], held=room)
        wait_until(lambda: waiting(room) == 1, "it waits")
        assert decoded == []
        room.give_back(1)
        assert len(results.result(30)) == 1
    assert len(decoded) == 1
    assert room.held() == 0


def test_an_image_that_turns_out_to_be_none_gives_its_room_back():
    broken = bytearray(encoded(noise(64, 64), "JPEG"))
    del broken[-60:-2]  # its header holds, its data ends early
    bad = pb.Sample(image=pb.Image(format=pb.IMAGE_FORMAT_JPEG, data=bytes(broken)))
    room = DecodedPixels()
    held = []
    reward = Counting()
    real = reward.score
    reward.score = lambda samples: held.append(room.held()) or real(samples)
    results = score_here(reward, [pb.Sample(image=GOOD), bad, pb.Sample(image=GOOD)], held=room)
    response = pb.ScoreResponse(outcomes=results)
    assert codes(outcomes(response)) == ["OK", "INVALID_IMAGE", "OK"]
    assert held == [2 * 12 * 16]
    assert room.held() == 0


def test_large_images_are_decoded_one_after_the_other_and_small_ones_meanwhile(monkeypatch):
    monkeypatch.setattr(decoding, "USUAL_PIXELS", 1000)
    monkeypatch.setattr(decoding, "LARGE_AT_ONCE", 1600)
    inside, most, go = [], [], threading.Event()
    real = png.PngFile.decode

    def decode(file):
        if file.height == 40:
            inside.append(file)
            most.append(len(inside))
            go.wait(30)
            inside.remove(file)
        return real(file)

    monkeypatch.setattr(png.PngFile, "decode", decode)
    room = DecodedPixels()
    large = pb.Sample(image=pb.Image(format=PNG, data=encoded(noise(40, 40))))
    with ThreadPoolExecutor(4) as pool:
        many = [pool.submit(score_here, Counting(), [large], held=room) for _ in range(3)]
        wait_until(lambda: bool(inside), "one is decoded")
        wait_until(lambda: room.held() == 3 * 1600, "the others have room, and wait their turn")
        assert len(score_here(Counting(), [pb.Sample(image=GOOD)], held=room)) == 1
        go.set()
        assert [len(one.result(30)) for one in many] == [1, 1, 1]
    assert most == [1, 1, 1]


def test_who_has_room_may_wait_for_its_turn_however_many_do(monkeypatch):
    monkeypatch.setattr(decoding, "USUAL_PIXELS", 10)
    monkeypatch.setattr(decoding, "LARGE_AT_ONCE", 100)
    room = DecodedPixels(400, large_waiting=1)
    go = threading.Event()

    def decode():
        with room.decoding(100, call()):
            go.wait(30)

    for _ in range(4):
        room.take(100, call())
    with ThreadPoolExecutor(4) as pool:
        turns = [pool.submit(decode) for _ in range(4)]
        wait_until(lambda: len(room._large[1]._waiting) == 3, "three wait for their turn")
        go.set()
        assert [turn.result(30) for turn in turns] == [None] * 4


def test_few_calls_may_wait_for_a_large_image(monkeypatch):
    monkeypatch.setattr(decoding, "USUAL_PIXELS", 10)
    room = DecodedPixels(100, large_waiting=1)
    room.take(100, call())
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(room.take, 100, call())
        wait_until(lambda: len(room._large[0]._waiting) == 1, "it waits")
        with pytest.raises(Overloaded, match=r"wait for room .* --max-large-waiting") as caught:
            room.take(100, call())
        assert caught.value.retry_after_seconds == decoding.RETRY_SECONDS
        room.take(10, call())  # of usual size
        room.give_back(100)
        waits.result(30)


def test_a_fit_that_has_begun_waits_for_room_whoever_waits_for_it(monkeypatch):
    monkeypatch.setattr(decoding, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(decoding, "USUAL_PIXELS", 10)
    room = DecodedPixels(1, large_waiting=0)
    assert room.try_take(11)
    leaving = call(lambda: "cancelled")
    reader = SampleReader(Counting(), Limits(), None, leaving, room)
    labelled = wire.LabelledSample(sample=pb.Sample(image=GOOD), origin=wire.ORIGIN_REAL)
    examples = ExampleReader(reader, room, leaving).read([wire.Example(labelled=labelled)])
    with ThreadPoolExecutor(1) as pool:
        fit = pool.submit(list, examples)
        wait_until(lambda: len(room._large[0]._waiting) == 1, "it waits")
        with pytest.raises(TimeoutError):
            fit.result(0.1)
        room.give_back(11)
        [example] = fit.result(30)
    assert example.real


def test_the_images_of_an_example_hold_room_until_the_next_is_asked_for():
    room = DecodedPixels()
    reader = SampleReader(Counting(), Limits(), None, call(), room)
    good = pb.Sample(image=GOOD)
    labelled = wire.LabelledSample(sample=good, origin=wire.ORIGIN_REAL)
    compared = wire.Comparison(first=good, second=good, preference=1)
    broken = pb.Sample(image=pb.Image(format=PNG, data=GOOD.data[:-30]))
    messages = [
        wire.Example(labelled=labelled),
        wire.Example(comparison=compared),
        wire.Example(comparison=wire.Comparison(first=good, second=broken, preference=1)),
    ]
    examples = ExampleReader(reader, room, call()).read(messages)
    size = 12 * 16
    for images in (1, 2):
        next(examples)
        assert room.held() == images * size
    with pytest.raises(InvalidRequest, match="example 2: the PNG is truncated"):
        next(examples)
    assert room.held() == 0
