"""Batches to logits: plain single-device PyTorch. No distributed code, no files."""

from qwq.model.attention import KVCache
from qwq.model.config import ModelConfig
from qwq.model.encoder import Encoder, EncoderDecoder, build
from qwq.model.presets import PRESETS
from qwq.model.transformer import Assembly, Decoder

__all__ = ["PRESETS", "Assembly", "Decoder", "Encoder", "EncoderDecoder", "KVCache", "ModelConfig", "build"]
