"""Name maps: ours to start from, and what is proposed for the names of other implementations is right or left out."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from gemma_np import Gemma
from gemma_np.cli import main
from gemma_np.model.records import record_shapes
from gemma_np.oracle.dump import Dump, align_dump, read_dump
from gemma_np.oracle.files import compare_files
from gemma_np.oracle.name_map import every_name, name_map_json, propose_name_map
from gemma_np.oracle.trace import Reference, write_trace
from tests.support import tiny
from tests.support.strategies import MODEL_TYPES, configs, random_ids, random_weights, seeds

IDS = [2, 5, 9, 40, 7]


def flat(record):
    """[H, T, h] -> [T, H*h]"""
    return record.swapaxes(0, 1).reshape(record.shape[1], -1)


def heads_inside(record):
    """[H, T, h] -> [T, H, h]"""
    return record.swapaxes(0, 1)


def batch(record):
    return record[None]


LLAMA_TENSORS = {
    "token_embd": "embedding",
    "blk.{layer}.attn_norm": "layers.{layer}.input_layernorm",
    "blk.{layer}.attn_q": ("layers.{layer}.self_attn.q", flat),
    "blk.{layer}.attn_k": ("layers.{layer}.self_attn.k", flat),
    "blk.{layer}.attn_v": ("layers.{layer}.self_attn.v", flat),
    "blk.{layer}.attn_output": "layers.{layer}.self_attn.o",
    "blk.{layer}.post_attention_norm": "layers.{layer}.post_attention_layernorm",
    "blk.{layer}.ffn_norm": "layers.{layer}.pre_feedforward_layernorm",
    "blk.{layer}.ffn_gate": "layers.{layer}.mlp.gate",
    "blk.{layer}.ffn_up": "layers.{layer}.mlp.up",
    "blk.{layer}.ffn_down": "layers.{layer}.mlp.down",
    "blk.{layer}.post_ffw_norm": "layers.{layer}.post_feedforward_layernorm",
    "result_norm": "norm",
    "result_output": "logits_capped",
}
LLAMA_CALLBACKS = {
    "inp_scaled": "embedding",
    "attn_norm-{layer}": "layers.{layer}.input_layernorm",
    "Qcur-{layer}": ("layers.{layer}.self_attn.q", heads_inside),
    "Kcur-{layer}": ("layers.{layer}.self_attn.k", heads_inside),
    "Vcur-{layer}": ("layers.{layer}.self_attn.v", heads_inside),
    "kq-{layer}": "layers.{layer}.self_attn.scores",
    "kq_soft_max-{layer}": "layers.{layer}.self_attn.probs",
    "kqv_out-{layer}": "layers.{layer}.self_attn.context",
    "attn_post_norm-{layer}": "layers.{layer}.post_attention_layernorm",
    "sa_out-{layer}": "layers.{layer}.resid_mid",
    "ffn_norm-{layer}": "layers.{layer}.pre_feedforward_layernorm",
    "ffn_up-{layer}": "layers.{layer}.mlp.up",
    "ffn_gate-{layer}": "layers.{layer}.mlp.gate",
    "ffn_geglu-{layer}": "layers.{layer}.mlp.hidden",
    "ffn_out-{layer}": "layers.{layer}.mlp.down",
    "ffn_post_norm-{layer}": "layers.{layer}.post_feedforward_layernorm",
    "l_out-{layer}": "layers.{layer}.resid_post",
    "result_norm": "norm",
    "result_output": "logits_capped",
}
HUGGING_FACE = {
    "model.embed_tokens": ("embedding", batch),
    "model.layers.{layer}.input_layernorm": ("layers.{layer}.input_layernorm", batch),
    "model.layers.{layer}.self_attn.q_proj": ("layers.{layer}.self_attn.q", lambda record: batch(flat(record))),
    "model.layers.{layer}.self_attn.k_proj": ("layers.{layer}.self_attn.k", lambda record: batch(flat(record))),
    "model.layers.{layer}.self_attn.v_proj": ("layers.{layer}.self_attn.v", lambda record: batch(flat(record))),
    "model.layers.{layer}.self_attn.o_proj": ("layers.{layer}.self_attn.o", batch),
    "model.layers.{layer}.post_attention_layernorm": ("layers.{layer}.post_attention_layernorm", batch),
    "model.layers.{layer}.pre_feedforward_layernorm": ("layers.{layer}.pre_feedforward_layernorm", batch),
    "model.layers.{layer}.mlp.gate_proj": ("layers.{layer}.mlp.gate", batch),
    "model.layers.{layer}.mlp.up_proj": ("layers.{layer}.mlp.up", batch),
    "model.layers.{layer}.mlp.down_proj": ("layers.{layer}.mlp.down", batch),
    "model.layers.{layer}.post_feedforward_layernorm": ("layers.{layer}.post_feedforward_layernorm", batch),
    "model.layers.{layer}": ("layers.{layer}.resid_post", batch),
    "model.norm": ("norm", batch),
    "lm_head": ("logits", batch),
}
FLAX = {
    "embedder": ("embedding", batch),
    "layer_{layer}/pre_attention_norm": ("layers.{layer}.input_layernorm", batch),
    "layer_{layer}/attn/q_einsum": ("layers.{layer}.self_attn.q", lambda record: batch(heads_inside(record))),
    "layer_{layer}/attn/attn_vec_einsum": ("layers.{layer}.self_attn.o", batch),
    "layer_{layer}/post_attention_norm": ("layers.{layer}.post_attention_layernorm", batch),
    "layer_{layer}/pre_ffw_norm": ("layers.{layer}.pre_feedforward_layernorm", batch),
    "layer_{layer}/mlp/linear": ("layers.{layer}.mlp.down", batch),
    "layer_{layer}/post_ffw_norm/__call__": ("layers.{layer}.post_feedforward_layernorm", batch),
    "layer_{layer}/__call__": ("layers.{layer}.resid_post", batch),
    "final_norm": ("norm", batch),
}
STYLES = {"tensors": LLAMA_TENSORS, "callbacks": LLAMA_CALLBACKS, "hugging face": HUGGING_FACE, "flax": FLAX}


def in_style(style, records, layers):
    """Return records by the names and with the axes of a style, and {their name: ours}."""
    theirs, ours = {}, {}
    for template, what in style.items():
        name, change = what if isinstance(what, tuple) else (what, lambda record: record)
        for layer in range(layers) if "{layer}" in template else [0]:
            record = records.get(name.format(layer=layer))
            if record is not None:
                theirs[template.format(layer=layer)] = np.ascontiguousarray(change(record))
                ours[template.format(layer=layer)] = name.format(layer=layer)
    return theirs, ours


def dump_of(records, passes=None):
    return Dump("theirs.npz", records, None, passes, None)


def shapes(**names):
    """Return a dump with records of zeros of these shapes; `__` stands for a dot."""
    return dump_of({name.replace("__", "."): np.zeros(shape, np.float32) for name, shape in names.items()})


@pytest.mark.parametrize("style", STYLES)
def test_every_name_of_a_style_is_mapped(style, tmp_path, capsys, monkeypatch):
    """The proposed map, as it is printed, makes every record of the dump equal to the reference's."""
    monkeypatch.chdir(tmp_path)
    model = tiny.gemma(hidden_size=14)
    model.save(tmp_path / "model")
    write_trace(model, [IDS], "ref.safetensors", source="model")
    theirs, ours = in_style(STYLES[style], Reference(model, [IDS]).records(), 4)
    save_file(theirs, "theirs.safetensors")
    assert main(["records", "--names", "--model", "model", "--dump", "theirs.safetensors"]) == 0
    printed = capsys.readouterr()
    (tmp_path / "names.json").write_text(printed.out)
    assert json.loads(printed.out).keys() == STYLES[style].keys()
    assert "left out" not in printed.err
    assert "not in theirs.safetensors: " in printed.err
    rows = compare_files("ref.safetensors", "theirs.safetensors", name_map="names.json")
    assert {row.key for row in rows if row.status == "OK"} == set(ours.values())
    assert {row.status for row in rows} == {"OK", "MISSING"}


@given(configs(), st.integers(1, 9), st.sampled_from(sorted(STYLES)), st.booleans(), seeds)
def test_what_is_proposed_is_right(tmp_path_factory, config, tokens, style, with_passes, seed):
    """For all sizes, also those that are equal by chance: what is in doubt is left out."""
    passes = [random_ids(config, seed, tokens).tolist()]
    reference = Reference(Gemma(config, random_weights(config, seed, np.float64), None), passes)
    right = reference.records()
    if "logits_capped" not in right:  # what llama.cpp names result_output
        right["logits_capped"] = right["logits"]
    theirs, ours = in_style(STYLES[style], right, config.num_hidden_layers)
    found = propose_name_map(dump_of(theirs, passes if with_passes else None), config)
    templates = {name: template for template in STYLES[style] for name in _all_layers(template, config)}
    assert found.names.keys() | found.left_out.keys() == {templates[name] for name in theirs}
    folder = tmp_path_factory.mktemp("names")
    save_file(theirs, folder / "theirs.safetensors")
    (folder / "names.json").write_text(name_map_json(found.names))
    if found.names:
        dump = read_dump(folder / "theirs.safetensors", folder / "names.json")
        for key, record in align_dump(dump, reference).records.items():
            assert (record == right[key]).all(), key
            assert key in ours.values() or key == "logits"
    assert all("may be" in reason for reason in found.left_out.values())


def _all_layers(template, config):
    return {template.format(layer=layer) for layer in range(config.num_hidden_layers)}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_our_own_names(model_type, tmp_path):
    """Every record has a line in the map to start from, which changes nothing; all our names are known."""
    model = tiny.gemma(model_type)
    write_trace(model, [IDS, [8]], tmp_path / "a.safetensors")
    (tmp_path / "names.json").write_text(name_map_json(every_name(model.config)))
    reference, names = Reference(model, [IDS, [8]]), every_name(model.config)
    with_map = align_dump(read_dump(tmp_path / "a.safetensors", tmp_path / "names.json"), reference)
    assert with_map.records.keys() == reference.slices.keys()
    assert not with_map.skipped
    layers = range(model.config.num_hidden_layers)
    assert {name.format(layer=layer) for name in names for layer in layers} == set(record_shapes(model.config, 5))
    found = propose_name_map(read_dump(tmp_path / "a.safetensors"), model.config)
    assert found.names == {f"{prefix}{name}": f"{prefix}{name}" for prefix in ("", "pass.1.") for name in names}
    assert found.left_out == {}
    assert found.missing == []


def test_records_side_by_side():
    """The order is that of the name; other arrays of several records have no layout."""
    config = tiny.config()  # H=4, K=2, h=4, F=7
    found = propose_name_map(
        shapes(layers__0__attn_qkv=(5, 32), layers__0__gate_up_proj=(5, 14), layers__0__kv_einsum=(2, 5, 2, 4)), config
    )
    assert found.names == {
        "layers.{layer}.attn_qkv": {
            "records": [f"layers.{{layer}}.self_attn.{part}" for part in "qkv"],
            "layout": "T H*h",
        },
        "layers.{layer}.gate_up_proj": {
            "records": ["layers.{layer}.mlp.gate", "layers.{layer}.mlp.up"],
            "layout": "T F",
        },
    }
    assert "has the shape (2, 5, 2, 4), which fits no layout" in found.left_out["layers.{layer}.kv_einsum"]


@pytest.mark.parametrize(
    ("records", "name", "reason"),
    [
        ({"blk__0__rotary_emb": (5, 4)}, "blk.{layer}.rotary_emb", "is not known"),
        ({"blk__0__scores_uncapped": (4, 5, 5)}, "blk.{layer}.scores_uncapped", "is not known"),
        ({"blk__0__attn_v_norm": (2, 5, 4)}, "blk.{layer}.attn_v_norm", "is not known"),
        ({"blk__0__proj": (5, 12)}, "blk.{layer}.proj", "is not known"),
        ({"attn_q": (5, 16)}, "attn_q", "is not known"),
        ({"blk__0__attn_q": (5, 17)}, "blk.{layer}.attn_q", "has the shape (5, 17), which fits no layout"),
        ({"blk__4__attn_q": (5, 16)}, "blk.{layer}.attn_q", "has layer 4, expected 0 to 3"),
        ({"blk__0__attn_q": (4, 4, 4), "x": (4, 12)}, "blk.{layer}.attn_q", "may be layers.*.self_attn.q as"),
        ({"output": (5, 400)}, "output", "may be logits as"),
        ({"output": (5, 400)}, "output", "or logits_capped as"),
        ({"blk__0__q": (5, 16), "blk__0__attn_q": (5, 16)}, "blk.{layer}.q", "as well, like"),
        ({"blk__0__ffn_out": (5, 12), "blk__0__mlp_out": (5, 12)}, "blk.{layer}.ffn_out", "as well, like"),
    ],
)
def test_what_is_left_out(records, name, reason):
    found = propose_name_map(shapes(**records), tiny.config())
    assert reason in found.left_out[name]
    assert name not in found.names


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.{layer}.attn_q", (5, 16)),
        ("blk.{layer}.0.attn_q", (5, 16)),
        (f"blk.{'9' * 5000}.attn_q", (5, 16)),
        (f"pass.{'9' * 5000}.norm", (5, 12)),
        ("pass.0.norm", (5, 12)),
        ("lm_head", ()),
        ("lm_head", (0,)),
        ("norm", ()),
        ("", (5, 12)),
        ("\x00\n", (5, 12)),
    ],
)
@pytest.mark.parametrize("passes", [None, [IDS]])
def test_strange_names_and_shapes(name, shape, passes):
    found = propose_name_map(dump_of({name: np.zeros(shape)}, passes), tiny.config())
    assert found.names == {}
    assert len(found.left_out) == 1


def test_logits_of_two_texts():
    found = propose_name_map(dump_of({"lm_head": np.zeros((2, 5, 400))}, [IDS]), tiny.config())
    assert "fits no layout" in found.left_out["lm_head"]


def test_axes_that_only_look_alike():
    """With one head it does not matter where its axis is; with as many tokens as channels, all else does."""
    config = tiny.config("gemma")
    config = dataclasses.replace(config, hidden_size=5, num_attention_heads=1, num_key_value_heads=1)
    found = propose_name_map(shapes(layers__0__q=(1, 5, 4), layers__0__attn_norm=(5, 5)), config)
    assert found.names == {"layers.{layer}.q": "layers.{layer}.self_attn.q"}
    assert "may be layers.*.input_layernorm" in found.left_out["layers.{layer}.attn_norm"]
    found = propose_name_map(shapes(layers__0__q=(1, 1, 4)), config)  # one token, too
    assert found.names == {"layers.{layer}.q": "layers.{layer}.self_attn.q"}


def test_the_clearest_name_is_taken():
    found = propose_name_map(shapes(blk__0__self_attn=(5, 12), blk__0__self_attn__o_proj=(5, 12)), tiny.config())
    assert found.names == {"blk.{layer}.self_attn.o_proj": "layers.{layer}.self_attn.o"}


def test_names_of_gemma_1():
    """Its second norm has another name in transformers, and result_output of llama.cpp is not capped."""
    found = propose_name_map(
        shapes(layers__0__post_attention_layernorm=(5, 12), result_output=(5, 400)), tiny.config("gemma")
    )
    assert found.names == {
        "layers.{layer}.post_attention_layernorm": "layers.{layer}.pre_feedforward_layernorm",
        "result_output": "logits",
    }


def test_the_layer_is_the_number_that_varies():
    records = {f"gemma_2/layer_{layer}/attn/query": (5, 16) for layer in range(4)}
    found = propose_name_map(dump_of({name: np.zeros(shape) for name, shape in records.items()}), tiny.config())
    assert list(found.names) == ["gemma_2/layer_{layer}/attn/query"]


@pytest.mark.parametrize("shape", [(400,), (1, 400), (5, 400), (1, 5, 400)])
def test_logits_of_the_last_tokens(shape):
    assert propose_name_map(dump_of({"lm_head": np.zeros(shape)}, [IDS]), tiny.config()).names == {"lm_head": "logits"}


def test_the_command(tmp_path, capsys):
    assert main(["records", "--names", "--model", "gemma-2-2b"]) == 0  # a released model needs no weights
    names = json.loads(capsys.readouterr().out)
    assert names["layers.{layer}.self_attn.k"] == {"record": "layers.{layer}.self_attn.k", "layout": "H T h"}
    assert "layers.{layer}.self_attn.q_norm" not in names
    assert main(["records", "--dump", "x.npz"]) == 2
    assert "--dump: given without --names" in capsys.readouterr().err
    assert main(["records", "--names", "--dump", str(tmp_path / "none.safetensors")]) == 2
    np.savez(tmp_path / "a.npz", strange=np.zeros((5, 3)))
    assert main(["records", "--names", "--dump", str(tmp_path / "a.npz")]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {}
    assert 'left out: "strange" is not known' in printed.err
