"""The programs of docs/capture.md work: each writes a file that `compare` finds equal to the reference."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from gemma_np.cli import main
from gemma_np.oracle.files import compare_files
from gemma_np.oracle.gradient_files import write_gradients
from gemma_np.oracle.trace import Reference, write_trace
from tests.support import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "capture.md").read_text(encoding="utf-8")
IDS = [2, 5, 9, 40, 7]


def blocks(language, heading):
    """Return the code in a language below a heading."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model in a new working directory, with a trace of it."""
    monkeypatch.chdir(tmp_path)
    model = tiny.gemma(hidden_size=20)
    model.save(tmp_path / "model")
    write_trace(model, [IDS], "ref.safetensors", source="model")
    return model


def propose_names(capsys):
    """Write the name map that is proposed for the dump."""
    assert main(["records", "--names", "--model", "model", "--dump", "theirs.safetensors"]) == 0
    Path("names.json").write_text(capsys.readouterr().out)


def equal_records(**options):
    """Compare the dump with the trace and return the records that are equal; none may differ."""
    rows = compare_files("ref.safetensors", "theirs.safetensors", **options)
    assert [row for row in rows if row.differs] == []
    return {row.key for row in rows if row.status == "OK"}


@pytest.mark.framework
def test_pytorch(model, capsys):
    from tests.support.framework import framework_model

    (code,) = blocks("python", "PyTorch")
    theirs = framework_model(model.config, model.weights)
    exec(code, {"model": theirs, "ids": IDS})
    assert not any(module._forward_hooks for module in theirs.modules())
    with safe_open("theirs.safetensors", "numpy") as file:
        assert "model.layers.0.self_attn" in file.keys()  # noqa: SIM118 (it returns a tuple)
    propose_names(capsys)
    names = equal_records(name_map="names.json")
    assert names >= {"embedding", "layers.3.self_attn.v", "layers.0.post_attention_layernorm", "norm", "logits"}
    assert len(names) == 3 + 4 * 12  # all but what no module returns


@pytest.mark.framework
def test_gradients_in_pytorch(model, capsys):
    from tests.support.framework import framework_model

    (code,) = blocks("python", "Gradients in PyTorch")
    texts = [IDS, [2, 17, 8]]
    exec(code, {"model": framework_model(model.config, model.weights), "texts": texts})
    write_gradients(model, texts, "ref.safetensors", "model")
    assert main(["compare", "ref.safetensors", "gradients.safetensors"]) == 0
    weights, stream = len(model.weights), model.config.num_hidden_layers + 3
    assert f"{weights + 1} OK, {stream} MISSING" in capsys.readouterr().out
    assert main(["diagnose", "--model", "model", "gradients.safetensors"]) == 0


@pytest.mark.jax
def test_jax(model):
    """Gemma 2, with its layers in a scan."""
    import jax
    import jax.numpy as jnp

    config, weights = model.config, {name: jnp.asarray(weight) for name, weight in model.weights.items()}
    H, K, h = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def rms_norm(x, weight):
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + config.rms_norm_eps) * (1 + weight)

    def rotate(x):
        turn = jnp.outer(jnp.arange(x.shape[1]), config.rope_theta ** (-jnp.arange(0, h, 2) / h))
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * jnp.cos(turn) - b * jnp.sin(turn), b * jnp.cos(turn) + a * jnp.sin(turn)], -1)

    def block(x, given, records):
        w, window = given

        def keep(name, value):
            records[name] = value
            return value

        def heads(part, count):
            y = normed @ w[f"self_attn.{part}_proj"].T
            return keep(f"self_attn.{part}", y.reshape(-1, count, h).swapaxes(0, 1))

        normed = keep("input_layernorm", rms_norm(x, w["input_layernorm"]))
        q, k, v = heads("q", H), heads("k", K), heads("v", K)
        q, k = keep("self_attn.q_rope", rotate(q)), keep("self_attn.k_rope", rotate(k))
        k, v = jnp.repeat(k, H // K, 0), jnp.repeat(v, H // K, 0)
        scores = keep("self_attn.scores", q @ k.swapaxes(1, 2) / config.query_pre_attn_scalar**0.5)
        cap = config.attn_logit_softcapping
        scores = keep("self_attn.scores_capped", cap * jnp.tanh(scores / cap))
        back = jnp.arange(len(x))[:, None] - jnp.arange(len(x))
        scores = jnp.where((back >= 0) & (back < window), scores, -jnp.inf)
        probs = keep("self_attn.probs", jax.nn.softmax(scores, -1))
        context = keep("self_attn.context", (probs @ v).swapaxes(0, 1).reshape(len(x), -1))
        attended = keep("self_attn.o", context @ w["self_attn.o_proj"].T)
        x = keep("resid_mid", x + rms_norm(attended, w["post_attention_layernorm"]))
        normed = rms_norm(x, w["pre_feedforward_layernorm"])
        hidden = jax.nn.gelu(normed @ w["mlp.gate_proj"].T) * (normed @ w["mlp.up_proj"].T)
        return x + rms_norm(hidden @ w["mlp.down_proj"].T, w["post_feedforward_layernorm"])

    def embed(params, ids):
        return params["embedding"][ids] * config.hidden_size**0.5

    def head(params, x):
        return rms_norm(x, params["norm"]) @ params["embedding"].T

    layers = range(config.num_hidden_layers)
    first = "model.layers.0."
    parts = [name.removeprefix(first).removesuffix(".weight") for name in weights if name.startswith(first)]
    stacked = {part: jnp.stack([weights[f"model.layers.{layer}.{part}.weight"] for layer in layers]) for part in parts}
    windows = jnp.asarray([config.window(layer) or 1000 for layer in layers])
    params = {
        "embedding": weights["model.embed_tokens.weight"],
        "norm": weights["model.norm.weight"],
        "layers": (stacked, windows),
    }
    code, _ = blocks("python", "JAX")
    exec(code, {"block": block, "embed": embed, "head": head, "params": params, "ids": jnp.asarray(IDS)})
    assert len(equal_records()) == 2 + 4 * 12


@pytest.mark.jax
def test_flax(model, capsys):
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    class Einsum(nn.Module):
        shape: tuple

        @nn.compact
        def __call__(self, equation, x):
            return jnp.einsum(equation, x, self.param("w", nn.initializers.zeros, self.shape))

    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Einsum((4, 20, 4), name="q_einsum")("BTD,NDH->BTNH", x)

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            Attention(name="attn")(x)
            return x

    class Model(nn.Module):
        @nn.compact
        def __call__(self, ids):
            return Layer(name="layer_0")(
                jnp.asarray(Reference(model, [IDS]).records()["layers.0.input_layernorm"])[None]
            )

    module, ids = Model(), jnp.asarray(IDS)
    params = module.init(jax.random.key(0), ids[None])
    layer = flax_layer()(model.weights, model.config, 0)
    params["params"]["layer_0"]["attn"]["q_einsum"]["w"] = jnp.asarray(layer["attn/q_einsum"])
    code = blocks("python", "JAX")[1]
    exec(code, {"module": module, "variables": params, "ids": ids, **imported_by_the_first_block()})
    propose_names(capsys)
    rows = compare_files("ref.safetensors", "theirs.safetensors", name_map="names.json")
    assert "layers.0.self_attn.q" in {row.key for row in rows if row.status == "OK"}


def imported_by_the_first_block():
    from safetensors.flax import save_file

    return {"save_file": save_file}


EXAMPLES = {"embedding": [[1, 2, 3], [4, 5, 6]], "layers.0.self_attn.k": [[[7], [8]]]}
"""What the programs in C++ and Rust write."""


def with_real_numbers(program, model, write):
    """Return a program that writes records of the model in place of its examples; write: how it has an array."""
    records = Reference(model, [IDS]).records()
    program = program.replace("[[2, 651]]", str([IDS]))
    for name, example in EXAMPLES.items():
        shown = write(np.asarray(example, np.float32))
        assert program.count(shown) == 1
        program = program.replace(shown, write(records[name]))
    return program


def listed(values):
    return ", ".join(map(str, values))


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ not installed")
def test_cpp(model):
    (program,) = blocks("cpp", "C++")
    compile_and_run(program, "dump.cpp", ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror"])
    check_example()
    program = with_real_numbers(
        program,
        model,
        lambda array: f"{{{{{listed(array.shape)}}}, {{{', '.join(f'{x:.9g}' for x in array.ravel())}}}}}",
    )
    compile_and_run(program, "dump.cpp", ["g++", "-std=c++17", "-Wno-narrowing"])
    assert equal_records() == EXAMPLES.keys()


@pytest.mark.skipif(shutil.which("rustc") is None, reason="rustc not installed")
def test_rust(model):
    (program,) = blocks("rust", "Rust")
    compile_and_run(program, "dump.rs", ["rustc", "-O", "-D", "warnings"])
    check_example()
    program = with_real_numbers(
        program,
        model,
        lambda array: f"shape: vec![{listed(array.shape)}], data: vec![{listed(array.ravel().tolist())}]",
    )
    compile_and_run(program, "dump.rs", ["rustc"])
    assert equal_records() == EXAMPLES.keys()


def compile_and_run(program, file, compiler):
    Path(file).write_text(program)
    subprocess.run([*compiler, "-o", "dump", file], check=True)
    subprocess.run(["./dump"], check=True)


def check_example():
    with safe_open("theirs.safetensors", "numpy") as file:
        assert file.metadata() == {"passes": "[[2, 651]]"}
        for name, example in EXAMPLES.items():
            np.testing.assert_array_equal(file.get_tensor(name), example)


def flax_layer():
    names = {}
    exec(blocks("python", "Weights")[0], names)
    return names["flax_layer"]


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text"])
def test_weights_for_flax(model_type):
    """The einsums of Google's code give our records."""
    model = tiny.gemma(model_type, hidden_size=20)
    records, weights = Reference(model, [IDS]).records(), flax_layer()(model.weights, model.config, 1)

    def record(name):
        return records[f"layers.1.{name}"]

    def check(found, name):
        np.testing.assert_allclose(found, record(name), atol=1e-5)

    x = record("input_layernorm")
    check(np.einsum("TD,NDH->NTH", x, weights["attn/q_einsum"]), "self_attn.q")
    k, v = np.einsum("SD,CKDH->CKSH", x, weights["attn/kv_einsum"])
    check(k, "self_attn.k")
    check(v, "self_attn.v")
    context = record("self_attn.context").reshape(len(IDS), -1, model.config.head_dim)
    check(np.einsum("TNH,NHD->TD", context, weights["attn/attn_vec_einsum"]), "self_attn.o")
    gate, up = np.einsum("TF,NHF->NTH", record("pre_feedforward_layernorm"), weights["mlp/gating_einsum"])
    check(gate, "mlp.gate")
    check(up, "mlp.up")
    check(record("mlp.hidden") @ weights["mlp/linear"], "mlp.down")


def test_gguf_stores_what_the_table_says(tmp_path):
    gguf = pytest.importorskip("gguf")
    from gemma_np.compression.export_gguf import export_gguf

    model = tiny.gemma("gemma")
    export_gguf(model, "f32", tmp_path / "model.gguf")
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    weights, layer = model.weights, "model.layers.0."
    query = stored["blk.0.attn_q.weight"]
    assert query.shape.tolist() == [12, 16]  # [in, out]
    np.testing.assert_array_equal(query.data, weights[f"{layer}self_attn.q_proj.weight"])
    np.testing.assert_array_equal(stored["token_embd.weight"].data, weights["model.embed_tokens.weight"])
    norm = weights[f"{layer}post_attention_layernorm.weight"]
    np.testing.assert_allclose(stored["blk.0.ffn_norm.weight"].data, 1 + norm, rtol=1e-6)
    assert "output.weight" not in stored
