"""Which exception each failure is: as a call, as an op, as a pickle and out of a worker."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import ObjectServer, cut, refused_url, status
from support import npy
from torch.utils.data import DataLoader

import torchnpy as tnp
from torchnpy.data import NpyDataset

CALLS: dict[str, Callable[[str], Any]] = {
    "load": tnp.load,
    "load_many": lambda url: tnp.load_many([url]),
    "load_rows": lambda url: tnp.load_rows(url, 0, 1),
    "header": tnp.header,
    "op load": torch.ops.npy.load,
    "op load_many": lambda url: torch.ops.npy.load_many([url]),
    "op load_rows": lambda url: torch.ops.npy.load_rows(url, 0, 1),
    "op header": torch.ops.npy.header,
}
FAILURES: dict[str, tuple[Any, list[type]]] = {
    "404": (status(404), [tnp.TransportError, FileNotFoundError]),
    "401": (status(401), [tnp.TransportError, PermissionError]),
    "403": (status(403), [tnp.TransportError, PermissionError]),
    "418": (status(418), [tnp.TransportError]),
    "garbage": (b"this is no array at all", [tnp.FormatError, ValueError]),
    "an object array": (npy(np.array([None])), [tnp.UnsupportedError, ValueError]),
}


# The header of an array that cannot be loaded can be shown.
MATRIX = [
    (call, failure)
    for call in CALLS
    for failure in FAILURES
    if not ("header" in call and failure == "an object array")
]


@pytest.mark.parametrize(("call", "failure"), MATRIX)
def test_a_failure_has_its_type_and_names_the_url(
    server: ObjectServer, call: str, failure: str
) -> None:
    what, types = FAILURES[failure]
    url = server.put("/x.npy", what if isinstance(what, bytes) else b"")
    if not isinstance(what, bytes):
        server.always("/x.npy", what)
    with pytest.raises(types[0], match=r"/x.npy") as caught:
        CALLS[call](url)
    for expected in types:
        assert isinstance(caught.value, expected)
    only = {FileNotFoundError, PermissionError, TimeoutError} - set(types)
    assert not isinstance(caught.value, tuple(only))


@pytest.mark.parametrize("call", CALLS)
def test_a_refused_connection_is_a_transport_error(
    use_default_client: Callable[[tnp.Client], None], call: str
) -> None:
    use_default_client(tnp.Client(retries=1))
    with pytest.raises(tnp.TransportError) as caught:
        CALLS[call](refused_url())
    assert isinstance(caught.value, OSError)
    assert not isinstance(caught.value, FileNotFoundError | PermissionError)


@pytest.mark.parametrize("call", CALLS)
def test_a_url_of_an_unknown_scheme_is_a_value_error(call: str) -> None:
    with pytest.raises(ValueError, match="ftp") as caught:
        CALLS[call]("ftp://host/x.npy")
    assert not isinstance(caught.value, tnp.FormatError)


def test_a_structured_array_is_unsupported_by_an_op_that_returns_a_tensor(
    server: ObjectServer,
) -> None:
    url = server.put("/x.npy", npy(np.zeros(3, [("a", "<f4")])))
    calls: list[Callable[[], Any]] = [
        lambda: torch.ops.npy.load(url),
        lambda: torch.ops.npy.load_many([url]),
        lambda: torch.ops.npy.load_rows(url, 0, 1),
        lambda: torch.ops.npy.decode(
            torch.frombuffer(bytearray(npy(np.zeros(3, "f4,f4"))), dtype=torch.uint8)
        ),
    ]
    for call in calls:
        with pytest.raises(tnp.UnsupportedError, match=r"structured|field"):
            call()


def test_the_family() -> None:
    assert issubclass(tnp.FormatError, ValueError)
    assert issubclass(tnp.UnsupportedError, NotImplementedError)
    assert issubclass(tnp.UnsupportedError, ValueError)
    assert issubclass(tnp.TransportError, OSError)
    assert issubclass(tnp.LockError, OSError)
    assert not issubclass(tnp.TransportError, ValueError)


def raised(call: Callable[[], Any]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("failure", FAILURES)
def test_an_error_survives_pickling(server: ObjectServer, failure: str) -> None:
    what, _ = FAILURES[failure]
    url = server.put("/x.npy", what if isinstance(what, bytes) else b"")
    if not isinstance(what, bytes):
        server.always("/x.npy", what)
    error = raised(lambda: tnp.load(url))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)


@pytest.mark.parametrize(
    "kind", [tnp.FormatError, tnp.UnsupportedError, tnp.TransportError, tnp.LockError]
)
def test_each_class_is_made_from_one_string(kind: type[Exception]) -> None:
    error = kind("words")
    assert str(error) == "words"
    assert str(pickle.loads(pickle.dumps(error))) == "words"
    assert not hasattr(error, "message")  # torch's re-raise passes it by name


def errors_of(loader: DataLoader[Any]) -> list[Exception]:
    """What the batches raise, up to the end: torch takes 5 s to stop workers before it."""
    batches, errors = iter(loader), []
    while True:
        try:
            next(batches)
        except StopIteration:
            return errors
        except Exception as error:
            errors.append(error)


def test_errors_keep_their_types_out_of_a_worker(server: ObjectServer) -> None:
    urls = []
    for number, (what, _) in enumerate(FAILURES.values()):
        path = f"/{number}.npy"
        urls.append(server.put(path, what if isinstance(what, bytes) else b""))
        if not isinstance(what, bytes):
            server.always(path, what)
    errors = errors_of(DataLoader(NpyDataset(urls), num_workers=1))
    for error, url, (_, types) in zip(errors, urls, FAILURES.values(), strict=True):
        assert url in str(error)
        for expected in types:
            assert isinstance(error, expected)


def test_a_timeout_keeps_its_type_out_of_an_op_and_a_worker(
    server: ObjectServer, use_default_client: Callable[[tnp.Client], None]
) -> None:
    url = server.put("/x.npy", b"")
    server.always("/x.npy", cut(None, "stall"))
    client = tnp.Client(retries=1, stall_timeout_s=1)
    use_default_client(client)
    with pytest.raises(TimeoutError) as caught:
        torch.ops.npy.load(url)
    assert isinstance(caught.value, tnp.TransportError)
    (error,) = errors_of(DataLoader(NpyDataset([url], client=client), num_workers=1))
    assert isinstance(error, TimeoutError)


@pytest.mark.parametrize(
    "options",
    [
        {"addressing": "sideways"},
        {"max_in_flight": 0},
        {"io_threads": 0},
        {"part_nbytes": 0},
        {"connect_timeout_s": 0},
        {"stall_timeout_s": 0},
        {"deadline_s": -1},
        {"retries": 0},
        {"proxy": "ftp://"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_wrong_option_raises_at_once_with_its_name_and_value(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=name) as caught:
        tnp.Client(**options)
    assert str(value) in str(caught.value)


def test_wrong_credentials_are_named_but_not_shown() -> None:
    with pytest.raises(ValueError, match=r"credentials: expected 'auto'.* but found str") as caught:
        tnp.Client(credentials="s3cret")  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["no url", "ftp://x", "http://", "http://user:secret@x"])
def test_a_wrong_endpoint_is_named_but_not_shown(endpoint: str) -> None:
    with pytest.raises(ValueError, match="endpoint") as caught:
        tnp.Client(endpoint=endpoint)
    assert "secret" not in str(caught.value)


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        tnp.Client(speed="high")  # type: ignore[call-arg]


def test_a_client_shows_and_pickles_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "environment secret")
    headers, proxy = {"X-Api-Key": "secret"}, "http://u:secret@h:1"
    client = tnp.Client(headers=headers, proxy=proxy)
    assert "secret" not in repr(client)
    assert b"environment secret" not in pickle.dumps(client)


SECRET = "X-Amz-Signature=5EC2E7"


def test_an_op_names_a_structured_array_without_its_query(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.zeros(3, [("a", "<f4")])))
    for call in (torch.ops.npy.load, lambda u: torch.ops.npy.load_many([u])):
        with pytest.raises(tnp.UnsupportedError, match=r"/x\.npy: expected one tensor") as caught:
            call(f"{url}?{SECRET}")
        assert SECRET not in str(caught.value)


def test_a_servers_words_need_not_be_utf8(server: ObjectServer) -> None:
    url = server.put("/x.npy", b"")
    server.always("/x.npy", status(403, "Zugriff verweigert für Sie".encode("latin-1")))
    with pytest.raises(PermissionError, match="HTTP 403"):
        tnp.load(url)


def test_a_files_name_need_not_be_utf8(tmp_path: Path) -> None:
    missing = tmp_path / os.fsdecode(b"\xff.npy")
    with pytest.raises(FileNotFoundError) as caught:
        tnp.load(missing)
    assert str(missing) in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"part_nbytes": -1}, ValueError),
        ({"retries": 10**12}, ValueError),
        ({"retries": "3"}, TypeError),
        ({"endpoint": 5}, (TypeError, ValueError)),
        ({"headers": {"a": 5}}, TypeError),
    ],
)
def test_an_option_of_another_type_is_named(
    options: dict[str, Any], kind: type[Exception] | tuple[type[Exception], ...]
) -> None:
    with pytest.raises(kind, match=f"^{next(iter(options))}: expected "):
        tnp.Client(**options)


def test_wrong_arguments_show_no_url(server: ObjectServer) -> None:
    with pytest.raises(TypeError) as caught:
        tnp.load_rows(f"{server.url}/x.npy?{SECRET}", 0, 1.5)  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("arguments", [(), (b"", b""), (b"", None, None)])
def test_load_npy_takes_one_positional_argument(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"^load_npy: expected"):
        tnp.load_npy(*arguments)


@pytest.mark.parametrize("name", ["other", "\udc80"])
def test_load_npy_refuses_other_keywords(name: str) -> None:
    with pytest.raises((TypeError, UnicodeEncodeError)):
        tnp.load_npy(b"", **{name: 1})


def test_a_listing_of_http_is_refused_at_once() -> None:
    with pytest.raises(tnp.UnsupportedError, match="HTTP has no listings"):
        tnp.Client().list("http://127.0.0.1/x")
