"""One gRPC server that hosts any reward: its way from an open port over ready to drained."""

import gc
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from salon.errors import RewardFailed
from salon.memory import give_back_freed_memory
from salon.serving import LearnedReward, Reward
from salon.wire.shared_files import SharedDirectory
from services.scoring.cache import ScoreCache
from services.scoring.decoding import DecodedPixels
from services.scoring.hosted_reward import BatchedReward, HostedReward, LearnedHostedReward
from services.scoring.metrics import Metrics, serve_metrics
from services.server.admission import Admission
from services.server.answers import Answering
from services.server.health import Health
from services.server.options import ServerOptions
from services.server.ports import add_reflection, bind, call_server, probe_server
from services.server.reward_modules import Choice
from services.server.reward_servicer import RewardServicer
from services.server.tls import check_exposure
from services.server.tokens import TokenInterceptor, Tokens

if TYPE_CHECKING:
    from services.server.learned_servicer import LearnedServicer

logger = structlog.get_logger()

LAST_WORDS_SECONDS = 1.0  # for statuses on their way out when the last call is done
CHECK_SECONDS = 1.0  # how soon probes are told of a reward that hangs


class RewardServer:
    """The parts of one server, wired together."""

    def __init__(self, options: ServerOptions, kinds: Sequence[type[Reward]]) -> None:
        """Prepare to host rewards of these classes; nobody can connect yet.

        Raises:
            InvalidRequest: the options cannot be used; one line says why.
        """
        self._options = options
        tokens = Tokens(options.tokens) if options.tokens else None
        check_exposure(options.host, options.tls, tokens, options.insecure)
        self._metrics = Metrics([kind.name for kind in kinds])
        self._admission = Admission(options.max_concurrent_calls)
        self._health = Health()
        shared = SharedDirectory(options.shared_dir) if options.shared_dir else None
        self._answering = Answering(
            *(self._admission, self._metrics, shared, options.log_calls),
            max_message_bytes=options.limits.max_message_bytes,
        )
        self._servicer = RewardServicer(options.limits, self._answering)
        self._held = DecodedPixels(large_waiting=options.max_large_waiting)
        self._hosted: list[HostedReward] = []
        self._stuck: list[str] = []
        self._gave_back = False
        self._server = call_server(
            options.limits,
            options.max_concurrent_calls,
            [TokenInterceptor(tokens, self._metrics)] if tokens else [],
        )
        self._servicer.add_to(self._server)
        learns = any(issubclass(kind, LearnedReward) for kind in kinds)
        self._learned = self._add_learned() if learns else None
        self._health.add_to(self._server)
        if options.reflection:
            add_reflection(self._server)
        self._stops: list[Callable[[], object]] = []

    def open(self) -> None:
        """Open the ports: live, not ready.

        Raises:
            InvalidRequest: it cannot listen at an address.
        """
        options = self._options
        port = bind(self._server, options.host, options.port, options.tls)
        self._server.start()
        self._stops.append(lambda: self._server.stop(LAST_WORDS_SECONDS).wait())
        ports = {"port": port}
        if options.health_port is not None:
            probes = probe_server()
            self._health.add_to(probes)
            ports["health_port"] = bind(probes, options.host, options.health_port)
            probes.start()
            self._stops.append(lambda: probes.stop(LAST_WORDS_SECONDS).wait())
        if options.metrics_port is not None:
            self._stops.append(serve_metrics(self._metrics, options.host, options.metrics_port))
        logger.info("listening", host=options.host, **ports)

    def host(self, rewards: Sequence[Reward]) -> None:
        """Warm the rewards up, and answer for them from then on: ready.

        Raises:
            RewardFailed: one of them cannot score its own example.
        """
        options = self._options
        cache = ScoreCache(options.cache_scores) if options.cache_scores else None
        held = self._held
        for reward in rewards:
            batches = options.batches(reward)
            self._hosted.append(
                LearnedHostedReward(reward, options.limits, batches.max_batch, self._metrics, held)
                if isinstance(reward, LearnedReward)
                else BatchedReward(reward, options.limits, batches, self._metrics, cache, held)
            )
        for hosted in self._hosted:
            hosted.warm_up()
        self._servicer.host(self._hosted)
        if self._learned:
            self._learned.host([reward for reward in rewards if isinstance(reward, LearnedReward)])
        self._admission.open()
        self._health.set_ready(True)
        logger.info("serving", rewards={reward.name: reward.version for reward in rewards})

    def check(self) -> None:
        """Tell probes whether calls get anywhere, and give back memory when there are none.

        Raises:
            RewardFailed: a reward cannot score any more; calls in flight have been let finish.
        """
        try:
            stuck = [hosted.reward.name for hosted in self._hosted if hosted.is_stuck()]
        except RewardFailed:
            self.drain()
            raise
        if stuck != self._stuck:
            self._stuck = stuck
            logger.warning("rewards whose batch takes too long", rewards=stuck or "none any more")
        self._health.set_ready(not stuck)
        idle = self._admission.was_idle()
        # Once: a pause between two batches of a trainer is short, and the next needs the memory.
        if idle and not self._gave_back:
            # The errors of calls that were given up hold on to their images in reference cycles.
            gc.collect()
            give_back_freed_memory()
        self._gave_back = idle

    def drain(self) -> None:
        """Turn new calls away and let those in flight finish, within the grace.

        Health says NOT_SERVING, new calls get UNAVAILABLE, and so do, when the grace is over, calls
        whose samples still wait or are being scored.
        """
        seconds = self._options.grace_seconds
        logger.info("draining", grace_seconds=seconds)
        self._health.set_ready(False)
        if unfinished := self._admission.close(seconds):
            logger.warning("grace is over, calls are cut off", calls=unfinished)
            for hosted in self._hosted:
                hosted.cut_off()

    def stop(self) -> None:
        """Close the ports, then the rewards."""
        for stop in self._stops:
            stop()
        for hosted in self._hosted:
            hosted.close()

    def _add_learned(self) -> "LearnedServicer":
        # Where no reward learns, what learning needs need not be installed.
        from services.server.learned_servicer import LearnedServicer  # noqa: PLC0415

        learned = LearnedServicer(self._options.limits, self._answering, self._held)
        learned.add_to(self._server)
        return learned


def serve(choices: Sequence[Choice], options: ServerOptions) -> None:
    """Load and host rewards until SIGTERM or SIGINT, then drain.

    Raises:
        InvalidRequest: the options cannot be used, or it cannot listen at an address.
        SalonError: a reward cannot be loaded, or cannot score its own example, now or later.
    """
    ready, stopping = threading.Event(), threading.Event()

    def handle(_signum: int, _frame: object) -> None:
        stopping.set()
        if not ready.is_set():
            os._exit(0)  # There is no call yet to wait for, and loading may take minutes.

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, handle)
    server = RewardServer(options, [choice.reward for choice in choices])
    try:
        server.open()
        server.host([choice.load() for choice in choices])
        gc.freeze()  # what is loaded stays, and is not looked at by every collection
        ready.set()
        while not stopping.wait(CHECK_SECONDS):
            server.check()
        server.drain()
    finally:
        server.stop()
    logger.info("stopped")
