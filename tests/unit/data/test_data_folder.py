"""A folder of texts as corpus."""

import gzip
from pathlib import Path

import pypdf
import pytest

from flows.data.folder import read_corpus
from flows.errors import DataError, UserError


def pdf(text: str, title: str = "") -> bytes:
    """The smallest PDF with a line of text a page break (\\f)."""
    pages = text.split("\f")
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, page in enumerate(pages):
        lines = " ".join(f"({line}) Tj 0 -14 Td" for line in page.split("\n"))
        stream = f"BT /F1 12 Tf 72 700 Td {lines} ET" if page else ""
        resources = "<< /Font << /F1 3 0 R >> >>"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources {resources} /Contents {5 + 2 * n} 0 R >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects.append(f"<< /Title ({title}) >>")
    body, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    trailer = f"trailer\n<< /Size {size} /Root 1 0 R /Info {size - 1} 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return f"{body}xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode()


def sections(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    (document,) = read_corpus(path).documents
    return [(section.heading, section.paragraphs) for section in document.sections]


def test_documents_are_named_by_their_path_and_come_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_text("Two.")
    (tmp_path / "a.md").write_text("One.")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"Three."))
    (tmp_path / ".hidden.txt").write_text("Hidden.")
    (tmp_path / "picture.png").write_bytes(b"x")
    source = read_corpus(tmp_path)
    assert [(document.id, document.title) for document in source.documents] == [("a.md", "a"), ("b/two.txt", "two"), ("c.txt.gz", "c")]
    assert [(one.item, "not one of .txt" in one.reason) for one in source.skipped] == [("picture.png", True)]
    assert (source.rows_read, source.items) == (3, ())


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_divide_paragraphs_of_plain_text(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffOne\ntwo.\n\n \nThree.\n".replace("\n", end).encode())
    assert sections(tmp_path) == [("", ("One\ntwo.", "Three."))]


def test_headings_of_markdown_begin_sections(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "---\ntitle: x\n---\nIntro with a [link](http://x.y) and `code`.\n\n# Tea *time*\n\nFirst\nline.\n\n- one\n- two\n\n"
        "Kinds\n-----\n\n| kind | taste |\n|---|---|\n| green | mild |\n\n```\ncode  block\n```\n\n<div>html <b>block</b></div>\n"
    )
    assert read_corpus(tmp_path).documents[0].title == "Tea time"
    assert sections(tmp_path) == [
        ("", ("Intro with a link and code.",)),
        ("", ("First\nline.", "one\ntwo")),
        ("Kinds", ("kind | taste\ngreen | mild", "code  block", "html block")),
    ]


def test_headings_of_html_begin_sections(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        "<!doctype html><html><head><title>Tea &amp; more</title><style>p{}</style></head><body>Loose <b>text</b><!-- note -->\n"
        "<script>var x;</script><h1>Tea</h1><div><p>First\n paragraph.</p>tail</div><h2>Kinds</h2>"
        "<table><tr><th>kind</th><th>taste</th></tr><tr><td>green</td><td>mild</td></tr></table><ul><li>one</li><li>two<br>more</li></ul>"
        "<pre>a  b\n c</pre></body></html>"
    )
    assert read_corpus(tmp_path).documents[0].title == "Tea & more"
    assert sections(tmp_path) == [
        ("", ("Loose text",)),
        ("Tea", ("First paragraph.", "tail")),
        ("Tea > Kinds", ("kind | taste", "green | mild", "one", "two more", "a  b\n c")),
    ]


def test_a_section_is_named_by_the_path_of_headings_without_the_title(tmp_path: Path) -> None:
    levels = (("# Tea", "a"), ("## Kinds", "b"), ("#### Green\nand mild", "c"), ("### Black", "d"), ("## History", "e"), ("# Coffee", "f"))
    (tmp_path / "a.md").write_text("\n\n".join(part for level in levels for part in level))
    assert sections(tmp_path) == [
        ("", ("a",)),
        ("Kinds", ("b",)),
        ("Kinds > Green", ("and mild", "c")),
        ("Kinds > Black", ("d",)),
        ("History", ("e",)),
        ("Coffee", ("f",)),
    ]


def test_a_heading_without_text_is_no_step_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        "<head><title>T</title></head><h1>Tea</h1><h2><img></h2><p>a</p><h3>Green</h3><p>b</p><h2>T</h2><p>c</p>"
    )
    assert sections(tmp_path) == [("Tea", ("a",)), ("Tea > Green", ("b",)), ("Tea", ("c",))]


def test_a_page_in_another_encoding_is_read_as_it_declares(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_bytes('<meta charset="iso-8859-1"><p>thé</p>'.encode("iso-8859-1"))
    assert sections(tmp_path) == [("", ("thé",))]


def test_pages_of_a_pdf_are_sections_and_cut_words_are_joined(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("Tea is a re-\nfreshing drink.\fSecond page.", "On tea"))
    assert read_corpus(tmp_path).documents[0].title == "On tea"
    assert sections(tmp_path) == [("page 1", ("Tea is a refreshing drink.",)), ("page 2", ("Second page.",))]


def test_every_file_that_cannot_be_used_is_named_with_its_reason(tmp_path: Path) -> None:
    encrypted = pypdf.PdfWriter()
    encrypted.add_blank_page(100, 100)
    encrypted.encrypt("secret", algorithm="RC4-128")
    encrypted.write(tmp_path / "locked.pdf")
    files = {
        "empty.txt": b"",
        "broken.pdf": b"%PDF-1.4 and no more",
        "scan.pdf": pdf(""),
        "latin.txt": "thé".encode("iso-8859-1"),
        "latin.html": "<p>thé</p>".encode("iso-8859-1"),
        "blank.html": b"<html><script>x</script></html>",
        "cut.txt.gz": gzip.compress(b"text" * 100)[:-10],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("Good.")
    with pytest.raises(DataError) as caught:
        read_corpus(tmp_path)
    reasons = {Path(row.file).name: row.reason for row in caught.value.bad_rows}
    expected = {
        "empty.txt": "is empty",
        "broken.pdf": "not a readable PDF",
        "locked.pdf": "not a readable PDF",
        "scan.pdf": "holds no text; a scan needs text recognition",
        "latin.txt": "not valid UTF-8",
        "latin.html": "not valid UTF-8",
        "blank.html": "holds no text",
        "cut.txt.gz": "gzip file is corrupt",
    }
    assert {name: part in reasons[name] for name, part in expected.items()} == dict.fromkeys(expected, True)
    assert set(reasons) == set(expected)
    kept = read_corpus(tmp_path, bad_rows="skip")
    assert ([document.id for document in kept.documents], len(kept.bad_rows)) == (["good.txt"], 8)


def test_one_file_may_be_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One.")
    assert [document.id for document in read_corpus(tmp_path / "a.txt").documents] == ["a.txt"]


def test_a_folder_that_is_missing_or_holds_no_text_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        read_corpus(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no \.txt, \.md"):
        read_corpus(tmp_path)
