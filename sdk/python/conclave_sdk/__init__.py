"""Write a Conclave state machine in Python.

A machine is a class that derives from `Machine`: it applies the entries of a replicated log, one call an
entry, and answers questions about the state that they lead to. `conclave build` makes it a WebAssembly
component, and a Conclave cluster does the rest: consensus, encryption, snapshots, gRPC.

Determinism: every replica applies the same entries and must come to the same state. What an entry brings
along (`Context`) is a machine's only source of time and chance. Iterate over no set, and over no dict that
was filled in an order that is not the log's: sort first. `conclave_sdk.testing` finds most of the rest.

Exceptions: raise `Failure` for what a caller can do; it is an ordinary answer, and changes made before it
stay. Any other exception is a trap: the host rolls the entry back, answers its caller with an error, the
same on every replica, and goes on with the next. What was raised, and where, goes to the node's log.

What the standard library finds in a component: `print` writes lines of the node's log. Clocks show the
entry's time, which does not pass within a call. `random` begins anew with each entry's seed, and `os.urandom`
too, so neither is a secret. There are no files, no network, no environment; to look for them is an OSError.
"""

from .machine import (
    Call, Code, Context, Event, Failure, Machine, Reply, Subscription, command, export, exported, query, subscription,
)
from .protobuf import messages

__all__ = [
    "Call", "Code", "Context", "Event", "Failure", "Machine", "Reply", "Subscription",
    "command", "export", "exported", "messages", "query", "subscription",
]
