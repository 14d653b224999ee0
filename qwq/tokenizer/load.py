"""Opening a tokenizer, whatever form it is stored in."""

import json
from pathlib import Path
from typing import Any

from qwq.errors import QwqError
from qwq.tokenizer.base import Tokenizer
from qwq.tokenizer.byte_level import tokenizer_from_tiktoken
from qwq.tokenizer.fast import FastTokenizer
from qwq.tokenizer.gguf_vocab import tokenizer_from_gguf
from qwq.tokenizer.spm_model import tokenizer_from_sentencepiece


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer at `path`: a folder with tokenizer.json, tokenizer.model or *.tiktoken (the first of these), one
    of these files itself, or a .gguf file. Raises QwqError that says what is missing or not supported."""
    path = Path(path)
    if not path.exists():
        raise QwqError(f"no tokenizer at {path}: there is no such file or folder")
    if path.is_dir():
        return _load_folder(path)
    match path.suffix:
        case ".json":
            return _load_json(path)
        case ".model":
            return tokenizer_from_sentencepiece(path.read_bytes(), str(path))
        case ".tiktoken":
            return tokenizer_from_tiktoken(path)
        case ".gguf":
            return tokenizer_from_gguf(path)
    raise QwqError(f"{path} is no tokenizer: expected tokenizer.json, tokenizer.model, *.tiktoken or *.gguf")


def _load_folder(folder: Path) -> Tokenizer:
    found = [folder / "tokenizer.json", folder / "tokenizer.model", *sorted(folder.glob("*.tiktoken"))]
    for path in found:
        if path.exists():
            return load_tokenizer(path)
    raise QwqError(f"no tokenizer in {folder}: expected tokenizer.json, tokenizer.model or *.tiktoken")


def _load_json(path: Path) -> Tokenizer:
    spec = _read_json(path)
    if "model" not in spec or "added_tokens" not in spec:
        raise QwqError(f"{path} is no tokenizer.json: it has no 'model' or no 'added_tokens'")
    config = _read_json(path.with_name("tokenizer_config.json"), missing={})
    template = path.with_name("chat_template.jinja")
    if template.exists():
        config["chat_template"] = template.read_text(encoding="utf-8")
    eos = _read_json(path.with_name("generation_config.json"), missing={}).get("eos_token_id")
    model = path.with_name("tokenizer.model")
    return FastTokenizer(
        spec,
        config,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        sentencepiece_model=model.read_bytes() if model.exists() else None,
    )


def _read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    if missing is not None and not path.exists():
        return missing
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise QwqError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise QwqError(f"{path} must hold a JSON object")
    return content
