"""repro.data.download against a real server and real files."""

import hashlib
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from local_server import (
    OneFileServer,
    begin_range,
    cut_after,
    held,
    paced,
    page,
    stalls,
    status,
    unannounced,
    whole,
    wrong_range,
)

from repro.data.download import Patience, download
from repro.errors import FetchError, SetupError

QUICK = Patience(timeout=0.3, attempts=3, back_off=0.01, window=0.2)
SLOW, FAST = paced(2_000), paced(100_000)  # 40 kB/s and 2 MB/s


def get(server: OneFileServer, target: Path, *others: OneFileServer, **options) -> Path:
    md5, urls = hashlib.md5(server.content).hexdigest(), [each.url for each in (server, *others)]
    return download(urls, target, **{"md5": md5, "max_bytes": 10_000_000, "patience": QUICK, **options})


def test_a_file_arrives_whole_once_and_a_damaged_one_is_replaced(server, tmp_path, said):
    for _ in range(2):
        target = get(server, tmp_path / "new" / "set.tar.gz")
        assert target.read_bytes() == server.content
    assert len(server.ranges) == 1
    assert not list(tmp_path.rglob("*.part"))
    target.write_bytes(b"not it")
    assert get(server, target).read_bytes() == server.content
    assert "does not match its checksum" in said[0]


@pytest.mark.parametrize(
    ("part", "answers", "ranges", "says"),
    [
        (None, [cut_after(1_000_000)], [None, "bytes=1000000-"], "ended after 1,000,000 of 3,072,000 bytes; trying"),
        (1234, [], ["bytes=1234-"], None),  # of an earlier process
        (3_072_000, [], ["bytes=3072000-"], None),
        (1234, [whole], ["bytes=1234-"], None),  # a server that knows no ranges
        (1234, [wrong_range], ["bytes=1234-", None], "another range than the one asked for"),
        (b"x" * 1234, [], ["bytes=1234-", None], "do not fit together; starting over"),
        (None, [unannounced], [None], None),
        (None, [status(503), status(429, Retry_After=1)], [None] * 3, "503 Service Unavailable; trying again in 0.01 s"),
        (None, [status(302, Location="/elsewhere")], [None] * 2, None),
    ],
)  # fmt: skip
def test_a_download_gets_there_in_spite_of(server, tmp_path, said, part, answers, ranges, says):
    if part is not None:
        (tmp_path / "set.part").write_bytes(part if isinstance(part, bytes) else server.content[:part])
    server.answers = list(answers)
    assert get(server, tmp_path / "set").read_bytes() == server.content
    assert server.ranges == ranges
    assert says in said[0] if says else not said
    if len(said) > 1:
        assert "trying again in 1 s" in said[1]  # what the server asked for


def test_a_slow_line_is_not_given_up_while_it_gets_on(server, tmp_path):
    server.content = bytes(5 << 20)

    def cut_range(upto):
        def answer(handler):
            begin_range(handler, handler.first)
            handler.wfile.write(server.content[handler.first : upto])

        return answer

    server.answers = [cut_range(size) for size in (1_200_000, 2_400_000, 3_600_000, 4_800_000)]
    get(server, tmp_path / "set")
    assert len(server.ranges) == 5 > QUICK.attempts


@pytest.mark.parametrize(
    ("answers", "options", "says", "requests", "kept"),
    [
        ([status(503)] * 9, {}, "503 Service Unavailable; gave up after 3 attempts in a row", 3, 50),
        ([stalls] * 3, {}, r"no byte for 0.3 s; gave up after 3 .* 10 bytes are kept", 3, 10),
        ([status(404)], {}, "404 Not Found; check the address", 1, 50),
        ([partial(page, kind="text/html")], {}, "an HTML page instead of the file", 1, 50),
        ([page], {}, "an HTML page instead of the file", 1, 50),
        ([whole], {"md5": "0" * 32}, "3,072,000 bytes that came have MD5 .*, expected 0{32}", 1, None),
        ([], {"max_bytes": 1_000_000}, "more than 1,000,000 bytes", 1, 50),
        ([unannounced], {"max_bytes": 1_000_000}, "more than 1,000,000 bytes", 1, 1_000_000),
        ([status(302, Location=f"/again/{index}") for index in range(50)], {}, "302 Found", 11, 50),
        ([status(302, Location="file:///etc/passwd")], {}, "302 Found to file:", 1, 50),
        ([status(302, Location="http://[::1")], {}, "302 Found to http:", 1, 50),
        ([status(302, Location="http://a..b/\x1b]0;x\x07")], {}, "cannot be asked for", 1, 50),
    ],
)
def test_a_download_that_fails_says_why_and_keeps_what_came(
    server, tmp_path, answers, options, says, requests, kept
):
    (tmp_path / "set.part").write_bytes(server.content[:50])
    server.answers = list(answers)
    with pytest.raises(FetchError, match=says) as caught:
        get(server, tmp_path / "set", **options)
    assert (caught.value.exit_code, str(caught.value).isprintable()) == (3, True)
    assert len(server.ranges) == requests
    assert not (tmp_path / "set").exists()
    part = tmp_path / "set.part"
    assert part.stat().st_size <= kept if kept else not part.exists()


def other_file(handler):
    """As much of another file."""
    handler.begin(200, Content_Length=len(handler.content))
    handler.wfile.write(bytes(len(handler.content)))


def other_beginning(handler):
    """The first bytes of another file."""
    handler.begin(200, Content_Length=len(handler.content))
    handler.wfile.write(bytes(1_000_000))


@pytest.mark.parametrize(
    ("answers", "says", "ranges"),
    [
        ([SLOW], r" kB/s in \d+ s, expected 200 kB/s or more", [r"bytes=\d+-"]),
        ([stalls], "no byte for 0.3 s; 0 kB/s in 0 s", ["bytes=10-"]),
        ([status(503)] * 3, "503 Service Unavailable; gave up after 3 attempts in a row", ["None"]),
        ([status(404)], "404 Not Found", ["None"]),
        ([page], "an HTML page instead of the file", ["None"]),
        ([other_file], "the 3,072,000 bytes that came have MD5 .*; they were removed", ["None"]),
        ([cut_after(1_000_000), status(404)], "404 Not Found", ["bytes=1000000-"]),
        ([other_beginning, status(404)], "404 Not Found", ["bytes=1000000-", "None"]),
    ],
    ids=["slow", "stalled", "busy", "gone", "page", "wrong", "cut", "cut and wrong"],
)
def test_a_source_that_fails_or_is_slow_is_left_for_the_next_which_resumes(
    server, second_server, tmp_path, said, answers, says, ranges
):
    server.answers, second_server.answers = list(answers), [FAST]
    get(server, tmp_path / "set", second_server)
    assert (tmp_path / "set").read_bytes() == server.content
    assert len(server.ranges) == len(answers)
    assert re.fullmatch(", ".join(ranges), ", ".join(map(str, second_server.ranges)))
    (left,) = [line for line in said if line.endswith(f"; trying {second_server.url}")]
    assert re.match(f"{server.url}: .*{says}", left)


def test_a_slow_source_is_waited_for_where_it_is_the_last_or_every_other_fails(
    server, second_server, tmp_path, said
):
    server.content = second_server.content = server.content[:30_000]
    server.answers, second_server.answers = [SLOW], [SLOW]
    get(server, tmp_path / "last", second_server)
    assert (len(server.ranges), len(second_server.ranges), len(said)) == (1, 1, 1)
    server.answers, second_server.answers = [SLOW, SLOW], [status(404)]
    get(server, tmp_path / "back", second_server)
    assert (len(server.ranges), len(second_server.ranges)) == (3, 2)
    assert said[2] == f"{second_server.url}: 404 Not Found; trying {server.url}"
    assert (tmp_path / "back").read_bytes() == server.content


def test_a_source_that_is_fast_enough_is_not_left(server, second_server, tmp_path):
    server.answers = [FAST]
    get(server, tmp_path / "set", second_server, patience=Patience(window=0.5))
    assert (len(server.ranges), second_server.ranges) == (1, [])


def test_where_every_source_fails_each_is_named_with_its_reason(server, second_server, tmp_path):
    server.answers, second_server.answers = [cut_after(1_000), status(404)], [partial(page, kind="text/html")]
    with pytest.raises(FetchError) as caught:
        get(server, tmp_path / "set", second_server)
    assert str(caught.value) == (
        f"none of 2 sources has set: {server.url}: 404 Not Found; {second_server.url}: an HTML page instead "
        "of the file (a login or an error page?); try again later, name a mirror with --url, or put the file "
        f"into {tmp_path} by hand. 1,000 bytes are kept: the next attempt resumes from there"
    )
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file:///etc/passwd", "expected a URL that begins with http:// or https://"),
        ("http://no-such-host.invalid/set", "Name or service not known|name resolution; is there a network"),
        ("http://127.0.0.1:{port}/set", "the connection is refused"),
    ],
)
def test_what_cannot_be_requested_is_one_clear_line(tmp_path, url, says):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(FetchError, match=says) as caught:
        download([url.format(port=port)], tmp_path / "set", md5="", max_bytes=1)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path, read_only):
    (tmp_path / "file").write_text("")
    for folder, says in (
        (tmp_path / "file" / "below", "Not a directory; choose"),
        (read_only, "choose another folder with --data-dir"),
    ):
        with pytest.raises(SetupError, match=says):
            get(server, folder / "set")
    assert server.ranges == []


def test_a_full_disk_is_named_whatever_other_sources_there_are_and_what_came_is_kept(
    server, second_server, small_disk
):
    with pytest.raises(FetchError, match=r"no space left for .*set: free some on that disk"):
        get(server, small_disk / "set", second_server)
    assert second_server.ranges == []
    assert (small_disk / "set.part").stat().st_size > 500_000
    assert not (small_disk / "set").exists()


def test_of_two_downloads_at_once_one_waits_and_finds_it_done(server, tmp_path, said):
    server.answers = [held]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(get, server, tmp_path / "set", patience=Patience()) for _ in range(2)]
        while "another process is downloading set; waiting for it to finish" not in said:
            time.sleep(0.01)
        server.gate.set()
        assert {each.result() for each in both} == {tmp_path / "set"}
    assert len(server.ranges) == 1
