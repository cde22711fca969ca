"""Workers on several nodes that share a rate limit: `python3 client.py 127.0.0.1:7101`.

The client needs only grpcio and grpcio-reflection: any node describes the service by reflection.
"""

import sys
import time

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

PATIENCE_SECONDS = 20


class Service:
    """A gRPC service, as described by a node. `service.Take(subject="ada")` calls its method."""

    def __init__(self, address: str, name: str):
        self.channel = grpc.insecure_channel(address)
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        self.descriptor = pool.FindServiceByName(name)

    def __getattr__(self, name: str):
        method = self.descriptor.FindMethodByName(name)
        request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        call = self.channel.unary_unary(
            f"/{self.descriptor.full_name}/{name}",
            request_serializer=request_class.SerializeToString,
            response_deserializer=response_class.FromString,
        )
        return lambda **fields: call(request_class(**fields), timeout=PATIENCE_SECONDS)


def main(addresses: list[str]) -> None:
    # Each worker uses another node, but all share one bucket.
    workers = [Service(address, "quota.v1.Quota") for address in addresses]
    workers[0].Remove(limit="mail")
    workers[0].Define(limit="mail", capacity=5, per_second=10)

    sent, waits = 0, 0
    began = time.monotonic()
    while sent < 10:
        answer = workers[sent % len(workers)].Take(limit="mail", subject="ada", tokens=1)
        if answer.taken:
            sent += 1
        else:
            waits += 1
            time.sleep(answer.retry_after_ms / 1000)
    seconds = time.monotonic() - began
    print(f"10 mails were sent through {len(workers)} nodes: the first 5 at once, the rest at 10 per second")
    print(f"had to wait: {waits > 0}; took at least the time of 5 more tokens: {seconds > 0.4}")
    bucket = workers[-1].Get(limit="mail", subject="grace")
    print(f"Grace's bucket is full: {bucket.left} of {bucket.capacity}")

    try:
        workers[0].Take(limit="mail", subject="ada", tokens=6)
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}")


if __name__ == "__main__":
    main(sys.argv[1:] or ["127.0.0.1:7101"])
