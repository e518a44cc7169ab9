"""Many threads and many workers; workers that are given up while their transfers stall."""

from __future__ import annotations

import signal
import textwrap

import numpy as np
import pytest
from servers.http import ObjectServer, cut
from support import noise, npy, run_script, start_script

ARRAY = noise(30, 1000)
# Far beyond what a prompt end may take, and far below what the stalls here last.
PROMPT_S = 30


def test_64_threads_share_a_client(server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npy", npy(np.full((20 + i, 1000), i, np.uint8))) for i in range(64)]
    out = run_script(
        """
        import sys, threading, numpy as np, torchnpy as tnp
        urls, client = sys.argv[1:], tnp.Client(part_nbytes=20_000)
        together, right = threading.Barrier(len(urls)), [0] * len(urls)

        def work(i):
            together.wait()
            for k in range(4):
                one, other = tnp.load_many([urls[i], urls[(i + k) % 64]], client=client)
                assert one.shape == (20 + i, 1000) and (one.numpy() == i).all()
                assert (other.numpy() == (i + k) % 64).all()
                right[i] += 1

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(urls))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        metrics = client.metrics()
        print(set(right), metrics["in_flight"], metrics["in_flight_max"] <= 64, metrics["errors"])
        """,
        *urls,
    )
    assert out == "{4} 0 True 0\n"


def test_50_workers_load_while_the_parent_does(server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npy", npy(ARRAY + i)) for i in range(150)]
    out = run_script(
        """
        import sys, threading, warnings, numpy as np, torchnpy as tnp
        from torch.utils.data import DataLoader
        from torchnpy.data import NpyDataset
        warnings.simplefilter("ignore")  # torch's, of so many workers on so few cores
        urls = sys.argv[1:]
        first = tnp.load(urls[0]).numpy()
        stop = threading.Event()

        def work():
            while not stop.is_set():
                tnp.load_many(urls[:20])

        thread = threading.Thread(target=work)
        thread.start()  # so that each fork meets transfers in flight
        loader = DataLoader(NpyDataset(urls), 3, num_workers=50, prefetch_factor=1)
        for i, batch in enumerate(loader):
            assert np.array_equal(batch[2].numpy(), first + np.uint8(3 * i + 2)), i
        stop.set()
        thread.join()
        print(i)
        """,
        *urls,
    )
    assert out == "49\n"


def test_workers_of_a_forkserver_begin_while_transfers_stall(server: ObjectServer) -> None:
    urls = [server.put(f"/{i}.npy", npy(ARRAY + i)) for i in range(2)]
    server.put("/stalled.npy", npy(ARRAY))
    server.always("/stalled.npy", cut(100, "stall"))
    out = run_script(
        """
        import sys, threading, numpy as np, torchnpy as tnp
        from torch.utils.data import DataLoader
        from torchnpy.data import NpyDataset

        def stall():
            try:
                tnp.load(sys.argv[1] + "/stalled.npy", client=tnp.Client(stall_timeout_s=600))
            except BaseException:
                pass

        if __name__ == "__main__":
            threading.Thread(target=stall, daemon=True).start()
            first = tnp.load(sys.argv[2]).numpy()
            loader = DataLoader(
                NpyDataset(sys.argv[2:]), 1, num_workers=1, multiprocessing_context="forkserver"
            )
            for i, batch in enumerate(loader):
                assert np.array_equal(batch[0].numpy(), first + np.uint8(i))
            print(i)
        """,
        server.url,
        *urls,
    )
    assert out == "1\n"


GIVEN_UP = {
    "a dropped iterator": """
        sys.stdin.readline()
        del iterator
        gc.collect()
        print("given up")
        """,
    "ctrl-c": """
        try:
            next(iterator)
        except KeyboardInterrupt:
            del iterator
            gc.collect()
            print("given up")
        """,
    "an exit": """
        sys.stdin.readline()
        print("given up")
        """,
}
GIVEN_UP_PRELUDE = """
import gc, sys, torch.utils.data, torchnpy as tnp
from torch.utils.data import DataLoader
from torchnpy.data import NpyDataset
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5  # that torch waits before it kills
client = tnp.Client(stall_timeout_s=600)
iterator = iter(DataLoader(NpyDataset([sys.argv[1]] * 4, client=client), 1, num_workers=2))
"""


@pytest.mark.parametrize("how", GIVEN_UP)
def test_workers_whose_transfers_stall_can_be_given_up(server: ObjectServer, how: str) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    server.always("/x.npy", cut(100, "stall"))
    code = GIVEN_UP_PRELUDE + textwrap.dedent(GIVEN_UP[how])
    with start_script(code, url) as script:
        assert server.stalled.wait(60)
        if how == "ctrl-c":
            script.send_signal(signal.SIGINT)
        else:
            script.stdin.write("\n")
            script.stdin.flush()
        status, out, err = script.finish(PROMPT_S)
        assert (status, out) == (0, "given up\n"), err
        assert server.dropped.wait(PROMPT_S), "a worker lives on"
