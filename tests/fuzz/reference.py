"""What the reference readers make of a file, and comparisons with it.

A `Misread` says that gemma_np accepted an input and made something else of it.
"""

import importlib.util
import json
import math
from itertools import pairwise

import numpy as np

from gemma_np.checkpoints.safetensors_file import FLOATS, QUANTIZED
from gemma_np.config import GLOBAL, LOCAL, SIZES
from gemma_np.weights.formats import dequantize
from tests.fuzz.formats import parse_gguf


class Misread(AssertionError):
    """An accepted input whose result is wrong; the message is the same for the same mistake."""


def check(condition, message):
    if not condition:
        raise Misread(message)


def same(ours, theirs):
    """Return whether two arrays are equal bit by bit."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


def equal(ours, theirs):
    """Return whether two arrays have the same numbers; NaN is equal to NaN."""
    return ours.shape == theirs.shape and np.array_equal(ours, theirs, equal_nan=True)


def safetensors(path):
    """Return the tensors of a file as the safetensors library reads them."""
    from safetensors import SafetensorError, deserialize

    try:
        entries = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise Misread("accepted a file that safetensors refuses") from error
    dtypes = FLOATS | QUANTIZED
    return {
        name: np.frombuffer(entry["data"], dtypes[entry["dtype"]]).reshape(entry["shape"]) for name, entry in entries
    }


def check_no_duplicates(path):
    """Check that no name occurs twice in the header, where the library keeps the last."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    pairs = json.loads(data[8 : 8 + length], object_pairs_hook=list)
    names = [name for name, _ in pairs]
    check(len(names) == len(set(names)), "accepted a tensor name that occurs twice in the header")


def check_checkpoint(model, folder, shards, dtype):
    """Compare the weights of a loaded folder, in a dtype, with those in its files, and the numbers of quantized ones."""
    tensors = {}
    for name in shards:
        check_no_duplicates(folder / name)
        stored = safetensors(folder / name)
        repeated = stored.keys() & tensors.keys()
        check(not repeated, "accepted a tensor that is in two shards")
        tensors |= stored
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    groups = (config.get("quantization_config") or {}).get("config_groups", {})
    bits = next((group["weights"]["num_bits"] for group in groups.values()), None)
    for name, weight in model.weights.items():
        if f"{name}_scale" in tensors:
            expected = quantized_numbers(tensors, name, bits)
        else:
            check(name in tensors, f"has a weight that is in no file: {name.split('.')[-2]}")
            expected = tensors[name]
        check(equal(dequantize(weight), np.asarray(expected, dtype)), "a weight differs from that in the file")


def quantized_numbers(tensors, name, bits):
    """Return the numbers of a weight in compressed-tensors: (integer - zero) times scale, group by group."""
    scales = tensors[f"{name}_scale"].astype(np.float32)
    if f"{name}_packed" not in tensors:
        numbers, zeros = tensors[name].astype(np.float32), np.zeros(scales.shape)
    else:
        rows, columns = tensors[f"{name}_shape"]
        numbers = words(tensors[f"{name}_packed"], bits)[:, :columns]
        zeros = np.full(scales.shape, 2 ** (bits - 1))
        if f"{name}_zero_point" in tensors:
            zeros = words(tensors[f"{name}_zero_point"].T, bits)[:, :rows].T
    width = numbers.shape[1] // scales.shape[1]
    return (numbers - np.repeat(zeros.astype(np.float32), width, axis=1)) * np.repeat(scales, width, axis=1)


def words(numbers, bits):
    """Return the integers in words of 32 bits, the lowest first."""
    shifts = np.arange(0, 32, bits)
    return (
        ((numbers.astype(np.int64)[..., None] >> shifts) & (2**bits - 1)).reshape(len(numbers), -1).astype(np.float32)
    )


GGUF_FIELDS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}


def check_gguf(model, path):
    """Compare a loaded GGUF file with what the gguf library reads, and check that its tensors are apart."""
    from gguf import GGUFReader
    from gguf import dequantize as gguf_dequantize

    from gemma_np.checkpoints.gguf import weight_name

    try:
        reader = GGUFReader(path)
    except Exception as error:
        raise Misread("accepted a file that gguf refuses") from error
    architecture = reader.fields["general.architecture"].contents()
    for ours, theirs in GGUF_FIELDS.items():
        stored = reader.fields[f"{architecture}.{theirs}"].contents()
        check(getattr(model.config, ours) == stored, f"{ours} differs from that in the file")
    places = []
    for tensor in reader.tensors:
        places.append((int(tensor.data_offset), int(tensor.data_offset) + int(tensor.n_bytes)))
        if tensor.name == "rope_freqs.weight":
            continue
        numbers = gguf_dequantize(tensor.data, tensor.tensor_type)
        if tensor.name.endswith("norm.weight"):
            numbers = numbers - 1
        weight = dequantize(model.weights[weight_name(tensor.name, model.config)])
        check(equal(weight, numbers.astype(np.float32)), "a weight differs from that in the file")
    places.sort()
    check(all(stop <= start for (_, stop), (start, _) in pairwise(places)), "tensors overlap")
    check(places[-1][1] <= path.stat().st_size, "a tensor leaves the file")
    check_declared(path)


def check_declared(path):
    """Check that the header, read once more, has no name twice."""
    tree = parse_gguf(path.read_bytes())
    for part in ("fields", "tensors"):
        names = [name for name, _ in tree.get(part)]
        check(len(names) == len(set(names)), f"accepted a name that occurs twice among the {part}")


CONFIG_FIELDS = (*SIZES, "rms_norm_eps")

ALLOWED = {
    # Gemma 1 has no local layers, no caps and no scalar: transformers keeps such keys and does not use them.
    "gemma": ("sliding_window", "layer_types", "query_pre_attn_scalar"),
}


def has_transformers():
    return importlib.util.find_spec("transformers") is not None


def check_config(config, folder):
    """Compare a config with that of transformers, where it is installed and accepts the file."""
    if not has_transformers():
        return
    from transformers import AutoConfig

    try:
        theirs = AutoConfig.from_pretrained(folder).get_text_config()
    except Exception:  # what transformers refuses has no reference
        return
    expected = {name: getattr(theirs, name) for name in CONFIG_FIELDS}
    if config.model_type != "gemma":
        expected |= {name: getattr(theirs, name) for name in ("query_pre_attn_scalar", "sliding_window")}
        expected["layer_types"] = tuple(theirs.layer_types)
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            expected[name] = getattr(theirs, name)
    expected |= rope(theirs, config)
    for name, value in expected.items():
        check(getattr(config, name) == value, f"{name} differs from that of transformers")


def rope(theirs, config):
    parameters = theirs.rope_parameters
    if config.model_type != "gemma3_text":
        return {"rope_theta": parameters["rope_theta"]}
    local, everywhere = parameters[LOCAL], parameters[GLOBAL]
    return {
        "rope_theta": everywhere["rope_theta"],
        "rope_local_base_freq": local["rope_theta"],
        "rope_scaling_factor": everywhere.get("factor", 1.0) if everywhere["rope_type"] == "linear" else 1.0,
    }


TEXTS = ("", "To be, or not to be", "  a  b\n\nc\td", "é 1847 12", "\u2581x", "日本 \N{ROLLING ON THE FLOOR LAUGHING}")


def check_tokenizer(tokenizer, data):
    """Compare ids, pieces and texts with those of sentencepiece."""
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor()
    theirs.LoadFromSerializedProto(data)
    check(len(tokenizer) == theirs.GetPieceSize(), "another number of pieces")
    for text in TEXTS:
        ids = tokenizer.encode(text, bos=False)
        check(ids == theirs.EncodeAsIds(text), "ids differ from those of sentencepiece")
        check(all(0 <= token < len(tokenizer) for token in ids), "an id outside of the vocabulary")
        known = [token for token in ids if not theirs.IsUnknown(token)]  # as transformers, leave out <unk>
        decoded, expected = tokenizer.decode(ids), theirs.DecodeIds(known)
        check(decoded == expected, "the decoded text differs from that of sentencepiece")
    for token in range(len(tokenizer)):
        tokenizer.decode([token])


def strict_json(text):
    """Return the value of JSON. Raises ValueError for numbers that are none of JSON's, and names that occur twice."""

    def no_constant(text):
        raise ValueError(text)

    def once(pairs):
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("a name occurs twice")
        return values

    return json.loads(text, parse_constant=no_constant, object_pairs_hook=once)


def check_strict(path):
    """Check that a file that was accepted is strict JSON."""
    try:
        return strict_json(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Misread(f"accepted a {path.suffix} file that is not strict JSON") from error


def strict_lines(path, whole):
    """Return the JSON of each line of a file; with `whole`, without a last line that does not end."""
    lines = path.read_bytes().decode("utf-8").split("\n")
    lines = lines[:-1] if whole else lines
    return [strict_json(line) for line in lines if line.strip()]


def check_lines(path, build, ours, whole=False):
    """Compare what gemma_np made of JSON lines with what `build` makes of them."""
    try:
        theirs = [build(line) for line in strict_lines(path, whole)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Misread("accepted lines that are not what the format says") from error
    check(ours == theirs, "lines differ from those in the file")


def check_finite(values):
    check(all(math.isfinite(value) for value in values), "accepted a number that is not finite")
