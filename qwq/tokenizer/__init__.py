"""Text to ids and back: training, published vocabularies, chat templates, thinking apart from answers."""

from qwq.tokenizer.base import StreamDecoder, Tokenizer
from qwq.tokenizer.chat import CHATML, encode_chat, render_chat
from qwq.tokenizer.fast import FastTokenizer
from qwq.tokenizer.gguf_vocab import tokenizer_from_gguf
from qwq.tokenizer.load import load_tokenizer
from qwq.tokenizer.spm_train import train_sentencepiece
from qwq.tokenizer.thinking import ThinkSplitter, split_thinking

__all__ = [
    "CHATML",
    "FastTokenizer",
    "StreamDecoder",
    "ThinkSplitter",
    "Tokenizer",
    "encode_chat",
    "load_tokenizer",
    "render_chat",
    "split_thinking",
    "tokenizer_from_gguf",
    "train_sentencepiece",
]
