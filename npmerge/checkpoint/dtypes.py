"""The dtypes of checkpoints: safetensors' names for them, as "BF16", and NumPy's, as "bfloat16"."""

from collections.abc import Mapping

import ml_dtypes
import numpy as np

DTYPES: Mapping[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "F32": np.dtype(np.float32),
    "C64": np.dtype(np.complex64),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F64": np.dtype(np.float64),
}
"""NumPy's dtype for each of safetensors' that NumPy can hold."""

CODES: Mapping[str, str] = {dtype.name: code for code, dtype in DTYPES.items()}
"""The name of safetensors for each name that NumPy has for a dtype."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""The dtypes of real numbers that are computed with; those of 8 bits are only read."""
