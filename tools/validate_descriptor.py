"""Write the descriptor set of `buf/validate/validate.proto` to the named file.

protovalidate ships the rules as generated code only; protoc needs their descriptor.
"""

import sys
from pathlib import Path

from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from protovalidate._gen.buf.validate import validate_pb

WELL_KNOWN = (descriptor_pb2, duration_pb2, timestamp_pb2, field_mask_pb2)

files = descriptor_pb2.FileDescriptorSet()
for module in WELL_KNOWN:
    module.DESCRIPTOR.CopyToProto(files.file.add())
files.file.add().ParseFromString(validate_pb._DESC.proto.to_binary())  # noqa: SLF001
Path(sys.argv[1]).write_bytes(files.SerializeToString())
