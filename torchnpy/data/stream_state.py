"""The states of a stream: made, found in what others keep them in, and held against a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torchnpy.data.stream_plan import UNEVEN, Layout, Stage

_KIND = "torchnpy.data.NpyStream"
_VERSION = 1
# Of torchdata's StatefulDataLoader: batches that it has given out since the workers' states.
_STEPS_SINCE_SNAPSHOT = "_steps_since_snapshot"


@dataclass(frozen=True)
class Identity:
    """What must be the same for a position to mean the same."""

    urls: str
    """Number and digest of the URLs, see describe_urls()."""
    seed: int
    shuffle: bool
    shuffle_rows: int

    def check(self, other: Identity) -> None:
        """Raises ValueError that names what differs in a state."""
        for name, ours in vars(self).items():
            theirs = getattr(other, name)
            if ours != theirs:
                raise ValueError(
                    f"state: expected one of a stream with {name}={ours!r} but found "
                    f"{name}={theirs!r}; load it into a stream made with the same arguments"
                )


@dataclass(frozen=True)
class Place:
    """Where the consumers of an epoch are, as far as it is known.

    ``positions[consumer]`` counts the samples that a consumer has yielded in this stage. A worker
    goes on for the consumer ``(worker + rotation) % num_workers`` of its rank.
    """

    epoch: int
    rows: str
    """Digest of the shards' numbers of rows; empty: not known."""
    stages: tuple[Stage, ...]
    """Of the epoch, before this one."""
    layout: Layout
    positions: Mapping[int, int]
    rotations: Mapping[int, int]
    """By rank."""

    @property
    def is_complete(self) -> bool:
        return len(self.positions) == self.layout.consumer_count

    def split(self, identity: Identity) -> Iterator[dict[str, Any]]:
        """The states of the consumers."""
        for consumer, position in self.positions.items():
            rank = consumer // self.layout.num_workers
            one = replace(
                self,
                positions={consumer: position},
                rotations={rank: self.rotations.get(rank, 0)},
            )
            yield format_state(identity, one)

    def ended(self) -> tuple[Stage, ...]:
        """The stages when this one ends here. Only of a complete place."""
        consumers = range(self.layout.consumer_count)
        stage = Stage(self.layout, tuple(self.positions[consumer] for consumer in consumers))
        return (*self.stages, stage)


class Start(NamedTuple):
    """Where one worker begins."""

    stages: tuple[Stage, ...]
    consumer: int
    position: int
    rotation: int


def continue_from(place: Place, rank: int, worker: int, layout: Layout) -> Start:
    """Where a worker of ``layout`` goes on.

    Raises:
        ValueError: ``place`` does not say.
    """
    if place.layout == layout:
        rotation = place.rotations.get(rank, 0)
        consumer = rank * layout.num_workers + (worker + rotation) % layout.num_workers
        if consumer in place.positions:
            return Start(place.stages, consumer, place.positions[consumer], rotation)
    if not place.is_complete:
        before = place.layout
        raise ValueError(
            f"state: expected states of all {before.consumer_count} consumers "
            f"({before.world_size} ranks with {before.num_workers} workers, "
            f"uneven={before.uneven!r}), but found {len(place.positions)}, which do not tell where "
            f"rank {rank}, worker {worker} of {layout.world_size} ranks with {layout.num_workers} "
            f"workers, uneven={layout.uneven!r}, goes on; resume with as many as before, or pass "
            "the states of all ranks' StatefulDataLoaders to NpyStream.load_state_dict() in a list"
        )
    return Start(place.ended(), rank * layout.num_workers + worker, 0, 0)


def describe_urls(urls: Iterable[str]) -> str:
    """Their number and a digest, without what may change from day to day or be a secret: the query
    of a presigned URL."""
    digest, count = hashlib.sha256(), 0
    for url in urls:
        count += 1
        name = url.partition("?")[0] if url.startswith(("http://", "https://")) else url
        digest.update(name.encode("utf-8", "surrogateescape") + b"\n")
    return f"{count} URLs {digest.hexdigest()[:16]}"


def describe_rows(row_offsets: Sequence[int]) -> str:
    digest = hashlib.sha256(",".join(map(str, row_offsets)).encode())
    return f"{row_offsets[-1]} rows {digest.hexdigest()[:16]}"


def format_state(identity: Identity, place: Place) -> dict[str, Any]:
    """Of plain dicts, lists, strings and numbers, of one consumer: torch.load() takes it with
    weights_only=True."""
    ((consumer, position),) = place.positions.items()
    rank, worker = divmod(consumer, place.layout.num_workers)
    return {
        "kind": _KIND,
        "version": _VERSION,
        **vars(identity),
        "epoch": place.epoch,
        "rows": place.rows,
        "stages": [
            {**vars(stage.layout), "positions": list(stage.positions)} for stage in place.stages
        ],
        **vars(place.layout),
        "rank": rank,
        "worker": worker,
        "rotation": place.rotations.get(rank, 0),
        "position": position,
    }


def parse_states(state: object) -> tuple[Identity, Place]:
    """All states of streams inside ``state``: one, many, or in what a DataLoader keeps them in.

    Raises:
        ValueError: There is none, they do not belong together, or cannot be read.
    """
    found = list(_find(state))
    if not found:
        raise ValueError(
            "state: expected what NpyStream.state_dict() or a StatefulDataLoader gave but found "
            "no state of a stream in it"
        )
    identity, place = _parse(found[0])
    positions, rotations = dict(place.positions), dict(place.rotations)
    for other in found[1:]:
        their_identity, their_place = _parse(other)
        identity.check(their_identity)
        for name in ("epoch", "rows", "stages", "layout"):
            ours, theirs = getattr(place, name), getattr(their_place, name)
            # A consumer that has read nothing does not know the rows.
            if ours != theirs and not (name == "rows" and "" in (ours, theirs)):
                raise ValueError(
                    f"state: expected states of one moment but found {name}={ours!r} and "
                    f"{name}={theirs!r}; load those that were saved together"
                )
        place = place if place.rows else their_place
        for consumer, position in their_place.positions.items():
            if positions.setdefault(consumer, position) != position:
                raise ValueError(
                    f"state: expected one state of each consumer but found consumer {consumer} at "
                    f"{positions[consumer]} and at {position}; load those that were saved together"
                )
        rotations |= their_place.rotations
    return identity, Place(
        place.epoch, place.rows, place.stages, place.layout, positions, rotations
    )


def _find(state: object) -> Iterator[Mapping[str, Any]]:
    if isinstance(state, Mapping):
        if state.get("kind") == _KIND:
            yield state
            return
        if state.get(_STEPS_SINCE_SNAPSHOT):
            raise ValueError(
                "state: expected a StatefulDataLoader's state that is up to date but found one of "
                f"{state[_STEPS_SINCE_SNAPSHOT]} batches ago; load it into the same "
                "StatefulDataLoader, or make it with snapshot_every_n_steps=1"
            )
        for value in state.values():
            yield from _find(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _find(value)


def _parse(state: Mapping[str, Any]) -> tuple[Identity, Place]:
    if state.get("version") != _VERSION:
        raise ValueError(
            f"state: expected version {_VERSION} but found {state.get('version')!r}; it is of "
            "another version of torchnpy"
        )
    try:
        layout = _parse_layout(state)
        rank, worker = int(state["rank"]), int(state["worker"])
        consumer = rank * layout.num_workers + worker
        stages = tuple(
            Stage(_parse_layout(stage), tuple(map(int, stage["positions"])))
            for stage in state["stages"]
        )
        identity = Identity(
            str(state["urls"]),
            int(state["seed"]),
            bool(state["shuffle"]),
            int(state["shuffle_rows"]),
        )
        place = Place(
            int(state["epoch"]),
            str(state["rows"]),
            stages,
            layout,
            {consumer: int(state["position"])},
            {rank: int(state["rotation"])},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"state: expected all entries but found no proper {error}") from None
    return identity, place


def _parse_layout(state: Mapping[str, Any]) -> Layout:
    uneven = state["uneven"]
    if uneven not in UNEVEN:
        raise ValueError(f"state: expected uneven to be one of {UNEVEN} but found {uneven!r}")
    return Layout(int(state["world_size"]), int(state["num_workers"]), uneven)
