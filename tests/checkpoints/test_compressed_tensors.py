"""What is written as compressed-tensors, against that library and against transformers, which loads the folder."""

import ml_dtypes
import numpy as np
import pytest

import gemma_np
from gemma_np.checkpoints.compressed_tensors import quantization_config, scheme_of, to_tensors
from gemma_np.checkpoints.quantized_tensors import read_quantized
from gemma_np.checkpoints.saving import save_folder
from gemma_np.compression.quantization import Scheme, quantize
from gemma_np.compression.quantize_model import quantize_model
from gemma_np.weights.formats import dequantize
from tests.support.stored_weights import stored
from tests.support.strategies import normal
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.framework

SCHEMES = {
    "int8": Scheme("int8"),
    "int8 in groups": Scheme("int8", 64),
    "w8a8": Scheme("w8a8"),
    "int4": Scheme("int4", 64),
    "int4, float16 scales": Scheme("int4", 32, scale_dtype=np.float16),
    "int4 with zeros": Scheme("int4", 64, zero_points=True),
    "float8": Scheme("float8"),
}
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("rows", [64, 61])  # whole words of zero points, and not
@pytest.mark.parametrize("label", SCHEMES)
def test_the_library_and_this_package_read_and_write_the_same_arrays(label, rows):
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    weight = quantize(normal(0, rows, 128, dtype=np.float32), SCHEMES[label])
    config = quantization_config({NAME: scheme_of(weight)})
    (group,) = config["config_groups"].values()
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    scheme = QuantizationScheme(**group)
    ours = {name.rpartition(".")[2]: torch_tensor(array) for name, array in to_tensors(NAME, weight).items()}

    floats = compressor.decompress(dict(ours), scheme)
    wide = dequantize(weight).astype(weight.scales.dtype)
    assert (floats["weight"].float().numpy() == wide).all()

    if "weight_zero_point" in floats:
        floats["weight_zero_point"] = floats["weight_zero_point"].to(torch.int8)
    theirs = compressor.compress({name: floats[name] for name in floats if name != "weight_shape"}, scheme)
    read = read_quantized(config, {f"{NAME[:-6]}{name}": stored(numpy_array(array)) for name, array in theirs.items()})
    found = read[NAME].quantized()
    assert type(found) is type(weight)
    assert (dequantize(found) == dequantize(weight)).all()


def torch_tensor(array):
    import torch

    if array.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(array.copy())


def numpy_array(tensor):
    import torch

    if tensor.dtype == torch.float8_e4m3fn:
        return tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return tensor.numpy()


@pytest.mark.parametrize("label", ["int8", "int8 in groups", "int4", "float8"])
def test_transformers_loads_the_folder_and_computes_the_same_logits(label, tmp_path):
    model = gemma_np.load("shakespeare-1m")
    small = gemma_np.Gemma(model.config, dict(quantize_model(model, SCHEMES[label], "round")), model.tokenizer)
    small.save(tmp_path / "model")
    ids = model.tokenizer.encode("To be, or not to be, that is the question")
    assert_close(gemma_np.load(tmp_path / "model").logits(ids), framework_logits(tmp_path / "model", ids), "framework")


def test_w8a8_differs_from_transformers_only_in_how_activations_are_rounded(tmp_path):
    """To steps of the largest number / 127.5 there, and / 127 here and in vLLM."""
    model = gemma_np.load("shakespeare-1m")
    save_folder(tmp_path / "model", model.config, quantize_model(model, SCHEMES["w8a8"], "round"), None)
    small = gemma_np.load(tmp_path / "model")
    ids = model.tokenizer.encode("To be, or not to be, that is the question")
    expected = framework_logits(tmp_path / "model", ids)
    rounding = np.std(small.logits(ids) - small.dequantized().logits(ids))
    assert 0 < np.std(small.logits(ids) - expected) < 2 * rounding


def framework_logits(folder, ids):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()
