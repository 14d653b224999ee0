"""Batches to logits: plain single-device PyTorch. No distributed code, no files."""

from qwq.model.attention import KVCache
from qwq.model.config import ModelConfig
from qwq.model.presets import PRESETS
from qwq.model.transformer import Decoder

__all__ = ["PRESETS", "Decoder", "KVCache", "ModelConfig"]
