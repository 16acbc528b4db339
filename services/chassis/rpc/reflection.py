"""
gRPC reflection, versions 1 and 1alpha, with the comments of the contracts.

The stock servicer knows no methods and has no comments: it serves what the generated Python holds. This one serves the
descriptor file that `protos/generate` writes, and what is not in it (health, error details) from the generated Python.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_reflection.v1alpha import reflection_pb2 as pb

ALPHA, ONE = "grpc.reflection.v1alpha", "grpc.reflection.v1"
SERVICES = (f"{ONE}.ServerReflection", f"{ALPHA}.ServerReflection")


def add_reflection(server: Any, services: Sequence[str]) -> None:
    """Serve reflection of these services, and of itself. Both versions have the same messages under two names."""
    servicer = ReflectionServicer([*services, *SERVICES])
    handler: Any = grpc.stream_stream_rpc_method_handler(
        servicer.info,
        pb.ServerReflectionRequest.FromString,
        pb.ServerReflectionResponse.SerializeToString,
    )
    for name in SERVICES:
        server.add_registered_method_handlers(name, {"ServerReflectionInfo": handler})


class ReflectionServicer:
    def __init__(self, services: Sequence[str]) -> None:
        self._services = sorted(services)
        self._descriptors = Descriptors()

    async def info(self, requests: AsyncIterator[Any], _rpc: object) -> AsyncIterator[Any]:
        async for request in requests:
            answer = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
            kind = request.WhichOneof("message_request")
            try:
                ANSWERS[kind](self, request, answer)
            except KeyError:
                code = grpc.StatusCode.NOT_FOUND.value[0]
                answer.error_response.error_code, answer.error_response.error_message = code, "no such symbol or file"
            yield answer

    def _list(self, _request: Any, answer: Any) -> None:
        for name in self._services:
            answer.list_services_response.service.add(name=name)

    def _symbol(self, request: Any, answer: Any) -> None:
        self._tell(self._descriptors.file_of(request.file_containing_symbol), answer)

    def _file(self, request: Any, answer: Any) -> None:
        self._tell(self._descriptors.file(request.file_by_filename), answer)

    def _extensions(self, request: Any, answer: Any) -> None:
        pool = descriptor_pool.Default()
        message = pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
        answer.all_extension_numbers_response.base_type_name = message.full_name
        numbers = (extension.number for extension in pool.FindAllExtensions(message))
        answer.all_extension_numbers_response.extension_number.extend(numbers)

    def _tell(self, file: FileDescriptorProto, answer: Any) -> None:
        """Tell the file and all that it imports, however far."""
        told: dict[str, FileDescriptorProto] = {}
        waiting = [file]
        while waiting:
            each = waiting.pop(0)
            if each.name not in told:
                told[each.name] = each
                waiting += map(self._descriptors.file, each.dependency)
        answer.file_descriptor_response.file_descriptor_proto.extend(each.SerializeToString() for each in told.values())


ANSWERS: Mapping[str | None, Callable[[ReflectionServicer, Any, Any], None]] = {
    "list_services": ReflectionServicer._list,  # noqa: SLF001 - this table is its own
    "file_containing_symbol": ReflectionServicer._symbol,  # noqa: SLF001
    "file_by_filename": ReflectionServicer._file,  # noqa: SLF001
    "all_extension_numbers_of_type": ReflectionServicer._extensions,  # noqa: SLF001
}


class Descriptors:
    """Files by name and by what they define. Read at the first question: most processes are never asked."""

    @cached_property
    def _files(self) -> dict[str, FileDescriptorProto]:
        written = FileDescriptorSet.FromString(files("topsmile").joinpath("descriptors.binpb").read_bytes())
        return {file.name: file for file in [*written.file, version_one()]}

    @cached_property
    def _owners(self) -> dict[str, str]:
        return {symbol: file.name for file in self._files.values() for symbol in symbols(file)}

    def file(self, name: str) -> FileDescriptorProto:
        """Return the file of that name; raises KeyError."""
        if name in self._files:
            return self._files[name]
        return copied(descriptor_pool.Default().FindFileByName(name))

    def file_of(self, symbol: str) -> FileDescriptorProto:
        """Return the file that defines a service, method, message, field, enum or value; raises KeyError."""
        if symbol in self._owners:
            return self._files[self._owners[symbol]]
        try:
            file = copied(descriptor_pool.Default().FindFileContainingSymbol(symbol))
        except KeyError:  # the pool knows no methods
            file = copied(descriptor_pool.Default().FindFileContainingSymbol(symbol.rpartition(".")[0]))
        if symbol not in symbols(file):
            raise KeyError(symbol)
        return file


def copied(file: Any) -> FileDescriptorProto:
    return FileDescriptorProto.FromString(file.serialized_pb)


def version_one() -> FileDescriptorProto:
    """Make version 1 of reflection's own file: grpcio-reflection has version 1alpha, which differs by name only."""
    made: Any = copied(pb.DESCRIPTOR)
    made.name, made.package = made.name.replace("v1alpha", "v1"), ONE
    for field in (field for message in made.message_type for field in message.field):
        field.type_name = field.type_name.replace(ALPHA, ONE)
    for method in (method for service in made.service for method in service.method):
        method.input_type = method.input_type.replace(ALPHA, ONE)
        method.output_type = method.output_type.replace(ALPHA, ONE)
    return cast("FileDescriptorProto", made)


def symbols(file: FileDescriptorProto) -> Iterator[str]:
    """Name everything that a file defines."""
    package = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from _of_message(package, message)
    for enum in file.enum_type:
        yield from _of_enum(package, enum)
    for service in file.service:
        yield f"{package}{service.name}"
        yield from (f"{package}{service.name}.{method.name}" for method in service.method)
    yield from (f"{package}{extension.name}" for extension in file.extension)


def _of_message(scope: str, message: DescriptorProto) -> Iterator[str]:
    name = f"{scope}{message.name}"
    yield name
    for parts in (message.field, message.oneof_decl, message.extension):
        yield from (f"{name}.{part.name}" for part in parts)
    for nested in message.nested_type:
        yield from _of_message(f"{name}.", nested)
    for enum in message.enum_type:
        yield from _of_enum(f"{name}.", enum)


def _of_enum(scope: str, enum: EnumDescriptorProto) -> Iterator[str]:
    """A value's full name is beside the enum's, not below it; below it is where people look."""
    yield f"{scope}{enum.name}"
    for value in enum.value:
        yield f"{scope}{value.name}"
        yield f"{scope}{enum.name}.{value.name}"
