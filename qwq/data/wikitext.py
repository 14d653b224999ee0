"""MediaWiki markup to plain paragraphs: templates, tables, references and files go, the prose of an article stays."""

import html
import re

_DROP_TAGS = "ref|math|gallery|timeline|source|syntaxhighlight|table|imagemap|score|hiero|chem|pre"
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_DROPPED = re.compile(rf"<({_DROP_TAGS})\b[^<>]*?(?:/>|>.*?</\1\s*>)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_TABLE = re.compile(r"\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL)
_LINK = re.compile(r"\[\[((?:[^\[\]]|\[(?!\[)|\](?!\]))*)\]\]")
_URL = re.compile(r"\[(?:https?:|ftp:|mailto:)?//[^\s\]]*\s*([^\]]*)\]")
_PIPE = re.compile(r"\|(?![^\[]*\]\])")  # not the one inside a link
_HEADING = re.compile(r"^(={2,6})\s*(.*?)\s*\1\s*$")
_BULLET = re.compile(r"^[*#]+\s*")
_GONE = re.compile(r"^\s*:?\s*(file|image|category|media|wikt|commons|[a-z]{2,3}(-[a-z]+)?)\s*:", re.IGNORECASE)
_BACK_MATTER = re.compile(
    r"^(see also|references?|notes?|footnotes|citations|external links|further reading|bibliography|sources|"
    r"notes and references|references and notes|works cited|gallery|publications|filmography|discography)$",
    re.IGNORECASE,
)
# Templates whose content is part of the sentence -> which positional argument(s) to keep.
_INLINE = {"lang": (1,), "nowrap": (0,), "quote": (0,), "blockquote": (0,), "cquote": (0,), "convert": (0, 1)}
_INLINE |= {"cvt": (0, 1), "nihongo": (0,), "transl": (1,), "sc": (0,), "small": (0,), "angbr": (0,), "abbr": (0,)}
_LITERAL = {"ndash": "–", "mdash": "—", "spaced ndash": " – ", "snd": " – ", "'": "'", "nbsp": " ", "=": "="}


def _template(match: re.Match[str]) -> str:
    name, *arguments = [part.strip() for part in _PIPE.split(match[1])]
    name = name.lower()
    if name in _LITERAL:
        return _LITERAL[name]
    if name in ("circa", "c."):
        return f"c. {arguments[0]}" if arguments else "c."
    name = "lang" if name.startswith("lang-") and (arguments := ["", *arguments]) else name
    if name in ("chem", "chem2"):
        return "".join(arguments)
    positional = [a for a in arguments if not re.match(r"[\w-]+\s*=", a)]
    return " ".join(positional[i] for i in _INLINE.get(name, ()) if i < len(positional))


def _link(match: re.Match[str]) -> str:
    target, _, label = match[1].partition("|")
    if _GONE.match(target) and not target.strip().startswith(":"):
        return ""
    return (label.rsplit("|", 1)[-1] if label else target.lstrip(":")).strip("| ")


def _innermost_first(pattern: re.Pattern[str], replace, text: str) -> str:
    """Nested constructs, from the inside out; ends because each pass removes at least one pair of brackets."""
    changed = 1
    while changed:
        text, changed = pattern.subn(replace, text)
    return text


def plain_text(markup: str) -> str:
    """Paragraphs, headings and list items of an article, one a line, with a blank line before each heading."""
    text = _COMMENT.sub("", markup)
    text = _DROPPED.sub("", text)
    text = _innermost_first(_TEMPLATE, _template, text)
    text = _innermost_first(_TABLE, "", text)
    text = _innermost_first(_LINK, _link, text)
    text = _URL.sub(r"\1", text)
    text = re.sub(r"<br\s*/?>", "\n", text, flags=re.IGNORECASE)
    text = html.unescape(_TAG.sub("", text)).replace("\xa0", " ")
    text = re.sub(r"'{2,5}", "", text)
    text = re.sub(r"__[A-Z]+__", "", text)
    # What a removed pronunciation or citation leaves behind: "( ; born", "(, )", "word ," and doubled spaces.
    text = re.sub(r"\(\s*[;,:]?\s*\)", "", text)
    text = re.sub(r"\(\s*(?:(?:or\s*)?[;,:]\s*)*", "(", text)
    text = re.sub(r"[ \t]+([,.;:)])", r"\1", re.sub(r"[ \t]{2,}", " ", text))
    out: list[str] = []
    heading: list[str] = []  # printed only when a line of prose follows
    skipped_level = 0
    for line in (raw.strip() for raw in text.split("\n")):
        if found := _HEADING.match(line):
            level, title = len(found[1]), found[2]
            if skipped_level and level > skipped_level:
                continue
            skipped_level = level if _BACK_MATTER.match(title) else 0
            heading = [] if skipped_level else ["", title]
        elif line and not skipped_level and not re.match(r"^[|!{}]", line):
            line = "- " + _BULLET.sub("", line) if _BULLET.match(line) else line.lstrip(":; ")
            if re.search(r"\w", line):
                out += [*heading, line]
                heading = []
    return "\n".join(out).strip()
