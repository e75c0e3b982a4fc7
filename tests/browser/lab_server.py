"""A JupyterLab of its own: on a free port of the loopback interface, with folders that hold nothing of the user's."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# what a person may have set, and what must not reach the server or its kernels
_NOT_PASSED_ON = ("JUPYTER", "IPYTHON", "SSLCOURSE_", "COLAB_", "PYTEST_", "MPLBACKEND", "TQDM_")
_FOLDERS = (
    "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR",
    "IPYTHONDIR", "HOME",
)  # fmt: skip
_SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, not only those on the screen
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@dataclass(frozen=True)
class LabServer:
    """A running JupyterLab."""

    address: str
    token: str
    log_file: Path

    def page(self, notebook: str) -> str:
        """The address at which JupyterLab opens a notebook of the server's folder."""
        return f"{self.address}/lab/tree/{notebook}?token={self.token}&reset"

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


@contextlib.contextmanager
def jupyterlab(notebooks: Path, folder: Path, environment: dict[str, str]) -> Iterator[LabServer]:
    """JupyterLab on the folder `notebooks`, with the kernel of the running interpreter.

    folder: an empty one, for settings, logs and the server's own files. environment: added for the server and its kernels.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = LabServer(f"http://127.0.0.1:{port}", secrets.token_hex(16), folder / "server.log")
    options = {
        "ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.port_retries": 0, "ServerApp.open_browser": False,
        "ServerApp.root_dir": str(notebooks), "ServerApp.allow_root": True, "IdentityProvider.token": server.token,
        "LabApp.expose_app_in_browser": True,  # so that the tests can ask the page which cells still run
        "LabApp.extension_manager": "readonly",
        # should the tests be killed, the server ends by itself after half an hour without a kernel
        "ServerApp.shutdown_no_activity_timeout": 1800, "MappingKernelManager.cull_idle_timeout": 1800,
        "MappingKernelManager.cull_connected": True,
    }  # fmt: skip
    own = {name: folder / name.lower() for name in _FOLDERS}
    for path in own.values():
        path.mkdir(parents=True)
    config = "".join(f"c.{name} = {value!r}\n" for name, value in options.items())
    (own["JUPYTER_CONFIG_DIR"] / "jupyter_server_config.py").write_text(config)
    for plugin, settings in _SETTINGS.items():
        path = own["JUPYTERLAB_SETTINGS_DIR"] / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings))
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)}
    variables |= {name: str(path) for name, path in own.items()} | environment
    with open(server.log_file, "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "jupyterlab"], env=variables, stdout=log, stderr=log)
    try:
        end, answers = time.monotonic() + 120, False
        while not answers:
            assert process.poll() is None and time.monotonic() < end, f"JupyterLab did not begin:\n{server.log()[-3000:]}"
            with contextlib.suppress(OSError):  # not listening yet
                answers = urllib.request.urlopen(f"{server.address}/api/status?token={server.token}", timeout=30).status == 200
            time.sleep(0.2)
        yield server
    finally:  # an orderly end takes the kernels along
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
