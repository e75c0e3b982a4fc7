"""What the pages of a folder link to and load, so that dead links and files from elsewhere are found before a reader finds them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {"script": "src", "img": "src", "source": "src", "video": "src", "audio": "src", "iframe": "src"}


@dataclass
class Links:
    """Of all pages of a folder: what is wrong, as one sentence each, and which addresses elsewhere they link to."""

    problems: list[str] = field(default_factory=list)
    outside: dict[str, set[str]] = field(default_factory=dict)  # address -> names of the pages


class _Page(HTMLParser):
    """The anchors, links and loaded files of one page."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if given.get(name))
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag == "link" and set(given.get("rel", "").split()) & {
            "stylesheet",
            "icon",
            "preload",
            "modulepreload",
            "manifest",
            "preconnect",
        }:
            self.loaded.add(given.get("href", ""))
        if given.get(_LOADED.get(tag, "")):
            self.loaded.add(given[_LOADED[tag]])


def check(folder: Path | str) -> Links:
    """Read every .html file of a folder. Internal links and anchors have to be there; nothing may be loaded from elsewhere."""
    folder = Path(folder).resolve()
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    found = Links()
    for path, page in pages.items():
        name = path.relative_to(folder).as_posix()
        for target in sorted(page.loaded):
            if _is_outside(target):
                found.problems.append(f"{name} loads {target} from elsewhere.")
            elif not target.startswith("data:") and not _file(path, target).is_file():
                found.problems.append(f"{name} loads {target}, which is not there.")
        for target in sorted(page.links):
            if _is_outside(target):
                found.outside.setdefault(target, set()).add(name)
            else:
                found.problems += [f"{name} links to {target}: {problem}." for problem in _wrong(target, path, pages)]
    return found


def _wrong(target: str, path: Path, pages: dict[Path, _Page]) -> Iterator[str]:
    there, fragment = _file(path, target), unquote(urlsplit(target).fragment)
    if urlsplit(target).scheme:
        return
    if not there.exists():
        yield "there is no such file"
    elif fragment and there in pages and fragment not in pages[there].anchors:
        yield "that page has no such anchor"


def _file(path: Path, target: str) -> Path:
    """The file that a relative address means, read from a page."""
    name = unquote(urlsplit(target).path)
    return (path.parent / name).resolve() if name else path


def _is_outside(target: str) -> bool:
    return urlsplit(target).scheme in ("http", "https") or target.startswith("//")
