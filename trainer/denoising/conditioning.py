"""What a UNet is told about the image it is to draw."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Of N samples; the last two are there for Stable Diffusion XL alone."""

    embeddings: Tensor  # [N, L, D], a vector per token
    pooled: Tensor | None = None  # [N, P], one vector of the whole prompt
    time_ids: Tensor | None = None  # [N, 6]: original height and width, crop, target size

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """The samples of a slice, or of an index tensor [n]."""
        return type(self)(
            self.embeddings[rows],
            None if self.pooled is None else self.pooled[rows],
            None if self.time_ids is None else self.time_ids[rows],
        )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All samples of all parts, in order; the parts are of one kind of model."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        time_ids = [part.time_ids for part in parts if part.time_ids is not None]
        return cls(
            torch.cat([part.embeddings for part in parts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(time_ids) if time_ids else None,
        )

    def expand(self, count: int) -> Self:
        """The one sample that this holds, `count` times, in the memory of one."""
        return type(self)(
            self.embeddings.expand(count, -1, -1),
            None if self.pooled is None else self.pooled.expand(count, -1),
            None if self.time_ids is None else self.time_ids.expand(count, -1),
        )
