"""Ranges of files: intact or a clear error, whatever the store does."""

import contextlib
import email.utils
import io
import json
import multiprocessing
import os
import pickle
import re
import socket
import subprocess
import sys
import textwrap
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
import h5py
import numpy as np
import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st

from walrus_hf.data import remote, well_opening
from walrus_hf.data.remote import (
    TRANSFERS,
    BufferedRangeFile,
    ChangedFileError,
    Identity,
    Retries,
    join_inside,
    list_files,
    open_range_file,
)
from walrus_hf.data.well import load_well
from walrus_hf.data.well_writer import save_well
from walrus_hf.fields import Trajectory

from .http_server import Fault, RangeServer, SignedStore

DATA = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)


@pytest.fixture
def waits(monkeypatch):
    """No wait takes time; each is noted here."""
    noted: list[float] = []
    monkeypatch.setattr(remote, "_sleep", noted.append)
    return noted


@pytest.fixture
def server(waits):
    with RangeServer({"a.bin": DATA}) as server:
        yield server


@pytest.fixture
def signed(waits):
    """An endpoint that redirects to a store with signed addresses, on another port."""
    with SignedStore({"a.bin": DATA}) as store, RangeServer({}, store=store) as endpoint:
        yield endpoint, store


def opened(server, **retries):
    """The file after its first question, with the server's count at zero."""
    file = open_range_file(server.url("a.bin"), retries=Retries(**retries))
    assert file.identity().size == len(DATA)
    server.forget()
    return file


# Behind http


def test_ranges_arrive_as_they_are_and_cost_one_request_each(server):
    before = TRANSFERS.bytes
    file = open_range_file(server.url("a.bin"))
    assert server.requests == 0
    assert file.identity() == Identity(len(DATA), server.etag("a.bin"))
    ranges = [(0, 1), (0, 300_000), (17, 4_000), (299_999, 300_000), (5, 5)]
    for start, stop in ranges:
        assert file.read(start, stop) == DATA[start:stop]
    assert server.requests == file.counter.requests == 1 + 4
    asked = sum(stop - start for start, stop in ranges)
    assert file.counter.bytes == TRANSFERS.bytes - before == asked
    assert server.sent == asked + 1  # the first question takes one byte
    assert file.counter.retries == 0


def test_a_range_goes_straight_into_the_array_it_is_for(server):
    array = np.zeros((3, 500), dtype=np.float32)
    open_range_file(server.url("a.bin")).read_into(4_000, memoryview(array))
    assert array.tobytes() == DATA[4_000:10_000]


@pytest.mark.parametrize("bounds", [(-1, 5), (0, 300_001), (300_001, 300_001), (9, 8)])
def test_a_range_outside_the_file_is_refused_before_it_is_asked_for(server, bounds):
    file = opened(server)
    with pytest.raises(OSError, match=f"a.bin: expected a range inside its 300000 bytes, found {bounds[0]} to"):
        file.read(*bounds)
    assert server.requests == 0


def test_an_empty_file_has_its_identity(server):
    server.files["a.bin"] = b""
    file = open_range_file(server.url("a.bin"))
    assert file.identity().size == 0
    assert file.read(0, 0) == b""


@pytest.mark.parametrize(
    "fault",
    [Fault(status=code) for code in (408, 429, 500, 502, 503, 504)] + [Fault(cut=0), Fault(cut=70_000)],
    ids=repr,
)
@pytest.mark.parametrize("times", [1, 4])
def test_what_may_pass_is_tried_again_until_the_bytes_are_there(server, waits, fault, times):
    file = opened(server)
    server.script("a.bin", *[fault] * times)
    assert file.read(1_000, 290_000) == DATA[1_000:290_000]
    assert waits == [0.5, 1.0, 2.0, 4.0][:times]
    assert file.counter.retries == times
    assert server.requests == times + 1


def test_a_range_that_broke_goes_on_from_where_it_broke(server):
    file = opened(server)
    server.script("a.bin", Fault(cut=100_000), Fault(cut=30_000))
    assert file.read(10, 300_000) == DATA[10:]
    assert [request.range for request in server.log] == [
        "bytes=10-299999",
        "bytes=100010-299999",
        "bytes=130010-299999",
    ]
    assert file.counter.bytes == 300_000 - 10


def test_a_long_range_over_a_bad_line_is_not_given_up_while_it_moves(server):
    server.files["a.bin"] = np.random.default_rng(2).bytes(5 * 2**20)
    file = open_range_file(server.url("a.bin"), retries=Retries(attempts=2))
    file.identity()
    server.script("a.bin", *[Fault(cut=2**20)] * 4)
    assert file.read(0, 5 * 2**20) == server.files["a.bin"]


def test_the_last_failure_names_file_offset_tries_and_reason(server, waits):
    file = opened(server, attempts=4, longest_wait=1.5)
    server.script("a.bin", Fault(cut=1_000))
    server.always("a.bin", Fault(status=503, headers={"X-Error-Message": "the store\n is busy"}))
    with pytest.raises(OSError, match=r"a\.bin: expected the bytes from 20 on, found HTTP 503.*4 tries") as caught:
        file.read(20, 290_000)
    assert server.url("a.bin") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert waits == [0.5, 1.0, 1.5]
    assert server.requests == 4


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0"}, 0.5),
        ({"Retry-After": "86400"}, 300.0),
        ({"Retry-After": "soon"}, 0.5),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 55.0),
        ({"Retry-After": "-3"}, 0.5),
    ],
    ids=repr,
)
def test_the_server_may_ask_for_a_longer_wait_within_bounds(server, waits, headers, wait):
    file = opened(server)
    server.script("a.bin", Fault(status=429, headers=headers))
    assert file.read(0, 9) == DATA[:9]
    assert waits == [wait]


def test_a_wait_until_a_date_is_counted_by_the_clock_of_the_server(server, waits):
    file = opened(server)
    date, later = (email.utils.formatdate(10**9 + seconds, usegmt=True) for seconds in (0, 90))
    server.script("a.bin", Fault(status=503, headers={"Date": date, "Retry-After": later}))
    assert file.read(0, 9) == DATA[:9]
    assert waits == [90.0]


WRONG = [
    {"Content-Range": "bytes 101-200/300000"},
    {"Content-Range": "bytes 101-199/300000"},
    {"Content-Range": "bytes 100-150/300000"},
    {"Content-Range": "bytes 100-300/300000"},
    {"Content-Range": "bytes 100-199/*"},
    {"Content-Range": "lines 100-199/300000"},
    {"Content-Range": None},
    {"Content-Length": "99"},
]


@pytest.mark.parametrize("headers", WRONG, ids=repr)
def test_an_answer_to_another_question_is_never_taken(server, headers):
    file = opened(server)
    server.script("a.bin", Fault(headers=headers))
    assert file.read(100, 200) == DATA[100:200]
    assert server.requests == 2
    server.always("a.bin", Fault(headers=headers))
    with pytest.raises(OSError, match=r"a\.bin: expected the bytes from 100 on, found .*\(2 tries\)") as caught:
        file.read(100, 200)
    assert not isinstance(caught.value, ChangedFileError)
    assert server.requests == 4


def test_a_wrong_answer_after_other_failures_is_tried_once_more(server):
    file = opened(server)
    server.script("a.bin", Fault(status=503), Fault(status=503), Fault(headers=WRONG[0]))
    assert file.read(100, 200) == DATA[100:200]


def test_a_server_that_ignores_ranges_is_refused_unless_all_of_the_file_was_asked_for(server):
    server.always("a.bin", Fault(whole=True))
    file = opened(server)
    assert file.read(0, 300_000) == DATA
    with pytest.raises(OSError, match="found the whole file: the server ignores ranges; download"):
        file.read(0, 299_999)
    assert file.counter.retries == 0


def test_a_body_in_chunks_is_read(server):
    file = opened(server)
    body = b"".join(b"%x\r\n%s\r\n" % (1_000, DATA[start : start + 1_000]) for start in (0, 1_000, 2_000))
    chunked = {"Content-Length": None, "Transfer-Encoding": "chunked"}
    server.script("a.bin", Fault(headers=chunked, body=body + b"0\r\n\r\n"), Fault(headers=chunked, body=body[:-500]))
    assert file.read(0, 3_000) == DATA[:3_000]
    assert file.read(0, 3_000) == DATA[:3_000]
    assert server.log[-1].range == "bytes=2502-2999"  # 500 bytes and an end of line were missing


@pytest.mark.parametrize("value", ["²", "9" * 5_000, "-1", "0x10", "nan"])
def test_headers_that_make_no_sense_are_no_other_error(server, value):
    file = opened(server)
    server.always("a.bin", Fault(status=429, headers={"Retry-After": value, "RateLimit": f'"x";r=0;t={value}'}))
    with pytest.raises(OSError, match="HTTP 429"):
        file.read(0, 9)
    server.always("a.bin", Fault(headers={"Content-Range": f"bytes 0-8/{value}"}))
    with pytest.raises(OSError, match=r"\(2 tries\)"):
        file.read(0, 9)
    server.always("a.bin", Fault(whole=True, headers={"Content-Length": value}))
    with pytest.raises(OSError, match="expected"):
        open_range_file(server.url("a.bin"), retries=Retries(attempts=2)).identity()


def test_a_server_that_tells_no_size_is_refused(server):
    server.always("a.bin", Fault(whole=True, headers={"Content-Length": None}, cut=10))
    with pytest.raises(OSError, match=r"a\.bin: expected a server that tells the size"):
        open_range_file(server.url("a.bin")).identity()


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_encoded_bytes_are_refused(server, encoding):
    file = opened(server)
    server.always("a.bin", Fault(headers={"Content-Encoding": encoding}))
    with pytest.raises(OSError, match=f"found them encoded .{encoding}. by the server"):
        file.read(0, 9)
    assert server.log[0].headers["accept-encoding"] == "identity"


def test_a_server_that_does_not_answer_is_left_and_asked_again(server):
    file = opened(server, timeout=0.2)
    server.script("a.bin", Fault(delay=0.6))
    assert file.read(0, 9) == DATA[:9]
    server.always("a.bin", Fault(delay=0.6))
    impatient = open_range_file(server.url("a.bin"), retries=Retries(attempts=2, timeout=0.05))
    with pytest.raises(OSError, match=r"found Read[Tt]imeout.* \(2 tries\)"):
        impatient.read(0, 9)


def test_a_connection_that_only_drips_is_left(server):
    file = opened(server, timeout=0.2)
    server.script("a.bin", Fault(bandwidth=20_000.0))
    begin = time.monotonic()
    assert file.read(0, 300_000) == DATA
    assert time.monotonic() - begin < 5  # at this pace it would be 15 s
    assert file.counter.retries == 1


def test_a_server_that_comes_up_late_is_waited_for(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    started = []
    monkeypatch.setattr(remote, "_sleep", lambda _: started.append(RangeServer({"a.bin": DATA}, port=port)))
    try:
        file = open_range_file(f"http://127.0.0.1:{port}/a.bin")
        assert file.read(7, 70) == DATA[7:70]
        assert len(started) == 1
    finally:
        for server in started:
            server.close()


def test_a_server_that_is_not_there_is_an_error_in_one_line(waits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.bin"
    with pytest.raises(OSError, match=r"refused.* \(6 tries\)") as caught:
        open_range_file(url).identity()
    assert str(caught.value).startswith(url)
    assert "\n" not in str(caught.value)


# The file that is there is another one


def test_a_file_that_changes_under_the_reader_is_noticed_at_once(server):
    file = opened(server)
    server.files["a.bin"] = OTHER
    with pytest.raises(ChangedFileError, match=r"a\.bin: expected the file that was indexed .*; index it again"):
        file.read(0, 100)
    assert server.requests == 1


def test_a_file_that_changes_between_the_parts_of_a_broken_range_is_noticed(server, monkeypatch):
    file = opened(server)
    server.script("a.bin", Fault(cut=1_000))
    monkeypatch.setattr(remote, "_sleep", lambda _: server.files.update({"a.bin": OTHER}))
    with pytest.raises(ChangedFileError):
        file.read(0, 100_000)


def test_another_size_under_the_same_etag_is_noticed(server):
    server.always("a.bin", Fault(headers={"ETag": '"same"'}))
    file = opened(server)
    server.files["a.bin"] = DATA + b"more"
    with pytest.raises(ChangedFileError, match="300004 bytes"):
        file.read(0, 100)
    server.files["a.bin"] = DATA[:100]
    with pytest.raises(ChangedFileError, match="HTTP 416"):
        file.read(1_000, 2_000)


def test_a_refused_precondition_means_a_changed_file(server):
    file = opened(server)
    server.always("a.bin", Fault(status=412))
    with pytest.raises(ChangedFileError, match="HTTP 412"):
        file.read(0, 9)


def test_where_there_is_no_etag_the_date_of_the_change_counts(server):
    dates = [email.utils.formatdate(10**9 + day * 86_400, usegmt=True) for day in (0, 1)]
    server.always("a.bin", Fault(headers={"ETag": None, "Last-Modified": dates[0]}))
    file = opened(server)
    assert file.identity().version == dates[0]
    assert file.read(0, 9) == DATA[:9]
    server.always("a.bin", Fault(headers={"ETag": None, "Last-Modified": dates[1]}))
    with pytest.raises(ChangedFileError):
        file.read(0, 9)


def test_a_store_without_versions_is_read_by_size_alone(server):
    server.always("a.bin", Fault(headers={"ETag": None}))
    file = opened(server)
    assert file.identity().version == ""
    server.files["a.bin"] = OTHER
    assert file.read(0, 9) == OTHER[:9]


def test_the_expected_file_is_read_without_another_question(server):
    file = open_range_file(server.url("a.bin"))
    file.expect(Identity(len(DATA), server.etag("a.bin")))
    assert file.read(3, 33) == DATA[3:33]
    assert server.requests == 1


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("other", [Identity(300_000, "another"), Identity(299_999, "")])
def test_a_file_that_is_not_the_expected_one_is_refused(server, asked_before, other):
    file = open_range_file(server.url("a.bin"))
    if asked_before:
        file.identity()
    file.expect(other)
    with pytest.raises(ChangedFileError, match="index it again"):
        file.read(0, 9)
    assert file.identity().size == 300_000


# Redirects and what is secret


def test_the_way_to_a_file_is_walked_once(signed):
    endpoint, store = signed
    file = open_range_file(endpoint.url("a.bin"))
    for start in range(0, 1_000, 10):
        assert file.read(start, start + 10) == DATA[start : start + 10]
    assert endpoint.requests == 1
    assert store.requests == 101


def test_an_address_that_expired_is_asked_for_again_and_the_read_goes_on(signed):
    endpoint, store = signed
    store.uses = 3
    file = open_range_file(endpoint.url("a.bin"))
    for start in range(0, 100, 10):
        assert file.read(start, start + 10) == DATA[start : start + 10]
    refused = sum(request.status == 403 for request in store.log)
    assert refused == 3  # 1 + 10 answers at 3 an address: four addresses
    assert endpoint.requests == 4


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_each_kind_of_refusal_of_a_signed_address_leads_to_a_new_one(signed, waits, status):
    endpoint, store = signed
    file = opened(endpoint)
    store.script("a.bin", Fault(status=status))
    assert file.read(0, 9) == DATA[:9]
    assert endpoint.requests == 1
    assert waits == []


def test_an_address_that_expires_in_the_middle_of_a_range_is_no_harm(signed, monkeypatch):
    endpoint, store = signed
    file = opened(endpoint)
    store.script("a.bin", Fault(cut=1_000))
    monkeypatch.setattr(remote, "_sleep", lambda _: store.revoke())
    assert file.read(50, 250_000) == DATA[50:250_000]
    assert store.log[-1].range == "bytes=1050-249999"


def test_an_address_is_renewed_before_it_expires_where_it_says_when(signed):
    endpoint, store = signed
    store.lasts = 60.4  # a minute of it is kept in reserve
    file = open_range_file(endpoint.url("a.bin"))
    file.read(0, 9)
    assert endpoint.requests == 1
    time.sleep(0.5)
    file.read(0, 9)
    assert endpoint.requests == 2
    assert {request.status for request in store.log} == {206}


def test_an_address_that_seems_to_have_expired_already_is_used_until_it_is_refused(signed):
    endpoint, store = signed
    store.lasts = -3600  # as seen by a machine whose clock is wrong
    file = open_range_file(endpoint.url("a.bin"))
    for _ in range(5):
        file.read(0, 9)
    assert endpoint.requests == 1


@pytest.mark.parametrize(("status", "kind"), [(403, PermissionError), (404, FileNotFoundError)])
def test_a_store_that_refuses_every_address_ends_the_read(signed, status, kind):
    endpoint, store = signed
    file = opened(endpoint)
    store.always("a.bin", Fault(status=status))
    with pytest.raises(kind, match=f"HTTP {status}"):
        file.read(0, 9)
    assert endpoint.requests == 1


def test_threads_that_find_an_expired_address_ask_for_one_new_one(signed):
    endpoint, store = signed
    store.latency = 0.02
    file = opened(endpoint)
    store.revoke()
    with ThreadPoolExecutor(8) as pool:
        starts = range(0, 8_000, 1_000)
        assert list(pool.map(lambda start: file.read(start, start + 9), starts)) == [DATA[s : s + 9] for s in starts]
    assert endpoint.requests == 1


def test_a_redirect_loop_ends(server):
    server.always("a.bin", Fault(status=302, headers={"Location": "/b.bin"}))
    server.always("b.bin", Fault(status=302, headers={"Location": server.url("a.bin")}))
    with pytest.raises(OSError, match=r"a\.bin: expected at most 10 redirects"):
        open_range_file(server.url("a.bin")).identity()
    assert server.requests == 10


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_on_the_same_host_is_followed(server, status):
    server.always("old.bin", Fault(status=status, headers={"Location": "a.bin"}))
    assert open_range_file(server.url("old.bin")).read(2, 9) == DATA[2:9]


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/a.bin", "http://[a", "http://127.0.0.1:999999/"]
)
def test_a_redirect_out_of_http_is_refused(server, location):
    server.always("a.bin", Fault(status=302, headers={"Location": location}))
    with pytest.raises(OSError, match=r"a\.bin: expected (a redirect to an address as safe|an address that can be)"):
        open_range_file(server.url("a.bin")).read(0, 9)
    assert server.requests == 1


def test_what_is_for_one_host_goes_to_no_other(signed, tmp_path, monkeypatch):
    endpoint, store = signed
    endpoint.token = "hidden"
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password something\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    endpoint.always("a.bin", Fault(headers={"Set-Cookie": "session=hidden; Path=/"}))
    headers = {"Authorization": "Bearer hidden", "X-Key": "hidden"}
    file = open_range_file(endpoint.url("a.bin"), storage_options={"headers": headers})
    assert file.read(0, 9) == DATA[:9]
    store.revoke()
    assert file.read(9, 20) == DATA[9:20]
    assert all(request.headers["authorization"] == "Bearer hidden" for request in endpoint.log)
    assert all(request.headers["x-key"] == "hidden" for request in endpoint.log)
    assert endpoint.requests == 2
    assert store.requests == 4
    assert not any("hidden" in str(request.headers) for request in store.log)
    assert not any({"authorization", "cookie", "x-key"} & set(request.headers) for request in store.log)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_a_missing_or_wrong_token_is_said_at_once(server, waits, headers):
    server.token = "right"
    with pytest.raises(PermissionError, match=r"HTTP 401; pass the token.*storage_options"):
        open_range_file(server.url("a.bin"), storage_options={"headers": headers}).read(0, 9)
    assert waits == []
    assert server.requests == 1


def test_headers_that_cannot_be_sent_are_refused_at_once(server):
    with pytest.raises(OSError, match=r"a\.bin: expected an address that can be opened"):
        open_range_file(server.url("a.bin"), storage_options={"headers": {"X-Key": "a\r\nb"}}).read(0, 9)
    assert server.requests == 0


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_file_is_not_found_at_once(server, status):
    server.always("none.bin", Fault(status=status))
    with pytest.raises(FileNotFoundError, match=rf"none\.bin: expected a file, found HTTP {status}"):
        open_range_file(server.url("none.bin")).identity()
    assert server.requests == 1


def test_a_file_that_goes_away_is_not_found(server):
    file = opened(server)
    server.files.clear()
    with pytest.raises(FileNotFoundError):
        file.read(0, 9)


def test_no_error_shows_what_signs_an_address(signed):
    endpoint, store = signed
    file = opened(endpoint, attempts=2)
    store.close()
    endpoint.store = SignedStore({"a.bin": DATA})  # keeps the endpoint alive; its port is another one
    endpoint.store.close()
    with pytest.raises(OSError, match="tries") as caught:
        file.read(0, 9)
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="without a password") as refused:
        open_range_file("https://someone:secret@example.org/a.bin")
    assert "secret" not in str(refused.value)


# Threads, processes, pickles


def test_threads_share_what_one_of_them_is_told(server):
    server.always("a.bin", Fault(status=503, delay=0.1))
    file = open_range_file(server.url("a.bin"), retries=Retries(attempts=3))
    with ThreadPoolExecutor(8) as pool:
        with file._asking:
            tasks = [pool.submit(file.read, 0, 9) for _ in range(8)]
            time.sleep(0.1)  # all of them wait now
        assert all("HTTP 503" in str(task.exception()) for task in tasks)
    assert server.requests < 12  # 3 if all threads keep pace, 24 if each asks


def test_threads_share_a_way_that_fails(signed):
    endpoint, store = signed
    file = opened(endpoint, attempts=1)
    store.revoke()
    endpoint.always("a.bin", Fault(status=503, delay=0.3))
    with ThreadPoolExecutor(8) as pool:
        with file._resolving:
            tasks = [pool.submit(file.read, 0, 9) for _ in range(8)]
            time.sleep(0.1)
        assert all("HTTP 503" in str(task.exception()) for task in tasks)
    assert endpoint.requests < 4  # 1 if all threads keep pace, 8 if each asks


def test_threads_may_share_a_file(server):
    file = open_range_file(server.url("a.bin"))
    rng = np.random.default_rng(3)
    starts = rng.integers(0, 290_000, size=200)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda start: file.read(start, start + 5_000), starts))
    assert found == [DATA[start : start + 5_000] for start in starts]
    assert server.requests == 201
    assert file.counter.bytes == 200 * 5_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_reads_although_the_locks_were_held_when_it_began(server):
    file = opened(server)
    file.read(0, 9)

    def read() -> None:
        assert file.read(100, 200) == DATA[100:200]

    child = multiprocessing.get_context("fork").Process(target=read)
    with file._asking, file._resolving, file.counter._lock, TRANSFERS._lock:
        child.start()
    child.join(20)
    try:
        assert child.exitcode == 0
        assert file.read(200, 300) == DATA[200:300]
    finally:
        child.kill()


def test_a_pickled_file_reads_on_and_knows_what_it_saw(signed, tmp_path):
    endpoint, store = signed
    file = opened(endpoint)
    file.read(0, 9)
    data = pickle.dumps(file)
    assert b"secret" not in data
    again = pickle.loads(data)
    assert again.read(0, 9) == DATA[:9]
    store.files["a.bin"] = OTHER
    with pytest.raises(ChangedFileError):
        again.read(0, 9)
    (tmp_path / "b.bin").write_bytes(DATA)
    for url in (str(tmp_path / "b.bin"), (tmp_path / "b.bin").as_uri()):
        assert pickle.loads(pickle.dumps(open_range_file(url))).read(1, 5) == DATA[1:5]


# On a disk and in the stores of fsspec


def test_local_files_are_read_by_path_and_by_url(tmp_path):
    path = tmp_path / "a b#.bin"
    path.write_bytes(DATA)
    for url in (str(path), path.as_uri()):
        file = open_range_file(url)
        assert file.identity() == Identity(300_000, str(path.stat().st_mtime_ns))
        assert file.read(299_000, 300_000) == DATA[299_000:]
        assert (file.counter.requests, file.counter.bytes) == (1, 1_000)


@pytest.mark.parametrize("content", [OTHER, DATA[:1_000], DATA + b"more"], ids=["same size", "shorter", "longer"])
def test_a_local_file_that_was_replaced_is_noticed(tmp_path, content):
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    os.utime(path, ns=(10**18, 10**18))
    file = open_range_file(str(path))
    file.read(0, 9)
    (tmp_path / "b.bin").write_bytes(content)
    os.replace(tmp_path / "b.bin", path)
    with pytest.raises(ChangedFileError, match=r"a\.bin: expected the file that was indexed"):
        file.read(0, 900)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.bin: expected a file, found none"):
        file.read(0, 9)


def test_what_is_no_plain_file_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="name one file in it"):
        open_range_file(str(tmp_path)).identity()
    with pytest.raises(FileNotFoundError, match="found none; check the path"):
        open_range_file(str(tmp_path / "none" / "a.bin")).identity()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="found a device or a pipe"):
        open_range_file(str(tmp_path / "pipe")).read(0, 1)
    with pytest.raises(ValueError, match="found the host 'elsewhere'"):
        open_range_file("file://elsewhere/a.bin")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a file that this user may not read")
def test_a_local_file_without_permission_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(DATA)
    (tmp_path / "a.bin").chmod(0)
    with pytest.raises(PermissionError, match="expected a file that you may read"):
        open_range_file(str(tmp_path / "a.bin")).read(0, 9)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors under /proc")
def test_many_files_keep_few_descriptors_open(tmp_path):
    files = []
    for number in range(500):
        (tmp_path / f"{number}.bin").write_bytes(DATA[number : number + 100])
        files.append(open_range_file(str(tmp_path / f"{number}.bin")))
    before, most = len(os.listdir("/proc/self/fd")), 0
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(lambda file: file.read(0, 100), files)):
            assert found == DATA[number : number + 100]
            most = max(most, len(os.listdir("/proc/self/fd")))
    assert most <= before + 8 + 1
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def memory():
    url = "memory://walrus_hf_remote/data/a.bin"
    with fsspec.open(url, "wb") as file:
        file.write(DATA)
    yield url
    fsspec.filesystem("memory").rm("/walrus_hf_remote", recursive=True)


def test_a_store_of_fsspec_is_read_in_ranges(memory):
    file = open_range_file(memory)
    assert file.identity().size == 300_000
    assert file.read(5, 50_000) == DATA[5:50_000]
    assert (file.counter.requests, file.counter.bytes) == (2, 49_995)
    assert pickle.loads(pickle.dumps(file)).read(0, 9) == DATA[:9]


def test_another_file_in_a_store_of_fsspec_is_not_the_expected_one(memory):
    seen = open_range_file(memory).identity()
    same = open_range_file(memory)
    same.expect(seen)
    assert same.read(0, 9) == DATA[:9]
    with fsspec.open(memory, "wb") as file:
        file.write(OTHER)
    other = open_range_file(memory)
    other.expect(seen)
    with pytest.raises(ChangedFileError, match="index it again"):
        other.read(0, 9)


@pytest.mark.parametrize(
    "trouble", [lambda data: data[:-1], lambda data: data + b"x", lambda data: 1 / 0], ids=["short", "long", "error"]
)
def test_a_store_of_fsspec_that_fails_is_tried_again_and_then_named(memory, waits, monkeypatch, trouble):
    kind = type(fsspec.filesystem("memory"))
    good, failures = kind.cat_file, [1]

    def cat_file(self, path, start=None, end=None, **kwargs):
        data = good(self, path, start, end, **kwargs)
        return trouble(data) if failures and failures.pop() else data

    monkeypatch.setattr(kind, "cat_file", cat_file)
    file = open_range_file(memory)
    assert file.read(0, 9) == DATA[:9]
    assert waits == [0.5]
    failures += [1] * 6
    with pytest.raises(OSError, match=rf"{memory}: expected the bytes from 4 on, found .*\(6 tries\)"):
        file.read(4, 9)


def test_addresses_that_cannot_be_opened_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"nonsense://a: expected an address that can be opened.*not known: nonsense"):
        open_range_file("nonsense://a")
    with pytest.raises(FileNotFoundError, match="found none; check the address"):
        open_range_file("memory://walrus_hf_remote/none.bin").identity()
    for url in ("hf://datasets/a", "hf://buckets/a/b", "hf://datasets/a/b@main@x/y/../z"):
        with pytest.raises(ValueError, match="expected"):
            open_range_file(url)
    with pytest.raises(ValueError, match=r"storage_options among .*'headers'.*found \['nonsense'\]"):
        open_range_file("https://example.org/a", storage_options={"nonsense": 1})
    for package in ("requests", "fsspec"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=rf"needs {package}: pip install 'walrus-hf\[data\]'"):
            open_range_file("https://example.org/a")


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first_wait": -1.0}, {"longest_wait": -1.0}, {"timeout": 0.0}])
def test_retries_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="expected at least one attempt"):
        Retries(**wrong)


# As file objects


@pytest.fixture
def simulation(tmp_path):
    rng = np.random.default_rng(0)
    trajectory = Trajectory(
        fields={"u": rng.normal(size=(40, 48, 80)).astype("f4"), "v": rng.normal(size=(40, 48, 80, 2)).astype("f4")},
        boundary_conditions={"x": "periodic", "y": ("wall", "open")},
        name="flow",
    )
    return save_well(trajectory, tmp_path / "flow.hdf5")


def test_a_simulation_behind_http_is_the_one_on_disk_whatever_the_server_does(server, simulation):
    server.files["flow.hdf5"] = simulation.read_bytes()
    server.script("flow.hdf5", Fault(status=503), None, Fault(cut=5_000), Fault(status=429), Fault(headers=WRONG[0]))
    found, expected = load_well(server.url("flow.hdf5"), start=3, frames=30), load_well(simulation, start=3, frames=30)
    for name, values in expected.fields.items():
        np.testing.assert_array_equal(found.fields[name], values)
    assert found.boundary_conditions == expected.boundary_conditions
    assert server.requests <= 10


@pytest.mark.parametrize("good", [1, 2])
def test_a_simulation_that_does_not_arrive_is_not_called_damaged(server, simulation, good):
    server.files["flow.hdf5"] = simulation.read_bytes()
    server.script("flow.hdf5", *[None] * good)
    server.always("flow.hdf5", Fault(status=503))
    with pytest.raises(OSError, match=r"flow\.hdf5: expected the bytes from \d+ on, found HTTP 503") as caught:
        load_well(server.url("flow.hdf5"))
    assert "damaged" not in str(caught.value)
    assert server.requests == good + 6  # after the first failure nothing more is asked for


@pytest.mark.parametrize("consequence", [None, ValueError("no group 'dimensions'"), KeyError("u")], ids=repr)
def test_a_lost_read_is_the_error_whatever_came_of_it(server, consequence):
    def read():
        with well_opening._open_source(server.url("a.bin")) as file:
            server.always("a.bin", Fault(status=503))
            with contextlib.suppress(OSError):
                file.read(9)
            if consequence is not None:
                raise consequence

    with pytest.raises(OSError, match="HTTP 503"):
        read()


def test_a_redirect_from_https_to_http_is_refused(monkeypatch, server):
    answer = requests.Response()
    answer.status_code, answer.headers["Location"], answer.raw = 302, server.url("a.bin"), io.BytesIO()
    monkeypatch.setattr(requests.Session, "get", lambda *_, **__: answer)
    with pytest.raises(OSError, match="expected a redirect to an address as safe as this one"):
        open_range_file("https://example.org/a.bin").identity()


def test_a_simulation_that_changes_while_it_is_read_is_refused(server, simulation):
    server.files["flow.hdf5"] = simulation.read_bytes()
    with BufferedRangeFile(open_range_file(server.url("flow.hdf5"))) as source, h5py.File(source, "r") as file:
        server.files["flow.hdf5"] = simulation.read_bytes() + b"x"
        with pytest.raises(ChangedFileError, match="index it again"):
            file["t1_fields/v"][0, 3:9]
        assert isinstance(source.failure, ChangedFileError)


def test_archives_and_arrays_are_read_through_ranges(server):
    archive = io.BytesIO()
    arrays = {"u": np.arange(60_000, dtype="f4").reshape(3, 100, 200), "v": np.arange(5)}
    np.savez_compressed(archive, **arrays)
    server.files["a.npz"] = archive.getvalue()
    with BufferedRangeFile(open_range_file(server.url("a.npz")), block_size=1_000) as file:
        assert zipfile.ZipFile(file).testzip() is None
        file.seek(0)
        found = np.load(file, allow_pickle=False)
        for name, values in arrays.items():
            np.testing.assert_array_equal(found[name], values)


def test_it_behaves_as_a_file_does(server):
    file, model = BufferedRangeFile(open_range_file(server.url("a.bin")), 4_096, 3), io.BytesIO(DATA)
    rng = np.random.default_rng(4)
    for _ in range(300):
        offset, size = int(rng.integers(0, 310_000)), int(rng.integers(0, 20_000))
        assert file.seek(offset) == model.seek(offset)
        assert file.read(size) == model.read(size)
        assert file.tell() == model.tell()
    assert file.seek(-10, os.SEEK_END) == model.seek(-10, os.SEEK_END)
    assert file.seek(-5, os.SEEK_CUR) == model.seek(-5, os.SEEK_CUR)
    assert file.read() == model.read()
    with pytest.raises(ValueError, match="expected a position from 0 on, found -1"):
        file.seek(-1)
    assert file.readable()
    assert file.seekable()
    assert not file.writable()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_small_reads_share_blocks_of_which_few_are_kept(server):
    file = BufferedRangeFile(open_range_file(server.url("a.bin")), block_size=10_000, blocks=4)
    for start in range(0, 5_000, 50):
        file.seek(start)
        assert file.read(50) == DATA[start : start + 50]
    assert server.requests == 2
    for start in range(100, 300_000, 10_000):
        file.seek(start)
        file.read(50)
    assert server.requests == 2 + 29
    file.seek(100)
    file.read(50)  # dropped meanwhile
    file.seek(290_100)
    file.read(50)  # kept
    assert server.requests == 2 + 29 + 1


def test_large_reads_take_no_byte_too_much(server):
    file = BufferedRangeFile(open_range_file(server.url("a.bin")), block_size=10_000)
    file.seek(5)
    assert file.read(200_000) == DATA[5:200_005]
    assert server.sent == 200_000 + 1


def test_after_a_failure_nothing_more_is_read(server):
    file = BufferedRangeFile(opened(server, attempts=1))
    server.script("a.bin", Fault(status=500))
    for _ in range(2):
        with pytest.raises(OSError, match="HTTP 500"):
            file.read(9)
    assert file.failure is not None
    assert server.requests == 1


# Lists of files


def fill(folder):
    for name in ("b.hdf5", "a.hdf5", "notes.txt", "c.h5", "deep/d.hdf5", "deep/deeper/e.hdf5"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(DATA[:10])
    (folder / "folder.hdf5").mkdir()


def test_local_folders_are_listed(tmp_path):
    fill(tmp_path)
    for root in (str(tmp_path), tmp_path.as_uri()):
        flat = [f"{root}/{name}" for name in ("a.hdf5", "b.hdf5", "c.h5")]
        assert list_files(root, (".hdf5", ".h5")) == flat
        deep = [f"{root}/{name}" for name in ("deep/d.hdf5", "deep/deeper/e.hdf5")]
        assert list_files(root, (".hdf5", ".h5"), recursive=True) == flat + deep
        assert list_files(f"{root}/a.hdf5", (".hdf5",)) == [f"{root}/a.hdf5"]
        assert list_files(f"{root}/deep", (".nc",)) == []
        with pytest.raises(FileNotFoundError, match="expected a folder or a file, found none"):
            list_files(f"{root}/none", (".hdf5",))


@pytest.mark.parametrize("name", ["walrus_hf_remote", "walrus_hf_remote/"])
def test_folders_in_a_store_of_fsspec_are_listed(memory, name):
    root = f"memory://{name}"
    assert list_files(root, (".bin",)) == []
    assert list_files(root, (".bin",), recursive=True) == [memory]
    assert list_files("memory://walrus_hf_remote/data", (".bin", ".txt")) == [memory]
    assert list_files(memory, (".bin",)) == [memory]
    assert open_range_file(list_files(root, (".bin",), recursive=True)[0]).read(0, 9) == DATA[:9]
    with pytest.raises(FileNotFoundError, match="found none; check the address"):
        list_files("memory://walrus_hf_remote/none", (".bin",))


def test_a_folder_behind_http_cannot_be_listed():
    with pytest.raises(ValueError, match="cannot be listed over http; pass the addresses of the files, or a manifest"):
        list_files("https://example.org/data", (".hdf5",))
    assert list_files("https://example.org/a.hdf5", (".hdf5",)) == ["https://example.org/a.hdf5"]


# Paths that stay inside


HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "//host/share",
    ".",
    "..",
    "../a",
    "a/../../b",
    "a/..",
    "a//b",
    "a/",
    "./a",
    "... /a",
    "\\etc",
    "a\\..\\..\\b",
    "C:/a",
    "c:a",
    "file:///etc/passwd",
    "http://example.org/a",
    "hf:/a",
    "file%3A/a",
    "memory://a",
    "zip::a",
    "a/simplecache::b",
    "%2e%2e/a",
    "%2E./a",
    "a/%2e%2e/b",
    "%252e%252e/a",
    "a%2fb",
    "%2fetc",
    "a%5cb",
    "a\0b",
    "a%00b",
    "a\nb",
    "a\x7fb",
]


@pytest.mark.parametrize(
    "root", ["/data", "relative", "file:///data", "hf://datasets/a/b", "https://x.org/d", "s3://b"]
)
@pytest.mark.parametrize("relative", HOSTILE, ids=repr)
def test_paths_that_may_leave_the_root_are_refused(root, relative):
    with pytest.raises(ValueError, match="expected the path of a file inside") as caught:
        join_inside(root, relative)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("relative", ["c:a", "C:/a", "hf://datasets/a/b", "file:/a", "zip::a"])
def test_what_reads_as_a_drive_or_an_address_is_called_so(relative):
    with pytest.raises(ValueError, match="reads as a drive or an address; rename it"):
        join_inside("/data", relative)


@pytest.mark.parametrize(
    ("address", "store"),
    [
        ("run:3.hdf5", "LocalFile"),
        ("data/run:3.hdf5", "LocalFile"),
        ("file:///data/run:3.hdf5", "LocalFile"),
        ("https://example.org/run:3.hdf5", "HttpFile"),
        ("hf://datasets/a/b/run:3.hdf5", "HubFile"),
        ("memory://run:3.hdf5", "FsspecFile"),
        ("simplecache::memory://run:3.hdf5", "FsspecFile"),
    ],
)
def test_an_address_leads_to_its_store_whether_or_not_a_name_has_a_colon(address, store):
    assert type(open_range_file(address)).__name__ == store


@pytest.mark.parametrize(
    "relative",
    ["a.hdf5", "data/train/a b.hdf5", "..a/b..", "ü.hdf5", "50%.hdf5", "a@b", "a#b?c=d", "run:3.hdf5", "t=12:30/a:1"],
)
def test_other_paths_are_joined_and_lead_to_the_file(server, tmp_path, relative):
    assert join_inside("/data/", relative) == f"/data/{relative}"
    assert join_inside("hf://datasets/a/b@v1/", relative) == f"hf://datasets/a/b@v1/{relative}"
    server.files[f"root/{relative}"] = DATA
    assert open_range_file(join_inside(server.url("root"), relative)).read(0, 9) == DATA[:9]
    (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / relative).write_bytes(DATA)
    for root in (str(tmp_path), tmp_path.as_uri()):
        assert open_range_file(join_inside(root, relative)).read(0, 9) == DATA[:9]


@given(st.text(alphabet="ab./\\%2eE5cfF:~ \0\n", max_size=12) | st.text(max_size=12))
@example("%25252e%25252e/a")
def test_no_path_leaves_its_root_however_it_is_read(relative):
    try:
        joined, address = join_inside("/r/s", relative), join_inside("https://x.org/r/s", relative)
    except ValueError:
        return
    for _ in range(15):
        assert os.path.normpath(joined).startswith("/r/s/")
        joined = unquote(joined).replace("\\", "/")
    parts = urlsplit(address)
    assert (parts.netloc, parts.query, parts.fragment) == ("x.org", "", "")
    assert unquote(parts.path) == f"/r/s/{relative}"
    assert not re.search(r"(^|/)\.\.?(/|$)", parts.path)


def test_links_of_the_hubs_cache_into_its_own_blobs_are_followed(tmp_path):
    repository = tmp_path / "datasets--polymathic-ai--flow"
    root = repository / "snapshots" / "c0ffee" / "data"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "abc").write_bytes(b"good")
    root.mkdir(parents=True)
    (root / "a.bin").symlink_to("../../../blobs/abc")
    (tmp_path / "secret.bin").write_bytes(b"secret")
    (root / "b.bin").symlink_to(tmp_path / "secret.bin")
    assert open_range_file(join_inside(str(root), "a.bin")).read(0, 4) == b"good"
    with pytest.raises(ValueError, match="a link out of it"):
        join_inside(str(root), "b.bin")


def test_links_out_of_the_root_are_refused(tmp_path):
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(OTHER)
    (root / "good.bin").write_bytes(DATA)
    (root / "inside").symlink_to("good.bin")
    (root / "outside").symlink_to(tmp_path / "secret.bin")
    (root / "deep" / "up").symlink_to("../..")
    assert open_range_file(join_inside(str(root), "inside")).read(0, 9) == DATA[:9]
    for where in (str(root), root.as_uri()):
        for relative in ("outside", "deep/up/secret.bin"):
            with pytest.raises(ValueError, match="a link out of it"):
                join_inside(where, relative)
    (tmp_path / "link").symlink_to(root)  # the root itself may be a link
    assert join_inside(str(tmp_path / "link"), "good.bin") == str(tmp_path / "link" / "good.bin")


def test_an_address_with_a_query_is_no_root():
    with pytest.raises(ValueError, match="found one with a query"):
        join_inside("https://example.org/a?key=1", "b")


# On the Hub


HUB = """
    import json, os, pickle, sys
    import numpy as np
    from tests.data.http_server import Fault, HubServer, SignedStore

    data, other = (np.random.default_rng(seed).bytes(5_000) for seed in (0, 1))
    store = SignedStore(uses=4)
    hub = HubServer(store=store, token="hf_right", page=2)
    name, root = "polymathic-ai/flow", "hf://datasets/polymathic-ai/flow"
    files = {f"data/train/{n}.hdf5": data for n in "cab"} | {"data/train/deep/d.hdf5": data, "stats.yaml": b"rms: 1"}
    first = hub.commit(name, files)
    hub.commit(name, files, branch="refs/pr/1")
    os.environ.update(HF_ENDPOINT=hub.root, HF_TOKEN="hf_right", HF_HUB_DISABLE_XET="1")

    from walrus_hf.data import remote
    from walrus_hf.data.remote import list_files, open_range_file
    from walrus_hf.data.well import load_well
    remote._sleep = lambda _: None

    def error(action):
        try:
            action()
        except Exception as caught:
            return [type(caught).__name__, str(caught)]

    found = {}
    found["listed"] = list_files(f"{root}/data/train", (".hdf5",))
    found["recursive"] = list_files(f"{root}@{first}", (".hdf5",), recursive=True)
    found["single"] = list_files(f"{root}/data/train/a.hdf5", (".hdf5",))
    found["endpoint"] = list_files(root, (".yaml",), {"endpoint": hub.root, "token": "hf_right"})
    found["no folder"] = error(lambda: list_files(f"{root}/data/none", (".hdf5",)))
    found["no file to list"] = error(lambda: list_files(f"{root}/data/train/z.hdf5", (".hdf5",)))
    found["no repository to list"] = error(lambda: list_files("hf://datasets/a/b", (".hdf5",)))
    found["wrong token to list"] = error(lambda: list_files(root, (".hdf5",), {"token": "hf_wrong"}))

    hub.commit("someone/else", {"../a.hdf5": data})
    found["hostile"] = error(lambda: list_files("hf://datasets/someone/else", (".hdf5",), recursive=True))

    hub.forget()
    url = f"{root}/data/train/a.hdf5"
    file = open_range_file(url)
    reads = [file.read(n, n + 100) == data[n : n + 100] for n in range(0, 1_000, 100)]
    found["reads"] = all(reads)
    found["resolved"] = hub.requests
    found["paths"] = sorted({request.path for request in hub.log})
    found["first"] = first
    found["identity"] = [file.identity().size, file.identity().version]
    found["pinned"] = file.pinned_url()
    found["authorized"] = all(r.headers.get("authorization") == "Bearer hf_right" for r in hub.log)
    found["leaked"] = any("hf_" in str(r.headers) + str(r.query) for r in store.log)
    found["pickle has token"] = b"hf_right" in pickle.dumps(file)

    small = open_range_file(f"{root}/stats.yaml")
    found["small"] = small.read(0, 6).decode()
    found["pull request"] = open_range_file(f"{root}@refs/pr/1/data/train/b.hdf5").read(0, 9) == data[:9]

    # The branch moves on: the open file stays at its commit, another commit alone changes no file
    second = hub.commit(name, files | {"README.md": b"new"})
    store.revoke()
    found["after a commit"] = file.read(0, 100) == data[:100]
    same = open_range_file(url)
    same.expect(file.identity())
    found["same content"] = same.read(0, 9) == data[:9]
    found["same pinned"] = same.pinned_url() == f"{root}@{second}/data/train/a.hdf5"
    hub.commit(name, {"data/train/a.hdf5": other})
    changed = open_range_file(url)
    changed.expect(file.identity())
    found["changed"] = error(lambda: changed.read(0, 9))
    found["old by pin"] = open_range_file(found["pinned"]).read(0, 9) == data[:9]

    found["no file"] = error(lambda: open_range_file(f"{root}/none.hdf5").identity())
    found["no revision"] = error(lambda: open_range_file(f"{root}@none/a.hdf5").identity())
    found["wrong token"] = error(lambda: open_range_file(url, storage_options={"token": "hf_wrong"}).identity())
    found["no token"] = error(lambda: open_range_file(url, storage_options={"token": False}).identity())
    key = f"datasets/{name}/resolve/main/data/train/a.hdf5"
    hub.script(key, Fault(status=429, headers={"RateLimit": '"resolvers";r=0;t=1'}), Fault(status=502))
    found["after a limit"] = open_range_file(url).read(0, 9) == other[:9]

    # Errors that live as long as the process
    files = {"a.hdf5": data, "b.hdf5": data}
    hub.commit(name, files)
    kept = []
    for path in ("a.hdf5", "b.hdf5"):
        store.script(f"{name}/{hub.branches[name, 'main']}/a.hdf5", None, *[Fault(status=503)] * 6)
        try:
            load_well(f"{root}/{path}")
        except Exception as caught:
            kept.append(caught)
    found["kept"] = [[type(caught).__name__, str(caught)] for caught in kept]
    print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def hub():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HUB)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_folders_on_the_hub_are_listed_over_several_pages(hub):
    root = "hf://datasets/polymathic-ai/flow"
    assert hub["listed"] == [f"{root}/data/train/{name}.hdf5" for name in "abc"]
    assert hub["recursive"] == [f"{root}@{hub['first']}/data/train/{name}.hdf5" for name in ("a", "b", "c", "deep/d")]
    assert hub["single"] == [f"{root}/data/train/a.hdf5"]
    assert hub["endpoint"] == [f"{root}/stats.yaml"]


def test_a_file_on_the_hub_is_resolved_once_until_its_address_expires(hub):
    assert hub["reads"]
    assert hub["resolved"] == 3  # 1 + 10 answers at 4 an address
    assert hub["small"] == "rms: 1"
    assert hub["pull request"]
    assert hub["after a limit"]


def test_a_repository_whose_names_leave_it_is_refused(hub):
    kind, message = hub["hostile"]
    assert kind == "ValueError"
    assert "found '../a.hdf5'" in message


def test_the_revision_is_pinned_to_the_commit_found_first(hub):
    prefix = "datasets/polymathic-ai/flow/resolve"
    assert hub["paths"] == sorted(f"{prefix}/{at}/data/train/a.hdf5" for at in ("main", hub["first"]))
    assert hub["pinned"] == f"hf://datasets/polymathic-ai/flow@{hub['first']}/data/train/a.hdf5"
    assert hub["after a commit"]
    assert hub["old by pin"]


def test_a_file_on_the_hub_is_known_by_its_content(hub):
    size, version = hub["identity"]
    assert size == 5_000
    assert re.fullmatch("[0-9a-f]{64}", version)
    assert hub["same content"]
    assert hub["same pinned"]
    assert hub["changed"][0] == "ChangedFileError"


def test_the_token_goes_to_the_hub_alone(hub):
    assert hub["authorized"]
    assert not hub["leaked"]
    assert not hub["pickle has token"]


@pytest.mark.parametrize("case", ["wrong token", "no token", "wrong token to list"])
def test_what_the_hub_refuses_without_a_token_says_so(hub, case):
    kind, message = hub[case]
    assert kind == "PermissionError"
    assert "HTTP 401" in message
    assert "HF_TOKEN" in message


@pytest.mark.parametrize("case", ["no file", "no revision", "no folder", "no file to list", "no repository to list"])
def test_what_is_not_on_the_hub_is_not_found(hub, case):
    kind, message = hub[case]
    assert kind == "FileNotFoundError"
    assert message.startswith("hf://datasets/")
    assert "check the address" in message
    assert "\n" not in message


def test_an_error_that_is_kept_until_the_end_does_not_crash_the_process(hub):
    lost, damaged = hub["kept"]  # the process ended well, or there were no answers
    assert lost[0] == "OSError"
    assert "HTTP 503" in lost[1]
    assert damaged[0] == "ValueError"
    assert "expected a whole HDF5 file" in damaged[1]


def test_offline_the_hub_is_not_asked(monkeypatch):
    from walrus_hf.data import http

    monkeypatch.setattr(http, "is_offline_mode", lambda: True)
    with pytest.raises(OSError, match="found offline mode; unset HF_HUB_OFFLINE"):
        open_range_file("hf://datasets/a/b/c.hdf5").identity()
    with pytest.raises(OSError, match="found offline mode"):
        list_files("hf://datasets/a/b", (".hdf5",))
