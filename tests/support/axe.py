"""axe-core in a page: what keeps somebody from reading or using it."""

from playwright.async_api import Page

from tests.support.node_packages import require_packages

# Levels A and AA of WCAG 2.2, and what axe calls best practice: landmarks, headings, order.
_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_RUN = """async (tags) => {
    const told = ({id, nodes}) => nodes.map((node) => id + ": " + node.html.slice(0, 160));
    const found = await axe.run({runOnly: tags});
    return [...found.violations, ...found.incomplete].flatMap(told);
}"""


class Axe:
    """Look at pages. Skips or fails the test where axe-core cannot be had."""

    def __init__(self) -> None:
        self._source = (require_packages("axe") / "axe-core" / "axe.min.js").read_text()

    async def find_faults(self, page: Page) -> list[str]:
        """List what is wrong, or may be, with what a page shows now."""
        # The page's own policy may allow no script; this one does not come from the page.
        await page.evaluate(f"globalThis.axe ? 0 : (() => {{ {self._source} }})()")
        return list(await page.evaluate(_RUN, _TAGS))
