"""repro.data.facescrub on a small FaceScrub behind a real server."""

import csv
import shutil
from pathlib import Path

import pytest
from fake_facescrub import ACTORS, ACTRESSES, FakeFaceScrub
from local_server import status
from small_files_server import SmallFilesServer, file_of_path, page

from repro.data import FetchOptions, facescrub
from repro.data.crawl import picture
from repro.data.http_get import CrawlPolicy
from repro.errors import DataMissingError, FetchError, SetupError

EAGER = CrawlPolicy(per_host=8, per_second=1e6, host_pause=0, back_off=0.01, unreachable_pause=0.01)
FAKE = FakeFaceScrub({"Ada Lovelace": 5, "Grace Hopper": 4})


@pytest.fixture
def lists(site: SmallFilesServer, tmp_path: Path) -> Path:
    """The folder of the lists, whose pictures are on `site`."""
    for each in FAKE.pictures:
        site.add(each.path, each.content)
    return FAKE.lay_lists(tmp_path / "lists", site.base)


def fetch(data_dir: Path, **options) -> Path:
    chosen = FetchOptions(allow_private_addresses=True, **options)
    return facescrub.fetch(data_dir, chosen, policy=EAGER)


def missing(raw: Path) -> list[dict[str, str]]:
    with (raw / "missing.tsv").open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_lists_are_kept_beside_the_pictures_so_that_they_are_named_once(lists, tmp_path, said):
    raw = fetch(tmp_path / "data", lists=lists)
    for each in FAKE.pictures:
        assert picture(raw, each.sha256).read_bytes() == each.content
    assert said == [
        "the lists have 9 rows: 9 faces at 9 addresses",
        f"9 faces found; {raw / 'missing.tsv'} lists what is missing",
    ]
    shutil.rmtree(lists)
    first = said.copy()
    said.clear()
    fetch(tmp_path / "data")
    assert said == first
    assert missing(raw) == []


def test_what_is_not_there_is_counted_by_cause_and_listed_with_its_reason(lists, site, tmp_path, said):
    site.answers["/1.jpg"] = [status(404)]
    site.answers["/2.jpg"] = [page]
    site.files["/3.jpg"] = b"another picture"
    site.answers["/4.jpg"] = [status(404)]
    raw = fetch(tmp_path / "data", lists=lists)
    assert said[-1].startswith("5 faces found, 4 missing (by address: gone 2, page 1, mismatch 1); ")
    rows = missing(raw)
    assert [(row["cause"], row["name"], row["image_id"]) for row in rows] == [
        ("gone", "Ada Lovelace", "1"),
        ("page", "Ada Lovelace", "2"),
        ("mismatch", "Ada Lovelace", "3"),
        ("gone", "Ada Lovelace", "4"),
    ]
    assert rows[0]["url"] == f"{site.base}/1.jpg"
    assert rows[0]["detail"] == "404 Not Found"


def test_rows_that_cannot_be_used_are_counted_and_listed_too(lists, tmp_path, said):
    with (lists / ACTRESSES).open("a") as stream:
        stream.write("Grace Hopper\t99\t1099\thttp://a.example/cut-o")
    raw = fetch(tmp_path / "data", lists=lists)
    assert said[0] == "the lists have 10 rows, 1 of them unusable (truncated 1): 9 faces at 9 addresses"
    assert [(row["cause"], row["detail"]) for row in missing(raw)] == [
        ("row-truncated", "facescrub_actresses.txt line 5: 4 fields, expected 6")
    ]


def test_no_name_or_address_of_a_list_becomes_a_path(site, tmp_path):
    evil = FakeFaceScrub({"Ada Lovelace": 1, "Grace Hopper": 1})
    lists = evil.lay_lists(tmp_path / "lists", site.base)
    for path in (lists / ACTORS, lists / ACTRESSES):
        path.write_text(
            path.read_text().replace("Ada Lovelace", "../../../evil").replace("/1.jpg", "/..%2f..%2fevil")
        )
    site.files["/..%2f..%2fevil"] = evil.pictures[0].content
    site.files["/2.jpg"] = evil.pictures[1].content
    before = set(tmp_path.rglob("*"))
    raw = fetch(tmp_path / "data", lists=lists)
    assert {each.sha256 for each in evil.pictures} == {path.name for path in raw.glob("images/*/*")}
    new = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "data") and "evil" not in str(path.name) for path in new)


def test_addresses_of_other_kinds_are_never_asked_for(lists, site, tmp_path, said):
    (tmp_path / "secret.jpg").write_bytes(FAKE.pictures[0].content)
    text = (lists / ACTORS).read_text().replace(f"{site.base}/1.jpg", f"file://{tmp_path}/secret.jpg")
    (lists / ACTORS).write_text(text.replace(f"{site.base}/2.jpg", "ftp://127.0.0.1/2.jpg"))
    raw = fetch(tmp_path / "data", lists=lists)
    assert "2 missing (by address: not-http 2)" in said[-1]
    assert not picture(raw, FAKE.pictures[0].sha256).exists()


def test_two_addresses_of_one_picture_are_two_chances(lists, site, tmp_path):
    each = FAKE.pictures[0]
    site.answers[each.path] = [status(410)]
    site.files["/copy.jpg"] = each.content
    with (lists / ACTORS).open("a") as stream:
        stream.write(each.row(site.base).replace(each.path, "/copy.jpg").replace("\t1\t", "\t77\t"))
    raw = fetch(tmp_path / "data", lists=lists)
    assert picture(raw, each.sha256).exists()
    assert [row["cause"] for row in missing(raw)] == ["row-duplicate"]


def test_fetching_again_asks_for_nothing_twice_unless_the_dead_are_wanted(lists, site, tmp_path):
    site.answers["/1.jpg"] = [status(404), file_of_path]
    fetch(tmp_path / "data", lists=lists)
    fetch(tmp_path / "data")
    assert set(site.times().values()) == {1}
    raw = fetch(tmp_path / "data", retry_dead=True)
    assert site.times()["/1.jpg"] == 2
    assert picture(raw, FAKE.pictures[0].sha256).exists()


def test_without_lists_it_is_said_where_they_come_from_and_go(tmp_path):
    with pytest.raises(
        DataMissingError, match=r"data/facescrub/raw/lists\. FaceScrub's publishers send the lists"
    ):
        fetch(tmp_path / "data")


def test_lists_that_are_not_there_leave_those_of_before(lists, tmp_path):
    fetch(tmp_path / "data", lists=lists)
    with pytest.raises(DataMissingError, match=r"no facescrub_actors\.txt"):
        fetch(tmp_path / "data", lists=tmp_path / "elsewhere")
    fetch(tmp_path / "data")


def test_a_folder_without_write_permission_is_named(lists, read_only):
    with pytest.raises(SetupError, match="no permission to write"):
        fetch(read_only, lists=lists)


def test_a_disk_too_full_for_the_lists_is_named(lists, small_disk):
    (small_disk / "filler").write_bytes(bytes((1 << 20) - 8192))
    with pytest.raises(FetchError, match="no space left for"):
        fetch(small_disk, lists=lists)
