"""Write the golden files: every intermediate and gradient of tiny random models, as the framework computes them.

    pip install -e '.[framework]'
    python -m tests.golden.make

There is one safetensors file for each model type. Its metadata holds the fields of GemmaConfig and the versions of the
packages that computed it. Its tensors are `weights/<name>`, `<case>/ids`, `<case>/<number of chunk>/<record>`, and
`gradients/<name>`, the gradients of the mean next-token loss of `past-window/ids`.
Layer kinds, sizes and constants are chosen so that each of them matters; tests/support/strategies.py says how.
"""

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gemma_np import GemmaConfig
from gemma_np.config import GLOBAL, LOCAL
from tests.support.framework import framework_gradients, framework_records
from tests.support.strategies import random_ids, random_weights

CASES = {"short": [3], "past-window": [11], "decode": [5, 1, 1, 2, 1, 1]}  # the chunks of each case
BATCH = 2
FOLDER = Path(__file__).parent

SIZES = {
    "vocab_size": 37,
    "hidden_size": 20,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 15,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-3,
}
CONFIGS = (
    GemmaConfig(
        "gemma", num_hidden_layers=2, query_pre_attn_scalar=6, layer_types=(GLOBAL,) * 2, rope_theta=100.0, **SIZES
    ),
    GemmaConfig(
        "gemma2",
        num_hidden_layers=4,
        query_pre_attn_scalar=3,
        layer_types=(LOCAL, GLOBAL) * 2,
        sliding_window=3,
        rope_theta=100.0,
        rope_local_base_freq=100.0,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        **SIZES,
    ),
    GemmaConfig(
        "gemma3_text",
        num_hidden_layers=5,
        query_pre_attn_scalar=3,
        layer_types=(LOCAL, LOCAL, GLOBAL, LOCAL, GLOBAL),
        sliding_window=3,
        rope_theta=100.0,
        rope_local_base_freq=10.0,
        rope_scaling_factor=4.0,
        **SIZES,
    ),
)


def main():
    for seed, config in enumerate(CONFIGS):
        weights = random_weights(config, seed)
        ids = random_ids(config, seed, BATCH, max(map(sum, CASES.values())))
        tensors = {f"weights/{name}": weight for name, weight in weights.items()}
        for case, chunks in CASES.items():
            tensors[f"{case}/ids"] = ids[:, : sum(chunks)]
            for number, records in enumerate(framework_records(config, weights, ids, chunks)):
                tensors |= {f"{case}/{number}/{name}": value for name, value in records.items()}
        gradients = framework_gradients(config, weights, tensors["past-window/ids"])
        tensors |= {f"gradients/{name}": gradient for name, gradient in gradients.items()}
        metadata = {"config": json.dumps(dataclasses.asdict(config))}
        metadata |= {package: version(package) for package in ("torch", "transformers", "numpy")}
        # safetensors writes the memory of an array as it lies, so a view must be made contiguous first.
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(contiguous, FOLDER / f"{config.model_type}.safetensors", metadata)


if __name__ == "__main__":
    main()
