"""Puts one job together: spec, model, algorithm, scorer, folder; then runs the loop."""

from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path

import structlog
import torch

from salon.broker import create_app
from salon.connection import connect
from salon.errors import InvalidRequest, naming
from salon.jobs import Job
from salon.lease import Lease
from salon.private import follow, make_usable
from salon.settings import Settings
from salon.stand_ins import is_stand_in, refusal
from trainer.algorithm import Algorithm
from trainer.checkpoints import Checkpoints
from trainer.credentials import check_credentials
from trainer.ddpo.algorithm import DDPO
from trainer.diffusion import Diffusion
from trainer.diversity import ImageEmbedder
from trainer.evaluations import Evaluations
from trainer.interrupt import Interrupt
from trainer.loop import Loop
from trainer.queue_scorer import QueueScorer
from trainer.ranks import Ranks
from trainer.reference import read_reference
from trainer.run_damage import check_run_folder
from trainer.run_folder import RunFolder
from trainer.rwr.algorithm import RWR
from trainer.rwr.config import RWRConfig
from trainer.scoring import RewardScorer
from trainer.spec import JobSpec
from trainer.tracking import Tracker
from trainer.versions import RewardVersions

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
    spec = JobSpec.model_validate(job.spec)
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
            check_credentials(spec.trackers, spec.push_to_hub)
    log.info("loading", model=spec.model, ranks=ranks.count)
    if ranks.first:
        lease.emit("stage", {"text": f"loading {spec.model}"})
    diffusion = Diffusion.load(spec.model, ranks.device)
    for text in diffusion.prompt_reader.check(spec.prompts, spec.evaluation.prompts):
        if ranks.first:
            log.warning(text)
            lease.emit("warning", {"text": f"warning: {text}"})

    references = {
        reward.name: read_reference(reward.reference)
        for reward in spec.rewards
        if reward.reference is not None
    }

    versions = RewardVersions()
    allowed = spec.allow_stand_ins or is_stand_in(spec.model)
    refused = None if allowed else lambda reward: refusal([reward], spec.model)

    def report_wait(text: str) -> None:
        log.warning(text)
        lease.emit("waiting", {"text": text})

    def scorer(rewards: list[str]) -> AbstractContextManager[QueueScorer]:
        return closing(
            QueueScorer(
                create_app(settings),
                connect(settings.redis_url),
                settings,
                rewards=rewards,
                on_reward_error=spec.on_reward_error,
                deadline_seconds=spec.reward_deadline_seconds,
                interrupt=interrupt,
                on_waiting=report_wait,
                references=references,
                versions=versions,
                job=job,
                refused=refused,
            )
        )

    with ExitStack() as stack:
        # Two scorers: that of training does not even know the rewards of evaluation alone.
        trained = [reward.name for reward in spec.rewards]
        training = evaluation = stack.enter_context(scorer(trained))
        algorithm = _build(spec, diffusion, training, ranks, interrupt, settings.debug)
        embedder = None
        if ranks.first:  # which alone evaluates
            evaluation = stack.enter_context(scorer(trained + spec.eval_rewards))
            embedder = _embedder(spec, ranks)
        evaluations = Evaluations(spec, algorithm, evaluation, folder, embedder, interrupt.check)
        loop = Loop(
            job, spec, algorithm, evaluations, folder, checkpoints, interrupt, versions, ranks
        )
        tracker = None
        if ranks.first and lease.token > 1 and loop.iteration == 0:
            text = f"no whole checkpoint in {folder.path}: this attempt starts from the beginning"
            log.warning(text)
            lease.emit("warning", {"text": f"warning: {text}"})
        if ranks.first:
            tracker = stack.enter_context(Tracker(job, spec, folder, lease, loop.iteration))
        loop.run(tracker)


def _build(
    spec: JobSpec,
    diffusion: Diffusion,
    scorer: RewardScorer,
    ranks: Ranks,
    interrupt: Interrupt,
    debug: bool,
) -> Algorithm:
    config = spec.algorithm
    common = (spec.prompts, spec.rewards, scorer, spec.seed)
    keep_reference = spec.evaluation.kl and ranks.first  # which alone evaluates
    if isinstance(config, RWRConfig):
        return RWR(
            diffusion, config, *common,
            ranks=ranks, keep_reference=keep_reference, interrupt=interrupt,
        )  # fmt: skip
    return DDPO(
        diffusion, config, *common,
        ranks=ranks, keep_reference=keep_reference, interrupt=interrupt, debug=debug,
    )  # fmt: skip


def _embedder(spec: JobSpec, ranks: Ranks) -> ImageEmbedder | None:
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
