"""The committed descriptor file matches the contracts. After a change of a .proto, run `make protos`."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from topsmile.common.v1 import common_pb2, queue_admin_pb2
from topsmile.email.v1 import email_pb2
from topsmile.payments.v1 import payments_pb2
from topsmile.sms.v1 import sms_pb2

PROTOS = Path(__file__).parents[2] / "protos"


def comments(file: FileDescriptorProto) -> set[str]:
    """Return the lines of all comments, except those after a definition."""
    found = [
        text
        for location in file.source_code_info.location
        for text in (location.leading_comments, *location.leading_detached_comments)
    ]
    return {line.strip() for text in found for line in text.splitlines()} - {""}


@pytest.mark.parametrize(
    "module", [common_pb2, queue_admin_pb2, email_pb2, payments_pb2, sms_pb2], ids=lambda module: module.__name__
)
def test_descriptor_file_matches_the_generated_code(module: Any) -> None:
    written = FileDescriptorSet.FromString(files("topsmile").joinpath("descriptors.binpb").read_bytes())
    (file,) = [file for file in written.file if file.name == module.DESCRIPTOR.name]
    assert comments(file) == set(re.findall(r"^ *// ?(.*?) *$", (PROTOS / file.name).read_text(), re.MULTILINE)) - {""}
    file.ClearField("source_code_info")
    for message in file.message_type:  # protoc tells JSON names to itself only
        for field in message.field:
            field.ClearField("json_name")
        for nested in message.nested_type:
            for field in nested.field:
                field.ClearField("json_name")

    assert file == FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
