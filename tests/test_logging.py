"""The logger "torchnpy": a line a request, of level DEBUG, without secrets."""

from __future__ import annotations

import logging
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from servers.http import ObjectServer, cut, redirect, status
from servers.s3 import Key, S3Server
from support import noise, npy, npz, run_script, start_script
from torch.utils.data import DataLoader

import torchnpy as tnp
from torchnpy.data import NpyDataset
from torchnpy.log import emit

ARRAY = noise(300)
LINE = re.compile(
    r"GET (?P<name>\S+)(?: at \S+)?(?: bytes=(?P<range>\S+))?: (?:HTTP (?P<status>\d+)|no answer), "
    r"(?P<nbytes>\d+) bytes(?:, (?P<connection>new|known) connection, first byte [\d.]+ ms)?, "
    r"total [\d.]+ ms, attempt (?P<attempt>\d+)(?P<rest>.*)"
)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "torchnpy")
    return caplog


def lines_of(log: pytest.LogCaptureFixture) -> list[re.Match[str]]:
    """All records, which must be about requests."""
    found = [LINE.fullmatch(record.getMessage()) for record in log.records]
    assert None not in found, log.text
    return [match for match in found if match]


def test_each_request_is_a_line(server: ObjectServer, log: pytest.LogCaptureFixture) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    before = time.time()
    tnp.load(url, client=tnp.Client())
    after = time.time()
    (record,) = log.records
    assert (record.name, record.levelno) == ("torchnpy", logging.DEBUG)
    assert before - 0.1 <= record.created <= after
    (line,) = lines_of(log)
    assert (line["name"], line["range"], line["status"]) == (url, "0-65535", "206")
    assert int(line["nbytes"]) == len(npy(ARRAY))
    assert (line["connection"], line["attempt"], line["rest"]) == ("new", "1", "")


def test_lines_are_as_many_as_requests(server: ObjectServer, log: pytest.LogCaptureFixture) -> None:
    client = tnp.Client()
    urls = [server.put(f"/{i}.npy", npy(ARRAY)) for i in range(50)]
    tnp.load_many(urls, client=client)
    assert len(lines_of(log)) == 50
    assert sorted(line["name"] for line in lines_of(log)) == sorted(urls)
    archive = server.put("/a.npz", npz(x=noise(200_000)))
    assert len(tnp.load(archive, client=client)["x"]) == 200_000
    assert len(lines_of(log)) == len(server.requests)
    known = sum(line["connection"] == "known" for line in lines_of(log))
    assert known == client.metrics()["connections_reused"]


def test_a_retry_has_its_reason_and_delay(
    server: ObjectServer, log: pytest.LogCaptureFixture
) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    server.fail("/x.npy", status(503), cut(100))
    tnp.load(url, client=tnp.Client())
    first, second, third = lines_of(log)
    assert re.fullmatch(r"; again in \d+\.\d+ s: HTTP 503 \(.*\)", first["rest"])
    assert re.fullmatch(
        r"; again in \d+\.\d+ s: (the connection was lost|expected a body).*", second["rest"]
    )
    assert (third["attempt"], third["rest"]) == ("3", "")
    assert (third["range"] or "").startswith("100-")


def test_a_failure_is_a_line_and_an_error(
    server: ObjectServer, log: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FileNotFoundError):
        tnp.load(f"{server.url}/none.npy", client=tnp.Client())
    (line,) = lines_of(log)
    assert "; failed: " in line["rest"]
    assert "404" in line["rest"]


def test_set_level_works_at_any_time(server: ObjectServer, log: pytest.LogCaptureFixture) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    client = tnp.Client()
    for level, lines in [
        (logging.DEBUG, 1),
        (logging.INFO, 1),
        (logging.DEBUG, 2),
        (logging.WARNING, 2),
    ]:
        logging.getLogger("torchnpy").setLevel(level)
        tnp.load(url, client=client)
        assert len(log.records) == lines


SECRETS = ["s3cr3t", "SECRET", "hunter2", "t0ken"]


def test_no_record_holds_a_secret(
    server: ObjectServer,
    other_server: ObjectServer,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    log: pytest.LogCaptureFixture,
) -> None:
    s3_server.keys = {"AKSECRET": Key("s3cr3t", "t0ken")}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKSECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t0ken")
    client = tnp.Client(
        endpoint=s3_server.url, headers={"X-Key": "hunter2"}, retries=3, checksums=True
    )
    url = s3_server.put_key("x.npy", npy(ARRAY))
    # A server may repeat what it was sent.
    body = b"<Error><Code>SlowDown</Code><Message>at /x?X-Amz-Signature=s3cr3t</Message></Error>"
    denied = body.replace(b"SlowDown", b"AccessDenied")
    s3_server.fail("/bucket/x.npy", status(503, body), status(403, denied))
    with pytest.raises(PermissionError):
        tnp.load(url, client=client)
    tnp.load(url, client=client)
    list(client.list("s3://bucket/"))
    server.objects["/x.npy"] = npy(ARRAY)
    other_server.put("/from.npy", b"")
    other_server.always("/from.npy", redirect(f"{server.url}/x.npy?X-Amz-Signature=s3cr3t"))
    plain = tnp.Client(headers={"Authorization": "Bearer hunter2"}, retries=2)
    tnp.load(f"http://user:hunter2@{other_server.host}/from.npy?token=s3cr3t#SECRET", client=plain)
    server.fail("/x.npy", status(404, b"no /x.npy?token=s3cr3t", Content_Type="text/plain"))
    with pytest.raises(FileNotFoundError):
        tnp.load(f"{server.url}/x.npy?token=s3cr3t", client=plain)
    assert len(log.records) == len([*server.requests, *other_server.requests, *s3_server.requests])
    for record in log.records:
        text = repr(record.__dict__) + record.getMessage()
        assert not any(secret in text for secret in SECRETS), text


def test_a_key_cannot_forge_a_line(
    s3_server: S3Server, s3_client: tnp.Client, log: pytest.LogCaptureFixture
) -> None:
    tnp.load(s3_server.put_key("a\nGET b.npy", npy(ARRAY)), client=s3_client)
    (record,) = log.records
    assert record.getMessage().startswith("GET s3://bucket/a?GET b.npy bytes=")


def test_waiting_threads_hand_out_lines(
    server: ObjectServer, log: pytest.LogCaptureFixture
) -> None:
    """A line of one load arrives while another, on any thread, still waits."""
    quick = server.put("/quick.npy", npy(ARRAY))
    slow = server.put("/slow.npy", npy(ARRAY))
    server.fail("/slow.npy", cut(10, "stall"))
    client = tnp.Client(retries=1, stall_timeout_s=60)

    def load_slowly() -> None:
        with pytest.raises(tnp.TransportError):
            tnp.load(slow, client=client)

    thread = threading.Thread(target=load_slowly)
    thread.start()
    assert server.stalled.wait(30)
    logging.getLogger("torchnpy").setLevel(logging.DEBUG)
    # An op hands out nothing itself.
    before = tnp.default_client()
    tnp.set_default_client(client)
    try:
        torch.ops.npy.load(quick)
    finally:
        tnp.set_default_client(before)
    until = time.monotonic() + 30
    while not log.records and time.monotonic() < until:
        time.sleep(0.01)
    assert [line["name"] for line in lines_of(log)] == [quick]
    server.release()
    thread.join()
    assert len(log.records) == 2


class LoadingHandler(logging.Handler):
    """Loads an array for each record, as one that ships records over HTTP does."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.client = tnp.Client()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1
        assert len(tnp.load(self.url, client=self.client)) == len(ARRAY)


def test_a_handler_may_load(server: ObjectServer, log: pytest.LogCaptureFixture) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    handler = LoadingHandler(server.put("/log.npy", npy(ARRAY)))
    logger = logging.getLogger("torchnpy")
    logger.addHandler(handler)
    try:
        client = tnp.Client()
        threads = [
            threading.Thread(target=lambda: [tnp.load(url, client=client) for _ in range(10)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        logger.removeHandler(handler)
    assert len(server.requests_for("/x.npy")) + client.metrics()["reads_shared"] == 40
    assert handler.count >= 40


def test_a_handler_that_fails_leaves_the_load_alone(
    server: ObjectServer,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter that fails")

    raised: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: raised.append(args.exc_value))
    logger = logging.getLogger("torchnpy")
    logger.addFilter(refuse)
    try:
        array = tnp.load(server.put("/x.npy", npy(ARRAY)), client=tnp.Client())
    finally:
        logger.removeFilter(refuse)
    np.testing.assert_array_equal(array, ARRAY)
    assert [str(error) for error in raised] == ["a filter that fails"]


def count_lines(worker: int) -> None:
    """In a worker: a handler whose count the samples of test_workers_log_their_own carry."""
    del worker
    _counter.count = 0


class Counter(logging.Handler):
    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


_counter = Counter()


def add_count(array: torch.Tensor) -> tuple[torch.Tensor, int]:
    return array, _counter.count


def test_forked_workers_log_their_own_requests(
    server: ObjectServer, log: pytest.LogCaptureFixture
) -> None:
    urls = [server.put(f"/{i}.npy", npy(ARRAY)) for i in range(8)]
    logger = logging.getLogger("torchnpy")
    logger.addHandler(_counter)
    try:
        tnp.load(urls[0], client=tnp.Client())
        dataset = NpyDataset(urls, transform=add_count, client=tnp.Client())
        loader = DataLoader(
            dataset,
            batch_size=4,
            num_workers=2,
            worker_init_fn=count_lines,
            collate_fn=list,
            multiprocessing_context="fork",
        )
        counts = [count for batch in loader for _, count in batch]
    finally:
        logger.removeHandler(_counter)
    assert counts == [4] * 8


def test_without_logging_nothing_is_written(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    server.fail("/x.npy", status(503))
    out = run_script(
        """
        import sys, torchnpy
        torchnpy.load(sys.argv[1])
        print("done")
        """,
        url,
    )
    assert out == "done\n"


def test_warnings_are_written_where_nobody_set_up_logging() -> None:
    code = """
        from torchnpy import log
        log.emit([(0, 1.5, "a request"), (1, 1.5, "100 % of the disk is full")])
    """
    with start_script(code) as script:
        assert script.finish() == (0, "", "100 % of the disk is full\n")


def test_records_have_their_own_time(log: pytest.LogCaptureFixture) -> None:
    emit([(1, 86400.25, "text"), (0, 86402.0, "text")])
    first, second = log.records
    assert (first.levelno, first.created, first.msecs) == (logging.WARNING, 86400.25, 250)
    assert (second.levelno, second.created, second.msecs) == (logging.DEBUG, 86402.0, 0)
    assert second.relativeCreated - first.relativeCreated == pytest.approx(1750, abs=1)


def test_basic_config_writes_lines_also_of_scripted_models(
    server: ObjectServer, tmp_path: Path
) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    run_script(
        """
        import logging, sys, torch, torchnpy, warnings
        logging.basicConfig(filename=sys.argv[2], level=logging.DEBUG, format="%(message)s")
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.14 deprecates TorchScript

        @torch.jit.script
        def read(url: str):
            return torch.ops.npy.load(url)

        torchnpy.load(sys.argv[1])
        read(sys.argv[1])  # its line comes with the next call, or when Python ends
        """,
        url,
        tmp_path / "log",
    )
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if "GET" in line]
    assert len(lines) == 2
    assert all(LINE.fullmatch(line) for line in lines)


def test_local_loads_ask_for_no_lines(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    np.save(tmp_path / "x.npy", ARRAY)
    tnp.load(tmp_path / "x.npy")
    assert log.records == []
