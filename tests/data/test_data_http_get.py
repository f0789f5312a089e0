"""repro.data.http_get: only public addresses, whatever leads elsewhere; encrypted connections, and proxies."""

import hashlib
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_server import status
from small_files_server import SmallFilesServer

from repro.data import http_get
from repro.data.crawl import crawl, journal_path
from repro.data.http_get import CrawlPolicy, RequestLimits, is_public
from repro.errors import FetchError, SetupError

PICTURE = b"\xff\xd8 a picture"
WANTED = frozenset([hashlib.sha256(PICTURE).hexdigest()])
POLICY = CrawlPolicy(host_pause=0, unreachable_pause=0.01, back_off=0.01)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True),  # NAT64 of a public address
        ("127.0.0.1", False),
        ("127.8.9.10", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # where clouds keep credentials
        ("100.64.0.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
        ("2001:db8::1", False),
    ],
)
def test_an_address_is_public_or_not_however_it_is_wrapped(address, public):
    assert is_public(address) is public


@pytest.fixture
def elsewhere(site: SmallFilesServer, monkeypatch) -> Iterator[SmallFilesServer]:
    """A second server at the same port of 127.0.0.2, which alone counts as public."""
    server = SmallFilesServer("127.0.0.2", site.server_address[1])
    monkeypatch.setattr(http_get, "is_public", lambda address: address == "127.0.0.2")
    yield server
    server.stop()


def test_a_name_that_resolves_differently_a_moment_later_is_not_followed(
    site, elsewhere, tmp_path, monkeypatch
):
    answers = ["127.0.0.2"]  # and this machine from then on
    real = socket.getaddrinfo

    def resolve(host, port, *args, flags=0, **options):
        if host == "rebinding.example" and not flags & socket.AI_NUMERICHOST:
            host = answers.pop() if answers else "127.0.0.1"
        return real(host, port, *args, flags=flags, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = elsewhere.add("/1.jpg", PICTURE).replace("127.0.0.2", "rebinding.example")
    assert get(url, tmp_path, allow_private_addresses=False).found
    assert (site.requests, answers) == ([], [])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "[::ffff:127.0.0.1]"])
def test_a_redirect_does_not_lead_to_this_machine(site, elsewhere, tmp_path, host):
    target = site.add("/1.jpg", PICTURE).replace("127.0.0.1", host)
    url = elsewhere.add("/away.jpg", b"", status(302, Location=target))
    outcome = get(url, tmp_path, allow_private_addresses=False)
    assert outcome.cause == "private-address"
    assert "is not on the public internet" in outcome.detail
    assert (site.requests, elsewhere.requests) == ([], ["/away.jpg"])


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate of localhost's own, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    path = tmp_path / "own.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=DNS:localhost", "-keyout", path, "-out", path]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    return path


@pytest.fixture
def encrypted(certificate: Path, site: SmallFilesServer) -> str:
    """The address of a picture on a server that speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    return site.add("/1.jpg", PICTURE).replace("http://127.0.0.1", "https://localhost")


def get(url: str, folder: Path, **limits):
    allowed = RequestLimits(**{"allow_private_addresses": True, **limits})
    return crawl({url: WANTED}, folder, policy=POLICY, limits=allowed).outcomes[url]


def test_a_certificate_that_nobody_vouches_for_is_not_believed(encrypted, tmp_path):
    outcome = get(encrypted, tmp_path)
    assert (outcome.cause, outcome.detail) == ("certificate", "self-signed certificate")


def test_a_picture_comes_over_an_encrypted_connection(encrypted, certificate, tmp_path, monkeypatch):
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(http_get, "_tls", lambda: trusting)
    assert get(encrypted, tmp_path).found


@pytest.fixture
def proxy(site: SmallFilesServer, monkeypatch) -> SmallFilesServer:
    """The server as the environment's proxy, which gets whole addresses as paths."""
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("http_proxy", site.base)
    return site


def test_where_a_proxy_is_set_it_finds_the_host_and_may_be_on_a_private_address(proxy, tmp_path):
    url = "http://pictures.invalid/1.jpg"
    proxy.files[url] = PICTURE
    assert get(url, tmp_path, allow_private_addresses=False).found


def test_a_proxy_is_not_asked_for_this_machine(proxy, tmp_path):
    outcome = get("http://169.254.169.254/latest/meta-data", tmp_path, allow_private_addresses=False)
    assert outcome.cause == "private-address"
    assert proxy.requests == []


def test_a_proxy_that_is_down_marks_nothing_dead(proxy, tmp_path):
    proxy.stop()
    with pytest.raises(FetchError, match="is there a network"):
        get("http://pictures.invalid/1.jpg", tmp_path)
    assert journal_path(tmp_path).read_text() == ""


def test_without_httpx_it_is_said_what_to_install(site, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(SetupError, match=r"needs httpx: pip install '\.\[facescrub\]'"):
        get(site.add("/1.jpg", PICTURE), tmp_path)
    assert journal_path(tmp_path).read_text() == ""
