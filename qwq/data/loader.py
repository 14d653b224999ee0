"""Batches out of token shards: packed without padding, in an order that only seed and position decide."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qwq.data.shards import TokenShards
from qwq.errors import QwqError, UsageError


class PackedLoader:
    """An endless iterator over (input_ids, labels), int64 [batch_size, seq_len] each; labels are the next tokens.

    The shards are one long row, cut into windows of `seq_len`; each epoch visits every window once, in a permutation
    drawn from (seed, epoch). Rank r of w gets the batches r, r + w, ... of that one sequence, so a run can continue on
    another number of ranks. The state is a position in the sequence; `load_state_dict` refuses the state of other
    tokens, another window length or another seed.
    """

    def __init__(
        self,
        folder: Path | str,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
        checksums: bool = True,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("seq_len", seq_len), ("world_size", world_size)):
            if value < 1:
                raise UsageError(f"{name} must be 1 or more, not {value}")
        if not 0 <= rank < world_size:
            raise UsageError(f"rank must be 0 to {world_size - 1} with world_size {world_size}, not {rank}")
        self.shards = TokenShards(folder, checksums=checksums)
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        self.rank, self.world_size = rank, world_size
        self.windows = (len(self.shards) - 1) // seq_len  # an epoch; the last token is only ever a label
        if not self.windows:
            raise QwqError(
                f"{folder} holds {len(self.shards):,} tokens, and one window of {seq_len:,} needs {seq_len + 1:,}: "
                "give more text or a shorter seq_len"
            )
        self._taken = 0  # windows, by all ranks, since the start
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def epoch(self) -> int:
        """Complete passes over the tokens so far."""
        return self._taken // self.windows

    def _window(self, index: int) -> int:
        """The window at a place of the endless sequence."""
        epoch, place = divmod(index, self.windows)
        if self._order is None or self._order[0] != epoch:
            order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.windows)
            self._order = (epoch, order)
        return int(self._order[1][place])

    def __iter__(self) -> "PackedLoader":
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        first = self._taken + self.rank * self.batch_size
        starts = [self._window(first + i) * self.seq_len for i in range(self.batch_size)]
        rows = torch.from_numpy(np.stack([self.shards[start : start + self.seq_len + 1] for start in starts]))
        self._taken += self.batch_size * self.world_size
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def state_dict(self) -> dict:
        """Position and what it is a position in; plain numbers and text."""
        epoch, position = divmod(self._taken, self.windows)
        return {"epoch": epoch, "position": position} | self._identity()

    def load_state_dict(self, state: dict) -> None:
        """Continue where the state was taken. `QwqError` when it belongs to other data or another order."""
        for name, own in self._identity().items():
            if state.get(name) != own:
                raise QwqError(
                    f"cannot resume the data: {name} was {state.get(name)} and is now {own}; "
                    "resume with the same shards, seq_len and seed"
                )
        self._taken = state["epoch"] * self.windows + state["position"]

    def _identity(self) -> dict:
        shards = "-".join(shard["sha256"][:16] for shard in self.shards.manifest["shards"][:4])
        return {"seed": self.seed, "seq_len": self.seq_len, "tokens": len(self.shards), "shards": shards}
