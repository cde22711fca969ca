"""Conclave SDK for state machines in Python.

A state machine is a class that derives from `Machine`. It applies the entries of a replicated log, one call
per entry, and answers queries about the resulting state. `conclave build` makes it a WebAssembly component. A
Conclave cluster provides the rest: consensus, encryption, snapshots and gRPC.

Determinism: every replica applies the same entries and must reach the same state. The `Context` of an entry
is the only source of time and randomness. Sort sets before you iterate over them. Do the same with dicts
whose insertion order does not come from the log. `conclave_sdk.testing` finds most other violations.

Exceptions: raise `Failure` for errors that a caller can cause. A failure is an ordinary reply, and changes
made before it are kept. Any other exception is a trap: the host rolls the entry back and continues with the
next one. It answers the caller with an error that is the same on every replica. The node's log records the
exception and where it was raised.

The standard library in a component: `print` writes lines to the node's log. Clocks show the entry's time,
which does not advance within a call. `random` and `os.urandom` are seeded again with each entry's seed, so
neither is secret. There are no files, no network and no environment; access to them raises OSError.
"""

from .machine import (
    Call, Code, Context, Event, Failure, Machine, Reply, Subscription, command, export, exported, query, subscription,
)
from .protobuf import messages

__all__ = [
    "Call", "Code", "Context", "Event", "Failure", "Machine", "Reply", "Subscription",
    "command", "export", "exported", "messages", "query", "subscription",
]
