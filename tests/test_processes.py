"""Forks, spawned workers, interrupts and exits: with transfers in flight and at rest."""

from __future__ import annotations

import pickle
import shutil
import signal
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trustme
from servers.http import ObjectServer, cut
from servers.nginx import Nginx
from servers.s3 import S3Server
from support import can_unshare, noise, npy, run_script, start_script
from torch.utils.data import DataLoader

import torchnpy as tnp
from torchnpy.data import NpyDataset

ARRAY = noise(100, 1000)
# Far beyond what a prompt end may take, and far below what the stalls here last.
PROMPT_S = 15


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_load_after_the_parent_did(server: ObjectServer, context: str) -> None:
    urls = [server.put(f"/{i}.npy", npy(ARRAY + i)) for i in range(6)]
    tnp.load_many(urls)
    loader = DataLoader(NpyDataset(urls), 2, num_workers=1, multiprocessing_context=context)
    for i, batch in enumerate(loader):
        assert torch.equal(batch[0], torch.from_numpy(ARRAY + 2 * i))
        assert torch.equal(batch[1], torch.from_numpy(ARRAY + 2 * i + 1))
    assert torch.equal(tnp.load(urls[0]), torch.from_numpy(ARRAY))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_learn_the_default_client(
    s3_server: S3Server, s3_client: tnp.Client, use_default_client: Any, context: str
) -> None:
    use_default_client(s3_client)
    urls = [s3_server.put_key(f"{i}.npy", npy(ARRAY)) for i in range(2)]
    loader = DataLoader(NpyDataset(urls), 2, num_workers=1, multiprocessing_context=context)
    (batch,) = loader
    assert torch.equal(batch[1], torch.from_numpy(ARRAY))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_forks_with_transfers_in_flight_hang_nobody(
    server: ObjectServer, tls_server: ObjectServer, ca_file: str, scheme: str
) -> None:
    used = server if scheme == "http" else tls_server
    used.latency_s = 0.005
    urls = [used.put(f"/{i}.npy", npy(ARRAY + i)) for i in range(8)]
    out = run_script(
        """
        import os, sys, threading, torch, torchnpy as tnp
        urls, client = sys.argv[2:], tnp.Client(ca_bundle=sys.argv[1], part_nbytes=20_000)
        first = tnp.load(urls[0], client=client)
        stop, loads = threading.Event(), [0] * 4

        def work(n):
            while not stop.is_set():
                for i, x in enumerate(tnp.load_many(urls, client=client)):
                    assert torch.equal(x, first + i)
                loads[n] += 1

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for i in range(15):
            child = os.fork()
            if child == 0:
                same = torch.equal(tnp.load(urls[i % 8], client=client), first + i % 8)
                os._exit(0 if same else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        print(min(loads) > 0)
        """,
        ca_file,
        *urls,
    )
    assert out == "True\n"


def test_forks_during_tls_handshakes_hang_nobody(
    tmp_path: Path, authority: trustme.CA, ca_file: str
) -> None:
    """A child that inherits a lock of OpenSSL's would wait for ever in its own handshake."""
    # Every fifth request takes a new connection; the server has OpenSSL in a process of its own.
    with Nginx(tmp_path, authority, keepalive_requests=5) as tls_nginx:
        urls = [tls_nginx.put(f"{i}.npy", npy(ARRAY + i)) for i in range(8)]
        out = run_script(
            """
            import os, signal, sys, threading, numpy as np, torchnpy as tnp
            urls, client = sys.argv[2:], tnp.Client(ca_bundle=sys.argv[1], part_nbytes=20_000)
            first = tnp.load(urls[0], client=client).numpy()
            stop = threading.Event()

            def work():
                while not stop.is_set():
                    tnp.load_many(urls, client=client)

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            for i in range(80):
                child = os.fork()
                if child == 0:
                    signal.alarm(30)
                    x = tnp.load(urls[i % 8], client=client)
                    os._exit(0 if np.array_equal(x, first + i % 8) else 1)
                assert os.waitpid(child, 0)[1] == 0, i
            stop.set()
            for thread in threads:
                thread.join()
            print("whole")
            """,
            ca_file,
            *urls,
        )
    assert out == "whole\n"


def test_a_fork_leaves_the_parents_connections_alone(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(ARRAY[:10]))
    run_script(
        """
        import os, sys, torchnpy as tnp
        client = tnp.Client(io_threads=1)
        tnp.load(sys.argv[1], client=client)
        child = os.fork()
        if child == 0:
            tnp.load(sys.argv[1], client=client)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        tnp.load(sys.argv[1], client=client)
        """,
        url,
    )
    connections = [request.connection for request in server.requests]
    assert connections == [1, 2, 1]


def test_grandchildren_load_too(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    run_script(
        """
        import os, sys, torchnpy as tnp
        for generation in range(3):
            tnp.load(sys.argv[1])
            child = os.fork()
            if child:
                assert os.waitpid(child, 0)[1] == 0
                break
        else:
            tnp.load(sys.argv[1])
        """,
        url,
    )
    assert len(server.requests) == 2 * 4


def test_a_child_exits_normally_after_a_fork(server: ObjectServer) -> None:
    """sys.exit(), with atexit hooks, in a child that never loads and in one that does."""
    url = server.put("/x.npy", npy(ARRAY))
    run_script(
        """
        import os, sys, torchnpy as tnp
        tnp.load(sys.argv[1])
        for loads in (False, True):
            child = os.fork()
            if child == 0:
                if loads:
                    tnp.load(sys.argv[1])
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0
        tnp.load(sys.argv[1])
        """,
        url,
    )


INTERRUPTED = {
    "load": "tnp.load(url, client=client)",
    "load_many": "tnp.load_many([url, url], client=client)",
    "op": "tnp.set_default_client(client); torch.ops.npy.load(url)",
    "dataset": "NpyDataset([url, url], client=client).__getitems__([0, 1])",
    "header": "tnp.header(url, client=client)",
}


@pytest.mark.parametrize("how", INTERRUPTED)
def test_ctrl_c_ends_a_stalled_download(server: ObjectServer, how: str) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    server.always("/x.npy", cut(40, "stall"))
    code = f"""
        import sys, torch, torchnpy as tnp
        from torchnpy.data import NpyDataset
        url, client = sys.argv[1], tnp.Client(stall_timeout_s=600)
        try:
            {INTERRUPTED[how]}
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        sys.stdin.read()
        """
    with start_script(code, url) as script:
        assert server.stalled.wait(60)
        script.send_signal(signal.SIGINT)
        assert script.stdout.readline() == "interrupted\n"
        assert server.dropped.wait(PROMPT_S), "the connection was left open"
        assert script.finish() == (0, "", "")


def test_a_load_works_after_an_interrupted_one(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    server.fail("/x.npy", cut(40, "stall"))
    out = run_script(
        """
        import os, signal, sys, threading, torchnpy as tnp
        client = tnp.Client(stall_timeout_s=600)
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            tnp.load(sys.argv[1], client=client)
        except KeyboardInterrupt:
            print(tuple(tnp.load(sys.argv[1], client=client).shape))
        """,
        url,
    )
    assert out == "(100, 1000)\n"


def test_the_exception_of_a_signal_handler_comes_through(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    server.always("/x.npy", cut(None, "stall"))
    out = run_script(
        """
        import signal, sys, torchnpy as tnp

        class Alarm(Exception):
            pass

        def ring(*_):
            raise Alarm("rang")

        signal.signal(signal.SIGALRM, ring)
        signal.alarm(1)
        try:
            tnp.load(sys.argv[1], client=tnp.Client(stall_timeout_s=600))
        except Alarm as alarm:
            print(alarm)
        """,
        url,
    )
    assert out == "rang\n"


def test_a_signal_handler_that_raises_nothing_lets_the_load_go_on(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(ARRAY))
    server.latency_s = 1.5
    out = run_script(
        """
        import signal, sys, torchnpy as tnp
        signal.signal(signal.SIGALRM, lambda *_: print("rang"))
        signal.alarm(1)
        print(len(tnp.load(sys.argv[1])))
        """,
        url,
    )
    assert out == "rang\n100\n"


def test_other_threads_run_while_one_loads(server: ObjectServer) -> None:
    """The GIL is released: this thread both waits for the load and serves it."""
    url = server.put("/x.npy", npy(ARRAY))
    assert torch.equal(tnp.load(url), torch.from_numpy(ARRAY))


EXITS = {
    "a daemon thread in a load": """
        threading.Thread(target=load, daemon=True).start()
        sys.stdin.read()
        """,
    "many daemon threads in loads": """
        for _ in range(8):
            threading.Thread(target=load, daemon=True).start()
        sys.stdin.read()
        """,
    "sys.exit with a daemon thread in a load": """
        threading.Thread(target=load, daemon=True).start()
        sys.stdin.read()
        sys.exit(0)
        """,
    "finished loads, connections warm": "tnp.header(sys.argv[1] + '/good.npy', client=client)",
}
EXIT_PRELUDE = """
import sys, threading, torchnpy as tnp
client = tnp.Client(ca_bundle=sys.argv[2], stall_timeout_s=600)

def load():
    try:
        tnp.load(sys.argv[1] + "/x.npy", client=client)
    except BaseException:
        pass

tnp.load(sys.argv[1] + "/good.npy", client=client)
"""


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("how", EXITS)
def test_an_exit_with_transfers_in_flight_is_clean(
    server: ObjectServer, tls_server: ObjectServer, ca_file: str, scheme: str, how: str
) -> None:
    used = server if scheme == "http" else tls_server
    used.put("/good.npy", npy(ARRAY))
    used.put("/x.npy", npy(ARRAY))
    used.always("/x.npy", cut(50_000, "stall"))
    code = EXIT_PRELUDE + textwrap.dedent(EXITS[how])
    with start_script(code, used.url, ca_file) as script:
        assert "finished" in how or used.stalled.wait(60)
        assert script.finish(PROMPT_S) == (0, "", "")


def test_an_exit_under_full_load_is_clean(tls_server: ObjectServer, ca_file: str) -> None:
    """Not stalled but flowing: the I/O threads are busy when the interpreter ends."""
    urls = [tls_server.put(f"/{i}.npy", npy(noise(300, 1000))) for i in range(4)]
    for _ in range(3):
        run_script(
            """
            import sys, threading, time, torchnpy as tnp
            client = tnp.Client(ca_bundle=sys.argv[1], part_nbytes=50_000)
            begun = threading.Semaphore(0)

            def work():
                while True:
                    begun.release()
                    tnp.load_many(sys.argv[2:], client=client)

            for _ in range(4):
                threading.Thread(target=work, daemon=True).start()
            for _ in range(6):
                begun.acquire()
            """,
            ca_file,
            *urls,
        )


def test_an_exit_while_daemon_threads_finish_loads_is_clean() -> None:
    for _ in range(8):  # it takes a load that ends just then
        run_script(
            """
            import numpy, tempfile, threading, time, torchnpy as tnp
            path = tempfile.mkdtemp() + "/x.npy"
            numpy.save(path, numpy.zeros(3))

            def work():
                while True:
                    tnp.load(path)

            for _ in range(3):
                threading.Thread(target=work, daemon=True).start()
            time.sleep(0.05)
            """
        )


# A network of its own, in which the only name server takes questions and never answers.
SILENT_DNS = """
import ctypes, os, signal, socket, subprocess, sys, threading
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
assert ctypes.CDLL(None).unshare(CLONE_NEWNS | CLONE_NEWNET) == 0
for command in (
    ["ip", "link", "set", "lo", "up"],
    ["mount", "--make-rprivate", "/"],
    ["mount", "--bind", sys.argv[1], "/etc/resolv.conf"],
):
    subprocess.run(command, check=True)
dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
dns.bind(("127.0.0.1", 53))
import torchnpy as tnp
client = tnp.Client(connect_timeout_s=60, stall_timeout_s=60)
"""
DNS_SCRIPTS = {
    "ctrl-c": """
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            tnp.load("http://dead.example/x.npy", client=client)
        except KeyboardInterrupt:
            print("done")
        """,
    "exit": """
        def load():
            try:
                tnp.load("http://dead.example/x.npy", client=client)
            except BaseException:
                pass
        threading.Thread(target=load, daemon=True).start()
        dns.recv(512)
        print("done")
        """,
    "others go on": """
        import numpy as np
        from servers.http import ObjectServer
        from support import npy
        dead = "http://dead.example/x.npy"
        threading.Thread(target=tnp.load, args=(dead,), kwargs={"client": client}).start()
        dns.recv(512)
        server = ObjectServer()
        for i in range(5):
            tnp.load(server.put(f"/{i}.npy", npy(np.zeros(3))), client=client)
        print("done", flush=True)
        os._exit(0)
        """,
    "timeout": """
        try:
            client = tnp.Client(connect_timeout_s=1, retries=1)
            tnp.load("http://dead.example/x.npy?sig=secret", client=client)
        except tnp.TransportError as error:
            assert "dead.example" in str(error) and "secret" not in str(error), error
            print("done")
        """,
}


@pytest.mark.skipif(
    not (can_unshare("-mn") and shutil.which("ip")),
    reason="needs root, to make a network of its own",
)
@pytest.mark.parametrize("what", DNS_SCRIPTS)
def test_a_name_server_that_never_answers_holds_up_nobody(tmp_path: Path, what: str) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:3\n")
    with start_script(SILENT_DNS + textwrap.dedent(DNS_SCRIPTS[what]), resolver) as script:
        # The resolver alone would take 90 s.
        assert script.finish(PROMPT_S) == (0, "done\n", "")


def test_a_name_that_does_not_exist_is_an_error_that_names_it() -> None:
    client = tnp.Client(retries=2, connect_timeout_s=2)
    with pytest.raises(tnp.TransportError, match=r"no..where"):
        tnp.load("http://no..where/x.npy", client=client)


def test_unpickled_datasets_load_in_a_fresh_process(server: ObjectServer, tmp_path: Path) -> None:
    urls = [server.put(f"/{i}.npy", npy(np.full(3, i))) for i in range(3)]
    (tmp_path / "ds").write_bytes(pickle.dumps(NpyDataset(urls, client=tnp.Client(retries=3))))
    out = run_script(
        "import pickle, sys; ds = pickle.load(open(sys.argv[1], 'rb')); print(ds[2].tolist())",
        tmp_path / "ds",
    )
    assert out == "[2, 2, 2]\n"
