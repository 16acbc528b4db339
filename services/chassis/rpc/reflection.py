"""
gRPC reflection, versions 1 and 1alpha, with the comments of the contracts.

The servicer of grpcio-reflection finds no methods and has no comments, because it serves the generated Python. This one
serves the descriptor file that `protos/generate` writes, and other files (health, error details) from the generated
Python.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from importlib.resources import files
from typing import Any

import grpc
from google.protobuf import descriptor_pool, text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_reflection.v1alpha import reflection_pb2 as pb

V1ALPHA, V1 = "grpc.reflection.v1alpha", "grpc.reflection.v1"
SERVICES = (f"{V1}.ServerReflection", f"{V1ALPHA}.ServerReflection")


def add_reflection(server: Any, services: Sequence[str]) -> None:
    """Serve reflection of these services and of itself. Both versions have the same messages under two names."""
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
            response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
            kind = request.WhichOneof("message_request")
            try:
                HANDLERS[kind](self, request, response)
            except KeyError:
                code = grpc.StatusCode.NOT_FOUND.value[0]
                response.error_response.error_code, response.error_response.error_message = (
                    code,
                    "no such symbol or file",
                )
            yield response

    def _list(self, _request: Any, response: Any) -> None:
        for name in self._services:
            response.list_services_response.service.add(name=name)

    def _symbol(self, request: Any, response: Any) -> None:
        self._add(self._descriptors.file_of(request.file_containing_symbol), response)

    def _file(self, request: Any, response: Any) -> None:
        self._add(self._descriptors.file(request.file_by_filename), response)

    def _extensions(self, request: Any, response: Any) -> None:
        pool = descriptor_pool.Default()
        message = pool.FindMessageTypeByName(request.all_extension_numbers_of_type)
        response.all_extension_numbers_response.base_type_name = message.full_name
        numbers = (extension.number for extension in pool.FindAllExtensions(message))
        response.all_extension_numbers_response.extension_number.extend(numbers)

    def _add(self, file: FileDescriptorProto, response: Any) -> None:
        """Add the file and all files that it imports, directly or not."""
        added: dict[str, FileDescriptorProto] = {}
        waiting = [file]
        while waiting:
            each = waiting.pop(0)
            if each.name not in added:
                added[each.name] = each
                waiting += map(self._descriptors.file, each.dependency)
        response.file_descriptor_response.file_descriptor_proto.extend(
            each.SerializeToString() for each in added.values()
        )


HANDLERS: Mapping[str | None, Callable[[ReflectionServicer, Any, Any], None]] = {
    "list_services": ReflectionServicer._list,  # noqa: SLF001 - a table of its methods
    "file_containing_symbol": ReflectionServicer._symbol,  # noqa: SLF001
    "file_by_filename": ReflectionServicer._file,  # noqa: SLF001
    "all_extension_numbers_of_type": ReflectionServicer._extensions,  # noqa: SLF001
}


class Descriptors:
    """Files by name and by symbol, read at the first request."""

    @cached_property
    def _files(self) -> dict[str, FileDescriptorProto]:
        written = FileDescriptorSet.FromString(files("topsmile").joinpath("descriptors.binpb").read_bytes())
        return {file.name: file for file in [*written.file, _version_1_file()]}

    @cached_property
    def _pools(self) -> tuple[Any, Any]:
        """Return a pool of the files, and the pool of the generated Python, which holds the others."""
        pool: Any = descriptor_pool.DescriptorPool()
        for file in self._files.values():
            pool.Add(file)
        return pool, descriptor_pool.Default()

    def file(self, name: str) -> FileDescriptorProto:
        """Return the file with that name. Raises KeyError."""
        if name in self._files:
            return self._files[name]
        return _copy(descriptor_pool.Default().FindFileByName(name))

    def file_of(self, symbol: str) -> FileDescriptorProto:
        """Return the file that defines a service, method, message, field, enum or value. Raises KeyError."""
        for pool in self._pools:
            with suppress(KeyError):
                return self.file(_file_name(pool, symbol))
        raise KeyError(symbol)


def _file_name(pool: Any, symbol: str) -> str:
    scope, _, name = symbol.rpartition(".")
    finders: tuple[Callable[[], str], ...] = (
        lambda: pool.FindFileContainingSymbol(symbol).name,
        lambda: pool.FindMethodByName(symbol).containing_service.file.name,
        lambda: pool.FindOneofByName(symbol).containing_type.file.name,
        # The full name of a value lies beside its enum, but people look below it.
        lambda: pool.FindEnumTypeByName(scope).values_by_name[name].type.file.name,
    )
    for find in finders:
        with suppress(KeyError):
            return find()
    raise KeyError(symbol)


def _copy(file: Any) -> FileDescriptorProto:
    return FileDescriptorProto.FromString(file.serialized_pb)


def _version_1_file() -> FileDescriptorProto:
    """Return the file of reflection version 1. grpcio-reflection has 1alpha only, which differs by name only."""
    text = text_format.MessageToString(_copy(pb.DESCRIPTOR))
    return text_format.Parse(text.replace("v1alpha", "v1"), FileDescriptorProto())
