"""repro.data.crawl and http_get against real servers of small files, with their faults, and real interruptions."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from local_server import (
    Handler,
    SmallFilesServer,
    after,
    cut_after,
    drips,
    endless,
    file_of_path,
    hang_up,
    header_drips,
    held,
    nonsense,
    page,
    stalls,
    status,
)
from smoke_project import wait_for

from repro.data import http_get
from repro.data.crawl import crawl, journal_path, picture, read_journal
from repro.data.http_get import CrawlPolicy, FetchResult, is_public
from repro.errors import FetchError, SetupError

EAGER = CrawlPolicy(
    per_host=8,
    per_second=1e6,
    host_pause=0,
    back_off=0.01,
    unreachable_pause=0.01,
    allow_private_addresses=True,
)


def content(number: int) -> bytes:
    return b"\xff\xd8" + str(number).encode() * 500


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def publish(site: SmallFilesServer, number: int, *answers) -> tuple[str, frozenset[str]]:
    """A picture on `site`: its address, and the sha256 that the lists have for it."""
    data = content(number)
    return site.add(f"/{number}.jpg", data, *answers), frozenset([sha(data)])


def lost(count: int) -> list[tuple[str, frozenset[str]]]:
    """Addresses at hosts that do not exist."""
    return [(f"http://host-{number}.invalid/1.jpg", frozenset([sha(b"")])) for number in range(count)]


class Crawled(NamedTuple):
    on_disk: frozenset[str]
    results: dict[str, FetchResult]


def get(wanted, folder: Path, retry_failed: bool = False, **policy) -> Crawled:
    return Crawled(*crawl(dict(wanted), folder, replace(EAGER, **policy), retry_failed))


def get_one(url: str, wanted: frozenset[str], folder: Path, **policy) -> FetchResult:
    return get([(url, wanted)], folder, **policy).results[url]


def causes(crawled: Crawled) -> list[str]:
    return sorted(result.cause for result in crawled.results.values())


@pytest.fixture
def vanished(monkeypatch) -> None:
    """A resolver that knows no `.invalid`, at once: with the real one, saying so may take many seconds."""
    real = socket.getaddrinfo

    def resolve(host, *args, **options):
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_every_picture_lies_under_its_own_sha256(site, tmp_path):
    wanted = [publish(site, number) for number in range(40)]
    site.files["/a%20%C3%A9.jpg"] = content(40)
    wanted.append((f"{site.base}/a é.jpg", frozenset([sha(content(40))])))
    assert get(wanted, tmp_path).on_disk == {sha(content(number)) for number in range(41)}
    for number in range(41):
        assert picture(tmp_path, sha(content(number))).read_bytes() == content(number)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".crawl.lock", "fetched.jsonl", "images"]


@pytest.mark.parametrize(
    ("answers", "cause", "detail", "requests"),
    [
        ([status(404)], "gone", "404 Not Found", 1),
        ([status(403)], "refused", "403 Forbidden", 1),
        ([status(206)], "refused", "206 Partial Content", 1),
        ([page], "page", "an HTML page instead of a picture", 1),
        ([status(500)], "server-error", "500 Internal Server Error (3 attempts)", 3),
        ([status(429)], "busy", "429 Too Many Requests (3 attempts)", 3),
        ([cut_after(251)], "cut", "the connection ended after 251 of 502 bytes (3 attempts)", 3),
        ([hang_up], "cut", "no whole answer came (3 attempts)", 3),
        ([nonsense], "cut", "no whole answer came (3 attempts)", 3),
        ([status(302, Location="file:///etc/passwd")], "redirect", "302 Found to file:///etc/passwd", 1),
        ([status(302, Location="http://[::1")], "redirect", "302 Found to http://[::1", 1),
        ([status(302, Location="http://a..b/x")], "not-http", "http://a..b/x", 1),
        ([status(301)], "redirect", "redirected more than 5 times", 6),
        ([status(503), cut_after(251), file_of_path], "found", "", 3),
    ],
)
def test_an_address_is_counted_by_its_cause_and_asked_for_no_oftener_than_that_is_worth(
    site, tmp_path, answers, cause, detail, requests
):
    one, good = publish(site, 1, *answers), publish(site, 2)
    crawled = get([one, good], tmp_path)
    result = crawled.results[one[0]]
    assert (result.cause, result.detail.endswith(detail)) == (cause, True)
    assert good[1] <= crawled.on_disk
    assert site.times() == {"/1.jpg": requests, "/2.jpg": 1}


@pytest.mark.parametrize(
    ("answer", "requests", "cause"),
    [(status(429, Retry_After=3600), 1, "busy"), (status(503), CrawlPolicy().host_attempts, "server-error")],
)
def test_a_host_that_asks_for_an_hour_or_only_fails_is_given_up(site, tmp_path, answer, requests, cause):
    wanted = [publish(site, number, answer) for number in range(20)]
    crawled = get(wanted, tmp_path, per_host=1, back_off=0.001)
    assert causes(crawled) == [cause] * 20
    assert len(site.requests) == requests
    assert crawled.results[wanted[19][0]].detail.startswith("its host was given up: ")


def test_a_pause_that_the_server_asks_for_is_kept_by_all_its_addresses(site, tmp_path):
    wanted = [publish(site, 1, status(429, Retry_After=1), file_of_path), publish(site, 2)]
    assert causes(get(wanted, tmp_path, per_host=1)) == ["found"] * 2
    assert site.requests[0] == "/1.jpg"
    assert site.begun[1] - site.begun[0] >= 1


@pytest.mark.parametrize("slow", [stalls, drips, header_drips])
def test_a_server_that_is_too_slow_does_not_hold_the_crawl_up(site, tmp_path, slow):
    wanted = [publish(site, 1, slow), publish(site, 2)]
    crawled = get(wanted, tmp_path, timeout=1.0, longest=1.5, attempts=1)
    assert [crawled.results[url].cause for url, _ in wanted] == ["too-slow", "found"]


@pytest.mark.parametrize("announced", [True, False])
def test_not_a_byte_beyond_the_cap_is_kept(site, tmp_path, announced):
    url = site.add("/1.jpg", b"x" * 100_000, file_of_path if announced else endless)
    assert get_one(url, frozenset([sha(b"")]), tmp_path, max_bytes=50_000).cause == "too-large"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def test_a_slow_host_does_not_hold_up_the_fast_ones_and_none_is_crowded_be_it_by_redirects(tmp_path):
    with contextlib.ExitStack() as stack:
        slow, fast, other, parked = (stack.enter_context(SmallFilesServer()) for _ in range(4))
        wanted = [publish(slow, number, held) for number in range(12)]
        wanted += [publish(fast, number, after(0.002)) for number in range(100, 160)]
        for number in range(200, 206):
            target = other.add(f"/to/{number}", content(number), after(0.05))
            wanted.append(publish(parked, number, status(302, Location=target)))
        with ThreadPoolExecutor(1) as pool:
            crawling = pool.submit(get, wanted, tmp_path, per_host=2)
            # While the slow host has not said a word.
            wait_for(lambda: (len(fast.answered), len(other.answered)) == (60, 6), "the fast hosts")
            slow.gate.set()
        crawled = crawling.result()
        assert causes(crawled) == ["found"] * 78
        assert (slow.most_at_once, fast.most_at_once, other.most_at_once) == (2, 2, 2)
        assert crawled.results[wanted[-1][0]].detail == f"at {other.base}/to/205"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "1.jpg",
        "http://[::1",
        "http://user@127.0.0.1/",
        "http://a..b/",
    ],
)
def test_only_http_and_https_are_ever_asked_for(site, tmp_path, url):
    crawled = get([(url, frozenset([sha(b"")])), publish(site, 1)], tmp_path)
    assert (crawled.results[url].cause, len(crawled.on_disk)) == ("not-http", 1)


def test_a_settled_address_is_not_asked_for_again_unless_it_is_dead_and_that_is_wanted(site, tmp_path):
    wanted = [publish(site, 1), publish(site, 2, status(404), file_of_path), publish(site, 3, page)]
    first = get(wanted, tmp_path)
    again = get([*wanted, publish(site, 4)], tmp_path)
    assert site.times() == {f"/{number}.jpg": 1 for number in (1, 2, 3, 4)}
    assert len(again.on_disk) == len(first.on_disk) + 1
    assert causes(get(wanted, tmp_path, retry_failed=True)) == ["found", "found", "found", "page"]
    assert site.times() == {"/1.jpg": 1, "/2.jpg": 2, "/3.jpg": 2, "/4.jpg": 1}


def test_what_is_on_disk_is_not_asked_for_and_what_vanished_or_was_cut_is(site, tmp_path):
    wanted = [publish(site, number) for number in range(1, 6)]
    for number, data in ((4, content(4)), (5, b"damaged")):  # not noted: known by their bytes
        path = picture(tmp_path, sha(content(number)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    copy = (site.add("/copy.jpg", content(1)), wanted[0][1])
    assert len(get([*wanted, copy], tmp_path, connections=1).on_disk) == 5
    assert site.times() == {"/1.jpg": 1, "/2.jpg": 1, "/3.jpg": 1, "/5.jpg": 1}
    picture(tmp_path, sha(content(1))).unlink()
    picture(tmp_path, sha(content(2))).write_bytes(b"cut")
    assert len(get(wanted, tmp_path).on_disk) == 5
    assert site.times() == {"/1.jpg": 2, "/2.jpg": 2, "/3.jpg": 1, "/5.jpg": 1}


def test_a_torn_journal_loses_its_last_line_only(site, tmp_path):
    wanted = [publish(site, number, status(404)) for number in (1, 2, 3)]
    get(wanted, tmp_path, connections=1)
    journal = journal_path(tmp_path)
    journal.write_bytes(journal.read_bytes()[:-20])
    get(wanted, tmp_path)
    assert site.times() == {"/1.jpg": 1, "/2.jpg": 1, "/3.jpg": 2}
    assert [json.loads(line)["cause"] for line in journal.read_text().splitlines()] == ["gone"] * 3


def test_a_network_that_is_not_there_or_goes_away_stops_the_crawl_and_marks_nothing_dead(
    vanished, site, tmp_path
):
    with pytest.raises(FetchError, match=r"is there a network\? Nothing was noted as dead") as caught:
        crawl(dict(lost(500)), tmp_path, CrawlPolicy())
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (3, False)
    assert journal_path(tmp_path).read_text() == ""
    good = [publish(site, number) for number in range(5)]
    get(good, tmp_path)
    site.stop()
    with pytest.raises(FetchError, match=r"\d\d hosts in a row cannot be reached"):
        get([*good, *lost(100)], tmp_path)
    assert len(journal_path(tmp_path).read_text().splitlines()) == 5


def test_hosts_that_vanished_are_dead_where_others_answer_even_if_late_or_before(vanished, site, tmp_path):
    def late(handler: Handler) -> None:
        handler.server.gate.wait(0.5)
        status(404)(handler)

    crawled = get([*lost(20), publish(site, 1, late), *lost(100)], tmp_path)
    assert causes(crawled) == ["gone"] + ["no-such-host"] * 100
    assert get(lost(100), tmp_path).results == crawled.results
    get([publish(site, 3)], tmp_path / "other")
    assert causes(get(lost(3), tmp_path / "other")) == ["found"] + ["no-such-host"] * 3
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/1.jpg"
    refused = get([(url, frozenset([sha(b"")])), publish(site, 2)], tmp_path).results[url]
    assert (refused.cause, refused.detail) == ("no-connection", "the connection is refused")


def test_a_full_disk_stops_with_one_clear_line_and_loses_nothing(site, small_disk):
    wanted = []
    for number in range(40):
        data = os.urandom(100_000)
        wanted.append((site.add(f"/{number}.jpg", data), frozenset([sha(data)])))
    with pytest.raises(SetupError, match=r"(?i)no space left") as caught:
        get(wanted, small_disk, connections=2)
    assert "\n" not in str(caught.value)
    kept = {path.name for path in small_disk.glob("images/*/*")}
    assert len(kept) >= 5
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    assert len(get(wanted, small_disk).on_disk) == 40
    times = site.times()
    assert all(times[f"/{number}.jpg"] == 1 for number in range(40) if next(iter(wanted[number][1])) in kept)


SCRIPT = """
import logging, sys
from pathlib import Path
from repro.data.crawl import crawl
from repro.data.http_get import CrawlPolicy
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
crawl({wanted}, Path({folder}), CrawlPolicy(
    connections=4, per_host=4, host_pause=0, per_second=1e6, allow_private_addresses=True))
print("done", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_crawl_that_is_ended_and_started_again_asks_for_nothing_twice(site, tmp_path, how):
    wanted = [publish(site, number, *([status(404)] if number % 3 == 0 else [])) for number in range(30)]
    wanted += [publish(site, number, held) for number in range(30, 60)]
    folder = tmp_path / "raw"
    words = [sys.executable, "-c", SCRIPT.format(wanted=dict(wanted), folder=repr(str(folder)))]
    # A suite that runs in the background hands down an ignored SIGINT.
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heed) as first:
        wait_for(lambda: len(read_journal(folder)) == 30, "thirty that are settled")
        wait_for(lambda: len(site.requests) == 34, "four under way, at servers that say nothing")
        under_way = set(site.requests) - set(site.answered)
        first.send_signal(how)
        out, err = first.communicate(timeout=60)
    if how == signal.SIGINT:
        assert out == "stopped: 30 of 60 addresses are settled, and the same command resumes from there\n"
        assert "KeyboardInterrupt" in err
    site.gate.set()
    assert subprocess.run(words, capture_output=True, text=True, timeout=60).stdout == "done\n"
    assert len(under_way) == 4
    assert {path: times for path, times in site.times().items() if times > 1} == dict.fromkeys(under_way, 2)
    assert (len(site.times()), len(list(folder.glob("images/*/*")))) == (60, 50)


def test_two_crawls_of_one_folder_at_once_ask_once(site, tmp_path):
    wanted = [publish(site, number, after(0.02)) for number in range(30)]
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: get(wanted, tmp_path), range(2)))
    assert both[0].on_disk == both[1].on_disk
    assert set(site.times().values()) == {1}


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True),  # NAT64 of a public address
        ("127.8.9.10", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),  # where clouds keep credentials
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
    ],
)
def test_an_address_is_public_or_not_however_it_is_wrapped(address, public):
    assert is_public(address) is public


@pytest.fixture
def elsewhere(site) -> Iterator[SmallFilesServer]:
    """A server on the port of `site`, at another address of this machine."""
    with SmallFilesServer("127.0.0.2", site.server_address[1]) as server:
        yield server


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f000001"])
def test_this_machine_is_not_asked_unless_that_is_allowed_be_it_by_a_redirect(
    site, elsewhere, tmp_path, monkeypatch, host
):
    url, wanted = publish(site, 1)
    target = url.replace("127.0.0.1", host)
    away = elsewhere.add("/away.jpg", b"", status(302, Location=target))
    for asked in (target, away):
        result = get_one(asked, wanted, tmp_path, allow_private_addresses=False)
        assert result.cause == "private-address"
        assert "is not on the public internet" in result.detail
        monkeypatch.setattr(http_get, "is_public", lambda address: address == "127.0.0.2")
    assert (site.requests, elsewhere.requests) == ([], ["/away.jpg"])
    assert get_one(url, wanted, tmp_path).found


def test_a_name_that_leads_here_at_once_or_a_moment_later_does_not_get_there(
    site, elsewhere, tmp_path, monkeypatch
):
    url, wanted = publish(site, 1)
    says = r"leads to .*, which is not on the public internet\): is there a net"
    with pytest.raises(FetchError, match=says):
        get_one(url.replace("127.0.0.1", "localhost"), wanted, tmp_path, allow_private_addresses=False)
    answers, real = ["127.0.0.2"], socket.getaddrinfo  # and this machine from then on

    def resolve(host, port, family=0, type=0, proto=0, flags=0):
        if host == "rebinding.example" and not flags & socket.AI_NUMERICHOST:
            host = answers.pop() if answers else "127.0.0.1"
        return real(host, port, family, type, proto, flags)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(http_get, "is_public", lambda address: address == "127.0.0.2")
    url = elsewhere.add("/1.jpg", content(1)).replace("127.0.0.2", "rebinding.example")
    assert get_one(url, wanted, tmp_path, allow_private_addresses=False).found
    assert (site.requests, answers) == ([], [])


def test_a_picture_comes_over_an_encrypted_connection_that_somebody_vouches_for(site, tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    own = tmp_path / "own.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    options = ["-addext", "subjectAltName=DNS:localhost", "-keyout", own, "-out", own]
    subprocess.run([*words.split(), *options], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    url, wanted = publish(site, 1)
    url = url.replace("http://127.0.0.1", "https://localhost")
    result = get_one(url, wanted, tmp_path)
    assert (result.cause, result.detail) == ("certificate", "self-signed certificate")
    trusting = ssl.create_default_context(cafile=str(own))
    monkeypatch.setattr(http_get, "_tls", lambda: trusting)
    assert get_one(url, wanted, tmp_path, retry_failed=True).found


def test_a_proxy_finds_the_host_is_not_asked_for_this_machine_and_marks_nothing_dead(
    site, tmp_path, monkeypatch
):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("http_proxy", site.base)
    url, wanted = "http://pictures.invalid/1.jpg", frozenset([sha(content(1))])
    site.files[url] = content(1)  # a proxy gets whole addresses as paths, and may be on a private address
    assert get_one(url, wanted, tmp_path / "found", allow_private_addresses=False).found
    here = get_one("http://169.254.169.254/x", wanted, tmp_path, allow_private_addresses=False)
    assert (here.cause, site.requests) == ("private-address", [url])
    site.stop()
    with pytest.raises(FetchError, match="is there a network"):
        get_one(url, wanted, tmp_path / "down")
    assert journal_path(tmp_path / "down").read_text() == ""


LOCATIONS = (
    "http://[::1", "http://[::1]x/", "http://[", "//[", "http://%", "http://a b/", "http://\x00/", "http:///x", "http:",
    "http://127.0.0.1:99999/", "http://127.0.0.1:-1/", "http://127.0.0.1:x/", "http://user@127.0.0.1/", "\xff\xfe", "",
    "http://" + "a" * 300, "http://a..b/", "http://xn--/", "javascript:1", "ftp://127.0.0.1/", "http://\u2100/", "?", "#",
    "/" + "x" * 70_000, "http://1.2.3.4.5.6/", "http://[v1.x]/", "http://[fe80::1%25]/",
)  # fmt: skip
HEADERS = (
    "Content-Length: -1", "Content-Length: x", "Content-Length: 99999999999999999999", "Content-Length: 1\r\nContent-Length: 2",
    "Transfer-Encoding: chunked", "Transfer-Encoding: gzip", "Content-Encoding: gzip", "Content-Type: \x00", "Content-Type: ;;=",
    "Retry-After: -1", "Retry-After: 99999999999", "Retry-After: \u0661", "no colon", ": no name", "X: " + "y" * 70_000, "\x00",
    "Content-Range: bytes 0-", "Location: ", "Set-Cookie: \x1b]0;x\x07", "\r\n ".join(["A: b"] * 150),
)  # fmt: skip
STATUSES = ("HTTP/1.1 200 OK", "HTTP/1.1 302 Found", "HTTP/1.1 200", "HTTP/1.0 200 OK", "HTTP/9.9 200 OK", "HTTP/1.1 99 x",
            "HTTP/1.1 1000 x", "HTTP/1.1 abc x", "HTTP/1.1 503 \x1b[31m", "HTTP/1.1 100 Continue", "HTTP/1.1 204 x", "ICY 200 OK",
            "HTTP/1.1 429 x", "", "\x00\x01", "HTTP/1.1 304 x", "HTTP/1.1 200 " + "x" * 70_000)  # fmt: skip
BODIES = (
    b"",
    b"x",
    b"5\r\nab",
    b"zz\r\n",
    b"-1\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"\x1f\x8b\x08",
    bytes(3000),
)


def test_whatever_a_server_says_is_an_outcome_of_its_address_and_fit_for_a_report(site, tmp_path):
    """Every place that a redirect may name, and random answers of broken parts."""

    def raw(answer: bytes):
        return lambda handler: handler.wfile.write(answer)

    generator = random.Random(0)
    answers = [
        f"HTTP/1.1 302 Found\r\nLocation: {each}\r\n\r\n".encode("utf-8", "replace") for each in LOCATIONS
    ]
    for _ in range(300):
        parts = [generator.choice(STATUSES), *generator.sample(HEADERS, generator.randrange(4))]
        parts += [f"Location: {generator.choice(LOCATIONS)}"] * generator.randrange(2)
        body = generator.choice(BODIES)
        answers.append("\r\n".join([*parts, "\r\n"]).encode("utf-8", "replace") + body)
    wanted = [publish(site, number, raw(answer)) for number, answer in enumerate(answers)]
    good = publish(site, len(answers))
    eager = {"attempts": 1, "host_attempts": 10**6, "redirects": 1, "timeout": 2.0, "longest": 4.0}
    crawled = get([*wanted, good], tmp_path, **eager)
    assert good[1] == crawled.on_disk
    assert set(crawled.results) == {url for url, _ in [*wanted, good]}
    assert len(set(causes(crawled))) >= 8
    for result in crawled.results.values():
        assert len(result.detail) < 600
        assert result.detail.replace(" ", "").isprintable()
    before = len(site.requests)
    get([*wanted, good], tmp_path, **eager)
    assert len(site.requests) == before
