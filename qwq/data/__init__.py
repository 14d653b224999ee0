"""Text to batches: `build` a corpus, `tokenize` it into shards, load packed batches from them."""

from qwq.data.pipeline import build, heldout_documents

__all__ = ["build", "heldout_documents"]
