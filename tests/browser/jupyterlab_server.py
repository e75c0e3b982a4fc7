"""A JupyterLab of its own: started on a free port of the loopback interface, with folders that hold nothing of the user's."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

# what a person may have set, and what must not reach the server or its kernels
_NOT_PASSED_ON = ("JUPYTER", "IPYTHON", "SSLCOURSE_", "COLAB_", "PYTEST_", "MPLBACKEND", "TQDM_")


class JupyterLabServer:
    """JupyterLab on `notebooks`, a folder of its own, with the kernel of the running interpreter. Use as a context manager.

    folder: an empty one, for settings, logs and the server's own files. environment: added for the server and its kernels.
    """

    def __init__(self, notebooks: Path, folder: Path, environment: dict[str, str]):
        self.notebooks, self.folder, self.environment = notebooks, folder, environment
        self.token, self.port = secrets.token_hex(16), _free_port()
        self.log_file = folder / "server.log"
        self.process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def page(self, notebook: str) -> str:
        """The address at which JupyterLab opens a notebook of the folder in a workspace of its own."""
        name = notebook.removesuffix(".ipynb")
        return f"{self.address}/lab/workspaces/{name}/tree/{notebook}?token={self.token}&reset"

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def __enter__(self) -> "JupyterLabServer":
        own = {name: self.folder / name for name in ("config", "data", "runtime", "settings", "workspaces", "ipython", "home")}
        for path in own.values():
            path.mkdir(parents=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)}
        environment |= {
            "JUPYTER_CONFIG_DIR": str(own["config"]), "JUPYTER_DATA_DIR": str(own["data"]), "JUPYTER_RUNTIME_DIR": str(own["runtime"]),
            "JUPYTERLAB_SETTINGS_DIR": str(own["settings"]), "JUPYTERLAB_WORKSPACES_DIR": str(own["workspaces"]),
            "IPYTHONDIR": str(own["ipython"]), "HOME": str(own["home"]),
        }  # fmt: skip
        options = {
            "ServerApp.ip": "127.0.0.1", "ServerApp.port": self.port, "ServerApp.port_retries": 0, "ServerApp.open_browser": False,
            "ServerApp.root_dir": str(self.notebooks), "ServerApp.allow_root": True, "IdentityProvider.token": self.token,
            "LabApp.expose_app_in_browser": True,  # so that the tests can ask the page which cells still run
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate", "LabApp.news_url": None,
            "LabApp.extension_manager": "readonly",
            # should the tests be killed, nobody comes to end the server: it does so by itself after half an hour without a kernel
            "ServerApp.shutdown_no_activity_timeout": 1800, "MappingKernelManager.cull_idle_timeout": 1800,
            "MappingKernelManager.cull_connected": True,
        }  # fmt: skip
        (own["config"] / "jupyter_server_config.py").write_text("".join(f"c.{name} = {value!r}\n" for name, value in options.items()))
        self.choose("apputils-extension", "notification", fetchNews="false", checkForUpdates=False)
        # every cell stays in the page; otherwise only those on the screen do
        self.choose("notebook-extension", "tracker", windowingMode="none")
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab"], cwd=self.notebooks, env=environment | self.environment, stdout=log, stderr=log
            )
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error) -> None:
        self._end()

    def choose(self, extension: str, plugin: str, **settings) -> None:
        """Set what a user would choose in JupyterLab's settings editor."""
        path = self.folder / "settings" / "@jupyterlab" / extension / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))

    def request(self, path: str, method: str = "GET"):
        """The answer of the server's own interface, such as /api/kernels, from JSON."""
        request = urllib.request.Request(f"{self.address}{path}", method=method, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def end_kernels(self, attempts: int = 5) -> None:
        """End every kernel; each holds the memory of a lesson. One that is just being restarted refuses for a moment."""
        for attempt in range(attempts):
            try:
                for kernel in self.request("/api/kernels"):
                    self.request(f"/api/kernels/{kernel['id']}", "DELETE")
                return
            except urllib.error.HTTPError:
                if attempt == attempts - 1:
                    raise
                time.sleep(2)

    def _wait(self, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"JupyterLab ended at once:\n{self.log()[-3000:]}")
            try:
                self.request("/api/status")
                return
            except OSError:  # not listening yet
                time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not answer in {seconds:.0f} seconds:\n{self.log()[-3000:]}")

    def _end(self) -> None:
        """Ask for an orderly end, which takes the kernels along; insist after a while."""
        if self.process.poll() is None:
            with contextlib.suppress(OSError):  # URLError is one
                self.end_kernels()
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def copies_of(lessons: list[Path], folder: Path) -> Path:
    """The lessons' files in a folder of their own, for the server to open and save."""
    folder.mkdir(parents=True)
    for path in lessons:
        shutil.copyfile(path, folder / path.name)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
