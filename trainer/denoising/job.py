"""Jobs that train the denoising network of a diffusers pipeline. No torch here."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from salon.errors import InvalidRequest, SalonError
from salon.settings import Settings
from salon.stand_ins import is_stand_in, refusal
from trainer.denoising.config import DenoisingConfig, unknown_targets
from trainer.denoising.pipelines.folder import PipelineFolder
from trainer.spec.places import missing_model
from trainer.spec.rewarded_job import RewardedJob
from trainer.spec.submission import check_absent, trains_here


class DenoisingJob(RewardedJob):
    """A Stable Diffusion pipeline, trained on its own samples by their rewards."""

    paths: ClassVar[tuple[str, ...]] = ("model", *RewardedJob.paths)
    health: ClassVar[Mapping[str, str]] = {
        "grad_norm": "gradient norm before it is scaled down",
        "reward_wait_fraction": "share of time spent waiting for rewards",
    }

    how_to_load: ClassVar[Path | None] = Path(__file__).with_name("how_to_load.md.j2")

    algorithm: DenoisingConfig = Field(description="Which algorithm, and its hyperparameters.")
    model: str = Field(
        description="A diffusers StableDiffusionPipeline or StableDiffusionXLPipeline: a folder or "
        "a hub id."
    )
    allow_stand_ins: bool = Field(
        False,
        description="Rewards may be served by small stand-ins, though the generator is none: their "
        "scores are for trying things out.",
    )

    @property
    def base_model(self) -> str:
        """See `RewardedJob.base_model`."""
        return self.model

    def front_matter(self) -> dict[str, Any]:
        """See `RewardedJob.front_matter`."""
        lora = self.algorithm.lora is not None
        fields: dict[str, Any] = {
            "library_name": "diffusers",
            "pipeline_tag": "text-to-image",
            "tags": ["diffusers", *super().front_matter()["tags"], *["lora"] * lora],
        }
        if is_stand_in(self.model):  # what is made of one is one
            fields["stand_in"] = True
        # The hub takes ids of its own models alone; a local folder is named in the text.
        if not Path(self.model).is_absolute():
            fields["base_model"] = self.model
            fields["base_model_relation"] = "adapter" if lora else "finetune"
        return fields

    def _too_few_batches(self) -> str:
        config = self.algorithm
        return (
            f"an iteration has only {config.batches} batches of {config.sample_batch_size} samples "
            "to share out: raise algorithm.samples_per_iteration, or lower "
            "algorithm.sample_batch_size or num_processes"
        )

    @property
    def refusal(self) -> Callable[[str], SalonError] | None:
        """See `RewardedJob.refusal`: a stand-in trains but what is one itself, or for a trial."""
        if self.allow_stand_ins or is_stand_in(self.model):
            return None
        return lambda reward: refusal([reward], self.model)

    def missing(self, folders: Sequence[Path]) -> Iterator[str]:
        """See `JobSpec.missing`."""
        yield from super().missing(folders)
        yield from missing_model("model", self.model, folders)

    def check_inputs(self, settings: Settings, *, here: bool = False) -> None:
        """See `JobSpec.check_inputs`."""
        super().check_inputs(settings, here=here)
        check_generator(self.model, self.algorithm, here or trains_here(settings))


def check_generator(model: str, config: DenoisingConfig, here: bool) -> None:
    """Refuse a folder that is not there or cannot be drawn with, and LoRA on layers it lacks.

    A folder that is not here may be where the trainers are.

    Args:
        model: a folder or a hub id.
        config: how it is trained.
        here: whether the trainers are known to run on this host.

    Raises:
        InvalidRequest: one line: what is wrong with it.
    """
    if not Path(model).is_dir():
        check_absent("model", Path(model), here)
        return
    folder = PipelineFolder(Path(model), model)
    folder.check(config.sampling_steps)
    lora = config.lora
    layers = {name.rpartition(".")[0] for name in folder.shapes("unet")}
    if lora is not None and (wrong := unknown_targets(lora.target_modules, layers)):
        raise InvalidRequest(f"algorithm.{wrong}")
