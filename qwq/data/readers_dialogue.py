"""Rows to documents: plain text, news, chats in the forms that circulate, threads of comments, translations.

A thread becomes one chat for each answer to its post, along the best-rated replies: those who speak first, third ...
are the user. A chat ends with the assistant.
"""

import itertools
import re
from collections.abc import Iterator

from qwq.data.documents import Document, Message

_ROLES = {"human": "user", "user": "user", "customer": "user", "gpt": "assistant", "assistant": "assistant"}
_ROLES |= {"system": "system", "bot": "assistant", "chatgpt": "assistant", "model": "assistant", "tool": "tool"}
_PAIRS = (("instruction", "output"), ("prompt", "response"), ("prompt", "completion"), ("question", "answer"))
_TEXTS = ("text", "content", "article", "body")
_DATES = ("date", "published", "publish_date", "published_date", "date_publish", "pubdate")
_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_GONE = {"[deleted]", "[removed]", ""}
DEPTH = 64  # turns of a thread


def documents_of(row: object, source: str) -> list[Document]:
    """The documents of one row. `ValueError` says what it lacks."""
    if not isinstance(row, dict):
        if isinstance(row, list) and row and isinstance(row[0], dict) and row[0].get("kind") == "Listing":
            return _thread(_listing(row), source)
        raise ValueError(f"a JSON object was expected, not {type(row).__name__}")
    if isinstance(row.get("translation"), dict):
        return [_pair(row, source)]
    for key in ("conversations", "conversation", "turns", "dialogue", "dialog"):
        if isinstance(row.get(key), list) and row[key] and "messages" not in row:
            return [_chat(row, row[key], source)]
    if "comments" in row or "replies" in row:
        return _thread(row, source)
    for question, answer in _PAIRS:
        if isinstance(row.get(question), str) and isinstance(row.get(answer), str) and "text" not in row:
            asked = "\n\n".join(part for part in (row[question], row.get("input")) if isinstance(part, str) and part)
            return [_document(row, source, [_message("user", asked), _message("assistant", row[answer])])]
    text = next((row[key] for key in _TEXTS if isinstance(row.get(key), str)), None)
    if text is not None and "<|im_start|>" in text:
        messages = [_message(role, content) for role, content in _CHATML.findall(text)]
        if messages:
            return [_document(row, source, messages)]
    document = Document.from_json(row if text is None else row | {"text": text}, source)
    if isinstance(row.get("title"), str) and any(row.get(key) for key in _DATES) and document.kind == "text":
        document.kind = "news"
        document.text = f"{row['title']}\n\n{document.text}"
    return [_with_meta(document, row)]


def _document(row: dict, source: str, messages: list[Message]) -> Document:
    fields = {key: row[key] for key in ("license", "language", "source") if isinstance(row.get(key), str)}
    return _with_meta(Document.from_json(fields | {"messages": messages}, source), row)


def _with_meta(document: Document, row: dict) -> Document:
    """Where it came from, as far as the row says; an own `meta` of the row stays."""
    keys = ("id", "dialogue_id", "url", "title", "author", "subreddit", "services", *_DATES)
    document.meta = {key: row[key] for key in keys if isinstance(row.get(key), str | int | list)} | document.meta
    return document


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _chat(row: dict, turns: list, source: str) -> Document:
    """ShareGPT (`from`, `value`), Schema-Guided Dialogue (`speaker`, `utterance`), or plain turns by two speakers."""
    messages = []
    for number, turn in enumerate(turns):
        if isinstance(turn, str):
            turn = {"role": ("user", "assistant")[number % 2], "content": turn}
        if not isinstance(turn, dict):
            raise ValueError(f"turn {number + 1} is {type(turn).__name__}, where an object or a text was expected")
        role = str(turn.get("role") or turn.get("from") or turn.get("speaker") or "").lower()
        content = next(
            (turn[k] for k in ("content", "value", "utterance", "text") if isinstance(turn.get(k), str)), None
        )
        if content is None:
            raise ValueError(f"turn {number + 1} has no text (content, value, utterance)")
        if "speaker" in turn and role == "system":
            role = "assistant"  # the system that answers, as task-oriented dialogue calls it
        messages.append(_message(_ROLES.get(role, ("user", "assistant")[number % 2]), content))
    return _document(row, source, messages)


def _pair(row: dict, source: str) -> Document:
    sides = [(k, v) for k, v in row["translation"].items() if isinstance(v, str)]
    if len(sides) != 2:
        raise ValueError(f'"translation" needs two languages, not {len(sides)}')
    return _with_meta(pair(*sides[0], *sides[1], source), row)


def pair(language: str, text: str, other: str, other_text: str, source: str = "", **meta: object) -> Document:
    """A segment in two languages: two lines of text, and in `meta["languages"]` which they are."""
    languages = [name.lower().replace("_", "-").split("-")[0] for name in (language, other)]
    lines = "\n".join(" ".join(side.split()) for side in (text, other_text))
    return Document(lines, source, language="-".join(languages), kind="parallel", meta={"languages": languages, **meta})


def threads(rows: Iterator[tuple[int, object]]) -> Iterator[tuple[int, object]]:
    """Rows as they are, but comments (`body`, `parent_id`) that follow each other under one `link_id` as one thread."""

    def link(item: tuple[int, object]) -> object:
        row = item[1]
        if not isinstance(row, dict) or not isinstance(row.get("body"), str) or "parent_id" not in row:
            return None
        return row.get("link_id") or ""

    for thread, group in itertools.groupby(rows, link):
        if thread is None:
            yield from group
            continue
        numbered = list(itertools.islice(group, 100_000))
        comments = [row for _, row in numbered if isinstance(row, dict)]
        by_parent: dict[str, list] = {}
        names = {_name(comment) for comment in comments}
        for comment in comments:
            by_parent.setdefault(_bare(comment["parent_id"]), []).append(comment)
        for comment in comments:
            comment["replies"] = by_parent.get(_name(comment), [])
        roots = [comment for comment in comments if _bare(comment["parent_id"]) not in names]
        yield numbered[0][0], {"id": str(thread), "comments": roots}


def _bare(name: object) -> str:
    return str(name).rpartition("_")[2]


def _name(comment: dict) -> str:
    return _bare(comment.get("name") or comment.get("id"))


def _listing(row: list) -> dict:
    """A thread as Reddit's interface gives it: [the post's listing, the comments' listing]."""

    def things(listing: object) -> list[dict]:
        children = listing.get("data", {}).get("children", []) if isinstance(listing, dict) else []
        return [child["data"] for child in children if isinstance(child, dict) and isinstance(child.get("data"), dict)]

    posts, stack = things(row[0]), [things(listing) for listing in row[1:]]
    roots = [comment for listing in stack for comment in listing]
    todo = list(roots)
    while todo:
        comment = todo.pop()
        comment["replies"] = things(comment.get("replies"))
        todo += comment["replies"]
    return (posts[0] if posts else {}) | {"comments": roots}


def _thread(row: dict, source: str) -> list[Document]:
    """One chat for each answer to the post. A run of turns by one author is one turn."""
    post = "\n\n".join(row[k].strip() for k in ("title", "selftext", "body") if isinstance(row.get(k), str))
    documents = []
    for answer in _best_first(row.get("comments", row.get("replies"))):
        turns: list[tuple[object, str]] = [(row.get("author"), post)] if post not in _GONE else []
        comment: dict | None = answer
        while comment is not None and len(turns) < DEPTH:
            body = str(comment.get("body", comment.get("text", ""))).strip()
            if body in _GONE:
                break
            author = comment.get("author")
            if turns and author is not None and turns[-1][0] == author:
                turns[-1] = (author, f"{turns[-1][1]}\n\n{body}")
            else:
                turns.append((author, body))
            comment = next(iter(_best_first(comment.get("replies", comment.get("comments")))), None)
        turns = turns[: len(turns) // 2 * 2]
        if turns:
            messages = [_message(("user", "assistant")[i % 2], text) for i, (_, text) in enumerate(turns)]
            documents.append(_document(row, source, messages))
    return documents


def _best_first(comments: object) -> list[dict]:
    if not isinstance(comments, list):
        return []
    found = [comment for comment in comments if isinstance(comment, dict)]
    return sorted(found, key=lambda comment: -(comment["score"] if isinstance(comment.get("score"), int) else 0))
