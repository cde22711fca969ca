"""The base class of state machines, and their argument and result types (`wit/types.wit`)."""

from dataclasses import dataclass, field
from enum import Enum

from . import protobuf


@dataclass(frozen=True)
class Context:
    """The context of an entry or a query: the only source of time and randomness."""

    index: int
    """The log index of the entry. For a query: the index of the last applied entry."""
    time_ms: int
    """Milliseconds since the Unix epoch, never smaller than the time of an earlier entry."""
    seed: int
    """A pseudo-random number that depends only on cluster id and index. Seed a `random.Random` with it."""
    principal: str
    """The authenticated principal of the caller. Empty for an anonymous caller."""


@dataclass(frozen=True)
class Call:
    """One call of one method."""

    method: str
    """`package.Service/Method`."""
    request: bytes
    """The bytes of the request message."""


class Code(Enum):
    """The gRPC status codes that a state machine may fail with."""

    INVALID_ARGUMENT = "invalid-argument"
    NOT_FOUND = "not-found"
    ALREADY_EXISTS = "already-exists"
    PERMISSION_DENIED = "permission-denied"
    FAILED_PRECONDITION = "failed-precondition"
    ABORTED = "aborted"
    OUT_OF_RANGE = "out-of-range"
    UNIMPLEMENTED = "unimplemented"
    RESOURCE_EXHAUSTED = "resource-exhausted"
    INTERNAL = "internal"


class Failure(Exception):
    """An ordinary reply that refuses the request. Changes made before it are kept: check first, then change."""

    def __init__(self, code: Code, message: str):
        super().__init__(message)
        self.code = code
        self.message = message

    def __eq__(self, other):
        return isinstance(other, Failure) and (self.code, self.message) == (other.code, other.message)

    __hash__ = None

    def __repr__(self):
        return f"Failure({self.code.name}, {self.message!r})"


@dataclass(frozen=True)
class Event:
    """An event, delivered to all subscriptions whose range of topics contains `topic`."""

    topic: bytes
    payload: object
    """A response message of the subscription's method, or its bytes. Put the entry's index into it: a
    subscriber that lost its connection resumes from that index."""


@dataclass
class Subscription:
    """The start of a subscription: first `initial`, then every later event whose topic is in the range."""

    from_topic: bytes
    to_topic: bytes = b""
    """The end of the range, exclusive. Empty: the range has no end."""
    initial: list = field(default_factory=list)
    """Response messages that describe the current state, or their bytes."""

    @classmethod
    def prefix(cls, prefix: bytes, initial=()) -> "Subscription":
        """Subscribes to every event whose topic begins with `prefix`."""
        # The end is the first topic after all of these: drop the trailing 0xff bytes, then
        # increment the last byte.
        end = prefix.rstrip(b"\xff")
        end = end[:-1] + bytes([end[-1] + 1]) if end else b""
        return cls(prefix, end, list(initial))

    @classmethod
    def topic(cls, topic: bytes, initial=()) -> "Subscription":
        """Subscribes to every event with exactly this topic."""
        return cls(topic, topic + b"\0", list(initial))


@dataclass
class Reply:
    """The reply to an entry, for a command that also emits events."""

    response: object = b""
    """A response message, or its bytes."""
    events: list[Event] = field(default_factory=list)


def command(method: str):
    """Marks a method as the handler of the command `package.Service/Method`.

    It takes the context and the request message, and returns a response message or a `Reply`.
    """
    return _handler("command", method)


def query(method: str):
    """Marks a method as the handler of the query `package.Service/Method`. It must not change the state."""
    return _handler("query", method)


def subscription(method: str):
    """Marks a method as the handler of the subscription `package.Service/Method`.

    It takes the context and the request message, and returns a `Subscription`. It must not change the state.
    """
    return _handler("subscription", method)


def _handler(kind, method):
    def mark(function):
        function.conclave = (kind, method)
        return function

    return mark


class Machine:
    """A replicated state machine. A new object is the state before the first entry.

    The contract:

    1. A pure function of the log: no clock, no randomness, no files, no set order, no global state.
    2. Check, then change: changes made before a `Failure` are kept.
    3. The same state gives the same snapshot bytes, however it was reached.
    4. A restored state machine gives the same replies as the original.
    """

    name: str
    """The name of the state machine, for people: `kv`, `lock`. At most 64 bytes."""
    version: str
    """The version of the state machine, for people. At most 64 bytes."""
    state_version: int
    """The version of the snapshot format that `save` writes. Raise it when the format changes."""
    restores: tuple[int, ...] = ()
    """Older snapshot formats that `load` also reads."""
    descriptor_set: bytes = b""
    """From `descriptor_set.py`. Empty for a state machine that takes raw bytes only."""

    def __init_subclass__(cls, **arguments):
        super().__init_subclass__(**arguments)
        handlers = {}
        for function in vars(cls).values():
            kind, method = getattr(function, "conclave", (None, None))
            if method in handlers:
                raise TypeError(f"{cls.__name__} has two handlers of {method}")
            if kind:
                handlers[method] = (kind, function)
        cls._types = protobuf.method_types(cls.descriptor_set)
        protobuf.check_handlers(cls._types, {name: kind for name, (kind, _) in handlers.items()})
        cls._handlers = handlers

    def apply(self, context: Context, call: Call) -> Reply:
        """Applies one committed entry."""
        reply = self._handle("command", context, call)
        reply = reply if isinstance(reply, Reply) else Reply(reply)
        events = [Event(event.topic, protobuf.encode(event.payload)) for event in reply.events]
        return Reply(protobuf.encode(reply.response), events)

    def query(self, context: Context, call: Call) -> bytes:
        """Answers a query about the current state. Must not change the state."""
        return protobuf.encode(self._handle("query", context, call))

    def subscribe(self, context: Context, call: Call) -> Subscription:
        """Starts a subscription. Must not change the state."""
        begun = self._handle("subscription", context, call)
        return Subscription(begun.from_topic, begun.to_topic, [protobuf.encode(message) for message in begun.initial])

    def tick(self, context: Context) -> Reply:
        """Runs all work that is due.

        Called through the log once the time of `wake_at` has come, and once after each restore.
        """
        return Reply()

    def wake_at(self) -> int | None:
        """Returns the time at which the state next needs `tick`, in the clock of `Context.time_ms`.

        A time in the past means as soon as possible. The result must depend on the state only. Called after
        each tick and each successful command. A failure leaves the pending wake-up time unchanged.
        """
        return None

    def save(self) -> bytes:
        """Returns the whole state as bytes, in the format `state_version`."""
        raise NotImplementedError

    @classmethod
    def load(cls, state_version: int, snapshot: bytes) -> "Machine":
        """Restores the state from a snapshot in the format `state_version`."""
        raise NotImplementedError

    def _handle(self, kind, context, call):
        found, function = self._handlers.get(call.method, (None, None))
        if found is None:
            raise Failure(Code.UNIMPLEMENTED, f"there is no method {call.method}")
        if found != kind:
            raise Failure(Code.UNIMPLEMENTED, f"{call.method} is a {found}, not a {kind}")
        message = self._types[call.method].request() if call.method in self._types else None
        if message is None:
            return function(self, context, call.request)
        try:
            message.ParseFromString(call.request)
        except protobuf.DecodeError as error:
            why = f"the request of {call.method} does not decode: {error}"
            raise Failure(Code.INVALID_ARGUMENT, why) from error
        return function(self, context, message)


_exported: type[Machine] | None = None


def export(machine: type[Machine]) -> type[Machine]:
    """Makes this class the state machine of the component. Usable as a decorator."""
    global _exported
    if _exported is not None and _exported is not machine:
        raise TypeError(f"only one class may be exported, not both {_exported.__name__} and {machine.__name__}")
    _exported = machine
    return machine


def exported() -> type[Machine]:
    """Returns the exported class."""
    if _exported is None:
        raise TypeError("machine.py exports no state machine: put @export above the class")
    return _exported
