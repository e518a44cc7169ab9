"""torch.ops.npy: schemas, fakes, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from servers.http import ObjectServer
from support import noise, npy

import torchnpy as tnp

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)
EXPECTED = torch.from_numpy(ARRAY)
SCHEMAS = [
    "npy::load(str url) -> Tensor",
    "npy::load_rows(str url, int start, int stop) -> Tensor",
    "npy::load_many(str[] urls) -> Tensor[]",
    "npy::header(str url) -> (str descr, int[] shape, bool fortran_order, int data_offset)",
    "npy::fetch(str url, int offset=0, int nbytes=-1) -> Tensor",
    "npy::decode(Tensor data) -> Tensor",
]
OPS = [schema.partition("(")[0].removeprefix("npy::") for schema in SCHEMAS]


@pytest.fixture
def url(server: ObjectServer) -> str:
    return server.put("/x.npy", npy(ARRAY))


def packet(name: str) -> Any:
    return getattr(torch.ops.npy, name).default


def arguments(name: str, url: str) -> tuple[Any, ...]:
    return {
        "load_rows": (url, 1, 3),
        "load_many": ([url, url],),
        "decode": (torch.frombuffer(bytearray(npy(ARRAY)), dtype=torch.uint8),),
    }.get(name, (url,))


def test_the_schemas_are_these() -> None:
    assert [str(packet(name)._schema) for name in OPS] == SCHEMAS


# Not test_aot_dispatch_dynamic: it asks for one graph, which breaks where only the file knows the
# rank of what is loaded.
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("name", OPS)
def test_opcheck_passes(name: str, url: str) -> None:
    torch.library.opcheck(packet(name), arguments(name, url), test_utils=CHECKS)


def test_opcheck_passes_in_full_where_the_shape_is_known(url: str) -> None:
    torch.library.opcheck(packet("fetch"), (url, 10, 20))


@pytest.mark.parametrize("name", OPS)
def test_an_op_is_tagged_as_nondeterministic(name: str) -> None:
    assert torch.Tag.nondeterministic_seeded in packet(name).tags


def test_the_ops_load_what_the_functions_load(url: str) -> None:
    assert torch.equal(torch.ops.npy.load(url), EXPECTED)
    assert torch.equal(torch.ops.npy.load_rows(url, 1, 3), EXPECTED[1:3])
    first, second = torch.ops.npy.load_many([url, url])
    assert torch.equal(first, EXPECTED)
    assert torch.equal(second, EXPECTED)
    assert torch.ops.npy.header(url) == ("<f4", [3, 4], False, 128)
    assert torch.equal(torch.ops.npy.decode(arguments("decode", url)[0]), EXPECTED)


RANGES = [(0, -1), (0, 0), (0, 1), (5, -1), (128, 48), (10, 100), (175, 1), (176, -1), (0, 176)]


@pytest.mark.parametrize(("offset", "nbytes"), RANGES)
def test_fetch_gives_the_bytes_of_any_object(
    server: ObjectServer, offset: int, nbytes: int
) -> None:
    body = npy(ARRAY)
    url = server.put("/any.bin", body)
    stop = len(body) if nbytes < 0 else offset + nbytes
    fetched = torch.ops.npy.fetch(url, offset, nbytes)
    assert fetched.dtype == torch.uint8
    assert bytes(fetched.tolist()) == body[offset:stop]


def test_fetch_takes_large_objects_and_files(server: ObjectServer, tmp_path: Any) -> None:
    body = noise(3_000_000).tobytes()
    (tmp_path / "x").write_bytes(body)
    for source in (server.put("/x", body), str(tmp_path / "x")):
        assert torch.ops.npy.fetch(source).numpy().tobytes() == body
        assert torch.ops.npy.fetch(source, nbytes=10).numpy().tobytes() == body[:10]
        assert (
            torch.ops.npy.fetch(source, 1_000_000, 1_500_000).numpy().tobytes()
            == (body[1_000_000:2_500_000])
        )


def test_fetch_of_an_empty_object_is_empty(server: ObjectServer) -> None:
    assert torch.ops.npy.fetch(server.put("/empty", b"")).shape == (0,)


@pytest.mark.parametrize(("offset", "nbytes"), [(170, 100), (500, 1)])
def test_fetch_beyond_the_end_is_an_error(server: ObjectServer, offset: int, nbytes: int) -> None:
    url = server.put("/x", npy(ARRAY))
    with pytest.raises((ValueError, tnp.TransportError), match="176"):
        torch.ops.npy.fetch(url, offset, nbytes)


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 3), (0, -2)])
def test_fetch_of_negative_bytes_names_the_parameter(
    server: ObjectServer, offset: int, nbytes: int
) -> None:
    with pytest.raises(ValueError, match="offset" if offset < 0 else "nbytes"):
        torch.ops.npy.fetch(server.put("/x", b"abc"), offset, nbytes)


def test_decode_copies(url: str) -> None:
    data = arguments("decode", url)[0]
    decoded = torch.ops.npy.decode(data)
    data.zero_()
    assert torch.equal(decoded, EXPECTED)


def test_decode_takes_views_of_bytes() -> None:
    data = torch.frombuffer(bytearray(npy(ARRAY)), dtype=torch.uint8)
    strided = data.repeat_interleave(2)[::2]
    assert torch.equal(torch.ops.npy.decode(strided), EXPECTED)
    shifted = torch.cat([torch.zeros(1, dtype=torch.uint8), data])[1:]
    assert torch.equal(torch.ops.npy.decode(shifted), EXPECTED)


def test_decode_of_other_dtypes_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="uint8"):
        torch.ops.npy.decode(torch.zeros(100))


FUNCTIONS: dict[str, Callable[[str], torch.Tensor]] = {
    "load": lambda url: torch.ops.npy.load(url) * 2 + 1,
    "load_rows": lambda url: torch.ops.npy.load_rows(url, 0, 3) * 2 + 1,
    "load_many": lambda url: torch.ops.npy.load_many([url])[0] * 2 + 1,
    "fetch": lambda url: torch.ops.npy.decode(torch.ops.npy.fetch(url)) * 2 + 1,
    "function": lambda url: tnp.load(url) * 2 + 1,
}


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compile_breaks_the_graph_and_works(url: str, name: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS[name], backend="eager")
    for _ in range(2):
        assert torch.equal(compiled(url), EXPECTED * 2 + 1)


def test_each_compiled_call_asks_again(server: ObjectServer, url: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(FUNCTIONS["load"], backend="eager")
    for _ in range(3):
        compiled(url)
    assert len(server.requests) == 3


def test_a_fake_says_that_the_shape_is_unknown() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedOperatorException

    with FakeTensorMode(), pytest.raises(UnsupportedOperatorException):
        torch.ops.npy.load("http://127.0.0.1:1/x.npy")


def test_a_loaded_tensor_is_an_ordinary_one(url: str) -> None:
    tensor = torch.ops.npy.load(url)
    assert tensor.is_contiguous()
    assert not tensor.requires_grad
    tensor.requires_grad_().sum().backward()
    assert torch.equal(tensor.grad, torch.ones(3, 4))
    grown = torch.ops.npy.load(url).resize_(10, 10)
    assert grown.shape == (10, 10)
