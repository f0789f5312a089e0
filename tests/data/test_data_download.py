"""repro.data.download against a real server and real files."""

import hashlib
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from local_server import (
    LocalServer,
    cut_after,
    disguised_html,
    gated,
    html,
    stalled,
    status,
    unannounced,
    whole,
    wrong_range,
)

from repro.data.download import download
from repro.errors import FetchError, SetupError

QUICK = {"timeout": 0.3, "attempts": 3, "back_off": 0.01}


def get(server: LocalServer, target: Path, **options) -> Path:
    md5 = hashlib.md5(server.content).hexdigest()
    return download(server.url, target, **{"md5": md5, "max_bytes": 10_000_000, **QUICK, **options})


def test_a_file_arrives_whole_and_leaves_no_part(server, tmp_path):
    seen = []
    target = get(server, tmp_path / "new" / "set.tar.gz", progress=lambda *call: seen.append(call))
    assert target.read_bytes() == server.content
    assert seen[-1] == (len(server.content), len(server.content))
    assert [call[0] for call in seen] == sorted(call[0] for call in seen)
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_that_is_there_is_not_asked_for_again(server, tmp_path):
    get(server, tmp_path / "set")
    get(server, tmp_path / "set")
    assert len(server.ranges) == 1


def test_a_damaged_file_is_replaced_and_this_is_said(server, tmp_path, said):
    (tmp_path / "set").write_bytes(b"not it")
    get(server, tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == server.content
    assert "does not match its checksum" in said[0]


def test_a_cut_download_goes_on_where_it_stopped(server, tmp_path, said):
    server.answers = [cut_after(1_000_000)]
    get(server, tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == server.content
    assert server.ranges == [None, "bytes=1000000-"]
    assert "the connection ended after 1,000,000 of 3,072,000 bytes; trying again in" in said[0]


def test_a_later_process_goes_on_from_the_part_of_an_earlier_one(server, tmp_path):
    (tmp_path / "set.part").write_bytes(server.content[:1234])
    get(server, tmp_path / "set")
    assert server.ranges == ["bytes=1234-"]


def test_a_whole_part_is_recognised(server, tmp_path):
    (tmp_path / "set.part").write_bytes(server.content)
    get(server, tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == server.content
    assert server.ranges == ["bytes=3072000-"]


def test_a_200_to_a_range_request_starts_over(server, tmp_path):
    (tmp_path / "set.part").write_bytes(b"x" * 1234)
    server.answers = [whole]
    get(server, tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == server.content
    assert len(server.ranges) == 1


def test_another_range_than_asked_for_starts_over(server, tmp_path):
    (tmp_path / "set.part").write_bytes(server.content[:1234])
    server.answers = [wrong_range]
    get(server, tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == server.content
    assert server.ranges == ["bytes=1234-", None]


def test_a_part_of_another_version_is_given_up_for_the_whole_file(server, tmp_path, said):
    (tmp_path / "set.part").write_bytes(b"x" * 1234)
    get(server, tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == server.content
    assert "the parts do not fit together" in said[0]


def test_a_body_of_unknown_length_is_taken(server, tmp_path):
    server.answers = [unannounced]
    seen = []
    get(server, tmp_path / "set", progress=lambda *call: seen.append(call))
    assert seen[-1] == (len(server.content), None)


def test_a_slow_line_is_not_given_up_while_it_gets_on(server, tmp_path):
    server.content = bytes(5 << 20)
    sizes = [1_200_000, 2_400_000, 3_600_000, 4_800_000]

    def cut_range(upto):
        def answer(handler):
            first = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
            total = len(server.content)
            headers = {"Content_Length": total - first, "Content_Range": f"bytes {first}-{total - 1}/{total}"}
            handler.begin(206 if first else 200, **headers)
            handler.wfile.write(server.content[first:upto])

        return answer

    server.answers = [cut_range(size) for size in sizes]
    get(server, tmp_path / "set")
    assert len(server.ranges) == 5 > QUICK["attempts"]


def test_a_busy_server_is_asked_again(server, tmp_path, said):
    server.answers = [status(503), status(502)]
    get(server, tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == server.content
    assert "503 Service Unavailable; trying again in 0.01 s" in said[0]
    assert "trying again in 0.02 s" in said[1]


def test_a_pause_that_the_server_asks_for_is_kept(server, tmp_path):
    server.answers = [status(429, Retry_After=1)]
    started = time.monotonic()
    get(server, tmp_path / "set")
    assert time.monotonic() - started >= 1


def test_a_server_that_stays_busy_is_given_up(server, tmp_path):
    server.answers = [status(503)] * 9
    with pytest.raises(FetchError, match="503 Service Unavailable; gave up after 3 attempts in a row"):
        get(server, tmp_path / "set")
    assert len(server.ranges) == 3


def test_a_stalled_server_is_given_up_and_what_came_is_kept(server, tmp_path):
    server.answers = [stalled] * 3
    with pytest.raises(FetchError, match=r"no byte came for 0\.3 s; gave up after 3 .* 10 bytes are kept"):
        get(server, tmp_path / "set")
    assert (tmp_path / "set.part").read_bytes() == server.content[:10]
    assert not (tmp_path / "set").exists()


def test_a_missing_file_is_not_asked_for_twice(server, tmp_path):
    server.answers = [status(404)]
    with pytest.raises(FetchError, match="404 Not Found; check the address"):
        get(server, tmp_path / "set")
    assert len(server.ranges) == 1


@pytest.mark.parametrize("page", [html, disguised_html])
def test_an_html_page_instead_of_the_file_is_named_and_spoils_no_part(server, tmp_path, page):
    (tmp_path / "set.part").write_bytes(server.content[:50])
    server.answers = [page]
    with pytest.raises(FetchError, match="sent an HTML page instead of the file"):
        get(server, tmp_path / "set")
    assert (tmp_path / "set.part").read_bytes() == server.content[:50]


def test_a_wrong_checksum_says_what_was_expected_and_what_came(server, tmp_path):
    expected, actual = "0" * 32, hashlib.md5(server.content).hexdigest()
    with pytest.raises(FetchError, match=f"3,072,000 bytes that came have MD5 {actual}, expected {expected}"):
        get(server, tmp_path / "set", md5=expected)
    assert not (tmp_path / "set").exists()
    assert not (tmp_path / "set.part").exists()


def test_a_file_announced_larger_than_the_cap_is_refused_before_a_byte(server, tmp_path):
    with pytest.raises(FetchError, match="announces 3,072,000 bytes, expected at most 1,000,000"):
        get(server, tmp_path / "set", max_bytes=1_000_000)
    assert not (tmp_path / "set.part").exists()


def test_a_body_that_grows_past_the_cap_is_dropped(server, tmp_path):
    server.answers = [unannounced]
    with pytest.raises(FetchError, match="more than the 1,000,000 bytes"):
        get(server, tmp_path / "set", max_bytes=1_000_000)
    assert not (tmp_path / "set.part").exists()


def test_a_redirect_is_followed(server, tmp_path):
    server.answers = [status(302, Location="/elsewhere")]
    get(server, tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == server.content


def test_redirects_without_end_are_not_followed_without_end(server, tmp_path):
    server.answers = [status(302, Location=f"/again/{index}") for index in range(50)]
    with pytest.raises(FetchError, match="redirected too often"):
        get(server, tmp_path / "set")
    assert len(server.ranges) <= 6


@pytest.mark.parametrize(
    ("elsewhere", "message"),
    [
        ("file:///etc/passwd", "away from http and https; last to file:///etc/passwd"),
        ("ftp://127.0.0.1/set", "away from http and https; last to ftp://127.0.0.1/set"),
        ("http://[::1", "not a URL that can be requested"),
    ],
)
def test_a_redirect_away_from_http_is_refused(server, tmp_path, elsewhere, message):
    server.answers = [status(302, Location=elsewhere)]
    with pytest.raises(FetchError, match=message):
        get(server, tmp_path / "set")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/set", "set.tar.gz"])
def test_only_http_and_https_are_fetched(tmp_path, url):
    with pytest.raises(FetchError, match="expected a URL that begins with http:// or https://"):
        download(url, tmp_path / "set", md5="", max_bytes=1)


def test_a_host_that_has_no_address_asks_whether_there_is_a_network(tmp_path):
    with pytest.raises(
        FetchError, match=r"no-such-host\.invalid/set: the server cannot be reached .* is there a network"
    ):
        download("http://no-such-host.invalid/set", tmp_path / "set", md5="", max_bytes=1)


def test_a_refused_connection_is_one_clear_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(FetchError, match="refuses the connection") as caught:
        download(f"http://127.0.0.1:{port}/set", tmp_path / "set", md5="", max_bytes=1)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match=r"cannot make .*file/below: a file stands where a folder is needed"):
        get(server, tmp_path / "file" / "below" / "set")
    assert server.ranges == []


def test_a_folder_without_write_permission_is_named(server, read_only):
    with pytest.raises(SetupError, match=r"no permission to write .*: choose another folder with --data-dir"):
        get(server, read_only / "set")


def test_a_full_disk_is_named_and_what_came_is_kept(server, small_disk):
    with pytest.raises(FetchError, match=r"no space left for .*set: free some on that disk"):
        get(server, small_disk / "set")
    assert (small_disk / "set.part").stat().st_size > 500_000
    assert not (small_disk / "set").exists()


def test_two_processes_at_once_download_once(server, tmp_path):
    server.answers = [gated]
    script = textwrap.dedent(
        """
        import logging, sys
        from pathlib import Path
        from repro.data.download import download
        logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
        download(sys.argv[1], Path(sys.argv[2]), md5=sys.argv[3], max_bytes=10**7)
        print("done")
        """
    )
    digest = hashlib.md5(server.content).hexdigest()
    command = [sys.executable, "-c", script, server.url, str(tmp_path / "set"), digest]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        deadline = time.monotonic() + 20
        while not server.ranges and time.monotonic() < deadline:
            time.sleep(0.01)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
            assert (
                second.stdout.readline() == "another process is downloading set; waiting for it to finish\n"
            )
            server.gate.set()
            assert second.communicate(timeout=20)[0] == "done\n"
        assert first.communicate(timeout=20)[0] == "done\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert len(server.ranges) == 1
    assert (tmp_path / "set").read_bytes() == server.content
