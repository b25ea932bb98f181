from salon.queue.replies import Reply, ReplyKind, ReplyStream


def test_replies_arrive_once_and_in_order(redis_client):
    writer = ReplyStream(redis_client, "scorer", 60)
    reader = ReplyStream(redis_client, "scorer", 60)
    sent = [Reply(str(i), ReplyKind.SCORED, bytes([0, i, 255])) for i in range(5)]
    for reply in sent[:3]:
        writer.send(reply)
    assert list(reader.read(0.1)) == sent[:3]
    for reply in sent[3:]:
        writer.send(reply)
    assert list(reader.read(0.1)) == sent[3:]
    assert list(reader.read(0.05)) == []


def test_a_reply_of_an_older_worker_is_read(redis_client):
    fields = {"batch": "b" * 32, "kind": "failed", "body": b"reward service r refused a batch"}
    redis_client.xadd("salon:replies:scorer", fields)
    [reply] = ReplyStream(redis_client, "scorer", 60).read(0.1)
    assert reply == Reply("b" * 32, ReplyKind.FAILED, b"reward service r refused a batch", "")


def test_the_class_of_an_error_travels_with_it(redis_client):
    stream = ReplyStream(redis_client, "scorer", 60)
    sent = Reply("b", ReplyKind.FAILED, b"no instance 'job'", "UnknownInstance")
    stream.send(sent)
    redis_client.xadd(
        "salon:replies:scorer", {"batch": "b", "kind": "failed", "body": b"", "error": b"\xff"}
    )
    assert list(stream.read(0.1)) == [
        sent,
        Reply("b", ReplyKind.FAILED, b"", "\N{REPLACEMENT CHARACTER}"),
    ]


def test_a_reply_that_cannot_be_read_does_not_hide_the_next(redis_client):
    stream = ReplyStream(redis_client, "scorer", 60)
    good = Reply("b", ReplyKind.SCORED, b"")
    for odd in ({"batch": "a", "kind": "of the future", "body": b""}, {"kind": "scored"}):
        redis_client.xadd("salon:replies:scorer", odd)
    stream.send(good)
    assert list(stream.read(0.1)) == [good]


def test_scorers_do_not_see_each_other(redis_client):
    ReplyStream(redis_client, "one", 60).send(Reply("b", ReplyKind.FAILED, b"why"))
    assert list(ReplyStream(redis_client, "two", 60).read(0.05)) == []


def test_nobody_collects_them_and_they_expire(redis_client):
    stream = ReplyStream(redis_client, "gone", 60)
    stream.send(Reply("b", ReplyKind.WAITING, b"why"))
    assert 0 < redis_client.ttl("salon:replies:gone") <= 60
    stream.delete()
    assert redis_client.keys("salon:replies:*") == []
