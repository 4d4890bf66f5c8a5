"""Writes a safetensors file by hand: 8 bytes of header length, a JSON header, the raw little-endian numbers.

    write("file.safetensors", {"name": numpy_array, ...}, {"numpy": numpy.__version__, ...})

Shared by the scripts that make the golden vectors. Only numpy is needed. Tensors are written in the order of their names,
so that the same numbers give the same bytes.
"""
import json
import pathlib
import struct

import numpy as np

DTYPES = {"float64": "F64", "float32": "F32", "int64": "I64", "int32": "I32", "uint8": "U8"}


def write(path, tensors, metadata):
    header = {"__metadata__": {key: str(value) for key, value in sorted(metadata.items())}}
    chunks, offset = [], 0
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])  # at least one dimension
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))
