"""The state machine `quota`: rate limits that several programs share.

An example of time without a clock. A bucket is refilled when an entry reads it, according to the time of that
entry, so no work is needed in between. Amounts are whole thousandths of a token: one token per second is one
thousandth per millisecond. No rounding occurs, as it would with floats.
"""

from dataclasses import dataclass, field

from conclave_sdk import Code, Context, Failure, Machine, command, export, messages, query
from descriptor_set import DESCRIPTOR_SET

pb = messages(DESCRIPTOR_SET, "quota.v1")

# The longest name of a limit or subject, in bytes.
NAME_BYTES_MAX = 128
# The maximum number of limits.
LIMITS_MAX = 1_000
# The maximum number of buckets that are not full. Full ones are not stored. When this number is
# reached, one entry scans all buckets for full ones, so it also bounds the work of one entry.
BUCKETS_MAX = 10_000
# The maximum number of tokens of a bucket, and of tokens that are added per second.
TOKENS_MAX = 1_000_000

MILLI = 1_000


@dataclass
class Bucket:
    """The tokens of a bucket at a point in time. Full buckets are not stored, because they need no data."""

    milli_tokens: int
    at_ms: int


@dataclass
class Limit:
    capacity: int
    per_second: int
    buckets: dict[str, Bucket] = field(default_factory=dict)

    def milli_tokens(self, subject: str, time_ms: int) -> int:
        """Returns the thousandths of tokens in a subject's bucket at this time."""
        bucket = self.buckets.get(subject)
        full = self.capacity * MILLI
        if bucket is None:
            return full
        # One token per second is one thousandth of a token per millisecond.
        return min(full, bucket.milli_tokens + (time_ms - bucket.at_ms) * self.per_second)

    def forget_full(self, time_ms: int) -> None:
        full = self.capacity * MILLI
        for subject in [one for one in self.buckets if self.milli_tokens(one, time_ms) == full]:
            del self.buckets[subject]


@export
class Quota(Machine):
    name = "quota"
    version = "0.1.0"
    state_version = 1
    descriptor_set = DESCRIPTOR_SET

    def __init__(self):
        self.limits: dict[str, Limit] = {}

    @command("quota.v1.Quota/Define")
    def define(self, context: Context, request):
        check_name("the limit", request.limit)
        check_tokens("capacity", request.capacity, TOKENS_MAX)
        check_tokens("per_second", request.per_second, TOKENS_MAX)
        limit = self.limits.get(request.limit)
        if limit is None:
            if len(self.limits) >= LIMITS_MAX:
                raise Failure(Code.RESOURCE_EXHAUSTED, f"there are {LIMITS_MAX} limits; remove one")
            self.limits[request.limit] = Limit(request.capacity, request.per_second)
            return pb.DefineResponse()
        # Tokens up to now are added at the old rate.
        for subject, bucket in limit.buckets.items():
            bucket.milli_tokens = limit.milli_tokens(subject, context.time_ms)
            bucket.at_ms = context.time_ms
        limit.capacity, limit.per_second = request.capacity, request.per_second
        limit.forget_full(context.time_ms)
        return pb.DefineResponse()

    @command("quota.v1.Quota/Remove")
    def remove(self, _: Context, request):
        return pb.RemoveResponse(removed=self.limits.pop(request.limit, None) is not None)

    @command("quota.v1.Quota/Take")
    def take(self, context: Context, request):
        limit = self.find(request.limit)
        check_name("the subject", request.subject)
        check_tokens("tokens", request.tokens, limit.capacity)
        there = limit.milli_tokens(request.subject, context.time_ms)
        wanted = request.tokens * MILLI
        if there < wanted:
            # Rounded up, so that a retry at this time succeeds.
            wait_ms = -(-(wanted - there) // limit.per_second)
            return pb.TakeResponse(taken=False, left=there // MILLI, retry_after_ms=wait_ms)
        if request.subject not in limit.buckets:
            self.make_room(context.time_ms)
        limit.buckets[request.subject] = Bucket(there - wanted, context.time_ms)
        return pb.TakeResponse(taken=True, left=(there - wanted) // MILLI)

    @query("quota.v1.Quota/Get")
    def get(self, context: Context, request):
        limit = self.find(request.limit)
        left = limit.milli_tokens(request.subject, context.time_ms) // MILLI
        return pb.GetResponse(left=left, capacity=limit.capacity, per_second=limit.per_second)

    def find(self, name: str) -> Limit:
        if name not in self.limits:
            raise Failure(Code.NOT_FOUND, f"there is no limit {name!r}: define it first")
        return self.limits[name]

    def make_room(self, time_ms: int) -> None:
        """Makes room for one bucket. Removing full ones changes no reply, so it may precede a failure."""
        if sum(len(limit.buckets) for limit in self.limits.values()) < BUCKETS_MAX:
            return
        for limit in self.limits.values():
            limit.forget_full(time_ms)
        if sum(len(limit.buckets) for limit in self.limits.values()) >= BUCKETS_MAX:
            raise Failure(Code.RESOURCE_EXHAUSTED, f"{BUCKETS_MAX} buckets are in use; they fill up by themselves")

    def save(self) -> bytes:
        # Sorted by name, because the same limits and buckets must give the same snapshot bytes,
        # regardless of which came first.
        snapshot = pb.Snapshot()
        for name, limit in sorted(self.limits.items()):
            saved = snapshot.limits.add(name=name, capacity=limit.capacity, per_second=limit.per_second)
            for subject, bucket in sorted(limit.buckets.items()):
                saved.buckets.add(subject=subject, milli_tokens=bucket.milli_tokens, at_ms=bucket.at_ms)
        return snapshot.SerializeToString(deterministic=True)

    @classmethod
    def load(cls, state_version: int, snapshot: bytes) -> "Quota":
        # The bytes are not trusted.
        machine = cls()
        for saved in pb.Snapshot.FromString(snapshot).limits:
            check_name("a limit", saved.name)
            check_tokens("a capacity", saved.capacity, TOKENS_MAX)
            check_tokens("a rate", saved.per_second, TOKENS_MAX)
            limit = Limit(saved.capacity, saved.per_second)
            for one in saved.buckets:
                check_name("a subject", one.subject)
                if one.milli_tokens >= saved.capacity * MILLI:
                    raise Failure(Code.INVALID_ARGUMENT, f"the bucket of {one.subject!r} is full, but stored")
            limit.buckets = {one.subject: Bucket(one.milli_tokens, one.at_ms) for one in saved.buckets}
            machine.limits[saved.name] = limit
        return machine


def check_name(what: str, name: str) -> None:
    length = len(name.encode())
    if not 1 <= length <= NAME_BYTES_MAX:
        raise Failure(Code.INVALID_ARGUMENT, f"{what} has {length} bytes; it must have 1 to {NAME_BYTES_MAX}")


def check_tokens(what: str, tokens: int, most: int) -> None:
    if not 1 <= tokens <= most:
        raise Failure(Code.INVALID_ARGUMENT, f"{what} is {tokens}; it must be 1 to {most}")
