"""NpyStream goes on where it was: states, StatefulDataLoader, resume(), SIGKILL."""

from __future__ import annotations

import io
import itertools
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from servers.http import ObjectServer
from support import noise, npy, run_script, start_script
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from torchnpy.data import NpyStream

pytestmark = [
    # torch's, of so many workers on so few cores.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # torchdata calls what torch deprecates.
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
]

COUNT = 53
SHUFFLED = {"shuffle": True, "shuffle_rows": 11, "seed": 5}


def write_shards(folder: Path) -> list[str]:
    """53 rows in all, that hold their own numbers."""
    paths, first = [], 0
    for i, count in enumerate([9, 14, 1, 0, 26, 3]):
        paths.append(str(folder / f"{i}.npy"))
        np.save(paths[-1], np.arange(first, first + count))
        first += count
    return paths


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    return write_shards(tmp_path)


@pytest.fixture
def as_rank() -> Iterator[Callable[[int, int], None]]:
    """Makes this process a rank of a world."""

    def become(rank: int, world_size: int) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)

    yield become
    if dist.is_initialized():
        dist.destroy_process_group()


def numbers(samples: Any) -> list[int]:
    return [int(sample) for sample in samples]


def flat(batches: Any) -> list[int]:
    return [int(number) for batch in batches for number in batch]


def drain(loader: Any) -> None:
    """When a loader raises, torch takes seconds to end workers that it collects as garbage."""
    iterator = iter(loader)
    try:
        list(iterator)
    finally:
        getattr(iterator, "_shutdown_workers", int)()


def saved(state: Any) -> Any:
    """As a checkpoint holds it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("options", [{}, SHUFFLED, {"shuffle_rows": 1000}])
def test_a_state_goes_on_at_the_next_sample(shards: list[str], options: dict[str, Any]) -> None:
    stream = NpyStream(shards, **options)
    stream.set_epoch(2)
    whole = numbers(stream)
    for done in [*range(0, COUNT, 6), COUNT - 1, COUNT]:
        iterator = iter(stream)
        assert numbers(itertools.islice(iterator, done)) == whole[:done]
        state = saved(stream.state_dict())
        other = NpyStream(shards, **options)
        other.load_state_dict(state)
        assert other.epoch == 2
        assert other.state_dict()["states"][0]["position"] == done
        assert numbers(other) == whole[done:]
        assert numbers(other) == whole, "a state is for one iteration"


def test_a_resumed_iteration_can_be_saved_again(shards: list[str]) -> None:
    stream = NpyStream(shards, **SHUFFLED)
    whole, seen = numbers(stream), []
    for _ in range(7):
        iterator = iter(stream)
        seen += numbers(itertools.islice(iterator, 8))
        state = stream.state_dict()
        stream = NpyStream(shards, **SHUFFLED)
        stream.load_state_dict(state)
    assert seen == whole


def test_a_state_before_the_first_sample_is_the_beginning(shards: list[str]) -> None:
    stream = NpyStream(shards, **SHUFFLED)
    stream.set_epoch(4)
    states = [stream.state_dict()]
    iterator = iter(stream)
    states.append(stream.state_dict())
    whole = numbers(iterator)
    for state in states:
        other = NpyStream(shards, **SHUFFLED)
        other.load_state_dict(state)
        assert numbers(other) == whole


def test_only_what_is_still_to_come_is_read(server: ObjectServer) -> None:
    array = noise(400, 20_000)
    urls = [server.put(f"/{i}.npy", npy(array[i * 100 :][:100])) for i in range(4)]
    stream = NpyStream(urls, shuffle_rows=40, prefetch_nbytes=1 << 20)
    iterator = iter(stream)
    first = list(itertools.islice(iterator, 310))
    state = stream.state_dict()
    del iterator
    before, requests = server.sent_nbytes, len(server.requests)
    of_first = len(server.requests_for("/0.npy"))
    stream.load_state_dict(state)
    rest = list(stream)
    heads = (64 << 10) * (len(server.requests) - requests)
    assert server.sent_nbytes - before <= 90 * 20_000 + heads
    assert {row.numpy().tobytes() for row in first + rest} == {row.tobytes() for row in array}
    assert len(server.requests_for("/0.npy")) == of_first


def test_a_state_after_an_error_goes_on_when_it_is_mended(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.npy" for i in range(3)]
    for i, path in enumerate(paths):
        np.save(path, np.arange(10 * i, 10 * i + 10))
    stream = NpyStream(paths, prefetch_nbytes=80)
    assert len(stream) == 30
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[:-8])
    seen: list[int] = []
    with pytest.raises(ValueError, match=r"1.npy"):
        seen.extend(int(row) for row in stream)
    state = stream.state_dict()
    paths[1].write_bytes(data)
    stream.load_state_dict(state)
    assert state["position"] < 20
    whole = list(range(30))
    assert numbers(stream) == whole[state["position"] :]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, SHUFFLED])
def test_a_stateful_loader_goes_on_at_the_next_batch(
    shards: list[str], workers: int, options: dict[str, Any]
) -> None:
    def make() -> tuple[NpyStream, Any]:
        stream = NpyStream(shards, **options)
        return stream, StatefulDataLoader(stream, 4, num_workers=workers)

    stream, loader = make()
    stream.set_epoch(1)
    whole = [batch.tolist() for batch in loader]
    for done in (0, 1, 6, len(whole) - 1, len(whole)):
        stream, loader = make()
        stream.set_epoch(1)
        iterator = iter(loader)
        assert [next(iterator).tolist() for _ in range(done)] == whole[:done]
        state = saved(loader.state_dict())
        del iterator
        stream, loader = make()
        loader.load_state_dict(state)
        rest = [batch.tolist() for batch in loader]
        # The state of an ended epoch begins the next one.
        assert rest == whole[done:] or (rest == whole and done == len(whole))
        assert stream.epoch == 1
        stream.set_epoch(2)
        later = flat(loader)
        assert sorted(later) == list(range(COUNT))
        assert later == flat(whole) or options


def test_persistent_workers_of_a_stateful_loader_go_on(shards: list[str]) -> None:
    stream = NpyStream(shards, **SHUFFLED)
    loader = StatefulDataLoader(stream, 4, num_workers=2, persistent_workers=True)
    iterator = iter(loader)
    first = flat(itertools.islice(iterator, 5))
    loader.load_state_dict(loader.state_dict())
    assert sorted(first + flat(loader)) == list(range(COUNT))
    stream.set_epoch(1)
    assert sorted(flat(loader)) == list(range(COUNT))


def test_a_stateful_loader_refuses_another_number_of_workers(shards: list[str]) -> None:
    out = run_script(
        """
        import multiprocessing, os, signal, sys, warnings
        from torchnpy.data import NpyStream
        warnings.simplefilter("ignore")
        from torchdata.stateful_dataloader import StatefulDataLoader
        loader = StatefulDataLoader(NpyStream(sys.argv[1:]), 4, num_workers=2)
        next(iter(loader))
        state = loader.state_dict()
        loader = StatefulDataLoader(NpyStream(sys.argv[1:]), 4, num_workers=1)
        loader.load_state_dict(state)
        try:
            next(iter(loader))
        except ValueError as error:
            print(error, flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in multiprocessing.active_children():  # torchdata waits for it for seconds
            child.kill()
            child.join()
        os._exit(0)
        """,
        *shards,
    )
    assert "all 2 consumers (1 ranks with 2 workers" in out
    assert "pass the states of all ranks' StatefulDataLoaders" in out


@pytest.mark.parametrize("new_workers", [0, 1, 3])
def test_another_number_of_workers_goes_on_with_the_states_of_all(
    shards: list[str], new_workers: int
) -> None:
    loader = StatefulDataLoader(NpyStream(shards, **SHUFFLED), 4, num_workers=2)
    iterator = iter(loader)
    seen = flat(itertools.islice(iterator, 5))
    stream = NpyStream(shards, **SHUFFLED)
    stream.load_state_dict(saved(loader.state_dict()))
    loader = StatefulDataLoader(stream, 3, num_workers=new_workers)
    iterator = iter(loader)
    seen += flat(itertools.islice(iterator, 4))
    state = saved(loader.state_dict())
    # The same loader again, and then yet another number.
    loader = StatefulDataLoader(NpyStream(shards, **SHUFFLED), 3, num_workers=new_workers)
    loader.load_state_dict(state)
    iterator = iter(loader)
    seen += flat(itertools.islice(iterator, 2))
    stream = NpyStream(shards, **SHUFFLED)
    stream.load_state_dict(loader.state_dict())
    seen += flat(DataLoader(stream, 5))
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("uneven", ["exact", "pad", "drop"])
def test_another_number_of_ranks_goes_on_with_the_states_of_all(
    shards: list[str], as_rank: Callable[[int, int], None], uneven: Any
) -> None:
    options = {**SHUFFLED, "uneven": uneven}
    seen, states = [], []
    for rank, done in enumerate([2, 0, 4]):
        as_rank(rank, 3)
        loader = StatefulDataLoader(NpyStream(shards, **options), 3, num_workers=rank % 2 * 1)
        iterator = iter(loader)
        seen += flat(itertools.islice(iterator, done))
        states.append(saved(loader.state_dict()))
    for rank in range(2):
        as_rank(rank, 2)
        stream = NpyStream(shards, **options)
        stream.load_state_dict(states)
        seen += numbers(stream)
    if uneven == "exact":
        assert sorted(seen) == list(range(COUNT))
    elif uneven == "pad":
        assert set(seen) == set(range(COUNT))
        assert len(seen) <= COUNT + 1
    else:
        assert len(set(seen)) == len(seen) >= COUNT - 1


def test_states_of_some_consumers_do_not_tell_where_others_go_on(
    shards: list[str], as_rank: Callable[[int, int], None]
) -> None:
    as_rank(1, 2)
    stream = NpyStream(shards)
    next(iter(stream))
    state = stream.state_dict()
    as_rank(0, 2)
    stream.load_state_dict(state)
    iterator = iter(stream)
    with pytest.raises(ValueError, match=r"all 2 consumers .*but found 1.*in a list"):
        next(iterator)
    as_rank(0, 1)
    stream.load_state_dict(state)
    with pytest.raises(ValueError, match=r"all 2 consumers"):
        drain(DataLoader(stream, num_workers=1))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"shuffle": True}, "shuffle"),
        ({"shuffle_rows": 3}, "shuffle_rows"),
        ({"urls": ["x.npy"]}, "urls"),
    ],
)
def test_a_state_of_another_stream_names_what_differs(
    shards: list[str], options: dict[str, Any], name: str
) -> None:
    state = NpyStream(shards).state_dict()
    with pytest.raises(ValueError, match=rf"state: expected .* {name}=.*but found {name}="):
        NpyStream(**{"urls": shards, **options}).load_state_dict(state)


def test_a_state_of_shards_that_changed_is_an_error(shards: list[str]) -> None:
    stream = NpyStream(shards)
    next(iter(stream))
    state = stream.state_dict()
    np.save(shards[0], np.arange(7))
    other = NpyStream(shards)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"51 rows.*53 rows.*the shards have changed"):
        next(iter(other))


@pytest.mark.parametrize("state", [{}, {"kind": "x"}, [], 5])
def test_what_is_no_state_is_a_value_error(shards: list[str], state: Any) -> None:
    with pytest.raises(ValueError, match="found no state of a stream"):
        NpyStream(shards).load_state_dict(state)


def test_damaged_and_foreign_states_are_value_errors(shards: list[str]) -> None:
    stream = NpyStream(shards)
    next(iter(stream))
    state = stream.state_dict()
    later = {**state, "position": 3}
    for wrong, message in [
        ({**state, "version": 9}, "expected version 1 but found 9"),
        ({key: value for key, value in state.items() if key != "position"}, "position"),
        ({**state, "uneven": "x"}, "uneven"),
        ([state, later], "consumer 0 at 1 and at 3"),
        ([state, {**state, "epoch": 4}], "of one moment but found epoch=0 and epoch=4"),
        ({"_steps_since_snapshot": 2, "x": state}, "snapshot_every_n_steps=1"),
    ]:
        with pytest.raises(ValueError, match=message):
            stream.load_state_dict(wrong)  # type: ignore[arg-type]


def test_presigned_urls_may_change_their_signatures(server: ObjectServer) -> None:
    url = server.put("/x.npy", npy(np.arange(6)))
    stream = NpyStream([url + "?Signature=old"])
    iterator = iter(stream)
    next(iterator)
    state = stream.state_dict()
    assert "Signature" not in repr(state)
    other = NpyStream([url + "?Signature=new"])
    other.load_state_dict(state)
    assert numbers(other) == [1, 2, 3, 4, 5]


def test_a_parent_cannot_know_where_its_workers_are(shards: list[str]) -> None:
    stream = NpyStream(shards)
    iterator = iter(DataLoader(stream, 4, num_workers=1))
    next(iterator)
    with pytest.raises(RuntimeError, match=r"StatefulDataLoader.*resume\(\)"):
        stream.state_dict()
    list(iterator)
    stream.set_epoch(1)
    assert stream.state_dict()["states"][0]["epoch"] == 1


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_resume_gives_the_batches_that_are_left(
    shards: list[str], workers: int, drop_last: bool
) -> None:
    def make() -> tuple[NpyStream, Any]:
        stream = NpyStream(shards, **SHUFFLED)
        return stream, DataLoader(stream, 5, num_workers=workers, drop_last=drop_last)

    stream, loader = make()
    stream.set_epoch(3)
    whole = [batch.tolist() for batch in loader]
    for done in (0, 1, 4, len(whole) - 1, len(whole)):
        stream, loader = make()
        stream.resume(3, done, 5, workers, drop_last=drop_last)
        assert [batch.tolist() for batch in loader] == whole[done:]
        assert [batch.tolist() for batch in loader] == whole, "a second iteration begins anew"


def test_resume_with_other_workers_and_ranks_leaves_out_what_was_given(
    shards: list[str], as_rank: Callable[[int, int], None]
) -> None:
    options = {**SHUFFLED, "uneven": "exact"}
    seen = []
    for rank in range(2):
        as_rank(rank, 2)
        loader = DataLoader(NpyStream(shards, **options), 5, num_workers=2)
        seen += flat(itertools.islice(loader, 3))
    dist.destroy_process_group()
    stream = NpyStream(shards, **options)
    stream.resume(0, 3, 5, 2, world_size=2)
    seen += flat(DataLoader(stream, 7, num_workers=1))
    assert sorted(seen) == list(range(COUNT))


def test_resume_can_be_followed_by_a_stateful_loader(shards: list[str]) -> None:
    whole = flat(DataLoader(NpyStream(shards), 5, num_workers=2))
    stream = NpyStream(shards)
    stream.resume(0, 3, 5, 2)
    loader = StatefulDataLoader(stream, 5, num_workers=2)
    iterator = iter(loader)
    seen = flat(itertools.islice(iterator, 2))
    state = loader.state_dict()
    other = StatefulDataLoader(NpyStream(shards), 5, num_workers=2)
    other.load_state_dict(state)
    assert seen + flat(other) == whole[15:]


def test_another_epoch_forgets_what_was_loaded(shards: list[str]) -> None:
    stream = NpyStream(shards, **SHUFFLED)
    stream.resume(0, 2, 5, 1)
    stream.set_epoch(1)
    assert sorted(flat(DataLoader(stream, 5, num_workers=1))) == list(range(COUNT))
    stream.resume(0, 2, 5, 1)
    stream.set_epoch(0)
    assert len(list(stream)) == COUNT - 10


def test_persistent_workers_from_before_cannot_resume(shards: list[str]) -> None:
    stream = NpyStream(shards)
    loader = DataLoader(stream, 5, num_workers=1, persistent_workers=True)
    list(loader)
    stream.resume(0, 2, 5, 1)
    with pytest.raises(RuntimeError, match="make a new DataLoader"):
        drain(loader)
    del loader
    loader = DataLoader(stream, 5, num_workers=1, persistent_workers=True)
    assert len(flat(loader)) == COUNT - 10
    stream.set_epoch(1)
    assert len(flat(loader)) == COUNT


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((-1, 0, 1, 0), "epoch"), ((0, -1, 1, 0), "batches_done"), ((0, 0, 0, 0), "batch_size")],
)
def test_wrong_arguments_of_resume_are_value_errors(arguments: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least"):
        NpyStream(["x.npy"]).resume(*arguments)


TRAINING = """
import os, sys, torch.utils.data
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5  # in which workers see that they are alone
from torchdata.stateful_dataloader import StatefulDataLoader
from torchnpy.data import NpyStream
checkpoint, *urls = sys.argv[1:]
stream = NpyStream(urls, shuffle=True, shuffle_rows=15, prefetch_nbytes=100)
loader = StatefulDataLoader(stream, 3, num_workers=2)
seen = []  # what the model has learnt from
epoch = 0
if os.path.exists(checkpoint):
    saved = torch.load(checkpoint, weights_only=True)
    seen, epoch = saved["seen"], saved["epoch"]
    loader.load_state_dict(saved["loader"])
for epoch in range(epoch, 2):
    stream.set_epoch(epoch)
    for batch in loader:
        seen += (batch + 1000 * epoch).tolist()
        state = {"seen": seen, "epoch": epoch, "loader": loader.state_dict()}
        torch.save(state, checkpoint + ".new")
        os.replace(checkpoint + ".new", checkpoint)
        print(flush=True)
print(sorted(seen) == [*range(53), *range(1000, 1053)], len(seen), flush=True)
"""


def test_a_training_that_is_killed_sees_each_sample_once(tmp_path: Path) -> None:
    shards = write_shards(tmp_path)
    checkpoint = tmp_path / "checkpoint.pt"
    kills = random.Random(0)
    for _ in range(3):
        with start_script(TRAINING, checkpoint, *shards) as script:
            for _ in range(kills.randrange(3, 9)):
                script.stdout.readline()
            script.send_signal(signal.SIGKILL)
            assert script.finish()[0] == -signal.SIGKILL
    with start_script(TRAINING, checkpoint, *shards) as script:
        code, out, err = script.finish(90)
    assert (code, out.split()[:2]) == (0, ["True", "106"]), out + err
