"""Tokens to people: an OpenAI-compatible HTTP API and the chat page."""

from qwq.serve.app import create_app
from qwq.serve.run import serve

__all__ = ["create_app", "serve"]
