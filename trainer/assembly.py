"""Puts one job together: spec, algorithm, scorers, evaluations, folder; then runs the loop."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch

from salon.errors import InvalidRequest, naming
from salon.jobs.lease import Lease
from salon.jobs.record import Job
from salon.private import follow, make_usable
from salon.queue.broker import create_app
from salon.queue.connection import connect
from salon.settings import Settings
from trainer.algorithm import Algorithm, Generator
from trainer.algorithms import resolve
from trainer.context import Context
from trainer.evaluation.diversity import ImageEmbedder
from trainer.evaluation.evaluations import Evaluations
from trainer.evaluation.run_damage import check_run_folder
from trainer.loop import Loop
from trainer.rewards.queue_scorer import QueueScorer
from trainer.rewards.versions import RewardVersions
from trainer.runtime.checkpoints import Checkpoints
from trainer.runtime.interrupt import Interrupt
from trainer.runtime.ranks import Ranks
from trainer.runtime.run_folder import RunFolder
from trainer.spec.job_spec import JobSpec, read_record
from trainer.spec.reference import read_reference
from trainer.spec.rewarded_job import RewardedJob
from trainer.tracking.tracker import Tracker

log = structlog.get_logger()


def train(job: Job, lease: Lease, settings: Settings, interrupt: Interrupt, rank: int) -> None:
    """Run one attempt at `job` to its end, as one of the processes that share it.

    Args:
        job: its record.
        lease: that of the attempt.
        settings: of this process.
        interrupt: asks it to stop.
        rank: of this process; 0 writes the run folder, and holds it, the others but read it.

    Raises:
        Interrupted: asked to stop; everything finished is checkpointed.
        LeaseLost: another attempt runs the job now.
        RankLost, redis.ConnectionError, OperationalError: another process of the attempt is gone,
            or Redis is.
        SalonError, OSError: the job cannot go on; the message says why.
    """
    spec = read_record(job.spec)
    _open_as_its_folder(settings.runs_dir, job.id)
    folder = RunFolder(settings.runs_dir / job.id, fence=lease.renew)
    held: AbstractContextManager[None] = nullcontext()
    if rank == 0:
        held = folder.held(lease.token, wait_seconds=4 * settings.lease_seconds)
    # Libraries, such as TensorBoard's, do not say what they could not write.
    with held, naming(folder.path, disk_alone=True):
        # The others wait here until rank 0 holds the folder: nobody else writes it from then on.
        ranks = Ranks.launched(_device(spec.device), settings.rank_wait_seconds)
        _train(job.id, spec, folder, ranks, lease, settings, interrupt)
        ranks.close()


def _open_as_its_folder(runs: Path, job: str) -> None:
    """Let others read of this run what they may read of its folder, or else of that of all runs.

    Nothing, where that is made here.
    """
    make_usable(runs, "SALON_RUNS_DIR")
    run = runs / job
    follow(run if run.exists() else runs)


def _train(
    job: str,
    spec: JobSpec,
    folder: RunFolder,
    ranks: Ranks,
    lease: Lease,
    settings: Settings,
    interrupt: Interrupt,
) -> None:
    checkpoints = Checkpoints(folder, lease.token, spec.keep_checkpoints)
    if ranks.first:
        check_run_folder(folder.path)
        if checkpoints.none():  # later, a failing tracker ends no training
            spec.check_credentials()
        if isinstance(spec, RewardedJob):
            spec.check_references()
    versions = RewardVersions()
    tell = _Teller(lease, ranks.first)
    with ExitStack() as stack:

        def scorer(rewards: Sequence[str]) -> QueueScorer:
            if not isinstance(spec, RewardedJob):
                raise InvalidRequest(f"a job of {spec.algorithm.name} has no rewards")
            return stack.enter_context(
                closing(_scorer(job, spec, settings, interrupt, versions, rewards, tell.waiting))
            )

        context = Context(ranks, interrupt, scorer, tell.stage, tell.warn, settings.debug)
        algorithm: Algorithm = resolve(spec.builder, spec.algorithm.name)(spec, context)
        evaluations = None
        if isinstance(spec, RewardedJob):
            evaluations = _evaluations(spec, algorithm, context, folder)
        loop = Loop(
            job,
            spec,
            algorithm,
            evaluations,
            folder,
            checkpoints,
            interrupt,
            versions,
            lease,
            ranks,
            settings.answer_seconds,
        )
        tracker = None
        if lease.token > 1 and loop.iteration == 0:
            tell.warn(
                f"no whole checkpoint in {folder.path}: this attempt starts from the beginning"
            )
        if ranks.first:
            tracker = stack.enter_context(Tracker(job, spec, folder, lease, loop.iteration))
        loop.run(tracker)


@dataclass(frozen=True)
class _Teller:
    """Tells whoever watches, in the name of all ranks."""

    lease: Lease
    speaks: bool  # one of them does

    def stage(self, text: str) -> None:
        if self.speaks:
            self.lease.emit("stage", {"text": text})

    def warn(self, text: str) -> None:
        if self.speaks:
            log.warning(text)
            self.lease.emit("warning", {"text": f"warning: {text}"})

    def waiting(self, text: str) -> None:
        log.warning(text)
        self.lease.emit("waiting", {"text": text})


def _scorer(
    job: str,
    spec: RewardedJob,
    settings: Settings,
    interrupt: Interrupt,
    versions: RewardVersions,
    rewards: Sequence[str],
    on_waiting: Callable[[str], None],
) -> QueueScorer:
    references = {
        reward.name: read_reference(reward.reference)
        for reward in spec.rewards
        if reward.reference is not None
    }
    return QueueScorer(
        create_app(settings),
        connect(settings.redis_url),
        settings,
        rewards=rewards,
        on_reward_error=spec.on_reward_error,
        deadline_seconds=spec.reward_deadline_seconds,
        interrupt=interrupt,
        on_waiting=on_waiting,
        references=references,
        versions=versions,
        job=job,
        refused=spec.refusal,
    )


def _evaluations(
    spec: RewardedJob, algorithm: Algorithm, context: Context, folder: RunFolder
) -> Evaluations:
    """What the first rank evaluates, and the others wait for.

    Raises:
        InvalidRequest: the algorithm generates nothing that could be evaluated.
    """
    if not isinstance(algorithm, Generator):
        raise InvalidRequest(f"an algorithm of {spec.algorithm.name} generates nothing to evaluate")
    # A scorer of its own: that of training does not even know the rewards of evaluation alone.
    rewards = [reward.name for reward in spec.rewards] + spec.eval_rewards
    scorer = context.scorer(rewards) if context.ranks.first else None
    embedder = _embedder(spec, context.ranks) if context.ranks.first else None
    return Evaluations(spec, algorithm, scorer, folder, embedder, context.interrupt.check)


def _embedder(spec: RewardedJob, ranks: Ranks) -> ImageEmbedder | None:
    evaluation = spec.evaluation
    if evaluation.diversity_model is None:
        return None
    device = str(ranks.device)
    return ImageEmbedder.load(evaluation.diversity_model, device, evaluation.batch_size)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidRequest("device: cuda was asked for, but torch sees none; use auto or cpu")
    return name
