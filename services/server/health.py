"""What probes are told: live once the port is open, ready while calls are answered."""

from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from salon.reward.v1 import reward_pb2

SERVICE = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].full_name
LIVENESS = "liveness"
READINESS_NAMES = ("", "readiness", SERVICE)


class Health:
    """The standard health service (grpc.health.v1), on as many servers as it is added to."""

    def __init__(self) -> None:
        """Live, not ready."""
        self._checks = health.HealthServicer()
        # A thread of their own: a probe must not wait behind scoring, or a busy service looks dead.
        self._checks.Check.__func__.experimental_thread_pool = ThreadPoolExecutor(
            1, thread_name_prefix="health"
        )
        self._checks.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        self._ready = True
        self.set_ready(False)

    def add_to(self, server: grpc.Server) -> None:
        """Answer on `server`, which must not have started."""
        health_pb2_grpc.add_HealthServicer_to_server(self._checks, server)

    def set_ready(self, ready: bool) -> None:
        """Whether callers should come; who kills what is not live must leave it alone anyway."""
        if ready == self._ready:
            return
        self._ready = ready
        response = health_pb2.HealthCheckResponse
        for name in READINESS_NAMES:
            self._checks.set(name, response.SERVING if ready else response.NOT_SERVING)
