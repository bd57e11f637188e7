"""Who may call the server: Hosts, origins of pages, probes, and reverse proxies in front of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import HOST
from fastapi.testclient import TestClient

import handful
from handful.serve import Limits, create_app
from handful.serve.callers import Hosts, Origins, is_own

PAGE = "https://app.example"


@contextmanager
def serving(served: dict[str, Any], mini: handful.Backbone, **settings: Any) -> Iterator[TestClient]:
    app = create_app({"probe": served["probe"]}, mini, Limits(), **settings)
    with TestClient(app, base_url=HOST) as client:
        yield client


@pytest.mark.parametrize(
    ("given", "may", "may_not"),
    [
        ("box.example", ["box.example", "BOX.example:8000", "box.example."], ["a.box.example", "box", ""]),
        ("*.example", ["a.example", "a.b.example:1"], ["example", "an-example", "evil.test"]),
        ("10.0.0.0/8", ["10.1.2.3", "10.1.2.3:8000", "[::ffff:10.1.2.3]"], ["11.1.2.3", "10.evil.test"]),
        ("10.1.2.3/8", ["10.9.9.9"], ["11.1.2.3"]),
        ("192.168.1.7", ["192.168.1.7:80"], ["192.168.1.8"]),
        ("fd00::/8", ["[fd00::1]", "[fd12::9]:8000"], ["[fe80::1]", "[::1"]),
        ("[fd00::1]", ["[fd00:0::1]:8000"], ["[fd00::2]"]),
        ("0.0.0.0/0", ["1.2.3.4"], ["evil.test", "localhost", "[::1]"]),
        ("bücher.example", ["xn--bcher-kva.example"], ["bucher.example"]),
        ("my_service", ["my_service:8000"], ["my"]),
        ("*", ["evil.test", "1.2.3.4", "[::1]:9", ""], []),
    ],
)
def test_a_host_is_a_name_an_address_a_network_or_any(given: str, may: list[str], may_not: list[str]):
    hosts = Hosts.read([given])
    assert [host for host in may if not hosts.allow(host)] == []
    assert [host for host in may_not if hosts.allow(host)] == []


@pytest.mark.parametrize(
    "given", ["", "http://box.example", "box.example:8000", "10.0.0.0/99", "a b", "*box", "*.", "a/b", "**"]
)
def test_what_is_no_host_is_refused(given: str):
    with pytest.raises(handful.ParameterError, match=r"--allow-host=.*without scheme, port or path"):
        Hosts.read([given])


@pytest.mark.parametrize(
    ("given", "may", "may_not"),
    [
        (PAGE, [PAGE], ["http://app.example", "https://app.example:8443", "https://app.example.evil.test"]),
        ("HTTPS://App.Example:443/", [PAGE], ["null"]),
        ("http://localhost:3000", ["http://localhost:3000"], ["http://localhost", "http://localhost:3001"]),
        ("null", ["null"], [PAGE]),
        ("chrome-extension://abc", ["chrome-extension://abc"], ["chrome-extension://abd"]),
        ("http://[::1]:5173", ["http://[::1]:5173"], ["http://[::1]"]),
        ("*", [PAGE, "null"], []),
    ],
)
def test_an_origin_is_scheme_host_and_port(given: str, may: list[str], may_not: list[str]):
    origins = Origins.read([given])
    assert [origin for origin in may if not origins.allow(origin)] == []
    assert [origin for origin in may_not if origins.allow(origin)] == []


@pytest.mark.parametrize(
    "given",
    ["", "app.example", "https://", "https://a.example/app", "https://a.example?x", "https://a:b@c", "//a"],
)
def test_what_is_no_origin_is_refused(given: str):
    with pytest.raises(handful.ParameterError, match=r"--allow-origin=.*https://app.example"):
        Origins.read([given])


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("https://box.example", "box.example", True),
        ("https://box.example", "box.example:443", True),  # as `proxy_set_header Host $host:$server_port`
        ("http://box.example", "box.example:80", True),
        ("http://BOX.example:8000", "box.example:8000", True),
        ("http://box.example", "box.example:443", False),
        ("http://box.example:9000", "box.example:8000", False),
        ("null", "", False),
        ("null", "box.example", False),
        ("http://[::1", "[::1", False),
    ],
)
def test_the_own_page_is_known_by_host_and_port(origin: str, host: str, own: bool):
    assert is_own(origin, host) == own


def test_a_probe_may_call_it_anything(served, mini):
    with serving(served, mini, token="secret") as client:
        for host in ("10.244.1.7:8000", "pod.internal", "", "[fd00::1]:8000"):
            for method in ("GET", "HEAD"):
                answer = client.request(method, "/health", headers={"Host": host})
                assert answer.status_code == 200, (method, host)
            assert client.get("/models", headers={"Host": host}).status_code == 403
        assert client.get("/health").json() == {"status": "ok", "waiting": 0}
        assert client.head("/").status_code == 200


def test_a_host_that_may_not_is_told_the_option(served, mini):
    with serving(served, mini) as client:
        refused = client.get("/models", headers={"Host": "10.0.0.7:8000"})
        assert refused.status_code == 403
        assert "--allow-host" in refused.json()["detail"]
        assert "127.0.0.1, ::1, localhost" in refused.json()["detail"]
    with serving(served, mini, hosts=["10.0.0.0/8", "box.example"]) as client:
        for host, status in (("10.0.0.7:8000", 200), ("box.example", 200), ("evil.test", 403)):
            assert client.get("/models", headers={"Host": host}).status_code == status
    with serving(served, mini, hosts=["*"]) as client:
        assert client.get("/models", headers={"Host": "evil.test"}).status_code == 200
        here = {"Host": "evil.test", "Origin": "http://elsewhere.test"}
        assert client.get("/models", headers=here).status_code == 403


def test_a_page_that_may_ask_reads_the_answers_and_the_refusals(served, mini):
    with serving(served, mini, token="secret", origins=[PAGE]) as client:
        asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        asks |= {"Access-Control-Request-Headers": "authorization,content-type"}
        preflight = client.options("/predict", headers=asks)
        assert (preflight.status_code, preflight.content) == (204, b"")
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        mine = {"Origin": PAGE, "Authorization": "Bearer secret"}
        for headers, status in ((mine, 200), ({"Origin": PAGE}, 401)):
            answer = client.get("/models", headers=headers)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert answer.headers["vary"] == "Origin"
        other = client.options("/predict", headers={**asks, "Origin": "https://evil.test"})
        assert other.status_code == 403
        assert "--allow-origin" in other.json()["detail"]
        assert "access-control-allow-origin" not in other.headers
        without = client.get("/models", headers={"Authorization": "Bearer secret"})
        assert "access-control-allow-origin" not in without.headers
        assert client.options("/predict", headers={**asks, "Host": "evil.test"}).status_code == 403


def test_without_origins_no_other_page_may_ask(served, mini):
    with serving(served, mini) as client:
        asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        assert client.options("/predict", headers=asks).status_code == 403
        assert client.post("/predict", headers={"Origin": PAGE}, content=b"x").status_code == 403


def test_a_prefix_is_taken_off_by_the_proxy_or_by_the_server(served, mini, held_out):
    image = Path(held_out.items[0]).read_bytes()
    with serving(served, mini, root_path="/handful/", token="secret") as client:
        mine = {"Authorization": "Bearer secret"}
        for prefix in ("", "/handful"):
            assert client.get(f"{prefix}/").text.startswith("<!doctype html>")  # public below the prefix too
            assert client.get(f"{prefix}/page.js").status_code == 200
            assert client.get(f"{prefix}/health").status_code == 200
            assert client.get(f"{prefix}/models").status_code == 401
            assert client.post(f"{prefix}/predict", headers=mine, content=image).status_code == 200
            assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "."}]
            assert "url: 'openapi.json'" in client.get(f"{prefix}/docs").text
        bare = client.get("/handful", follow_redirects=False)
        assert (bare.status_code, bare.headers["location"]) == (308, "handful/")
