"""Text to batches: `build` a corpus, `tokenize` it into shards, `PackedLoader` for batches from them."""

from qwq.data.documents import Document, read_documents
from qwq.data.loader import PackedLoader
from qwq.data.pipeline import build, heldout_documents
from qwq.data.shards import TokenShards, separator, tokenize

__all__ = [
    "Document",
    "PackedLoader",
    "TokenShards",
    "build",
    "heldout_documents",
    "read_documents",
    "separator",
    "tokenize",
]
