"""Rows of what a UNet is told."""

import torch

from trainer.denoising.conditioning import Conditioning


def make(rows, xl):
    values = torch.tensor(rows, dtype=torch.float32)
    return Conditioning(
        values.view(-1, 1, 1).expand(-1, 2, 3),
        values.view(-1, 1).expand(-1, 4) if xl else None,
        values.view(-1, 1).expand(-1, 6) if xl else None,
    )


def rows_of(conditioning):
    parts = [conditioning.embeddings, conditioning.pooled, conditioning.time_ids]
    rows = {tuple(part.flatten(1)[:, 0].tolist()) for part in parts if part is not None}
    assert len(rows) == 1
    return list(rows.pop())


def test_rows_of_all_parts_go_together():
    for xl in (False, True):
        told = make([1, 2, 3], xl)
        assert len(told) == 3
        assert rows_of(told[1:]) == [2, 3]
        assert rows_of(told[torch.tensor([2, 0, 2])]) == [3, 1, 3]
        assert rows_of(Conditioning.cat([told, told[:1]])) == [1, 2, 3, 1]
        assert rows_of(told[:1].expand(3)) == [1, 1, 1]
        assert (told.pooled is None) == (told.time_ids is None) == (not xl)
