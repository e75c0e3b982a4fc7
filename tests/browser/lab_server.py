"""A JupyterLab of its own: on a free port of the loopback interface, with folders that hold nothing of the user's."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

# what a person may have set, and what must not reach the server or its kernels
_NOT_PASSED_ON = ("JUPYTER", "IPYTHON", "SSLCOURSE_", "COLAB_", "PYTEST_", "MPLBACKEND", "TQDM_")
_SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, not only those on the screen
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


class JupyterLabServer:
    """JupyterLab on the folder `notebooks`, with the kernel of the running interpreter. Use as a context manager.

    folder: an empty one, for settings, logs and the server's own files. environment: added for the server and its kernels.
    """

    def __init__(self, notebooks: Path, folder: Path, environment: dict[str, str]):
        self.token, self.log_file = secrets.token_hex(16), folder / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        options = {
            "ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.port_retries": 0, "ServerApp.open_browser": False,
            "ServerApp.root_dir": str(notebooks), "ServerApp.allow_root": True, "IdentityProvider.token": self.token,
            "LabApp.expose_app_in_browser": True,  # so that the tests can ask the page which cells still run
            "LabApp.extension_manager": "readonly",
            # should the tests be killed, the server ends by itself after half an hour without a kernel
            "ServerApp.shutdown_no_activity_timeout": 1800, "MappingKernelManager.cull_idle_timeout": 1800,
            "MappingKernelManager.cull_connected": True,
        }  # fmt: skip
        own = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
        folders = {name: folder / name.lower() for name in (*own, "IPYTHONDIR", "HOME")}
        for path in folders.values():
            path.mkdir(parents=True)
        config = "".join(f"c.{name} = {value!r}\n" for name, value in options.items())
        (folders["JUPYTER_CONFIG_DIR"] / "jupyter_server_config.py").write_text(config)
        for plugin, settings in _SETTINGS.items():
            path = folders["JUPYTERLAB_SETTINGS_DIR"] / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)}
        self.environment = kept | {name: str(path) for name, path in folders.items()} | environment

    def page(self, notebook: str) -> str:
        """The address at which JupyterLab opens a notebook of the folder in a workspace of its own."""
        name = notebook.removesuffix(".ipynb")
        return f"{self.address}/lab/workspaces/{name}/tree/{notebook}?token={self.token}&reset"

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def __enter__(self) -> "JupyterLabServer":
        with open(self.log_file, "wb") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "jupyterlab"], env=self.environment, stdout=log, stderr=log)
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):  # not listening yet
                self.request("/api/status")
                return self
            if self.process.poll() is not None or time.monotonic() > end:
                self.__exit__()
                raise RuntimeError(f"JupyterLab did not begin:\n{self.log()[-3000:]}")
            time.sleep(0.2)

    def __exit__(self, *error) -> None:
        """Ask for an orderly end, which takes the kernels along; insist after a while."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def request(self, path: str, method: str = "GET"):
        """The answer of the server's own interface, such as /api/kernels, from JSON."""
        request = urllib.request.Request(f"{self.address}{path}", method=method, headers={"Authorization": f"token {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def end_kernels(self) -> None:
        """End every kernel; each holds the memory of a lesson. One that is just being restarted refuses for a moment."""
        end = time.monotonic() + 30
        while kernels := self.request("/api/kernels"):
            for kernel in kernels:
                try:
                    self.request(f"/api/kernels/{kernel['id']}", "DELETE")
                except urllib.error.HTTPError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.5)
