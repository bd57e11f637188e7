"""The server behind nginx and Caddy, with the lines that docs/serving.md gives."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ports import free_port

from handful.serve import make_server

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
NGINX, CADDY = shutil.which("nginx") or shutil.which("/usr/sbin/nginx"), shutil.which("caddy")
FOLDERS = "".join(
    f"{name}_temp_path {{folder}}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
AROUND = (
    "user root; daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}}\n"
    "http {{ access_log off; " + FOLDERS + "\n{servers}\n}}"
)
OTHERS = """
server {{ listen 127.0.0.1:{port}; server_name kept.example;
    location /handful/ {{ proxy_pass http://127.0.0.1:8000; proxy_set_header Host $http_host; }} }}
server {{ listen 127.0.0.1:{port}; server_name rewritten.example;
    location / {{ proxy_pass http://127.0.0.1:8000; }} }}
"""
"""The prefix left on (`--root-path`); nginx as it is by default, which writes a Host of its own."""


def block(language: str) -> str:
    """Give the lines of the docs for a proxy."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = make_server(
        [], port=0, hosts=["*.example"], origins=["http://rewritten.example"], root_path="/handful"
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.url and thread.is_alive():
        time.sleep(0.01)
    yield server.url.removeprefix("http://")
    server.should_exit = True
    thread.join()


def listening(words: list[str], port: int, log: Path) -> Iterator[str]:
    """Run a proxy until the test is done; give its address."""
    with log.open("wb") as out, subprocess.Popen(words, stdout=out, stderr=out) as process:
        try:
            for _ in range(500):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text("utf-8")
                    time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def nginx(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    servers = block("nginx").replace("listen 80;", f"listen 127.0.0.1:{port};") + OTHERS.format(port=port)
    text = AROUND.format(folder=folder, servers=servers.replace("127.0.0.1:8000", address))
    (folder / "nginx.conf").write_text(text, "utf-8")
    yield from listening([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")], port, folder / "log")


@pytest.fixture(scope="module")
def caddy(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if CADDY is None:
        pytest.skip("caddy is not installed")
    folder, port = tmp_path_factory.mktemp("caddy"), free_port()
    text = block("caddy").replace("127.0.0.1:8000", address)
    text = text.replace("box.example {", f"http://box.example:{port} {{", 1)
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + text, "utf-8")
    words = [CADDY, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    yield from listening(words, port, folder / "log")


def check(proxy: str, host: str, prefix: str, origin: str, image: bytes) -> None:
    """Use the page's own requests, as a browser sends them through a proxy."""
    with httpx.Client(base_url=proxy, headers={"Host": host}, timeout=60) as client:
        page = client.get(f"{prefix}/")
        assert page.text.startswith("<!doctype html>"), page.text
        for file in re.findall(r'(?:src|href)="([\w.]+)"', page.text):
            assert client.get(f"{prefix}/{file}").status_code == 200, file
        assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "."}]
        assert client.head(f"{prefix}/health").status_code == 200
        sent = {"Origin": origin}
        made = client.post(f"{prefix}/drafts", json={}, headers=sent)
        assert made.status_code == 201, made.text
        draft = f"{prefix}/drafts/{made.json()['id']}"
        assert client.post(f"{draft}/classes", json={"name": "one"}, headers=sent).status_code == 200
        added = client.post(f"{draft}/images", params={"name": "one"}, files={"images": image}, headers=sent)
        assert added.json()["refused"] == []
        refused = client.post(f"{prefix}/drafts", json={}, headers={"Origin": "http://evil.test"})
        assert (refused.status_code, "--allow-origin" in refused.json()["detail"]) == (403, True)


@pytest.fixture(scope="module")
def image(digits: Path) -> bytes:
    return next((digits / "test" / "one").iterdir()).read_bytes() + b"\0" * 2**20


def test_nginx_with_the_lines_of_the_docs(nginx: str, image: bytes):
    port = nginx.rpartition(":")[2]
    check(nginx, f"box.example:{port}", "/handful", f"http://box.example:{port}", image)
    check(nginx, "box.example", "/handful", "https://box.example", image)  # TLS ends before it
    bare = httpx.get(f"{nginx}/handful", headers={"Host": "box.example"})
    assert (bare.status_code, bare.headers["location"].endswith("/handful/")) == (301, True)
    other = httpx.get(f"{nginx}/handful/models", headers={"Host": "evil.test"})
    assert (other.status_code, "--allow-host" in other.json()["detail"]) == (403, True)


def test_nginx_that_leaves_the_prefix_on(nginx: str, image: bytes):
    check(nginx, "kept.example", "/handful", "http://kept.example", image[: -(2**20)])


def test_nginx_that_writes_its_own_host(nginx: str, image: bytes):
    check(nginx, "rewritten.example", "", "http://rewritten.example", image[: -(2**20)])


def test_caddy_with_the_lines_of_the_docs(caddy: str, image: bytes):
    port = caddy.rpartition(":")[2]
    check(caddy, f"box.example:{port}", "/handful", f"http://box.example:{port}", image)
    bare = httpx.get(f"{caddy}/handful", headers={"Host": f"box.example:{port}"})
    assert bare.headers["location"] == "/handful/"
