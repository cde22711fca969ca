"""Conformance tests for state machines. They run natively, without WebAssembly or a host.

Write a `Log` with the calls that a host would make, and pass it to `check`. A check that fails raises
AssertionError and names the first entry whose results differ. The checks cannot detect an order that differs
only between processes, such as the order of a set of strings.
"""

import contextlib
import dataclasses
import datetime
import random
import time
from dataclasses import dataclass
from unittest import mock

from .machine import Call, Context, Failure, Machine, Reply
from .protobuf import encode

# Maximum number of positions at which a log is cut: all of a short log, evenly spread ones of a
# long log.
_CUTS_MAX = 48
# Number of positions at which later ticks are checked, and the pauses before them: one second, one
# minute, one hour, one day, one year.
_FEW_CUTS = 6
_PAUSES_MS = [1_000, 60_000, 3_600_000, 86_400_000, 31_536_000_000]


@dataclass(frozen=True)
class Entry:
    """One entry of a log: a command, or a tick if there is no call."""

    context: Context
    call: Call | None

    def apply_to(self, machine):
        """Applies the entry. Returns the outcome: a reply or a failure."""
        try:
            return machine.tick(self.context) if self.call is None else machine.apply(self.context, self.call)
        except Failure as failure:
            return failure

    def __str__(self):
        return f"{self.call.method if self.call else 'tick'} at index {self.context.index}"


class Log:
    """A sequence of entries, with the queries and subscriptions to run after each of them."""

    def __init__(self):
        self.entries: list[Entry] = []
        self.queries: list[Call] = []
        self.subscriptions: list[Call] = []
        # As in a real log, the first entries do not belong to the state machine. The time is close
        # to the present.
        self._index, self._time_ms = 2, 1_750_000_000_000

    def apply(self, method: str, request) -> "Log":
        """Adds a command. `request` is a message, or its bytes."""
        return self._push(Call(method, encode(request)))

    def tick(self) -> "Log":
        """Adds a tick."""
        return self._push(None)

    def wait_ms(self, milliseconds: int) -> "Log":
        """Lets time pass before the next entry."""
        self._time_ms += milliseconds
        return self

    def ask(self, method: str, request) -> "Log":
        """Adds a query that the checks run repeatedly. They only compare the reply."""
        self.queries.append(Call(method, encode(request)))
        return self

    def watch(self, method: str, request) -> "Log":
        """Adds a subscription that the checks start repeatedly, like the queries of `ask`."""
        self.subscriptions.append(Call(method, encode(request)))
        return self

    def _push(self, call):
        # Indexes increase, but not always by one: a real log also contains entries that no state
        # machine sees.
        self._index += 2 if self._index % 5 == 0 else 1
        seed = random.Random(self._index).getrandbits(64)
        self.entries.append(Entry(Context(self._index, self._time_ms, seed, ""), call))
        return self


def check(machine: type[Machine], log: Log) -> None:
    """Runs all conformance tests on one log."""
    check_description(machine)
    check_replay(machine, log)
    check_snapshots(machine, log)
    check_failures(machine, log)
    check_wake_ups(machine, log)


def run(machine: type[Machine], log: Log) -> tuple[Machine, list[Reply | Failure]]:
    """Applies a log to a new state machine, without a clock and without randomness."""
    state, seen = _play(machine, log)
    return state, [outcome for outcome, _ in seen]


def _play(machine, log):
    with _no_clock_and_no_chance():
        state = machine()
        return state, [_step(entry, state) for entry in log.entries]


def _step(entry, machine):
    """Returns the outcome and the wake-up time of the state after it."""
    return entry.apply_to(machine), machine.wake_at()


def check_description(machine: type[Machine]) -> None:
    """Checks that the name and the version are within the contract's bounds."""
    for what in ("name", "version"):
        length = len(getattr(machine, what).encode())
        assert 1 <= length <= 64, f"{what} has {length} bytes; it may have 1 to 64"


def check_replay(machine: type[Machine], log: Log) -> None:
    """Checks that applying a log twice gives the same outcomes and the same snapshot."""
    first, expected = _play(machine, log)
    second, outcomes = _play(machine, log)
    _compare(log, 0, expected, outcomes, "the same log, applied twice")
    assert first.save() == second.save(), "the same log, applied twice, gives two snapshots"


def check_same_state(machine: type[Machine], left: Log, right: Log) -> None:
    """Checks that two logs that lead to the same state also lead to the same snapshot.

    The caller guarantees that the states are equal.
    """
    left, right = run(machine, left)[0].save(), run(machine, right)[0].save()
    assert left == right, f"the same state, reached in two ways, gives two snapshots:\n  {left!r}\n  {right!r}"


def check_snapshots(machine: type[Machine], log: Log) -> None:
    """Checks snapshots taken at positions along the log, and that queries do not change the state.

    Each snapshot must restore to a state machine that has the same snapshot, gives the same replies,
    gives the same outcomes for the rest of the log, and reaches the same final state.
    """
    whole, expected = _play(machine, log)
    step = len(log.entries) // _CUTS_MAX + 1
    with _no_clock_and_no_chance():
        state = machine()
        for cut in range(len(log.entries) + 1):
            if cut % step == 0 or cut == len(log.entries):
                snapshot = state.save()
                restored = machine.load(machine.state_version, snapshot)
                assert restored.save() == snapshot, f"the snapshot after {cut} entries differs once restored"
                wake_at = (state.wake_at(), restored.wake_at())
                assert wake_at[0] == wake_at[1], f"the wake-up time after {cut} entries differs once restored: {wake_at}"
                _compare_answers(log, cut, state, restored)
                assert state.save() == snapshot, f"after {cut} entries a query or subscription changed the state"
                outcomes = [_step(entry, restored) for entry in log.entries[cut:]]
                _compare(log, cut, expected, outcomes, f"the log applied whole, and restored after {cut} entries")
                assert restored.save() == whole.save(), f"restored after {cut} entries, the final state differs"
            if cut < len(log.entries):
                seen = _step(log.entries[cut], state)
                _compare(log, cut, expected, [seen], "the log applied with snapshots in between")


def check_failures(machine: type[Machine], log: Log) -> None:
    """Checks that a command that fails changes nothing except for effects of time.

    After a tick in the same entry context, the state must be the same with and without the command. A state
    machine that intends to change something when it refuses should return a reply instead.
    """
    with _no_clock_and_no_chance():
        state = machine()
        for number, entry in enumerate(log.entries):
            before = state.save()
            outcome = entry.apply_to(state)
            after = state.save()
            if not isinstance(outcome, Failure) or after == before:
                continue
            by_time = _ticked(machine, before, entry.context)
            assert by_time in (after, _ticked(machine, after, entry.context)), (
                f"entry {number} ({entry}) failed and changed the state: check everything first, "
                f"then change. The failure: {outcome!r}"
            )


def check_wake_ups(machine: type[Machine], log: Log) -> None:
    """Checks that no wake-up is lost.

    If a tick at a later time would change the state because of the time, the state must request a wake-up
    by then. Examines each entry after which a pending wake-up time is gone or later. Also examines a few
    positions along the log, with pauses of one second to one year.
    """
    step = max(1, len(log.entries) // _FEW_CUTS)
    with _no_clock_and_no_chance():
        state, pending = machine(), None
        for number, entry in enumerate(log.entries):
            before = pending
            if not isinstance(entry.apply_to(state), Failure):
                pending = state.wake_at()
            now_ms = entry.context.time_ms
            # A time in the past proves nothing: a tick now may change the state regardless of the time.
            times = [before] if before is not None and before > now_ms else []
            if (number + 1) % step == 0 or number + 1 == len(log.entries):
                times += [now_ms + pause_ms for pause_ms in _PAUSES_MS]
            times = [time_ms for time_ms in times if pending is None or pending > time_ms]
            if not times:
                continue
            snapshot = state.save()
            unchanged = (snapshot, _ticked(machine, snapshot, entry.context))
            for time_ms in times:
                then = dataclasses.replace(entry.context, time_ms=time_ms)
                assert _ticked(machine, snapshot, then) in unchanged, (
                    f"after entry {number} ({entry}) at {now_ms} ms the wake-up time is {pending}, before it was "
                    f"{before}, and a tick at {time_ms} ms would change the state: `wake_at` must be the earliest time "
                    "at which something is due"
                )


def _ticked(machine, snapshot, context):
    """Returns the snapshot of the state after a tick."""
    state = machine.load(machine.state_version, snapshot)
    state.tick(context)
    return state.save()


def _compare_answers(log, cut, state, restored):
    context = log.entries[cut - 1].context if cut else Context(0, 0, 0, "")

    def answer(function, call):
        try:
            return function(context, call)
        except Failure as failure:
            return failure

    asked = [("query", call) for call in log.queries] + [("subscribe", call) for call in log.subscriptions]
    for what, call in asked:
        first = answer(getattr(state, what), call)
        again, after = answer(getattr(state, what), call), answer(getattr(restored, what), call)
        assert first == again, f"after {cut} entries, {call.method} answered differently when asked again"
        assert first == after, f"after {cut} entries, {call.method} answered differently once restored"


def _compare(log, first, expected, outcomes, what):
    for number, outcome in enumerate(outcomes, first):
        assert expected[number] == outcome, (
            f"{what}: entry {number} ({log.entries[number]}) is the first to differ:\n"
            f"  {expected[number]!r}\n  {outcome!r}"
        )


# Functions that no state machine may call. `datetime` cannot be patched in place, so its module
# gets another class.
_FORBIDDEN = [
    *((time, name) for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "sleep")),
    *((random, name) for name in ("random", "randint", "randrange", "choice", "shuffle", "getrandbits")),
]


class _NoDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        raise AssertionError("datetime.now: a state machine has no clock; use Context.time_ms")


@contextlib.contextmanager
def _no_clock_and_no_chance():
    def forbid(name):
        def forbidden(*_, **__):
            raise AssertionError(f"{name}: a state machine has no clock and no randomness; use its Context")

        return forbidden

    with contextlib.ExitStack() as patches:
        for module, name in _FORBIDDEN:
            patches.enter_context(mock.patch.object(module, name, forbid(f"{module.__name__}.{name}")))
        patches.enter_context(mock.patch.object(datetime, "datetime", _NoDatetime))
        yield
