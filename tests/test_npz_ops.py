"""torch.ops.npy over archives: load_npz, load_npz_keys and npz_keys; eager, scripted, compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import ObjectServer, edit, status
from servers.s3 import S3Server
from support import noise, npy, npz, ops_library, run_script, zipped

import torchnpy as tnp

X, Y = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(5)
ARRAYS = {"y": Y, "x": X, "big": noise(400, 1000)}
SCHEMAS = [
    "npy::load_npz(str url) -> Dict(str, Tensor)",
    "npy::load_npz_keys(str url, str[] keys) -> Tensor[]",
    "npy::npz_keys(str url) -> str[]",
]
OPS = [schema.partition("(")[0].removeprefix("npy::") for schema in SCHEMAS]


@pytest.fixture(params=["stored", "deflated"])
def url(server: ObjectServer, request: pytest.FixtureRequest) -> str:
    return server.put("/x.npz", npz(deflate=request.param == "deflated", **ARRAYS))


def packet(name: str) -> Any:
    return getattr(torch.ops.npy, name).default


def arguments(name: str, url: str) -> tuple[Any, ...]:
    return (url, ["x", "y.npy"]) if name == "load_npz_keys" else (url,)


def assert_is(tensor: torch.Tensor, name: str) -> None:
    assert torch.equal(tensor, torch.from_numpy(ARRAYS[name]))


def test_the_schemas_are_these() -> None:
    assert [str(packet(name)._schema) for name in OPS] == SCHEMAS


@pytest.mark.parametrize("name", OPS)
def test_opcheck_passes(name: str, url: str) -> None:
    # Not test_aot_dispatch_dynamic, as in test_ops.py.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(packet(name), arguments(name, url), test_utils=checks)


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_tagged_as_nondeterministic(name: str) -> None:
    assert torch.Tag.nondeterministic_seeded in packet(name).tags


@pytest.mark.parametrize("name", OPS)
def test_a_fake_says_that_the_outcome_is_unknown(name: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedOperatorException

    with FakeTensorMode(), pytest.raises(UnsupportedOperatorException):
        packet(name)(*arguments(name, "http://127.0.0.1:1/x.npz"))


def test_load_npz_gives_all_members_in_the_archives_order(url: str) -> None:
    loaded = torch.ops.npy.load_npz(url)
    assert list(loaded) == ["y", "x", "big"]
    for name, tensor in loaded.items():
        assert_is(tensor, name)


def test_load_npz_keys_gives_the_members_asked_for(server: ObjectServer, url: str) -> None:
    x, y, again = torch.ops.npy.load_npz_keys(url, ["x", "y.npy", "x"])
    assert_is(x, "x")
    assert_is(y, "y")
    assert_is(again, "x")
    assert server.sent_nbytes < 2 << 16
    assert torch.ops.npy.load_npz_keys(url, []) == []


def test_npz_keys_gives_the_names_and_fetches_the_end_only(server: ObjectServer, url: str) -> None:
    assert torch.ops.npy.npz_keys(url) == ["y", "x", "big"]
    assert len(server.requests) == 1
    assert server.sent_nbytes <= 1 << 16


def test_a_member_that_is_no_array_is_its_bytes(server: ObjectServer) -> None:
    url = server.put("/x.npz", zipped({"a": npy(X), "a.npy": npy(Y), "text": b"plain"}))
    assert torch.ops.npy.npz_keys(url) == ["a", "a.npy", "text"]
    loaded = torch.ops.npy.load_npz(url)
    assert_is(loaded["a"], "x")
    assert_is(loaded["a.npy"], "y")
    assert bytes(loaded["text"].tolist()) == b"plain"


@pytest.mark.parametrize("form", [str, lambda path: path.as_uri()], ids=["path", "url"])
def test_the_ops_read_files(tmp_path: Path, form: Callable[[Path], str]) -> None:
    path = tmp_path / "x.npz"
    for nbytes in (10, 1_000_000):
        path.write_bytes(npz(x=noise(nbytes)))
        source = form(path)
        expected = torch.from_numpy(noise(nbytes))
        assert torch.ops.npy.npz_keys(source) == ["x"]
        assert torch.equal(torch.ops.npy.load_npz(source)["x"], expected)
        (tensor,) = torch.ops.npy.load_npz_keys(source, ["x"])
        tensor.zero_()  # never reaches the file
        assert torch.equal(torch.ops.npy.load_npz(source)["x"], expected)


def test_the_ops_use_the_default_client(
    s3_server: S3Server, s3_client: tnp.Client, use_default_client: Any
) -> None:
    use_default_client(s3_client)
    url = s3_server.put_key("x.npz", npz(**ARRAYS))
    assert torch.ops.npy.npz_keys(url) == ["y", "x", "big"]
    assert_is(torch.ops.npy.load_npz_keys(url, ["big"])[0], "big")


def test_an_empty_archive_has_no_keys(server: ObjectServer) -> None:
    url = server.put("/x.npz", npz())
    assert torch.ops.npy.npz_keys(url) == []
    assert torch.ops.npy.load_npz(url) == {}


def test_a_missing_key_is_a_key_error_that_names_archive_and_members(url: str) -> None:
    with pytest.raises(KeyError, match=r"x\.npz.*\bbig\b"):
        torch.ops.npy.load_npz_keys(url, ["x", "z"])


@pytest.mark.parametrize("name", OPS)
def test_what_is_no_archive_is_a_format_error(server: ObjectServer, name: str) -> None:
    for body in (b"", npy(X), b"text" * 50_000):
        url = server.put("/x.npz", body)
        with pytest.raises(tnp.FormatError, match=r"/x\.npz: expected"):
            packet(name)(*arguments(name, url))


@pytest.mark.parametrize("name", OPS)
def test_a_missing_archive_is_not_found(server: ObjectServer, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"/x\.npz.*404"):
        packet(name)(*arguments(name, server.url + "/x.npz"))


def test_a_corrupt_member_is_a_format_error(server: ObjectServer) -> None:
    data = bytearray(npz(**ARRAYS))
    data[data.index(npy(X)) + 130] ^= 1
    url = server.put("/x.npz", bytes(data))
    for ask in (
        lambda: torch.ops.npy.load_npz(url),
        lambda: torch.ops.npy.load_npz_keys(url, ["x"]),
    ):
        with pytest.raises(tnp.FormatError, match=r"/x\.npz\[x\.npy\]: expected CRC-32"):
            ask()
    assert_is(torch.ops.npy.load_npz_keys(url, ["y"])[0], "y")


UNSUPPORTED = {
    "object": np.array([{}], object),
    "text": np.array(["abc"]),
    "void": np.zeros(3, "V2"),
    "structured": np.zeros(3, [("a", "<f4"), ("b", "<i2")]),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_member_that_is_no_tensor_is_unsupported_when_asked_for(
    server: ObjectServer, kind: str
) -> None:
    url = server.put("/x.npz", npz(x=X, odd=UNSUPPORTED[kind]))
    assert torch.ops.npy.npz_keys(url) == ["x", "odd"]
    assert_is(torch.ops.npy.load_npz_keys(url, ["x"])[0], "x")
    for ask in (
        lambda: torch.ops.npy.load_npz(url),
        lambda: torch.ops.npy.load_npz_keys(url, ["x", "odd"]),
    ):
        with pytest.raises(tnp.UnsupportedError, match=r"/x\.npz\[odd\.npy\]"):
            ask()


class All(torch.nn.Module):
    def forward(self, url: str) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        keys = torch.ops.npy.npz_keys(url)
        loaded = torch.ops.npy.load_npz(url)
        x, y = torch.ops.npy.load_npz_keys(url, ["x", "y"])
        total = 0
        for key in keys:
            total += loaded[key].numel()
        return x + y.sum() + loaded["x"], loaded, total


EXPECTED = 2 * torch.from_numpy(X) + Y.sum()


def test_the_ops_can_be_scripted_saved_and_loaded(url: str, tmp_path: Path) -> None:
    torch.jit.script(All()).save(tmp_path / "all.pt")
    module = torch.jit.load(tmp_path / "all.pt")
    for _ in range(3):  # the profiling executor optimizes after the first calls
        result, loaded, total = module(url)
        assert torch.equal(result, EXPECTED)
        assert list(loaded) == list(ARRAYS)
        assert total == 12 + 5 + 400_000


def test_a_saved_module_runs_where_only_the_library_is_loaded(url: str, tmp_path: Path) -> None:
    library = ops_library()
    torch.jit.script(All()).save(tmp_path / "all.pt")
    out = run_script(
        """
        import sys, warnings, torch
        warnings.simplefilter("ignore")
        torch.ops.load_library(sys.argv[1])
        result, loaded, total = torch.jit.load(sys.argv[2])(sys.argv[3])
        print(result.sum().item(), total)
        """,
        library,
        tmp_path / "all.pt",
        url,
    )
    assert out == f"{EXPECTED.sum().item()} {12 + 5 + 400_000}\n"


class Literal(torch.nn.Module):
    """The URL is a constant of the graph, and one result is not used."""

    __constants__ = ("url",)

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def forward(self) -> torch.Tensor:
        torch.ops.npy.npz_keys(self.url)
        torch.ops.npy.load_npz(self.url)
        (x,) = torch.ops.npy.load_npz_keys(self.url, ["x"])
        return x + torch.ops.npy.load_npz(self.url)["x"]


@pytest.mark.parametrize("freeze", [False, True])
def test_no_load_of_a_literal_url_is_folded_merged_or_dropped(
    server: ObjectServer, freeze: bool
) -> None:
    url = server.put("/x.npz", npz(x=X))
    module = torch.jit.script(Literal(url).eval())
    module = torch.jit.freeze(module) if freeze else module
    assert len(server.requests) == 0
    for call in range(1, 4):
        assert torch.equal(module(), 2 * torch.from_numpy(X))
        assert len(server.requests) == 4 * call
    server.put("/x.npz", npz(x=X + 1))
    assert torch.equal(module(), 2 * torch.from_numpy(X + 1))


def test_scripted_errors_carry_the_whole_message(server: ObjectServer, url: str) -> None:
    @torch.jit.script
    def ask(url: str) -> list[torch.Tensor]:
        return torch.ops.npy.load_npz_keys(url, ["missing"])

    with pytest.raises(RuntimeError) as caught:
        ask(url)
    assert all(part in str(caught.value) for part in ("/x.npz", "missing", "big"))
    server.always("/x.npz", status(404, b"gone away"))
    with pytest.raises(RuntimeError, match=r"/x\.npz.*404"):
        ask(url)


FUNCTIONS: dict[str, Callable[[str], torch.Tensor]] = {
    "load_npz": lambda url: torch.ops.npy.load_npz(url)["x"] * 2 + 1,
    "load_npz_keys": lambda url: torch.ops.npy.load_npz_keys(url, ["x"])[0] * 2 + 1,
    "npz_keys": lambda url: torch.full((3, 4), float(len(torch.ops.npy.npz_keys(url)))) * 2 + 1,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compile_breaks_the_graph_and_works(url: str, name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[name], backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(url), FUNCTIONS[name](url))


@pytest.mark.parametrize("name", OPS)
def test_a_weak_etag_does_not_hinder(server: ObjectServer, name: str) -> None:
    url = server.put("/x.npz", npz(**ARRAYS))
    server.always("/x.npz", edit(ETag='W/"1"'))
    packet(name)(*arguments(name, url))
    assert not any("if-match" in request.headers for request in server.requests)
