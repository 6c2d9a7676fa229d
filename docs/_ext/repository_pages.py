"""Pages of the repository outside docs/, such as CONTRIBUTING.md, as pages of the site.

A page of docs/ includes each of them. On a code host, links lead to the originals; on the site, this extension makes
them lead to the pages that include them.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

PAGES = {
    "CONTRIBUTING": "contributing",
    "CHANGELOG": "changelog",
    "SECURITY": "security",
    "examples/README": "examples",
}
LINK = re.compile(rf"\]\((?P<up>(?:\.\./)+)(?P<file>{'|'.join(PAGES)})\.md(?P<anchor>#[^)]*)?\)")


def redirected(text: str) -> str:
    """The text of a page in docs/ or a folder of it, with links to the pages of the site."""

    def link(found: re.Match[str]) -> str:
        return f"]({found['up'][3:]}{PAGES[found['file']]}.md{found['anchor'] or ''})"

    return LINK.sub(link, text)


def setup(app: Sphinx) -> dict[str, bool]:
    def redirect(app: Sphinx, name: str, source: list[str]) -> None:
        source[0] = redirected(source[0])

    app.connect("source-read", redirect)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
