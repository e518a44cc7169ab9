"""HTTP/2 on request; over TLS, where the server offers it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trustme
from servers.nginx import Nginx
from support import noise, npy

import torchnpy as tnp

ARRAYS = [noise(10 + i, 300) for i in range(40)]
LARGE = noise(3000, 1000)


@pytest.mark.parametrize("offered", [True, False], ids=["offered", "not offered"])
@pytest.mark.parametrize("wanted", [True, False], ids=["wanted", "not wanted"])
def test_http2_is_used_where_it_is_wanted_and_offered(
    tmp_path: Path, authority: trustme.CA, ca_file: str, wanted: bool, offered: bool
) -> None:
    client = tnp.Client(http2=wanted, ca_bundle=ca_file, part_nbytes=1 << 18)
    with Nginx(tmp_path, authority, http2=offered) as server:
        urls = [server.put(f"{i}.npy", npy(array)) for i, array in enumerate(ARRAYS)]
        for loaded, array in zip(tnp.load_many(urls, client=client), ARRAYS, strict=True):
            assert np.array_equal(loaded, array)
        large = tnp.load(server.put("large.npy", npy(LARGE)), client=client)
        assert torch.equal(large, torch.from_numpy(LARGE))
        protocol = "HTTP/2.0" if wanted and offered else "HTTP/1.1"
        assert set(server.protocols()) == {protocol}
    if wanted and offered:  # one for each I/O thread
        assert client.metrics()["connections_opened"] <= 2
