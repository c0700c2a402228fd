"""Write golden folders of the hub's quantized formats: a tiny random Gemma, quantized and dequantized by each library.

    pip install "auto-gptq==0.7.1" "transformers==4.44.2" "accelerate<1" "peft==0.10"   # in an environment of its own
    python -m tests.golden.make_hub gptq

    pip install "autoawq==0.2.9" "bitsandbytes>=0.50" -e '.[framework]'
    python -m tests.golden.make_hub awq
    python -m tests.golden.make_hub nf4

Each folder has the config.json and the model.safetensors of the library, and dequantized.safetensors:
some of the matrices [out, in], as the library dequantizes them.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM

FOLDER = Path(__file__).parent / "hub"
GROUP_SIZE = 32
INPUTS = {"k_proj": 64, "o_proj": 128, "down_proj": 128}
"""The layers whose matrices are written, and their number of inputs."""


def random_model():
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return GemmaForCausalLM(config).half()


def linear_layers(model):
    return {name: layer for name, layer in model.named_modules() if name.endswith("_proj")}


def dequantized(model, dtype):
    """Return the matrices of layers, as their products with the identity: float32 [out, in]."""
    with torch.no_grad():
        return {
            f"{name}.weight": layer(torch.eye(inputs, dtype=dtype)).T.float().contiguous()
            for name, layer in linear_layers(model).items()
            for inputs in [INPUTS.get(name.rpartition(".")[2])]
            if inputs
        }


def write(label, save, matrices, library):
    folder = FOLDER / label
    save(folder)
    for other in folder.iterdir():
        if other.name not in ("config.json", "model.safetensors"):
            other.unlink()
    save_file(matrices, folder / "dequantized.safetensors", {library: version(library)})


def make_gptq(bits=4, sym=False, label="gptq"):
    from auto_gptq import BaseQuantizeConfig
    from auto_gptq.modeling import GemmaGPTQForCausalLM, _base

    _base.CUDA_0 = _base.CPU  # the library would quantize on a GPU
    torch.cuda.synchronize = lambda device=None: None
    config = BaseQuantizeConfig(bits=bits, group_size=GROUP_SIZE, desc_act=False, sym=sym)
    model = GemmaGPTQForCausalLM(random_model().float(), False, config)
    ids = torch.randint(0, 64, (8, 32))
    model.quantize([{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in ids])

    def save(folder):
        model.save_quantized(str(folder), use_safetensors=True)
        next(folder.glob("*.safetensors")).rename(folder / "model.safetensors")

    write(label, save, dequantized(model.model, torch.float32), "auto_gptq")


def make_awq():
    from awq.modules.linear.gemm import WQLinear_GEMM

    model = random_model()
    for name, layer in linear_layers(model).items():
        groups = layer.weight.data.float().reshape(layer.out_features, -1, GROUP_SIZE)
        low, high = groups.amin(-1), groups.amax(-1)
        scales = ((high - low) / 15).half()
        zeros = torch.clamp(torch.round(-low / scales.float()), 0, 15)
        packed = WQLinear_GEMM.from_linear(
            layer, 4, GROUP_SIZE, scales=scales.T.contiguous(), zeros=zeros.T.contiguous()
        )
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed)
    quantization = {"quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "version": "gemm", "zero_point": True}

    def save(folder):
        folder.mkdir(parents=True, exist_ok=True)
        values = model.config.to_dict() | {"quantization_config": quantization}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    write("awq", save, dequantized(model, torch.float16), "autoawq")


def make_nf4(double=False, label="nf4"):
    from bitsandbytes.functional import dequantize_4bit
    from transformers import BitsAndBytesConfig

    source = FOLDER / "source"
    random_model().save_pretrained(source)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.float32)
    weights = {name: layer.weight for name, layer in linear_layers(model).items() if name.endswith(tuple(INPUTS))}
    matrices = {f"{name}.weight": dequantize_4bit(w.data, w.quant_state) for name, w in weights.items()}
    write(label, model.save_pretrained, matrices, "bitsandbytes")
    for file in source.iterdir():
        file.unlink()
    source.rmdir()


def main():
    if sys.argv[1] == "gptq":
        make_gptq()
        make_gptq(sym=True, label="gptq-symmetric")
        make_gptq(bits=8, sym=True, label="gptq-8")
    elif sys.argv[1] == "awq":
        make_awq()
    else:
        make_nf4()
        make_nf4(double=True, label="nf4-double")


if __name__ == "__main__":
    main()
