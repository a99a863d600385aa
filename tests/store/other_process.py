"""Another process for the store's tests: imports torch once, then forks a child per command.

Reads one JSON command a line, answers one JSON line. A child opens the store itself, after the
fork, as any process would; it can be killed at any moment without a second's loss on imports.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from records import FINGERPRINT, make_finite, make_record

from chunkcache.chunk import Retention, Terms
from chunkcache.errors import CorruptRecord, StoreError
from chunkcache.metrics import Metrics
from chunkcache.store.codec import codec_named
from chunkcache.store.disk import DiskTier
from chunkcache.store.host import HostTier
from chunkcache.store.lmdb_env import RecordEnv
from chunkcache.store.tiered import TieredStore
from chunkcache.store.upkeep import back_up

if TYPE_CHECKING:
    from collections.abc import Callable


def open_tier(order: dict[str, Any]) -> DiskTier:
    return DiskTier(
        Path(order["path"]), order["capacity_bytes"], codec_named("raw"), fingerprint=FINGERPRINT
    )


def fill(order: dict[str, Any], tell: Callable[[Any], None]) -> None:
    """Put records `first` to `last`, telling each once it is stored; delete some when asked to."""
    if "max_file_bytes" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["max_file_bytes"],) * 2)
    tier = open_tier(order)
    tell("open")
    for number in range(order["first"], order["last"]):
        record = make_record(number, order["num_tokens"])
        try:
            tier.put(record)
        except StoreError as error:
            tell({"failed": number, "reason": error.message})
        else:
            tell(number)
        if order.get("deletes") and number % 3 == 2:
            tell({"deleting": number - 1})
            tier.delete(make_record(number - 1, order["num_tokens"]).key)
    tell(tier.usage().size_bytes)
    tier.close()


def mend(order: dict[str, Any], tell: Callable[[Any], None]) -> None:
    """Find a record corrupt, and store it anew: what a server does that computes it again."""
    tier = open_tier(order)
    record = make_record(order["number"], order["num_tokens"])
    try:
        tier.get(record.key)
    except CorruptRecord:
        tell({"put": tier.put(record)})
    tier.close()


def hold(order: dict[str, Any], tell: Callable[[Any], None]) -> None:
    """Open a read transaction and never end it."""
    env = RecordEnv(Path(order["path"]), order["capacity_bytes"])
    with env.reading():
        tell("reading")
        signal.pause()


def hold_locks(tier: DiskTier, holding: threading.Event, held: threading.Event) -> None:
    """What another thread may be doing at the moment of a fork."""
    with tier._verbs._changed, tier._mirror._lock:
        holding.set()
        held.wait()


def fork(order: dict[str, Any], tell: Callable[[Any], None]) -> None:
    """Open a tier, fork, and use it in the child; then see whether the parent's still works."""
    tier = open_tier(order)
    store = TieredStore([HostTier(0), tier], Metrics())
    record = make_record(1)
    tier.put(record)
    verbs: dict[str, Callable[[], object]] = {
        "get": lambda: tier.get(record.key),
        "put": lambda: tier.put(make_record(2)),
        "contains": lambda: tier.contains(record.key),
        "delete": lambda: tier.delete(record.key),
        "scan": lambda: list(tier.scan()),
        "usage": tier.usage,
        "offer": lambda: store.offer(record, wait=True),
        "flush": store.flush,
    }
    holding, held = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold_locks, args=(tier, holding, held))
    thread.start()
    holding.wait()
    child = os.fork()
    held.set()
    if child == 0:
        signal.alarm(20)  # instead of waiting for ever for a lock that nobody will release
        for name, verb in verbs.items():
            try:
                verb()
                tell({"verb": name, "error": None})
            except StoreError as error:
                tell({"verb": name, "error": error.message})
        tell({"fetched": store.fetch(record.key).miss, "offered": store.offer(record)})
        store.close()
        os._exit(0)
    thread.join()
    _, status = os.waitpid(child, 0)
    found = tier.get(record.key)
    put = store.offer(make_record(3), wait=True)
    tell({"status": status, "parent_has_it": found is not None, "put": put})
    store.close()


def copy(order: dict[str, Any], tell: Callable[[Any], None]) -> None:
    """Back a store up that somebody else has open."""
    report = back_up(Path(order["path"]), order["capacity_bytes"], Path(order["folder"]))
    tell({"records": report.records, "ok": report.ok, "corrupt": report.corrupt})


def recode(order: dict[str, Any], tell: Callable[[Any], None]) -> None:
    """Put records, then code them anew, and so on in turns."""
    codec = codec_named(order["codec"])
    tier = DiskTier(
        Path(order["path"]), order["capacity_bytes"], codec_named("raw"),
        fingerprint=FINGERPRINT, cold=codec,
    )  # fmt: skip
    made = [make_finite(number) for number in order["numbers"]]
    for record in made:
        tier.put(record)
    tell("filled")
    while True:
        for record in made:
            tell(tier.recode(record.key.digest, codec))
        for record in made:
            tell(tier.put(record))


def retain(order: dict[str, Any], tell: Callable[[Any], None]) -> None:
    """Put records that are there on terms, telling how firmly each is kept."""
    tier, terms = open_tier(order), Terms(retention=Retention[order["retention"]])
    for number in order["numbers"]:
        kept = tier.retain(make_record(number).key, terms, exactly=True)
        tell(kept.name if kept is not None else None)
    tier.close()


DUTIES = {
    "recode": recode, "copy": copy, "fill": fill, "mend": mend, "hold": hold, "fork": fork,
    "retain": retain,
}  # fmt: skip


class Child:
    """A forked child at work on one order; what it tells comes through a pipe."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.told: list[Any] = []
        self._rest = b""
        self.pipe, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self.pipe)
                tell = lambda what: os.write(writing, json.dumps(what).encode() + b"\n")  # noqa: E731
                DUTIES[order["do"]](order, tell)
                code = 0
            finally:
                os._exit(code)
        os.close(writing)

    def hear(self) -> bool:
        """Read what was told. False: the child has ended."""
        piece = os.read(self.pipe, 65536)
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self.told += [json.loads(line) for line in lines]
        return bool(piece)

    def end(self, *, kill: bool) -> dict[str, Any]:
        """What it told, and how it ended."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        while self.hear():
            pass
        os.close(self.pipe)
        _, status = os.waitpid(self.pid, 0)
        return {"told": self.told, "killed": os.WIFSIGNALED(status), "code": status >> 8}


def obey(order: dict[str, Any], held: list[Child]) -> Any:
    match order["do"]:
        case "kill after":  # so many words, and seconds after that: both chosen by the caller
            child = Child(order["order"])
            while len(child.told) < order["words"] and child.hear():
                pass
            time.sleep(order["seconds"])
            return child.end(kill=True)
        case "together":
            children = [Child(each) for each in order["orders"]]
            open_pipes = {child.pipe: child for child in children}
            while open_pipes:
                for pipe in select.select(list(open_pipes), [], [])[0]:
                    if not open_pipes[pipe].hear():
                        del open_pipes[pipe]
            return [child.end(kill=False) for child in children]
        case "hold":
            held.append(Child(order))
            while not held[-1].told and held[-1].hear():
                pass
            return held[-1].told
        case "release":
            return held.pop().end(kill=True)
        case _:
            return Child(order).end(kill=False)


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    held: list[Child] = []
    for line in sys.stdin:
        print(json.dumps(obey(json.loads(line), held)), flush=True)
    for child in held:
        child.end(kill=True)


if __name__ == "__main__":
    main()
