"""Adapter between the generated bindings and a `Machine`. Imported only in a component."""

import random
import sys

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import log, types

import machine  # noqa: F401  the project's machine.py, which exports its class
from conclave_sdk import Call, Context, Failure, exported
from conclave_sdk.protobuf import encode

_class = exported()
_machine = _class()
_CODES = {code.name: code for code in types.Code}

# Printed lines should be in the node's log when the call ends, not when a buffer is full.
sys.stdout.reconfigure(line_buffering=True)


def _call(seed, function, *arguments):
    """Calls a function. Converts a `Failure` to the contract's; writes other exceptions to the log and traps.

    Seeds `random` again at each call. Otherwise its generator would keep its position from call to call,
    which no snapshot contains, and a restored replica would draw other numbers.
    """
    random.seed(seed)
    try:
        return function(*arguments)
    except Failure as failure:
        raise Err(types.Failure(_CODES[failure.code.name], failure.message)) from None
    except Exception as error:
        log.write(log.Level.ERROR, f"{type(error).__name__}: {error} ({_places(error.__traceback__)})")
        raise


def _places(frames):
    """The places where an exception was raised, innermost first.

    Built by hand, because the module `traceback` would look for source files, and a component has none.
    """
    places = []
    while frames is not None:
        code = frames.tb_frame.f_code
        # The first directory of the build is the project's.
        file = code.co_filename.removeprefix("/0/")
        places.append(f"{file}:{frames.tb_lineno} in {code.co_name}")
        frames = frames.tb_next
    return ", ".join(reversed(places))


def _context(ctx):
    return Context(ctx.index, ctx.time_ms, ctx.seed, ctx.principal)


def _reply(seed, function, *arguments):
    """The reply to an entry, with the wake-up time of the state after it."""
    reply = _call(seed, function, *arguments)
    events = [types.Event(bytes(event.topic), encode(event.payload)) for event in reply.events]
    return types.Reply(bytes(reply.response), events, _call(seed, _machine.wake_at))


class Fsm(exports.Fsm):
    def describe(self):
        restores = sorted({*_class.restores, _class.state_version})
        return types.Description(
            _class.name, _class.version, _class.state_version, restores, _class.descriptor_set
        )

    def apply(self, ctx, call):
        return _reply(ctx.seed, _machine.apply, _context(ctx), Call(call.method, call.request))

    def tick(self, ctx):
        return _reply(ctx.seed, _machine.tick, _context(ctx))

    def query(self, ctx, call):
        return _call(ctx.seed, _machine.query, _context(ctx), Call(call.method, call.request))

    def subscribe(self, ctx, call):
        begun = _call(ctx.seed, _machine.subscribe, _context(ctx), Call(call.method, call.request))
        return types.Subscription(bytes(begun.from_topic), bytes(begun.to_topic), begun.initial)

    def snapshot(self):
        return SnapshotReader(_call(0, _machine.save))

    def restore(self, state_version):
        if state_version not in {*_class.restores, _class.state_version}:
            why = f"{_class.name} {_class.version} cannot restore state version {state_version}"
            raise Err(types.Failure(types.Code.INVALID_ARGUMENT, why))
        return RestoreWriter(state_version)


class SnapshotReader(exports.fsm.SnapshotReader):
    """Serves the state as bytes in chunks. The state is serialized once, at the start."""

    def __init__(self, snapshot):
        self.snapshot = snapshot
        self.position = 0

    def read(self, max_bytes):
        chunk = self.snapshot[self.position : self.position + max(1, max_bytes)]
        self.position += len(chunk)
        return chunk


class RestoreWriter(exports.fsm.RestoreWriter):
    """Collects the chunks of a snapshot. The state changes only in `finish`."""

    def __init__(self, state_version):
        self.state_version = state_version
        self.chunks = []

    def write(self, chunk):
        self.chunks.append(chunk)

    def finish(self):
        global _machine
        _machine = _call(0, _class.load, self.state_version, b"".join(self.chunks))
        self.chunks = []
