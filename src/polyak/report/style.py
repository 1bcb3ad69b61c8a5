"""The frame around every page: the head with its policy and the style sheet (`style.css`), the body, the foot."""

from pathlib import Path

from polyak.report.text import clean

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def document(title: str, body: str, foot: str, rules: str = "") -> str:
    """A whole page. `title` is foreign text, `body` and `foot` are finished HTML, `rules` further style of this page.

    The content security policy forbids scripts and every request, so that a page stays what it is: a document.
    """
    sheet = Path(__file__).with_name("style.css").read_text("utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{clean(title)}</title>\n<style>{sheet}{rules}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n<footer>{foot}</footer>\n</main>\n</body>\n</html>\n"
    )
