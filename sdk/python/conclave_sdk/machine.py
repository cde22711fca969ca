"""What a machine is, and the values that it takes and gives (`wit/types.wit`)."""

from dataclasses import dataclass, field
from enum import Enum

from . import protobuf


@dataclass(frozen=True)
class Context:
    """What an entry of the log, or a query, brings along."""

    index: int
    """The log index of the entry; for a query, that of the last entry applied."""
    time_ms: int
    """Milliseconds since the Unix epoch, never smaller than an earlier entry's."""
    seed: int
    """Looks random, and is a function of the cluster and the index. Seed a `random.Random` with it."""
    principal: str
    """Who called; empty for an anonymous caller."""


@dataclass(frozen=True)
class Call:
    """One call of one method."""

    method: str
    """`package.Service/Method`."""
    request: bytes
    """The request message."""


class Code(Enum):
    """gRPC's codes, as far as a machine may answer with them."""

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
    """An ordinary answer that says no. Changes made before it was raised stay: check first, then change."""

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
    """Something that happened, for those subscribed to a range of topics that holds `topic`."""

    topic: bytes
    payload: object
    """A response message of the subscribing method, or its bytes. Put the entry's index into it: a subscriber
    that has lost its connection goes on from there."""


@dataclass
class Subscription:
    """What a subscriber gets: `initial` first, then every later event whose topic lies in the range."""

    from_topic: bytes
    to_topic: bytes = b""
    """The end of the range, exclusive. Empty: no end."""
    initial: list = field(default_factory=list)
    """Response messages that describe the state as it is now, or their bytes."""

    @classmethod
    def prefix(cls, prefix: bytes, initial=()) -> "Subscription":
        """Every event whose topic begins with `prefix`."""
        # The first topic after them: without the 0xff at its end, and one more in what is last.
        end = prefix.rstrip(b"\xff")
        end = end[:-1] + bytes([end[-1] + 1]) if end else b""
        return cls(prefix, end, list(initial))

    @classmethod
    def topic(cls, topic: bytes, initial=()) -> "Subscription":
        """Every event of exactly this topic."""
        return cls(topic, topic + b"\0", list(initial))


@dataclass
class Reply:
    """The answer to an entry, for a command that has more to say than a response message."""

    response: object = b""
    """A message, or its bytes."""
    events: list[Event] = field(default_factory=list)


def command(method: str):
    """Marks a method of a machine as the one that applies `package.Service/Method`.

    It takes the context and the request message, and gives a response message, or a `Reply`.
    """
    return _handler("command", method)


def query(method: str):
    """Marks a method of a machine as the one that answers `package.Service/Method`. It changes nothing."""
    return _handler("query", method)


def subscription(method: str):
    """Marks a method of a machine as the one that begins the stream `package.Service/Method`.

    It takes the context and the request message, and gives a `Subscription`. It changes nothing.
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

    1. A pure function of the log: no clock, no chance, no files, no order of a set, no global state.
    2. Check, then change: what was changed before a `Failure` stays.
    3. The same state gives the same snapshot bytes, however it was reached.
    4. A restored machine answers as the one that was saved would.
    """

    name: str
    """For people: `kv`, `lock`. At most 64 bytes."""
    version: str
    """The machine's own version, for people."""
    state_version: int
    """The version of the format that `save` writes. Raise it when the format changes."""
    restores: tuple[int, ...] = ()
    """Older formats that `load` reads too."""
    descriptor_set: bytes = b""
    """From `descriptor_set.py`. Empty for a machine that is called with raw bytes only."""

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
        """Answers a question about the state as it is. Must not change it."""
        return protobuf.encode(self._handle("query", context, call))

    def subscribe(self, context: Context, call: Call) -> Subscription:
        """Begins a subscription. Must not change the state."""
        begun = self._handle("subscription", context, call)
        return Subscription(begun.from_topic, begun.to_topic, [protobuf.encode(message) for message in begun.initial])

    def tick(self, context: Context) -> Reply:
        """Runs what is due. Called through the log once the time of `wake_at` has come, and once after each
        restore."""
        return Reply()

    def wake_at(self) -> int | None:
        """The time at which the state next needs `tick`, in the clock of `Context.time_ms`. A time that has passed
        means as soon as possible. A function of the state: it is called after each tick and each command that did
        not fail. After a failure the time before it stays."""
        return None

    def save(self) -> bytes:
        """The whole state."""
        raise NotImplementedError

    @classmethod
    def load(cls, state_version: int, snapshot: bytes) -> "Machine":
        """The state that was saved as these bytes in the format `state_version`."""
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
    """Makes this class the machine of the component. Usable as a decorator."""
    global _exported
    if _exported is not None and _exported is not machine:
        raise TypeError(f"a component is one machine: both {_exported.__name__} and {machine.__name__} are exported")
    _exported = machine
    return machine


def exported() -> type[Machine]:
    """The class that was exported."""
    if _exported is None:
        raise TypeError("machine.py exports no machine: put @export above the class")
    return _exported
