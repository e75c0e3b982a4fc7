"""A notebook in JupyterLab as a reader meets it: opened, run, read, written into, and its controls moved, all in a browser."""

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

# JupyterLab's own state of the open notebook: what each cell holds, and what its outputs are
_CELLS = """() => jupyterapp.shell.currentWidget.content.widgets.map(cell => {
    const metadata = cell.model.metadata, outputs = [];
    if (cell.model.type === 'code')
        for (let i = 0; i < cell.model.outputs.length; i++) outputs.push(cell.model.outputs.get(i).toJSON());
    const prompt = cell.inputArea ? cell.inputArea.promptNode.textContent : '';
    return {type: cell.model.type, source: cell.model.sharedModel.getSource(), tags: metadata.tags || [], outputs,
            waiting: prompt.includes('*'), count: cell.model.executionCount ?? null};
})"""
_WAITING = "jupyterapp.shell.currentWidget.content.widgets.some(c => c.inputArea?.promptNode?.textContent.includes('*'))"
_BUSY = f"() => jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status !== 'idle' || {_WAITING}"
# what the kernel says outside of any cell (an error in a widget's callback) appears only in a log that nobody opens
_LISTEN = """() => {
    window.kernelErrors = window.kernelErrors || [];
    jupyterapp.shell.currentWidget.sessionContext.iopubMessage.connect((_, message) => {
        if (message.header.msg_type === 'error') window.kernelErrors.push(`${message.content.ename}: ${message.content.evalue}`);
    });
}"""
# what a control changes: pictures and text under it, and not the control's own number
_SHOWN = """cell => [...cell.querySelectorAll('.jp-OutputArea-output img, .jp-OutputArea-output pre, .widget-html-content')]
    .map(node => node.tagName === 'IMG' ? node.src : node.textContent)"""

# beyond the right edge of the notebook, or with a part that only its own scroll bar would show; a formula may stand out by a point
_OVERFLOWING = """() => {
    const edge = document.querySelector('.jp-WindowedPanel-outer').getBoundingClientRect().right, found = [];
    const parts = '.jp-OutputArea-output :is(img, table, pre), .jupyter-widgets, .jp-MarkdownOutput > *';
    jupyterapp.shell.currentWidget.content.widgets.forEach((cell, i) => {
        for (const node of cell.node.querySelectorAll(parts)) {
            const over = Math.round(node.getBoundingClientRect().right - edge), hidden = node.scrollWidth - node.clientWidth;
            if (node.clientWidth && (over > 1 || hidden > 8))
                found.push(`cell ${i}: ${node.tagName} ${node.className}: ${over}, ${hidden}`);
        }
    });
    return found;
}"""

# JupyterLab's own, none of the lessons' making
_HARMLESS = (
    # an answer that the page no longer waits for, when it goes elsewhere or is closed
    "net::ERR_ABORTED",
)


@dataclass
class Problems:
    """What went wrong in the page without being seen in the notebook."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def all(self) -> list[str]:
        return [text for text in (*self.console, *self.requests) if not any(known in text for known in _HARMLESS)]


class LabPage:
    """A browser's page with one notebook of a JupyterLabServer. Every wait ends with a TimeoutError that says for what it waited."""

    def __init__(self, page, server, notebook: str):
        self.page, self.server, self.notebook, self.problems = page, server, notebook, Problems()
        page.on("console", lambda message: self.problems.console.append(_said(message)) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.problems.console.append(f"error in the page: {error}"))
        page.on("requestfailed", lambda request: self.problems.requests.append(f"{request.failure}: {request.url}"))
        page.on(
            "response", lambda answer: self.problems.requests.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None
        )
        page.route(lambda url: not url.startswith((server.address, "data:", "blob:")), self._outside)

    def _outside(self, route) -> None:
        """The badge is all that a lesson asks of other servers; it gets a stand-in, and nothing else gets anything."""
        if route.request.url == "https://colab.research.google.com/assets/colab-badge.svg":
            badge = '<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"><rect width="117" height="20" fill="#777"/></svg>'
            route.fulfill(content_type="image/svg+xml", body=badge)
        else:
            route.abort("addressunreachable")

    def open(self) -> None:
        """Open the notebook and wait until every cell is drawn, mathematics included, and the kernel answers."""
        self.page.goto(self.server.page(self.notebook))
        self.page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length > 1", timeout=120_000)
        self.page.wait_for_function("() => jupyterapp.shell.currentWidget.context.isReady", timeout=60_000)
        self.wait_until_idle(120)
        self.page.evaluate(_LISTEN)
        self.page.wait_for_function(
            "() => jupyterapp.shell.currentWidget.content.widgets.every(c => c.model.type !== 'markdown' || c.rendered)", timeout=60_000
        )

    # --- running ---

    def menu(self, name: str, entry: str) -> None:
        self.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{name}$")).click()
        self.page.locator(".lm-Menu-item", has_text=re.compile(f"^{re.escape(entry)}")).click()

    def run_all(self, seconds: float) -> None:
        self.menu("Run", "Run All Cells")
        self.wait_until_idle(seconds)

    def restart_and_run_all(self) -> None:
        """Returns as soon as the cells are on their way; wait_until_idle waits for their end."""
        self.menu("Kernel", "Restart Kernel and Run All Cells…")
        self.page.locator(".jp-Dialog button", has_text="Restart").click()
        self.page.wait_for_function(_WAITING, timeout=120_000)

    def wait_until_idle(self, seconds: float) -> None:
        """Until no cell runs or waits, and the kernel has been idle for a moment; a message between two cells is not the end."""
        end, still = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            still = 0 if self.page.evaluate(_BUSY) else still + 1
            if still == 4:
                return
            self.page.wait_for_timeout(150)
        raise TimeoutError(f"{self.notebook}: still busy after {seconds:.0f} s; cells that wait: {self.waiting()}")

    # --- reading ---

    def cells(self) -> list[dict]:
        """Each cell: type, source, tags, outputs (as in a notebook's file), waiting, count."""
        return self.page.evaluate(_CELLS)

    def waiting(self) -> list[int]:
        return [i for i, cell in enumerate(self.cells()) if cell["waiting"]]

    def errors(self) -> list[str]:
        """Every error that the notebook shows, with its cell, and those that the kernel raised behind it."""
        shown = [
            f"cell {i}: {output['ename']}: {output['evalue']}"
            for i, cell in enumerate(self.cells())
            for output in cell["outputs"]
            if output["output_type"] == "error"
        ]
        return shown + self.page.evaluate("() => window.kernelErrors")

    def cell(self, index: int):
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def scroll_to(self, index: int):
        cell = self.cell(index)
        cell.scroll_into_view_if_needed()
        return cell

    # --- writing ---

    def write(self, index: int, source: str) -> None:
        """Replace what a cell holds, in its editor."""
        editor = self.scroll_to(index).locator(".cm-content")
        editor.click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(source)
        written = self.cells()[index]["source"]
        assert written == source, f"the editor of cell {index} holds {written!r}"

    def run(self, index: int, seconds: float = 60) -> None:
        """Run one cell, with the keys that run a cell."""
        self.scroll_to(index).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        self.wait_until_idle(seconds)

    # --- looking ---

    def set_theme(self, theme: str) -> None:
        """'JupyterLab Light' or 'JupyterLab Dark', as the menu of settings would."""
        self.page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        attribute = "true" if theme.endswith("Light") else "false"
        self.page.wait_for_selector(f"body[data-jp-theme-light='{attribute}']", state="attached", timeout=30_000)

    def set_width(self, width: int, height: int = 900) -> None:
        """The window's size in pixels; in a narrow one the reader has folded the file browser away."""
        self.page.set_viewport_size({"width": width, "height": height})
        folded = "() => jupyterapp.shell.leftCollapsed" if width < 1000 else "() => !jupyterapp.shell.leftCollapsed"
        if not self.page.evaluate(folded):
            self.page.keyboard.press("Control+b")
        self.page.wait_for_function(folded, timeout=10_000)
        self.page.wait_for_timeout(500)

    def overflowing(self) -> list[str]:
        """What is wider than the page that it stands on: pictures, texts, tables, controls."""
        return self.page.evaluate(_OVERFLOWING)

    def photograph(self, folder: Path, name: str, height: int = 2000) -> None:
        """The whole notebook from top to bottom, in pieces name-01.png, name-02.png, ..., each a screen of `height` pixels."""
        folder.mkdir(parents=True, exist_ok=True)
        size = self.page.viewport_size
        self.page.set_viewport_size({"width": size["width"], "height": height})
        scroller = self.page.locator(".jp-WindowedPanel-outer")
        scroller.evaluate("node => node.scrollTo(0, 0)")
        for number in range(1, 100):
            self.page.wait_for_timeout(300)
            scroller.screenshot(path=folder / f"{name}-{number:02d}.png")
            position = "node => [node.scrollTop, (node.scrollBy(0, node.clientHeight - 40), node.scrollTop)]"
            before, after = scroller.evaluate(position)
            if after <= before:
                break
        self.page.set_viewport_size(size)

    # --- controls ---

    def cells_with_controls(self) -> list[int]:
        return [i for i in range(len(self.cells())) if self.cell(i).locator(".jp-OutputArea .jupyter-widgets").count()]

    def shown(self, index: int) -> list[str]:
        """The pictures and texts that a cell shows at this moment, controls left out."""
        return self.cell(index).evaluate(_SHOWN)

    def changes(self, index: int, action, seconds: float = 60, patience: float = 4) -> bool:
        """Whether action() changes what the cell shows. Waits until the change is complete; without one, `patience` idle seconds."""
        before, start = self.shown(index), time.monotonic()
        action()
        idle_since = None
        while time.monotonic() < start + seconds:
            self.page.wait_for_timeout(50)
            if self.page.evaluate(_BUSY):
                idle_since = None
                continue
            if self.shown(index) != before:
                self.wait_until_idle(seconds)
                return self.shown(index) != before
            idle_since = idle_since or time.monotonic()
            if time.monotonic() > idle_since + patience:
                return False
        raise TimeoutError(f"{self.notebook}: cell {index} is still busy after {seconds:.0f} s")


def _said(message) -> str:
    return f"console: {message.text} ({message.location.get('url', '')})"
