"""repro.data.crawl against real servers of small files, with their faults, and real interruptions."""

import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from local_server import status
from small_files_server import (
    SmallFilesServer,
    after,
    cut_short,
    drips,
    endless,
    file_of_path,
    hang_up,
    header_drips,
    held,
    nonsense,
    page,
    stalls,
)

from repro.data import crawl as crawling
from repro.data import http_get
from repro.data.crawl import Crawled, crawl, journal_path, picture
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


def get(wanted, folder: Path, retry_failed: bool = False, **policy) -> Crawled:
    return crawl(dict(wanted), folder, replace(EAGER, **policy), retry_failed)


def lost(count: int) -> list[tuple[str, frozenset[str]]]:
    """Addresses at hosts that do not exist."""
    return [(f"http://host-{number}.invalid/1.jpg", frozenset([sha(b"")])) for number in range(count)]


@pytest.fixture
def vanished(monkeypatch) -> None:
    """A resolver that knows no `.invalid`, at once: with the real one, saying so may take many seconds."""
    real = socket.getaddrinfo

    def resolve(host, *args, **options):
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def causes(crawled: Crawled) -> list[str]:
    return sorted(result.cause for result in crawled.results.values())


def test_every_picture_lies_under_its_own_sha256(site, tmp_path):
    wanted = [publish(site, number) for number in range(40)]
    crawled = get(wanted, tmp_path)
    assert crawled.on_disk == {sha(content(number)) for number in range(40)}
    for number in range(40):
        assert picture(tmp_path, sha(content(number))).read_bytes() == content(number)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".crawl.lock", "fetched.jsonl", "images"]


@pytest.mark.parametrize(
    ("answers", "cause", "detail", "requests"),
    [
        ([status(404)], "gone", "404 Not Found", 1),
        ([status(410)], "gone", "410 Gone", 1),
        ([status(403)], "refused", "403 Forbidden", 1),
        ([status(206)], "refused", "206 Partial Content", 1),
        ([page], "page", "an HTML page instead of a picture", 1),
        ([status(500)], "server-error", "500 Internal Server Error (3 attempts)", 3),
        ([status(429)], "busy", "429 Too Many Requests (3 attempts)", 3),
        ([cut_short], "cut", "the connection ended after 251 of 502 bytes (3 attempts)", 3),
        ([hang_up], "cut", "no whole answer came (3 attempts)", 3),
        ([nonsense], "cut", "no whole answer came (3 attempts)", 3),
        ([status(302, Location="file:///etc/passwd")], "redirect", "302 Found to file:///etc/passwd", 1),
        ([status(302, Location="ftp://127.0.0.1/x")], "redirect", "302 Found to ftp://127.0.0.1/x", 1),
        ([status(302, Location="http://[::1")], "redirect", "302 Found to http://[::1", 1),
        ([status(302, Location="http://a..b/x")], "not-http", "http://a..b/x", 1),
        ([status(301)], "redirect", "redirected more than 5 times", 6),
    ],
)
def test_a_dead_address_is_counted_by_its_cause_and_asked_for_no_oftener_than_that_is_worth(
    site, tmp_path, answers, cause, detail, requests
):
    dead, good = publish(site, 1, *answers), publish(site, 2)
    crawled = get([dead, good], tmp_path)
    outcome = crawled.results[dead[0]]
    assert outcome.cause == cause
    assert outcome.detail.endswith(detail)
    assert crawled.on_disk == good[1]
    assert site.times() == {"/1.jpg": requests, "/2.jpg": 1}


def test_other_bytes_than_the_published_ones_are_not_kept(site, tmp_path):
    url, _ = publish(site, 1)
    crawled = get([(url, frozenset([sha(b"of 2014")]))], tmp_path)
    assert crawled.results[url].cause == "mismatch"
    assert crawled.results[url].detail == f"502 bytes with sha256 {sha(content(1))}"
    assert not crawled.on_disk
    assert not list((tmp_path).glob("images/*/*"))


def test_passing_faults_are_tried_again(site, tmp_path):
    wanted = [
        publish(site, 1, status(500), file_of_path),
        publish(site, 2, cut_short, hang_up, file_of_path),
        publish(site, 3, status(503), status(502), file_of_path),
    ]
    assert causes(get(wanted, tmp_path)) == ["found"] * 3


def test_a_pause_that_the_server_asks_for_is_kept_by_all_its_addresses(site, tmp_path):
    wanted = [publish(site, 1, status(429, Retry_After=1), file_of_path), publish(site, 2)]
    assert causes(get(wanted, tmp_path, per_host=1, host_pause=0)) == ["found"] * 2
    assert site.requests[0] == "/1.jpg"
    assert site.begun[1] - site.begun[0] >= 1


def test_a_host_that_asks_for_an_hour_is_not_asked_again(site, tmp_path):
    wanted = [publish(site, number, status(429, Retry_After=3600)) for number in range(20)]
    crawled = get(wanted, tmp_path, per_host=1, host_pause=0)
    assert causes(crawled) == ["busy"] * 20
    assert len(site.requests) == 1
    assert crawled.results[wanted[5][0]].detail == "its host was given up: 429 Too Many Requests"


def test_a_host_that_only_fails_is_given_up(site, tmp_path):
    wanted = [publish(site, number, status(503)) for number in range(50)]
    crawled = get(wanted, tmp_path, per_host=1, host_pause=0, back_off=0.001)
    assert causes(crawled) == ["server-error"] * 50
    assert len(site.requests) == CrawlPolicy().host_attempts


@pytest.mark.parametrize("slow", [stalls, drips, header_drips])
def test_a_server_that_is_too_slow_does_not_hold_the_crawl_up(site, tmp_path, slow):
    wanted = [publish(site, 1, slow), publish(site, 2)]
    crawled = get(wanted, tmp_path, timeout=1.0, longest=1.5, attempts=1)
    assert [crawled.results[url].cause for url, _ in wanted] == ["too-slow", "found"]


@pytest.mark.parametrize("announced", [True, False])
def test_not_a_byte_beyond_the_cap_is_kept(site, tmp_path, announced):
    url = site.add("/1.jpg", b"x" * 100_000, file_of_path if announced else endless)
    crawled = get([(url, frozenset([sha(b"")]))], tmp_path, max_bytes=50_000)
    assert crawled.results[url].cause == "too-large"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000]


def test_a_redirect_is_followed_to_another_host_within_that_hosts_limit(site, tmp_path):
    wanted = [publish(site, number, status(302, Location=f"{site.base}/parked.jpg")) for number in range(6)]
    other = SmallFilesServer()
    try:
        for number in range(6):
            other.add(f"/to/{number}", content(number), after(0.05))
            site.answers[f"/{number}.jpg"] = [status(302, Location=f"{other.base}/to/{number}")]
        crawled = get(wanted, tmp_path, per_host=2, host_pause=0, per_second=1e6)
        assert causes(crawled) == ["found"] * 6
        assert other.most_at_once <= 2
        assert crawled.results[wanted[0][0]].detail == f"at {other.base}/to/0"
    finally:
        other.stop()


def test_a_slow_host_does_not_hold_up_the_fast_ones_and_no_host_is_crowded(tmp_path, monkeypatch):
    slow, fast = SmallFilesServer(), SmallFilesServer()
    settled = 0

    @contextmanager
    def progress(doing: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        def advance(count: int) -> None:
            nonlocal settled
            settled += count
            if settled == 60:  # all of the fast host's, while the slow one has not said a word
                slow.gate.set()

        yield advance

    monkeypatch.setattr(crawling, "progress", progress)
    try:
        wanted = [publish(slow, number, held) for number in range(12)]
        wanted += [publish(fast, number, after(0.002)) for number in range(100, 160)]
        assert causes(get(wanted, tmp_path, per_host=2)) == ["found"] * 72
        assert (slow.most_at_once, fast.most_at_once) == (2, 2)
    finally:
        slow.stop()
        fast.stop()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/1.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "1.jpg",
        "http://",
        "http://[::1",
        "http://127.0.0.1:99999/",
        "http://user@127.0.0.1/",
    ],
)
def test_only_http_and_https_are_ever_asked_for(site, tmp_path, url):
    crawled = get([(url, frozenset([sha(b"")])), publish(site, 1)], tmp_path)
    assert crawled.results[url].cause == "not-http"
    assert len(crawled.on_disk) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f000001"])
def test_this_machine_is_not_asked_unless_that_is_allowed(site, tmp_path, host):
    url, wanted = publish(site, 1)
    url = url.replace("127.0.0.1", host)
    assert causes(get([(url, wanted)], tmp_path, allow_private_addresses=False)) == ["private-address"]
    assert site.requests == []


def test_a_name_that_leads_to_this_machine_does_not_get_there(site, tmp_path):
    url, wanted = publish(site, 1)
    url = url.replace("127.0.0.1", "localhost")
    with pytest.raises(
        FetchError, match=r"leads to .*, which is not on the public internet\): is there a net"
    ):
        get([(url, wanted)], tmp_path, allow_private_addresses=False)
    assert site.requests == []


def test_an_address_with_spaces_and_other_letters_is_asked_for_in_quotes(site, tmp_path):
    site.files["/a%20%C3%A9.jpg"] = content(1)
    url = f"{site.base}/a é.jpg"
    assert causes(get([(url, frozenset([sha(content(1))]))], tmp_path)) == ["found"]


def test_a_settled_address_is_not_asked_for_again_dead_or_not(site, tmp_path):
    wanted = [publish(site, 1), publish(site, 2, status(404)), publish(site, 3, page)]
    first = get(wanted, tmp_path)
    again = get([*wanted, publish(site, 4)], tmp_path)
    assert site.times() == {f"/{number}.jpg": 1 for number in (1, 2, 3, 4)}
    assert len(again.on_disk) == len(first.on_disk) + 1


def test_dead_addresses_are_asked_for_again_where_that_is_wanted(site, tmp_path):
    wanted = [publish(site, 1), publish(site, 2, status(404), file_of_path), publish(site, 3, status(404))]
    get(wanted, tmp_path)
    crawled = get(wanted, tmp_path, retry_failed=True)
    assert causes(crawled) == ["found", "found", "gone"]
    assert site.times() == {"/1.jpg": 1, "/2.jpg": 2, "/3.jpg": 2}


def test_a_picture_that_another_address_had_is_not_asked_for(site, tmp_path):
    (url, wanted) = publish(site, 1)
    copy = site.add("/copy.jpg", content(1))
    crawled = get([(url, wanted), (copy, wanted)], tmp_path, connections=1, host_pause=0)
    assert crawled.on_disk == wanted
    assert site.requests == ["/1.jpg"]


def test_a_picture_that_is_there_unnoted_is_taken_once_its_sha256_is_right(site, tmp_path):
    (url, wanted), (other, others) = publish(site, 1), publish(site, 2)
    for sha256, data in ((next(iter(wanted)), content(1)), (next(iter(others)), b"damaged")):
        picture(tmp_path, sha256).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path, sha256).write_bytes(data)
    crawled = get([(url, wanted), (other, others)], tmp_path)
    assert crawled.on_disk == wanted | others
    assert site.requests == ["/2.jpg"]


def test_a_picture_that_vanished_or_was_cut_is_fetched_again(site, tmp_path):
    wanted = [publish(site, number) for number in (1, 2, 3)]
    get(wanted, tmp_path)
    picture(tmp_path, sha(content(1))).unlink()
    picture(tmp_path, sha(content(2))).write_bytes(b"cut")
    assert len(get(wanted, tmp_path).on_disk) == 3
    assert site.times() == {"/1.jpg": 2, "/2.jpg": 2, "/3.jpg": 1}


def test_a_torn_journal_loses_its_last_line_only(site, tmp_path):
    wanted = [publish(site, number, status(404)) for number in (1, 2, 3)]
    get(wanted, tmp_path, connections=1, host_pause=0)
    journal = journal_path(tmp_path)
    journal.write_bytes(journal.read_bytes()[:-20])
    get(wanted, tmp_path)
    assert site.times() == {"/1.jpg": 1, "/2.jpg": 1, "/3.jpg": 2}
    assert [json.loads(line)["cause"] for line in journal.read_text().splitlines()] == ["gone"] * 3


def test_no_network_at_all_is_one_clear_line_and_marks_nothing_dead(vanished, tmp_path):
    wanted = dict(lost(500))
    with pytest.raises(FetchError, match=r"is there a network\? Nothing was noted as dead") as caught:
        crawl(wanted, tmp_path)
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (3, False)
    assert journal_path(tmp_path).read_text() == ""


def test_a_network_that_goes_away_stops_the_crawl_and_marks_nothing_dead(vanished, site, tmp_path):
    good = [publish(site, number) for number in range(5)]
    get(good, tmp_path)
    site.stop()
    with pytest.raises(FetchError, match=r"\d\d hosts in a row cannot be reached"):
        get([*good, *lost(100)], tmp_path)
    assert len(journal_path(tmp_path).read_text().splitlines()) == 5


def test_hosts_that_vanished_are_dead_where_others_answer_even_if_late(vanished, site, tmp_path):
    crawled = get([*lost(20), publish(site, 1, after(0.5)), *lost(100)], tmp_path)
    assert causes(crawled) == ["found"] + ["no-such-host"] * 100
    assert get(lost(100), tmp_path).results == crawled.results


def test_vanished_hosts_that_are_all_that_is_left_are_dead_where_an_earlier_one_still_answers(
    vanished, site, tmp_path
):
    get([publish(site, 1)], tmp_path)
    assert causes(get(lost(3), tmp_path)) == ["found"] + ["no-such-host"] * 3


def test_a_refused_connection_is_dead_and_is_asked_for_once(site, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/1.jpg"
    crawled = get([(url, frozenset([sha(b"")])), publish(site, 1)], tmp_path)
    assert (crawled.results[url].cause, crawled.results[url].detail) == (
        "no-connection",
        "the connection is refused",
    )


def test_a_full_disk_stops_with_one_clear_line_and_loses_nothing(site, small_disk):
    wanted = []
    for number in range(40):
        data = os.urandom(100_000)
        wanted.append((site.add(f"/{number}.jpg", data), frozenset([sha(data)])))
    with pytest.raises(FetchError, match=r"no space left for .*: free some on that disk") as caught:
        get(wanted, small_disk, connections=2, host_pause=0)
    assert "\n" not in str(caught.value)
    kept = {path.name for path in small_disk.glob("images/*/*")}
    assert len(kept) >= 5
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    assert len(get(wanted, small_disk).on_disk) == 40
    times = site.times()
    assert all(times[f"/{number}.jpg"] == 1 for number in range(40) if next(iter(wanted[number][1])) in kept)


def test_a_folder_without_write_permission_is_named(site, read_only):
    with pytest.raises(SetupError, match="no permission to write"):
        get([publish(site, 1)], read_only / "raw")
    assert site.requests == []


SCRIPT = textwrap.dedent(
    """
    import json, logging, sys
    from pathlib import Path
    from repro.data.crawl import crawl
    from repro.data.http_get import CrawlPolicy
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    wanted = {url: frozenset([sha]) for url, sha in json.loads(Path(sys.argv[1]).read_text())}
    crawl(wanted, Path(sys.argv[2]), CrawlPolicy(
        connections=4, per_host=4, host_pause=0, per_second=1e6, allow_private_addresses=True))
    print("done", flush=True)
    """
)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_crawl_that_is_ended_and_started_again_asks_for_nothing_twice(site, tmp_path, how):
    wanted = [publish(site, number, *([status(404)] if number % 3 == 0 else [])) for number in range(30)]
    wanted += [publish(site, number, held) for number in range(30, 60)]
    (tmp_path / "wanted.json").write_text(json.dumps([(url, next(iter(shas))) for url, shas in wanted]))
    folder = tmp_path / "raw"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "wanted.json"), str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_sigint
    ) as first:
        # Thirty are settled; four more are under way, at servers that say nothing.
        _until(
            lambda: journal_path(folder).is_file() and journal_path(folder).read_bytes().count(b"\n") == 30
        )
        _until(lambda: len(site.requests) == 34)
        under_way = set(site.requests) - set(site.answered)
        first.send_signal(how)
        out, err = first.communicate(timeout=60)
    if how == signal.SIGINT:
        assert out == "stopped: 30 of 60 addresses are settled, and the same command resumes from there\n"
        assert "KeyboardInterrupt" in err
        assert not (folder / ".partial").exists()
    site.gate.set()
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "done\n"
    assert len(under_way) == 4
    assert {path: times for path, times in site.times().items() if times > 1} == dict.fromkeys(under_way, 2)
    assert len(site.times()) == 60
    assert len(list(folder.glob("images/*/*"))) == 50
    assert not (folder / ".partial").exists()


def test_two_crawls_of_one_folder_at_once_ask_once(site, tmp_path):
    wanted = [publish(site, number, after(0.02)) for number in range(30)]
    (tmp_path / "wanted.json").write_text(json.dumps([(url, next(iter(shas))) for url, shas in wanted]))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "wanted.json"), str(tmp_path / "raw")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert all(process.communicate(timeout=60)[0].endswith("done\n") for process in both)
    assert set(site.times().values()) == {1}


def _heed_sigint() -> None:
    """A suite that runs in the background hands down an ignored SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _until(true) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


PICTURE = b"\xff\xd8 a picture"
WANTED = frozenset([hashlib.sha256(PICTURE).hexdigest()])


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

    def resolve(host, port, family=0, type=0, proto=0, flags=0):
        if host == "rebinding.example" and not flags & socket.AI_NUMERICHOST:
            host = answers.pop() if answers else "127.0.0.1"
        return real(host, port, family, type, proto, flags)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = elsewhere.add("/1.jpg", PICTURE).replace("127.0.0.2", "rebinding.example")
    assert get_one(url, tmp_path, allow_private_addresses=False).found
    assert (site.requests, answers) == ([], [])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "[::ffff:127.0.0.1]"])
def test_a_redirect_does_not_lead_to_this_machine(site, elsewhere, tmp_path, host):
    target = site.add("/1.jpg", PICTURE).replace("127.0.0.1", host)
    url = elsewhere.add("/away.jpg", b"", status(302, Location=target))
    result = get_one(url, tmp_path, allow_private_addresses=False)
    assert result.cause == "private-address"
    assert "is not on the public internet" in result.detail
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


def get_one(url: str, folder: Path, **policy) -> FetchResult:
    return get([(url, WANTED)], folder, **policy).results[url]


def test_a_certificate_that_nobody_vouches_for_is_not_believed(encrypted, tmp_path):
    result = get_one(encrypted, tmp_path)
    assert (result.cause, result.detail) == ("certificate", "self-signed certificate")


def test_a_picture_comes_over_an_encrypted_connection(encrypted, certificate, tmp_path, monkeypatch):
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(http_get, "_tls", lambda: trusting)
    assert get_one(encrypted, tmp_path).found


@pytest.fixture
def proxy(site: SmallFilesServer, monkeypatch) -> SmallFilesServer:
    """The server as the environment's proxy, which gets whole addresses as paths."""
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("http_proxy", site.base)
    return site


def test_where_a_proxy_is_set_it_finds_the_host_and_may_be_on_a_private_address(proxy, tmp_path):
    url = "http://pictures.invalid/1.jpg"
    proxy.files[url] = PICTURE
    assert get_one(url, tmp_path, allow_private_addresses=False).found


def test_a_proxy_is_not_asked_for_this_machine(proxy, tmp_path):
    result = get_one("http://169.254.169.254/latest/meta-data", tmp_path, allow_private_addresses=False)
    assert result.cause == "private-address"
    assert proxy.requests == []


def test_a_proxy_that_is_down_marks_nothing_dead(proxy, tmp_path):
    proxy.stop()
    with pytest.raises(FetchError, match="is there a network"):
        get_one("http://pictures.invalid/1.jpg", tmp_path)
    assert journal_path(tmp_path).read_text() == ""


def test_without_httpx_it_is_said_what_to_install(site, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(SetupError, match=r"needs httpx: pip install '\.\[facescrub\]'"):
        get_one(site.add("/1.jpg", PICTURE), tmp_path)
    assert journal_path(tmp_path).read_text() == ""
