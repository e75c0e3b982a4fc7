"""A notebook in JupyterLab as a reader meets it: opened, run, read, written into, and its controls moved, all in a browser."""

import re
import time

_WIDGETS = "jupyterapp.shell.currentWidget.content.widgets"
# JupyterLab's own state of the open notebook: what each cell holds, and what its outputs are
_CELLS = f"""() => {_WIDGETS}.map(cell => {{
    const outputs = [];
    if (cell.model.type === 'code')
        for (let i = 0; i < cell.model.outputs.length; i++) outputs.push(cell.model.outputs.get(i).toJSON());
    return {{type: cell.model.type, source: cell.model.sharedModel.getSource(), tags: cell.model.metadata.tags || [], outputs,
            count: cell.model.executionCount ?? null}};
}})"""
WAITING = f"{_WIDGETS}.some(cell => cell.inputArea?.promptNode?.textContent.includes('*'))"
_BUSY = f"() => jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status !== 'idle' || {WAITING}"
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
_OVERFLOWING = f"""() => {{
    const edge = document.querySelector('.jp-WindowedPanel-outer').getBoundingClientRect().right, found = [];
    const parts = '.jp-OutputArea-output :is(img, table, pre), .jupyter-widgets, .jp-MarkdownOutput > *';
    {_WIDGETS}.forEach((cell, i) => {{
        for (const node of cell.node.querySelectorAll(parts)) {{
            const over = Math.round(node.getBoundingClientRect().right - edge), hidden = node.scrollWidth - node.clientWidth;
            if (node.clientWidth && (over > 1 || hidden > 8))
                found.push(`cell ${{i}}: ${{node.tagName}} ${{node.className}}: ${{over}}, ${{hidden}}`);
        }}
    }});
    return found;
}}"""
_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


class LabPage:
    """A browser's page with one notebook of a JupyterLabServer. Every wait ends with a TimeoutError that says for what it waited.

    problems: what went wrong in the page without being seen in the notebook.
    """

    def __init__(self, page, server, notebook: str):
        self.page, self.server, self.notebook, self.problems = page, server, notebook, []
        page.on("console", lambda message: message.type == "error" and self._note(f"console: {message.text} ({message.location})"))
        page.on("pageerror", lambda error: self._note(f"error in the page: {error}"))
        page.on("requestfailed", lambda request: self._note(f"{request.failure}: {request.url}"))
        page.on("response", lambda answer: answer.status >= 400 and self._note(f"{answer.status}: {answer.url}"))
        page.route(lambda url: not url.startswith((server.address, "data:", "blob:")), self._outside)

    def _note(self, problem: str) -> None:
        if "net::ERR_ABORTED" not in problem:  # an answer that the page no longer waits for, when it goes elsewhere or is closed
            self.problems.append(problem)

    def _outside(self, route) -> None:
        """The badge is all that a lesson asks of other servers; it gets a stand-in, and nothing else gets anything."""
        if route.request.url == _BADGE:
            route.fulfill(content_type="image/svg+xml", body='<svg xmlns="http://www.w3.org/2000/svg" width="117" height="20"/>')
        else:
            route.abort("addressunreachable")

    def open(self) -> None:
        """Open the notebook and wait until every cell is drawn, mathematics included, and the kernel answers."""
        self.page.goto(self.server.page(self.notebook))
        self.page.wait_for_function(f"() => window.{_WIDGETS.replace('.', '?.')}?.length > 1", timeout=120_000)
        self.page.wait_for_function("() => jupyterapp.shell.currentWidget.context.isReady", timeout=60_000)
        self.wait_until_idle(120)
        self.page.evaluate(_LISTEN)
        self.page.wait_for_function(f"() => {_WIDGETS}.every(c => c.model.type !== 'markdown' || c.rendered)", timeout=60_000)

    def save_and_open_again(self) -> None:
        """Save the notebook, end its kernel, and open it in a new one."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.context.save()")
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.open()

    def run_all(self, seconds: float) -> None:
        self._menu("Run", "Run All Cells")
        self.wait_until_idle(seconds)

    def restart_and_run_all(self) -> None:
        """Returns as soon as the cells are on their way; wait_until_idle waits for their end."""
        self._menu("Kernel", "Restart Kernel and Run All Cells…")
        self.page.locator(".jp-Dialog button", has_text="Restart").click()
        self.page.wait_for_function(WAITING, timeout=120_000)

    def _menu(self, name: str, entry: str) -> None:
        self.page.locator(".lm-MenuBar-item", has_text=re.compile(f"^{name}$")).click()
        self.page.locator(".lm-Menu-item", has_text=re.compile(f"^{re.escape(entry)}")).click()

    def wait_until_idle(self, seconds: float) -> None:
        """Until no cell runs or waits, and the kernel has been idle for a moment; a message between two cells is not the end."""
        end, still = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            still = 0 if self.page.evaluate(_BUSY) else still + 1
            if still == 4:
                return
            self.page.wait_for_timeout(150)
        raise TimeoutError(f"{self.notebook}: still busy after {seconds:.0f} s")

    def cells(self) -> list[dict]:
        """Each cell: type, source, tags, outputs (as in a notebook's file), count."""
        return self.page.evaluate(_CELLS)

    def errors(self) -> list[str]:
        """Every error that the notebook shows, with its cell, those that the kernel raised behind it, and the page's problems."""
        outputs = [(index, output) for index, cell in enumerate(self.cells()) for output in cell["outputs"]]
        shown = [f"cell {i}: {output['ename']}: {output['evalue']}" for i, output in outputs if output["output_type"] == "error"]
        return shown + self.page.evaluate("() => window.kernelErrors") + self.problems

    def cell(self, index: int):
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)

    def scroll_to(self, index: int):
        cell = self.cell(index)
        cell.scroll_into_view_if_needed()
        return cell

    def write_and_run(self, index: int, source: str) -> str:
        """Replace what a cell holds, in its editor, and run it with the keys that run a cell; -> what it then says."""
        self.scroll_to(index).locator(".cm-content").click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(source)
        written = self.cells()[index]["source"]
        assert written == source, f"the editor of cell {index} holds {written!r}"
        self.page.keyboard.press("Control+Enter")
        self.wait_until_idle(60)
        return self.cell(index).locator(".jp-OutputArea").inner_text().strip()

    def set_width(self, width: int) -> None:
        """The window's width in pixels; in a narrow one the reader has folded the file browser away."""
        self.page.set_viewport_size({"width": width, "height": 900})
        folded = "() => jupyterapp.shell.leftCollapsed" if width < 1000 else "() => !jupyterapp.shell.leftCollapsed"
        if not self.page.evaluate(folded):
            self.page.keyboard.press("Control+b")
        self.page.wait_for_function(folded, timeout=10_000)

    def overflowing(self) -> list[str]:
        """What is wider than the page that it stands on, once the page has come to rest: pictures, texts, tables, controls."""
        before, now = None, self.page.evaluate(_OVERFLOWING)
        while now != before:
            self.page.wait_for_timeout(300)
            before, now = now, self.page.evaluate(_OVERFLOWING)
        return now

    def cells_with_controls(self) -> list[int]:
        return [i for i in range(len(self.cells())) if self.cell(i).locator(".jp-OutputArea .jupyter-widgets").count()]

    def shown(self, index: int) -> list[str]:
        """The pictures and texts that a cell shows at this moment, controls left out."""
        return self.cell(index).evaluate(_SHOWN)

    def changes(self, index: int, action, seconds: float = 60, patience: float = 4) -> bool:
        """Whether action() changes what the cell shows. Waits until the change is complete; without one, `patience` idle seconds."""
        before, end, idle_since = self.shown(index), time.monotonic() + seconds, None
        action()
        while time.monotonic() < end:
            self.page.wait_for_timeout(50)
            if self.page.evaluate(_BUSY):
                idle_since = None
            elif self.shown(index) != before:
                self.wait_until_idle(seconds)
                return self.shown(index) != before
            else:
                idle_since = idle_since or time.monotonic()
                if time.monotonic() > idle_since + patience:
                    return False
        raise TimeoutError(f"{self.notebook}: cell {index} is still busy after {seconds:.0f} s")
