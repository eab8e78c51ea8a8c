"""Reads a folder of .txt, .md, .html and .pdf files as documents; with .gz too. Knows no questions.

A document's id is the file's path in the folder. Headings of Markdown and HTML begin sections, which are named by the path of headings
above them; a page of a PDF is a section. The title is the HTML or PDF title, else the first heading of level 1, else the file's name. A
file that is empty, broken or without text (a scanned PDF) is a bad row; a file of another kind is listed as skipped; names that begin with
a dot are not looked at.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import bs4
import pypdf
from bs4.dammit import EncodingDetector
from bs4.element import NavigableString
from markdown_it import MarkdownIt
from markdown_it.token import Token

from flows.data.files import decode, read_bytes, suffix
from flows.data.headings import Outline, heading_path
from flows.data.source import BadRows, Collector, RowError, Source
from flows.errors import DataError, UserError
from flows.records import Document, Section

_BLANK_LINE = re.compile(r"\n\s*\n")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n(?:---|\.\.\.)\n", re.DOTALL)
_NOT_TEXT = ("script", "style", "noscript", "template", "head")
_INLINE = frozenset(
    re.findall(
        r"\w+", "a abbr b bdi bdo br cite code data dfn em font i img ins del kbd mark q s samp small span strong sub sup time tt u var wbr"
    )
)

_CELLS = ("td", "th")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


def read_corpus(path: Path, *, bad_rows: BadRows = "error") -> Source:
    """All documents of a folder and its folders, in order of path; or one file. `rows_read` counts files. Raises DataError, UserError."""
    if not path.exists():
        raise UserError(f"There is no folder {path}: check the path.")
    root = path if path.is_dir() else path.parent
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    collector = Collector(path, bad_rows)
    for file in files:
        name = file.relative_to(root)
        if any(part.startswith(".") for part in name.parts):
            continue
        parse = _FORMATS.get(suffix(file))
        if parse is None:
            collector.skip(str(file), 1, name.as_posix(), f"not one of {', '.join(_FORMATS)}")
            continue
        with collector.row(str(file), 1):
            try:
                title, sections = parse(read_bytes(file))
            except UserError as error:
                raise RowError(str(error.bad_rows[0].reason if isinstance(error, DataError) and error.bad_rows else error)) from None
            if not any(section.paragraphs for section in sections):
                raise RowError("holds no text" + ("; a scan needs text recognition (OCR) first" if suffix(file) == ".pdf" else ""))
            collector.add_document(Document(name.as_posix(), title or _stem(file), tuple(sections)))
    if not collector.rows_read:
        raise DataError(f"{path} holds no {', '.join(_FORMATS)} file", advice="Check that it is the right folder.")
    return collector.source()


def _stem(file: Path) -> str:
    return Path(file.stem).stem if file.suffix.lower() == ".gz" else file.stem


_Parsed = tuple[str, list[Section]]


class _Outline:
    """Collects paragraphs under headings."""

    def __init__(self) -> None:
        self.title = ""
        self._headings = Outline()
        self._sections: list[tuple[tuple[str, ...], list[str]]] = [((), [])]

    def heading(self, text: str, level: int) -> None:
        if level == 1 and not self.title:
            self.title = text
        self._sections.append((self._headings.enter(text, level), []))

    def paragraph(self, text: str) -> None:
        if text.strip():
            self._sections[-1][1].append(text.strip())

    def document(self, title: str = "") -> _Parsed:
        """Title and sections; the title given, else the outline's own."""
        title = title or self.title
        return title, [Section(heading_path(path, title), tuple(paragraphs)) for path, paragraphs in self._sections if paragraphs]


def _paragraphs(text: str) -> list[str]:
    return [one.strip() for one in _BLANK_LINE.split(text.replace("\r\n", "\n").replace("\r", "\n")) if one.strip()]


def _txt(data: bytes) -> _Parsed:
    return "", [Section("", tuple(_paragraphs(decode(data))))]


def _markdown(data: bytes) -> _Parsed:
    text = _FRONT_MATTER.sub("", decode(data).replace("\r\n", "\n"))
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    outline, block = _Outline(), list[Token]()
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:  # a block of the top level ends here
            content = _markdown_text(block)
            if block[0].type == "heading_open":
                outline.heading(content, int(block[0].tag[1]))
            else:
                outline.paragraph(content)
            block = []
    return outline.document()


def _markdown_text(block: list[Token]) -> str:
    lines: list[str] = []
    cells: list[str] | None = None
    for token in block:
        if token.type == "tr_open":
            cells = []
        elif token.type == "tr_close" and cells is not None:
            lines.append(" | ".join(cells))
            cells = None
        elif token.type == "inline":
            text = "".join(_inline(child) for child in token.children or [])
            (lines if cells is None else cells).append(text)
        elif token.type in ("fence", "code_block"):
            lines.append(token.content.rstrip())
        elif token.type == "html_block":
            lines.append(bs4.BeautifulSoup(token.content, "html.parser").get_text(" ", strip=True))
    return "\n".join(lines)


def _inline(token: Token) -> str:
    if token.type in ("softbreak", "hardbreak"):
        return "\n"
    return token.content if token.type in ("text", "code_inline", "image") else ""


def _html(data: bytes) -> _Parsed:
    soup = bs4.BeautifulSoup(_decode_html(data), "html.parser")
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    for tag in soup.find_all(_NOT_TEXT):
        tag.decompose()
    outline = _Outline()
    rest = _blocks(soup, outline, "")
    outline.paragraph(" ".join(rest.split()))
    return outline.document(title)


def _decode_html(data: bytes) -> str:
    try:
        return decode(data)
    except RowError:
        # Not a guess: the encoding that the page itself declares.
        declared = EncodingDetector.find_declared_encoding(data, is_html=True)
        if not declared:
            raise
        try:
            return data.decode(declared)
        except (UnicodeDecodeError, LookupError):
            raise RowError(f"neither UTF-8 nor the encoding that it declares ({declared}); save the file as UTF-8") from None


def _blocks(parent: bs4.Tag, outline: _Outline, text: str) -> str:
    """Walks the tree; every block element ends the paragraph before it. Gives back the text not yet ended."""
    for child in parent.children:
        if isinstance(child, bs4.Tag):
            if child.name in _HEADINGS:
                outline.paragraph(" ".join(text.split()))
                outline.heading(child.get_text(" ", strip=True), int(child.name[1]))
                text = ""
            elif child.name == "pre":
                outline.paragraph(" ".join(text.split()))
                outline.paragraph(child.get_text())
                text = ""
            elif child.name in _CELLS:
                text = _blocks(child, outline, f"{text} | " if text.strip() else text)
            elif child.name in _INLINE:
                text = f"{text} " if child.name == "br" else _blocks(child, outline, text)
            else:
                outline.paragraph(" ".join(text.split()))
                text = _blocks(child, outline, "")
                outline.paragraph(" ".join(text.split()))
                text = ""
        elif type(child) is NavigableString:  # its subclasses are comments, doctypes and the like
            text += str(child)
    return text


def _pdf(data: bytes) -> _Parsed:
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        title = (reader.metadata.title if reader.metadata else None) or ""
        pages = [page.extract_text() for page in reader.pages]
    except Exception as error:  # pypdf raises errors of many kinds on a malformed file
        raise RowError(f"not a readable PDF: {error or type(error).__name__}") from error
    # Lines of a PDF are lines of the layout; a word cut at the end of a line is joined again.
    sections = [
        Section(f"page {number}", tuple(" ".join(re.sub(r"(?<=\w)-\n(?=[a-z])", "", one).split()) for one in _paragraphs(text)))
        for number, text in enumerate(pages, 1)
    ]
    return title.strip(), [section for section in sections if section.paragraphs]


_FORMATS: Mapping[str, Callable[[bytes], _Parsed]] = {
    ".txt": _txt,
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
}
