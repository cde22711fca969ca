"""Messages and methods from a descriptor set, with Google's protobuf package.

Its implementation in Python is used everywhere: a component can hold no other, and tests should run what
runs in the component.
"""

import os

os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

from dataclasses import dataclass
from types import SimpleNamespace

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

__all__ = ["DecodeError", "Message", "MethodType", "check_handlers", "encode", "messages", "method_types"]


@dataclass(frozen=True)
class MethodType:
    """A method, as its descriptor has it."""

    kind: str
    """`command`, `query` or `subscription`, by the rules of `wit/types.wit`."""
    request: type
    response: type


_pools: dict[bytes, tuple] = {}


def _pool(descriptor_set: bytes):
    """A pool a descriptor set: the same messages have the same classes wherever they are asked for."""
    if descriptor_set not in _pools:
        files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file
        pool = descriptor_pool.DescriptorPool()
        for file in files:
            pool.AddSerializedFile(file.SerializeToString())
        _pools[descriptor_set] = (pool, files)
    return _pools[descriptor_set]


def messages(descriptor_set: bytes, package: str) -> SimpleNamespace:
    """The message classes of a protobuf package, by their names; those inside others are their attributes."""
    pool, files = _pool(descriptor_set)
    classes = {}
    for file in files:
        if file.package == package:
            for message in file.message_type:
                descriptor = pool.FindMessageTypeByName(f"{package}.{message.name}")
                classes[message.name] = _message_class(descriptor)
    if not classes:
        raise ValueError(f"the descriptor set has no messages of package {package}; run `conclave build`")
    return SimpleNamespace(**classes)


def _message_class(descriptor):
    """Code that protoc generates has the classes of messages inside others as attributes; the factory alone
    does not."""
    message_class = message_factory.GetMessageClass(descriptor)
    for nested in descriptor.nested_types:
        setattr(message_class, nested.name, _message_class(nested))
    return message_class


def method_types(descriptor_set: bytes) -> dict[str, MethodType]:
    """The methods, by `package.Service/Method`."""
    pool, files = _pool(descriptor_set)
    types = {}
    for file in _own(files):
        for service in file.service:
            name = f"{file.package}.{service.name}" if file.package else service.name
            for method in pool.FindServiceByName(name).methods:
                level = method.GetOptions().idempotency_level
                kind = "query" if level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS else "command"
                types[f"{name}/{method.name}"] = MethodType(
                    "subscription" if method.server_streaming else kind,
                    message_factory.GetMessageClass(method.input_type),
                    message_factory.GetMessageClass(method.output_type),
                )
    return types


def _own(files) -> list:
    """The files whose services the host serves. A descriptor set has all imports, whose services are not the
    machine's, unless their package is that of a file that no other imports or lies in it, or an own file imports
    them publicly."""
    imported = {name for file in files for name in file.dependency}
    packages = {file.package for file in files if file.name not in imported}

    def lies_in(package: str, outer: str) -> bool:
        return package == outer or (outer != "" and package.startswith(outer + "."))

    by_name = {file.name: file for file in files}
    queue = [file for file in files if any(lies_in(file.package, outer) for outer in packages)]
    own = set()
    while queue:
        file = queue.pop()
        if file.name not in own:
            own.add(file.name)
            queue += [by_name[file.dependency[at]] for at in file.public_dependency]
    return [file for file in files if file.name in own]


def check_handlers(types: dict[str, MethodType], handlers: dict[str, str]) -> None:
    """Every method has a handler of its kind, and every handler a method."""
    if not types:
        return
    for method, kind in handlers.items():
        if method not in types:
            raise TypeError(f"{method} has a handler but is not in the descriptor set; run `conclave build`")
        if types[method].kind != kind:
            raise TypeError(f"{method} is handled as a {kind}; by its protobuf it is a {types[method].kind}")
    for method, type_ in types.items():
        if method not in handlers:
            raise TypeError(f"{method} has no handler")


def encode(message) -> bytes:
    """A message's bytes, the same for the same message: maps in the order of their keys."""
    if isinstance(message, Message):
        return message.SerializeToString(deterministic=True)
    return bytes(message)
