"""QwQ: from raw text to a safe chat page.

import qwq
lm = qwq.load("smollm2")                       # or a folder, a .gguf file, a hub id
lm.generate("The capital of France is", max_tokens=8, temperature=0)
lm.chat([{"role": "user", "content": "Hi"}])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwq.engine import LanguageModel

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(model: str, *, device: str = "cpu", **engine: Any) -> "LanguageModel":
    """Load a model: a folder (this project's or Hugging Face's), a .gguf file, a hub id, or a built-in name.

    `engine`: max_batch_size, max_queue. Raises `qwq.errors.QwqError` with one line where the model cannot be had.
    """
    from qwq.checkpoint import load as load_checkpoint
    from qwq.engine import LanguageModel

    return LanguageModel(load_checkpoint(model, device=device), **engine)
