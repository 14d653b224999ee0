"""Parting what a model thinks from what it answers, in text that comes in pieces.

QwQ's template ends with the opening tag, so its output holds only the closing one; other models write both, or
neither. What stands in quotation marks or backticks (`</think>`) is talk about the tag, not the tag.
"""

OPEN, CLOSE = "<think>", "</think>"
_QUOTES = {"`": "`", "'": "'", '"': '"', "\u2018": "\u2019", "\u201c": "\u201d", "\u300c": "\u300d"}
_NEWLINES = "\r\n"


class ThinkSplitter:
    """Parts streamed text into (reasoning, content); however the text is cut into pieces, the parts are the same.

    in_thinking: the prompt ended with the opening tag. Otherwise text that begins with `<think>` is thinking up to
    `</think>`, and any other text is content. Line ends next to a tag are dropped.
    """

    def __init__(self, in_thinking: bool = False) -> None:
        self.in_thinking = in_thinking
        self.has_thinking = in_thinking
        self._at_start = True  # of the output, or (after a tag) of a part: white space is not decided on yet
        self._may_open = True
        self._before = ""  # the character in front of what is held
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """The (reasoning, content) that this piece completes; an end that may belong to a tag waits."""
        return self._take(text, final=False)

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end of the output."""
        return self._take("", final=True)

    def _take(self, text: str, *, final: bool) -> tuple[str, str]:
        self._held += text
        if self._may_open and not self._opened(final):
            return "", ""
        reasoning = ""
        if self.in_thinking:
            reasoning = self._reasoning(final)
            if self.in_thinking:
                return reasoning, ""
        content = self._without_first_newlines()
        return reasoning, content

    def _opened(self, final: bool) -> bool:
        """Look for the opening tag at the very start; False while that is undecided. In thinking, a second one goes."""
        start = self._held.lstrip()
        if not final and len(start) < len(OPEN) and OPEN.startswith(start):
            return False
        self._may_open = False
        if start.startswith(OPEN):
            self._held = start[len(OPEN) :]
            self.in_thinking = self.has_thinking = True
        elif not self.in_thinking:
            self._at_start = False  # an answer without thinking keeps its white space
        return True

    def _reasoning(self, final: bool) -> str:
        self._held = self._without_first_newlines()
        at = find_close(self._held, before=self._before, final=final)
        if at is None:
            done, self._held = self._held, ""
            if not final:
                keep = _undecided(done)
                done, self._held = done[: len(done) - keep], done[len(done) - keep :]
            self._before = done[-1:] or self._before
            return done
        done, self._held = self._held[:at], self._held[at + len(CLOSE) :]
        self.in_thinking = False
        self._at_start = True
        return done.rstrip(_NEWLINES)

    def _without_first_newlines(self) -> str:
        text, self._held = self._held, ""
        if self._at_start:
            text = text.lstrip(_NEWLINES)
            self._at_start = not text
        return text


def split_thinking(text: str, in_thinking: bool = False) -> tuple[str | None, str]:
    """(reasoning, content) of a whole output; reasoning is None where there was no thinking.

    Without `in_thinking`, a closing tag that stands alone on its line and was never opened still ends thinking: the
    form in which QwQ's outputs are often stored.
    """
    span = thinking_span(text)
    splitter = ThinkSplitter(in_thinking or span is not None)
    parts = [splitter.push(text), splitter.flush()]
    reasoning, content = ("".join(part) for part in zip(*parts, strict=True))
    return (reasoning if splitter.has_thinking else None), content


def thinking_span(text: str) -> tuple[int, int] | None:
    """(start, end) of finished thinking in a stored output: from behind `<think>` (or 0) to the closing tag."""
    start = text.lstrip()
    if start.startswith(OPEN):
        begin = len(text) - len(start) + len(OPEN)
        end = find_close(text[begin:])
        return None if end is None else (begin, begin + end)
    at = find_close(text)
    if at is None:
        return None
    line = text[text.rfind("\n", 0, at) + 1 :].split("\n", 1)[0]
    return (0, at) if line.strip() == CLOSE else None


def find_close(text: str, *, before: str = "", final: bool = True) -> int | None:
    """Where the first closing tag is that is not quoted. `before`: the character in front of `text`; unless `final`,
    a tag at the very end behind a quotation mark is undecided, and not found yet."""
    at = text.find(CLOSE)
    while at >= 0:
        quote = _QUOTES.get(text[at - 1] if at else before)
        after = text[at + len(CLOSE) :][:1]
        if quote is None or (after != quote and (after or final)):
            return at
        at = text.find(CLOSE, at + 1)
    return None


def _undecided(text: str) -> int:
    """How many characters at the end must wait: line ends, the start of a tag, a quoted tag whose end is not seen."""
    keep = next((n for n in range(len(CLOSE), 0, -1) if text.endswith(CLOSE[:n])), 0)
    body = text[: len(text) - keep]
    return keep + len(body) - len(body.rstrip(_NEWLINES))
