"""llama.cpp's own quantization, called through the libraries that llama-cpp-python brings."""

import ctypes
from pathlib import Path

import gguf
import numpy as np


def ggml_blocks(weight, format, importance=None):
    """Return the blocks that ggml makes of a weight: uint8 [out, n]."""
    import llama_cpp

    [path] = (Path(llama_cpp.__file__).parent / "lib").glob("*ggml-base.so")
    library = ctypes.CDLL(str(path))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    type_number = gguf.GGMLQuantizationType[format]
    channels, block_bytes = gguf.GGML_QUANT_SIZES[type_number]
    weight = np.ascontiguousarray(weight, np.float32)
    rows, columns = weight.shape
    blocks = np.empty((rows, columns // channels * block_bytes), np.uint8)
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    pointer = None if importance is None else importance.ctypes.data
    library.ggml_quantize_init(int(type_number))
    written = library.ggml_quantize_chunk(
        type_number, weight.ctypes.data, blocks.ctypes.data, 0, rows, columns, pointer
    )
    assert written == blocks.nbytes
    return blocks


def llama_quantize(source, target, mixture, importance=None):
    """Write a GGUF file in another mixture, as the program `llama-quantize` does.

    importance: GGUF's names of matrices -> float32 [in]
    """
    from llama_cpp import llama_cpp

    name = "LLAMA_FTYPE_ALL_F32" if mixture == "f32" else f"LLAMA_FTYPE_MOSTLY_{mixture.upper()}"
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, name)
    options.allow_requantize = True
    if importance is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()  # the last one, all zeros, ends it
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.name, entry.data, entry.size = name.encode(), pointer, len(values)
        options.imatrix = entries
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(options)) == 0
