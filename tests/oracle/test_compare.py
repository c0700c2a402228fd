"""Two dumps side by side: what is said of each record, and of dumps that cannot be compared."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gemma_np import Gemma
from gemma_np.cli import main
from gemma_np.oracle import comparison
from gemma_np.oracle.dump import Alignment
from gemma_np.oracle.mistakes import CATALOGUE, inject_mistakes
from gemma_np.oracle.noise import rounding_tape
from gemma_np.oracle.trace import Reference, write_trace
from tests.support import tiny
from tests.support.strategies import configs, random_ids, random_weights, seeds


def compare(reference, records, dtype, **options):
    return comparison.compare(Alignment(reference, records, {}), dtype, **options)


IDS = [2, 5, 9, 40, 7, 31]


def in_float64(model):
    return Gemma(model.config, {name: w.astype(np.float64) for name, w in model.weights.items()}, model.tokenizer)


def mistaken(name, ids=IDS, model=None):
    """What the float32 model with this mistake in it dumps."""
    model = model or tiny.gemma()
    mistake = next(mistake for mistake in CATALOGUE if mistake.id == name)
    with inject_mistakes((mistake,), model.config, [len(ids)]):
        return Reference(model, [ids]).records()


@pytest.fixture
def folder(tmp_path):
    tiny.gemma().save(tmp_path / "model")
    words = ["trace", "--model", str(tmp_path / "model"), "--ids", ",".join(map(str, IDS))]
    assert main([*words, "-o", str(tmp_path / "ref.safetensors")]) == 0
    return tmp_path


def dump(folder, records, **metadata):
    contiguous = {name: np.ascontiguousarray(record) for name, record in records.items()}
    save_file(contiguous, folder / "theirs.safetensors", metadata or None)
    return ["compare", str(folder / "ref.safetensors"), str(folder / "theirs.safetensors")]


@given(configs(), st.integers(1, 9), seeds, st.booleans())
def test_float32_passes(config, T, seed, isolate):
    model = Gemma(config, random_weights(config, seed), None)
    ids = random_ids(config, seed, T)
    rows = compare(Reference(in_float64(model), [ids]), Reference(model, [ids]).records(), "float32", isolate=isolate)
    assert {row.status for row in rows} == {"OK"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@given(configs(), st.integers(1, 9), seeds)
def test_what_is_rounded_in_its_own_way_passes(dtype, config, T, seed):
    model = in_float64(Gemma(config, random_weights(config, seed), None))
    reference = Reference(model, [random_ids(config, seed, T)])
    theirs = reference.records(rounding_tape(dtype, np.random.default_rng(99)))
    assert {row.status for row in compare(reference, theirs, dtype)} == {"OK"}


def test_the_first_that_differs_is_where_the_mistake_is():
    rows = compare(Reference(in_float64(tiny.gemma()), [IDS]), mistaken("gelu-exact"), "float32")
    first = next(row for row in rows if row.status == "DIFF")
    assert first.key == "layers.0.mlp.hidden"
    assert first.error > 10 * first.threshold
    assert rows[-1].status == "DIFF"  # what comes after inherits it


def test_isolated_it_is_the_only_one():
    reference = Reference(in_float64(tiny.gemma()), [IDS])
    rows = compare(reference, mistaken("gelu-exact"), "float32", isolate=True)
    assert {row.key for row in rows if row.status == "DIFF"} == {f"layers.{layer}.mlp.hidden" for layer in range(4)}


def test_from_the_command_line(folder, capsys):
    assert main(dump(folder, Reference(tiny.gemma(), [IDS]).records())) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"{len(tiny.gemma().trace(IDS))} OK"
    assert main([*dump(folder, mistaken("silu")), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert next(row["key"] for row in rows if row["status"] == "DIFF") == "layers.0.mlp.hidden"


def test_missing_extra_and_misshapen_records(folder, capsys):
    records = Reference(tiny.gemma(), [IDS]).records()
    del records["layers.1.mlp.up"]
    records["layers.0.self_attn.q"] = records["layers.0.self_attn.q"].swapaxes(0, 1)
    records["layers.0.self_attn.k"] = records["layers.0.self_attn.k"].reshape(-1)
    records["layers.0.mlp.gate"] = records["layers.0.mlp.gate"][:3]
    assert main(dump(folder, records)) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "MISSING" in lines["layers.1.mlp.up"]
    assert "the axes are in another order; transpose(1, 0, 2) fixes it" in lines["layers.0.self_attn.q"]
    assert "the same number of elements, in other axes" in lines["layers.0.self_attn.k"]
    assert lines["layers.0.mlp.gate"].endswith("shape (3, 7), expected (6, 7)")
    save_file({"norm": np.ascontiguousarray(records["norm"])}, folder / "few.safetensors", metadata_of(folder))
    words = dump(folder, Reference(tiny.gemma(), [IDS]).records())
    assert main([words[0], str(folder / "few.safetensors"), words[2]]) == 0
    assert f"1 OK, {len(tiny.gemma().trace(IDS)) - 1} EXTRA" in capsys.readouterr().out


def metadata_of(folder):
    with (folder / "ref.safetensors").open("rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))["__metadata__"]


def test_names_of_their_own(folder, capsys):
    records = {
        name.replace("layers.", "blk.").replace(".self_attn.q", ".attn_q"): record
        for name, record in Reference(tiny.gemma(), [IDS]).records().items()
    }
    (folder / "names.json").write_text(json.dumps({"blk.{layer}.attn_q": "layers.{layer}.self_attn.q"}))
    only = {name: record for name, record in records.items() if name.endswith("attn_q")}
    assert main([*dump(folder, only), "--name-map", str(folder / "names.json")]) == 0
    assert "4 OK" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"a.{layer}": "layers.0.mlp.gate"}, '"a.0" and "a.1": both are "layers.0.mlp.gate"'),
        ({"a.0": "layers.{layer}.mlp.gate"}, '"layers.{layer}.mlp.gate" has a {layer}, expected one in "a.0"'),
        ({"a.{layer}": "layers.{layer.__class__}.mlp.gate"}, "layers.{layer.__class__}.mlp.gate: u"),
        ({"a.{layer}": "{}"}, "{}: unknown, expected"),
        ({"a.{layer}": "{"}, "{: unknown, expected"),
    ],
)
def test_name_maps_that_say_nothing(names, message, folder, capsys):
    gate = Reference(tiny.gemma(), [IDS]).records()["layers.0.mlp.gate"]
    (folder / "names.json").write_text(json.dumps(names))
    records = {"a.0": gate, "a.1": gate} if "both" in message else {"a.0": gate}
    assert main([*dump(folder, records), "--name-map", str(folder / "names.json")]) == 2
    assert message in capsys.readouterr().err


def test_a_layer_that_stands_twice_in_a_name_is_one_number(folder, capsys):
    records = Reference(tiny.gemma(), [IDS]).records()
    theirs = {"blk.2.q.2": records["layers.2.self_attn.q"]}
    (folder / "names.json").write_text(json.dumps({"blk.{layer}.q.{layer}": "layers.{layer}.self_attn.q"}))
    assert main([*dump(folder, theirs), "--name-map", str(folder / "names.json")]) == 0
    theirs = {"blk.2.q.1": records["layers.2.self_attn.q"]}
    assert main([*dump(folder, theirs), "--name-map", str(folder / "names.json")]) == 2
    assert "blk.2.q.1: unknown, expected" in capsys.readouterr().err


def test_other_axes_and_records_side_by_side(folder, capsys):
    right = Reference(tiny.gemma(), [IDS]).records()
    theirs, heads = {}, ("q", "k", "v")
    for layer in range(4):
        attention, mlp = f"layers.{layer}.self_attn", f"layers.{layer}.mlp"
        parts = [right[f"{attention}.{name}"].transpose(1, 0, 2).reshape(len(IDS), -1) for name in heads]
        theirs[f"qkv_{layer}"] = np.concatenate(parts, axis=-1)[None]
        theirs[f"gate_up_{layer}"] = np.concatenate([right[f"{mlp}.gate"], right[f"{mlp}.up"]], axis=-1)
        theirs[f"rotated_{layer}"] = right[f"{attention}.q_rope"].transpose(1, 2, 0)
    names = {
        "qkv_{layer}": {"records": [f"layers.{{layer}}.self_attn.{name}" for name in heads], "layout": "T H*h"},
        "gate_up_{layer}": {"records": ["layers.{layer}.mlp.gate", "layers.{layer}.mlp.up"], "layout": "T F"},
        "rotated_{layer}": {"record": "layers.{layer}.self_attn.q_rope", "layout": "T h H"},
    }
    (folder / "names.json").write_text(json.dumps(names))
    words = [*dump(folder, theirs), "--name-map", str(folder / "names.json")]
    assert main(words) == 0
    assert "24 OK" in capsys.readouterr().out
    theirs["gate_up_1"] = theirs["gate_up_1"][:, ::-1]
    theirs["gate_up_2"] = theirs["gate_up_2"][:, 1:]
    assert main([*dump(folder, theirs), *words[3:]]) == 1
    out = capsys.readouterr().out
    assert "2 DIFF" in out
    assert "gate_up_2" in out
    assert 'shape (6, 13), expected (6, 14) for the layout "T F"' in out


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"record": "norm"}, "expected a name, or record or records with a layout"),
        ({"layout": "T D"}, "expected a name, or record or records with a layout"),
        ({"record": "norm", "layout": "T X"}, "\"T X\", expected axes such as 'T H h'"),
        ({"record": "norm", "layout": "T T"}, "\"T T\", expected axes such as 'T H h'"),
        ({"record": "norm", "layout": "T F"}, "the record has no axis F"),
        ({"record": "norm", "layout": "D"}, "expected the axes T D, in any order"),
        ({"record": "nrom", "layout": "T D"}, '"nrom" is none of gemma-np records'),
        (3, "expected text, or an object with a layout"),
    ],
)
def test_layouts_that_do_not_fit(entry, message, folder, capsys):
    (folder / "names.json").write_text(json.dumps({"mine": entry}))
    record = Reference(tiny.gemma(), [IDS]).records()["norm"]
    theirs = {"mine": record.reshape(-1)[:12] if "in any order" in message else record}
    assert main([*dump(folder, theirs), "--name-map", str(folder / "names.json")]) == 2
    assert message in capsys.readouterr().err


def test_a_batch_of_one_and_dropped_keys(folder, capsys):
    records = {name: record[None] for name, record in Reference(tiny.gemma(), [IDS]).records().items()}
    assert main(dump(folder, records)) == 0
    passes = [IDS[:5], IDS[5:]]
    records = Reference(tiny.gemma(), passes).records()
    for name in ("scores", "scores_capped", "probs"):  # a window of 3: the ring keeps the last 3 keys
        for layer in (0, 2):
            key = f"pass.1.layers.{layer}.self_attn.{name}"
            records[key] = records[key][..., -3:]
    write_trace(tiny.gemma(), passes, folder / "ref.safetensors", source=str(folder / "model"))
    assert main(dump(folder, records)) == 0


def test_hidden_scores_may_be_anything(folder):
    records = Reference(tiny.gemma(), [IDS]).records()
    for name, record in records.items():
        if name.endswith("scores_capped"):
            records[name] = np.where(np.tri(len(IDS), dtype=bool), record, -np.inf)
    assert main(dump(folder, records)) == 0


def test_a_dump_of_another_program(folder, capsys):
    """Written byte by byte, in bfloat16, by nobody's library."""
    record = np.ascontiguousarray(Reference(tiny.gemma(), [IDS]).records()["norm"])
    bits = (record.view(np.uint32) + 0x8000 >> 16).astype("<u2").tobytes()
    header = b'{"norm":{"dtype":"BF16","shape":[6,12],"data_offsets":[0,144]}}'
    (folder / "theirs.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bits)
    assert main(["compare", str(folder / "ref.safetensors"), str(folder / "theirs.safetensors")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 OK, ")


def test_one_ulp_of_a_weight_passes_and_a_thousandth_of_a_matrix_does_not():
    model = tiny.gemma()
    reference = Reference(in_float64(model), [IDS])
    for name, weight in model.weights.items():
        nudged = dict(model.weights) | {name: np.array(weight)}
        flat = nudged[name].reshape(-1)
        flat[flat.size // 2] = np.nextafter(flat[flat.size // 2], np.float32(np.inf))
        theirs = Reference(Gemma(model.config, nudged, None), [IDS]).records()
        assert {row.status for row in compare(reference, theirs, "float32")} == {"OK"}, name
        if weight.ndim == 2:
            scaled = dict(model.weights) | {name: weight * np.float32(1.001)}
            theirs = Reference(Gemma(model.config, scaled, None), [IDS]).records()
            assert "DIFF" in {row.status for row in compare(reference, theirs, "float32")}, name


@pytest.mark.plot
def test_the_picture(folder):
    assert main([*dump(folder, mistaken("silu")), "--plot", str(folder / "errors.png")]) == 1
    assert (folder / "errors.png").read_bytes().startswith(b"\x89PNG")


def test_dumps_that_cannot_be_compared(folder, capsys):
    right = Reference(tiny.gemma(), [IDS]).records()

    def message(records, *options, **metadata):
        assert main([*dump(folder, records, **metadata), *options]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    nothing = message({"layers.0.mlp.gates": right["layers.0.mlp.gate"]})
    assert "nothing to compare: layers.0.mlp.gates: unknown, expected layers.0.mlp.gate or another" in nothing
    assert "nothing to compare: norm: has NaN or infinity" in message({"norm": right["norm"] * np.inf})
    assert "from token ids [[2, 5]], expected [[2, 5, 9, 40, 7, 31]]" in message(right, passes="[[2, 5]]")
    other = json.loads(metadata_of(folder)["config"]) | {"sliding_window": 4}
    assert "from a model with sliding_window=4, expected 3" in message(right, config=json.dumps(other))
    assert "dtype I32, expected one of" in message({"norm": np.zeros((6, 12), np.int32)})
    (folder / "names.json").write_text("[]")
    assert "names.json: [], expected a JSON object" in message(right, "--name-map", str(folder / "names.json"))
    words = dump(folder, right)
    path = folder / "theirs.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    assert main(words) == 2
    assert "damaged" in capsys.readouterr().err
    assert main([*words[:2], str(folder / "nowhere")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_one_bad_record_stops_only_itself(folder, capsys):
    right = Reference(tiny.gemma(), [IDS]).records()
    spoiled = dict(right) | {"layers.1.mlp.up": right["layers.1.mlp.up"] * np.nan, "nrom": right["norm"]}
    assert main(dump(folder, spoiled)) == 1
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "SKIPPED has NaN or infinity" in " ".join(lines["layers.1.mlp.up"].split())
    assert "UNKNOWN unknown, expected norm or another of gemma-np records" in " ".join(lines["nrom"].split())
    assert f"{len(right) - 1} OK, 1 SKIPPED, 1 UNKNOWN" in out


def test_a_file_of_numpy(folder, capsys):
    right = Reference(tiny.gemma(), [IDS]).records()
    np.savez(folder / "theirs.npz", **right)
    assert main(["compare", str(folder / "ref.safetensors"), str(folder / "theirs.npz")]) == 0
    assert f"{len(right)} OK" in capsys.readouterr().out
    np.savez(folder / "objects.npz", norm=np.array([None]))
    np.savez(folder / "whole.npz", norm=np.zeros((6, 12), np.int64))
    np.save(folder / "one.npy", right["norm"])
    (folder / "cut.npz").write_bytes((folder / "theirs.npz").read_bytes()[:999])
    for name, message in {
        "objects.npz": "damaged",
        "whole.npz": '"norm": int64, expected float64, float32 or float16',
        "one.npy": "one array without a name",
        "cut.npz": "damaged",
    }.items():
        assert main(["compare", str(folder / "ref.safetensors"), str(folder / name)]) == 2
        assert message in capsys.readouterr().err


def test_logits_of_the_last_tokens(folder, capsys):
    right = Reference(tiny.gemma(), [IDS]).records()["logits"]
    for part in (right[-1], right[-1:], right[-2:], right[None, -2:]):
        assert main(dump(folder, {"logits": part})) == 0
        assert "1 OK" in capsys.readouterr().out
    assert main(dump(folder, {"logits": right[:2]})) == 1  # the first two, as if they were the last
    padded = np.concatenate([right, right[:, :3]], axis=1)
    assert main(dump(folder, {"logits": padded})) == 2
    assert "is it padded? keep the first 400 columns" in capsys.readouterr().err
    assert main(dump(folder, {"logits": np.stack([right, right])})) == 2
    assert "a batch of 2; keep one text" in capsys.readouterr().err


def test_sixteen_bits_are_recognised(folder, capsys):
    records = {n: r.astype(ml_dtypes.bfloat16) for n, r in Reference(tiny.gemma(), [IDS]).records().items()}
    assert main(dump(folder, records)) == 0
    halved = {name: record.astype(np.float32) for name, record in records.items()}
    assert main(dump(folder, halved)) == 0  # every number is one of bfloat16
    assert main([*dump(folder, halved), "--dtype", "float32"]) == 1
    assert load_file(folder / "ref.safetensors")["norm"].dtype == np.float32
