"""The reader's file: each chapter of the solutions passes its check, mistakes are named, and the whole is Gemma 2."""

import ast
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import check_file
from support.check_file import STAGES
from support.reader_file import SOLUTIONS, TEMPLATE, composed, definitions, is_stub

from gemma_np.checkpoints.config_json import config_to_json
from gemma_np.checkpoints.saving import save_folder
from gemma_np.gemma import BUNDLED
from gemma_np.gemma import load as load_model
from tests.support.by_path import module_at
from tests.support.strategies import configs, random_ids, random_weights, seeds, splits
from tests.support.tolerances import assert_close

STAGE = {number: [stage for stage in STAGES if STAGES[stage] == number] for number in SOLUTIONS}
NUMBERS = sorted(SOLUTIONS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file with all solutions, as a module."""
    path = tmp_path_factory.mktemp("whole") / "my_gemma.py"
    path.write_text(composed(NUMBERS[-1]))
    return module_at(path)


def verdict_of(tmp_path, source, upto):
    """The verdict, which tells its right part by the first character."""
    path = tmp_path / "my_gemma.py"
    path.write_text(source)
    verdict = check_file(path, upto)
    assert repr(verdict) == f"{'✓' if verdict.right else '✗'} {verdict.message}"
    return verdict


# The template and the solutions


def test_the_template_needs_numpy_alone_and_has_three_functions_for_a_start():
    lines = [
        node for node in ast.walk(ast.parse(TEMPLATE.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert [ast.unparse(line) for line in lines] == [
        "import json",
        "import math",
        "from pathlib import Path",
        "import numpy as np",
    ]
    written = {name for name, node in definitions(composed(0)).items() if not is_stub(node)}
    assert written == {"no_tape", "prefixed", "part"}


def test_each_function_of_the_template_has_one_solution_with_its_signature_and_docstring():
    stubs = definitions(TEMPLATE.read_text())
    solved = [(name, node) for path in SOLUTIONS.values() for name, node in definitions(path.read_text()).items()]
    assert [name for name, _ in solved] == list(stubs)[3:]  # in the order of the file
    for name, node in solved:
        assert ast.get_docstring(node) == ast.get_docstring(stubs[name])
        for own, stub in zip(parts(node), parts(stubs[name]), strict=True):
            assert ast.unparse(own.args) == ast.unparse(stub.args)
            assert ast.get_docstring(own) == ast.get_docstring(stub)


def parts(node):
    """A function itself, or the methods of a class."""
    return [node] if isinstance(node, ast.FunctionDef) else [own for own in node.body if hasattr(own, "args")]


def test_the_solutions_have_the_names_of_the_tutorials():
    tutorials = {int(path.stem[:2]) for path in (TEMPLATE.parent / "sources").glob("*.py")}
    assert set(NUMBERS) == set(STAGES.values())
    assert set(NUMBERS) - tutorials <= {2, 3}


# Chapter by chapter


def test_the_template_itself_is_not_written_yet():
    for stage in STAGES:
        verdict = check_file(TEMPLATE, stage)
        assert not verdict.right
        assert verdict.message.startswith("load (tutorial 2) is not written yet\nnot written yet, of what leads to ")


@pytest.mark.parametrize("number", NUMBERS)
def test_the_solutions_up_to_a_chapter_pass_its_check_and_the_next_one_is_not_written(tmp_path, number):
    verdict = verdict_of(tmp_path, composed(number), STAGE[number][-1])
    assert verdict.right, verdict
    for later in NUMBERS[NUMBERS.index(number) + 1 :][:1]:
        verdict = verdict_of(tmp_path, composed(number), STAGE[later][0])
        assert not verdict.right
        assert f"(tutorial {later}) is not written yet" in verdict.message
        names = ", ".join(definitions(SOLUTIONS[later].read_text()))
        assert verdict.message.endswith(
            f"not written yet, of what leads to {STAGE[later][0]}: {names} (tutorial {later})"
        )


def test_what_is_right_before_a_stub_is_said(tmp_path):
    said = verdict_of(tmp_path, composed(4), "q_rope").message
    assert said.startswith("records: 2 right, then layers.0.self_attn.q: split_heads (tutorial 5) is not written yet")


def test_what_the_reader_wrote_for_later_chapters_is_not_judged_yet(tmp_path):
    wrong_later = composed(15).replace("return cap * np.tanh(x / cap)", "return x")
    assert verdict_of(tmp_path, wrong_later, "probs").right
    assert not verdict_of(tmp_path, wrong_later, "scores_capped").right


def test_a_stub_that_nothing_calls_is_not_right(tmp_path):
    own = composed(8).replace("def soft_cap(x, cap):", "def cap_softly(x, cap):").replace("soft_cap(s", "cap_softly(s")
    own = own.replace("soft_cap(logits", "cap_softly(logits")
    verdict = verdict_of(tmp_path, own, "scores_capped")
    assert not verdict.right
    assert verdict.message.endswith("not written yet, of what leads to scores_capped: soft_cap (tutorial 8)")


@pytest.mark.parametrize(
    ("stage", "right", "wrong", "said"),
    [
        ("embedding", "[np.asarray(ids)]", "[np.asarray(ids)][:3]", "shape (3, 256), expected (75, 256)"),
        ("decoding", "self.keys", "self.kept_keys", "'LayerCache' object has no attribute 'keys'"),
        ("decoding", "    return new\n", "    return len(new)\n", "object of type 'int' has no len()"),
        (
            "gradients",
            "return gradients | {",
            "return list(gradients) and {",
            "layers.0.input_layernorm.weight is missing",
        ),
        ("weights", "return config, weights", "return weights", "load returns a dict, expected config, weights"),
    ],
)
def test_what_no_right_file_returns_is_said_in_one_line(tmp_path, stage, right, wrong, said):
    source = composed(STAGES[stage])
    assert right in source
    verdict = verdict_of(tmp_path, source.replace(right, wrong), stage)
    assert not verdict.right
    assert said in verdict.message
    assert "\n" not in verdict.message


def test_an_unknown_stage_is_answered_by_the_list_of_all():
    assert check_file(TEMPLATE, "q_rop") == (False, f"upto='q_rop': expected one of {', '.join(STAGES)}")


def test_a_missing_file_is_said(tmp_path):
    said = check_file(tmp_path / "my_gemma.py", "q_rope").message
    assert said == f"{tmp_path / 'my_gemma.py'}: No such file or directory, expected the file that you write"


def test_a_changed_file_is_read_again(tmp_path):
    assert not verdict_of(tmp_path, composed(3), "input_layernorm").right
    assert verdict_of(tmp_path, composed(4), "input_layernorm").right


# Mistakes

OWN_RING = """stays = np.arange(max(start, end - slots), end)
        self.keys[:, stays % slots] = k[:, stays - start]
        self.values[:, stays % slots] = v[:, stays - start]
        kept = np.arange(max(0, end - slots), end)
        return self.keys[:, kept % slots], self.values[:, kept % slots], kept"""
RIGHT_RING = composed(11)[composed(11).index("kept = np.arange(max(0, start") :].split("\n\n")[0]
ADAMW = composed(14)[composed(14).index("weight = weights[name]") :].split("\n\n")[0]
L2 = "weight = weights[name]\n        gradient = gradient + weight_decay * weight * (weight.ndim > 1)"

GROWING = """self.keys = self.values = np.zeros((kv_heads, 0, head_dim), np.float32)
        self.slots, self.length = slots, 0

    def append(self, k, v):
        self.keys, self.values = np.concatenate([self.keys, k], axis=1), np.concatenate([self.values, v], axis=1)
        self.length += k.shape[1]
        return self.keys, self.values, np.arange(self.length)


"""
CLIPPED_ALONE = """for gradient in gradients.values():
        gradient *= min(1, max_norm / np.sqrt(np.sum(gradient * gradient)))


"""

MISTAKES = {
    "bfloat16 unshifted": ("weights", "<< 16", "<< 0", "load: model.embed_tokens.weight: "),
    "offsets from the start of the file": ("weights", "(after_header + offset for", "(offset for", "load: "),
    "no index": ("weights", 'if index.exists() else ["m', 'if False else ["m', "FileNotFoundError: "),
    "no return": ("embedding", 'return tape("embedding"', 'tape("embedding"', "embed returns nothing"),
    "no scale": ("embedding", 'rows * math.sqrt(config["hidden_size"])', "rows", "known as embed-scale-absent"),
    "norm without 1 +": ("input_layernorm", "(1 + weight)\n", "weight\n", "the norm multiplies by w instead of 1 + w"),
    "rope interleaved": (
        "q_rope",
        "first, second = x[..., :half], x[..., half:]\n    return np.concatenate([first * cos - second * sin, "
        "second * cos + first * sin], axis=-1)",
        "first, second = x[..., ::2], x[..., 1::2]\n    return np.stack([first * cos - second * sin, "
        "second * cos + first * sin], axis=-1).reshape(x.shape)",
        "channels 2i and 2i + 1 are rotated as a pair",
    ),
    "rope backwards": ("k_rope", "np.sin(angles)", "-np.sin(angles)", "rotated in the opposite direction"),
    "an error": ("k_rope", "x[..., half:]", "x[..., 1 + half:]", "axis=-1)`"),
    "a syntax error": ("k_rope", "shape[-1] // 2", "shape[-1] //", "invalid syntax: `half = x.shape[-1] //`"),
    "keys not rotated": ("o", "rope(k, positions, base)", "k", "layers.0-3.self_attn.k_rope: it is not rotated"),
    "no head scale": ("scores", ' / math.sqrt(config["query_pre_attn_scalar"])', "", "scores are divided by sqrt(1)"),
    "groups tiled": (
        "o",
        "np.repeat(keys, group, axis=-3), np.repeat(values, group, axis=-3)",
        "np.tile(keys, (group, 1, 1)), np.tile(values, (group, 1, 1))",
        "query head i reads key-value head i % K",
    ),
    "merged without a transpose": (
        "o",
        "    x = x.swapaxes(-2, -3)\n    return x.reshape(*x.shape[:-2], -1)",
        "    return x.reshape(*x.shape[:-3], x.shape[-2], -1)",
        "merged without a transpose",
    ),
    "window off by one": ("probs", "distance < (", "distance <= (", "a query sees one key more than the window"),
    "window on every layer": ("probs", " if is_local else None", "", "a global layer has the window, too"),
    "wrong layers": ("probs", '[layer] == "sliding', '[layer] != "sliding', "local and global layers are exchanged"),
    "no cap": ("scores_capped", "cap * np.tanh(x / cap)", "x", "is not capped"),
    "SiLU": ("hidden", "np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))", "np.tanh(x / 2)", "is SiLU"),
    "gate and up exchanged": ("hidden", "gelu(gate) * up", "gate * gelu(up)", "the activation is applied to up"),
    "no norm after attention": ("resid_mid", 'norm(y, "post_attention_layernorm")', "y", "known as postnorm-missing"),
    "no residual": ("resid_post", '"resid_post", x + norm', '"resid_post", norm', "without the residual stream"),
    "a norm twice": (
        "resid_post",
        '(x, "pre_feedforward',
        '(x, "input',
        "the tape gets layers.0.input_layernorm twice",
    ),
    "a record forgotten": (
        "down",
        'tape("mlp.hidden", gelu(gate) * up)',
        "gelu(gate) * up",
        "call tape('mlp.hidden', ",
    ),
    "a record misnamed": ("down", 'tape("mlp.hidden"', 'tape("mlp.hide"', "is missing (there is layers.0.mlp.hide)"),
    "an array transposed": ("q", ".swapaxes(-2, -3)\n", "\n", "transpose(1, 0, 2) fixes it"),
    "cap of attention at the end": ("logits", '"final_logit_', '"attn_logit_', "the cap is 50, expected 30"),
    "no final norm": (
        "logits",
        'rms_norm(x, weights["model.norm.weight"], config["rms_norm_eps"])',
        "x",
        "then norm differs",
    ),
    "positions from zero": (
        "decoding",
        "cache[0].length if cache else 0",
        "0",
        "positions start at zero in every pass",
    ),
    "ring index": ("decoding", "keys[:, stays % slots] =", "keys[:, stays % 3] =", "key of position 3 is that of"),
    "ring overwritten": ("decoding", RIGHT_RING, OWN_RING, "position 4 is not among them, though a new token sees it"),
    "no ring": ("decoding", "layer_window(config, layer) or room for", "room for", "a ring of 64 is enough"),
    "a cache that grows": (
        "decoding",
        composed(11)[composed(11).index("self.keys = np.zeros") : composed(11).index("def new_cache")],
        GROWING,
        "layer 0 keeps 72 positions; a ring of 64 is enough",
    ),
    "no chunks": (
        "decoding",
        "range(0, len(ids), chunk)",
        "range(0, len(ids), chunk := len(ids))",
        "generate reads 40 tokens at once, expected at most `chunk`, 16",
    ),
    "the norm's weight without 1 +": (
        "gradients",
        "x / rms, dy * (1 + weight)",
        "x / rms, dy * weight",
        "rms_norm_backward, dx: dy is multiplied by weight, expected 1 + weight",
    ),
    "a constant norm": (
        "gradients",
        "(dn - n * np.mean(dn * n, axis=-1, keepdims=True)) / rms",
        "dn / rms",
        "rms_norm_backward, dx: it takes the root mean square for a constant",
    ),
    "independent scores": (
        "gradients",
        "(dprobs - np.sum(dprobs * probs, axis=-1, keepdims=True))",
        "dprobs",
        "softmax_backward: the scores change the sum of the row, too",
    ),
    "groups added up in another order": (
        "gradients",
        "(*batch, kv_heads, H // kv_heads, S, h).sum(axis=-3)",
        "(*batch, H // kv_heads, kv_heads, S, h).sum(axis=-4)",
        "sum_groups: it adds up heads i, i + K, ...",
    ),
    "no 3 in the slope": ("gradients", "(1 + 3 * 0.044715", "(1 + 0.044715", "gelu_slope of x: "),
    "tanh twice": (
        "gradients",
        "1 - (y / cap) ** 2",
        "1 - np.tanh(y / cap) ** 2",
        "soft_cap_backward: it takes tanh of y / cap",
    ),
    "a gradient for each text": (
        "gradients",
        "dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])",
        "dy.swapaxes(-1, -2) @ x",
        "linear_backward, dweight: the batch is not added up",
    ),
    "exponentials overflow": (
        "gradients",
        "logits - logits.max(axis=-1, keepdims=True)",
        "logits",
        "log_softmax of logits near 1000: ",
    ),
    "a step with wrong gradients": ("step", "dmid = dy + norm", "dmid = norm", "40 of 47 gradients are wrong"),
    "distillation with wrong gradients": (
        "distillation",
        "dmid = dy + norm",
        "dmid = norm",
        "40 of 47 gradients are wrong",
    ),
    "scaled up": ("step", "if norm > max_norm:", "if True:", "clip of gradients of length 0.5 to 1: they are scaled"),
    "each clipped alone": (
        "step",
        composed(14)[composed(14).index("norm = np.sqrt(sum(") : composed(14).index("def adamw")],
        CLIPPED_ALONE,
        "clip of gradients of length 6.5 to 1: each gradient is clipped alone",
    ),
    "m not corrected": ("step", "m / (1 - beta1 ** state", "m / (1 - 0 ** state", "step 1: the running mean m is not"),
    "v not corrected": ("step", "v / (1 - beta2 ** state", "v / (1 - 0 ** state", "step 1: the running mean v is not"),
    "beta swapped": (
        "step",
        'beta1 * state["m"].get(name, 0) + (1 - beta1) * gradient',
        '(1 - beta1) * state["m"].get(name, 0) + beta1 * gradient',
        "m is (1 - beta1) m + beta1 gradient",
    ),
    "betas exchanged": ("step", "beta1=0.9, beta2=0.95", "beta1=0.95, beta2=0.9", "beta1 and beta2 are exchanged"),
    "L2 and decay": ("step", "weight = weights[name]", L2, "weight decay is in the gradient (L2), too"),
    "KL": (
        "distillation",
        "np.sum(teacher * log_student)",
        "np.sum(teacher * (log_student - np.log(teacher)))",
        "distillation_loss, the loss: it is the KL divergence",
    ),
    "the other sign": (
        "distillation",
        "(np.exp(log_student) - teacher)",
        "(teacher - np.exp(log_student))",
        "the gradient: it is minus the gradient; take P_S - P_T",
    ),
    "all read again": ("decoding", "gemma(new[-1:]", "gemma(new", "generate: token 3 after the prompt is "),
    "sum of losses": ("gradients", ".sum() / count, (", ".sum(), (", "cross_entropy, the loss: "),
    "cap not in the gradient": (
        "gradients",
        "dscores = soft_cap_backward(",
        "_ = soft_cap_backward(",
        "The backward pass of attention passes over the soft cap",
    ),
    "repeated tokens": (
        "gradients",
        'np.add.at(dembedding, np.asarray(ids), dx * math.sqrt(config["hidden_size"]))',
        'dembedding[np.asarray(ids)] += dx * math.sqrt(config["hidden_size"])',
        "the gradient of its last occurrence only",
    ),
    "decay of norms": ("step", "if weight.ndim > 1:", "if True:", "weight decay shrinks the vectors of the norms"),
    "no decay": ("step", "weight *= 1 - ", "weight *= 1 + 0 * ", "there is no weight decay"),
    "no correction": ("step", "m, v = m / (1", "_ = m / (1", "which is not corrected"),
    "eps inside": ("step", "np.sqrt(v) + eps", "np.sqrt(v + eps)", "eps is inside the square root"),
    "no clipping": ("step", "    clip(gradients, max_norm)\n", "", "step 1: the gradients are not clipped"),
    "up the gradient": ("step", "weight -= ", "weight += ", "goes up the gradient"),
    "steps not counted": ("step", '["step"] += 1', '["step"] = 1', "step 2: "),
    "Adam with L2": (
        "step",
        ADAMW,
        ADAMW.replace("weight = weights[name]", L2).replace("1 - learning_rate * weight_decay", "1"),
        "weight decay is added to the gradient (L2)",
    ),
    "scaled by the root of head_dim": (
        "scores",
        'math.sqrt(config["query_pre_attn_scalar"])',
        "math.sqrt(head_dim)",
        "divided by sqrt(8), expected sqrt(20); 8 is head_dim",
    ),
    "in place in the block": (
        "resid_post",
        'x = tape("resid_mid", x + norm(y, "post_attention_layernorm"))',
        'x += norm(y, "post_attention_layernorm")\n    tape("resid_mid", x)',
        "embedding is changed after its record, by an operation in place",
    ),
    "softmax over the queries": (
        "o",
        "odds / odds.sum(axis=-1",
        "odds / odds.sum(axis=-2",
        "layers.0.self_attn.probs: its rows do not sum to 1",
    ),
    "not a number": (
        "input_layernorm",
        "(1 + weight)\n",
        "(np.nan + weight)\n",
        "then layers.0.input_layernorm: has NaN",
    ),
    "in place in the softmax": (
        "o",
        "scores = np.where(mask, scores, -np.inf)\n",
        "scores[..., ~mask] = -np.inf\n",
        "layers.0.self_attn.scores_capped is changed after its record",
    ),
    "layer_types required": ("probs", 'config.get("layer_types")', 'config["layer_types"]', "KeyError: 'layer_types'"),
    "layers of files without layer_types": ("probs", "layer % 2 == 0", "layer % 2 == 1", "without layer_types: "),
    "no batch axes": (
        "o",
        "x = x.swapaxes(-2, -3)\n    return x.reshape(*x.shape[:-2], -1)",
        "H, T, h = x.shape\n    return x.swapaxes(-2, -3).reshape(T, H * h)",
        "right for one text, but not for two at once, ids (2, 12): ValueError: too many values to unpack",
    ),
    "a mean over the batch": (
        "input_layernorm",
        "np.mean(x * x, axis=-1, keepdims=True)",
        "np.mean(x * x, axis=(0, -1) if x.ndim > 2 else -1, keepdims=True)",
        "not for two at once, input_layernorm of ids (2, 12): ",
    ),
    "positions unused": (
        "q_rope",
        "np.outer(positions, ",
        "np.outer(np.arange(x.shape[-2]), ",
        "rope of positions 7 to 9: it takes 0, 1, 2 ... instead of `positions`",
    ),
    "angles in float32": (
        "q_rope",
        "base ** (-np.arange(half) / half))",
        "base ** (-np.arange(half) / half)).astype(np.float32)",
        "where angles in float32 are too coarse: ",
    ),
    "rotated in float64": (
        "q_rope",
        "np.cos(angles).astype(x.dtype), np.sin(angles).astype(x.dtype)",
        "np.cos(angles), np.sin(angles)",
        "rope of positions 7 to 9: the result is float64, expected float32",
    ),
    "student and teacher exchanged": (
        "distillation",
        "log_softmax(logits), np.exp(log_softmax(teacher_logits))",
        "log_softmax(teacher_logits), np.exp(log_softmax(logits))",
        "student and teacher are exchanged",
    ),
    "sum over positions": ("distillation", "logits[..., 0].size", "1", "it is the sum; take the mean"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(tmp_path, mistake):
    stage, right, wrong, said = MISTAKES[mistake]
    source = composed(STAGES[stage])
    assert right in source
    verdict = verdict_of(tmp_path, source.replace(right, wrong), stage)
    assert not verdict.right
    assert said in verdict.message


# The whole file is Gemma 2


@pytest.fixture(scope="module")
def framework():
    import torch

    from tests.support import framework

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small only wait for each other's threads
    yield framework
    torch.set_num_threads(threads)


def logits_in_pieces(my_gemma, ids, weights, config, sizes):
    cache, ends = my_gemma.new_cache(config, len(ids)), np.cumsum(sizes)
    return np.concatenate([my_gemma.gemma(part, weights, config, cache) for part in np.split(ids, ends[:-1])])


@pytest.mark.framework
@settings(max_examples=15)
@given(data=st.data(), config=configs("gemma2"), B=st.integers(1, 2), T=st.integers(2, 16), seed=seeds)
def test_random_models_are_those_of_the_framework(whole, framework, data, config, B, T, seed):
    ids = random_ids(config, seed, B, T)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(Path(folder) / "model", config, random_weights(config, seed).items(), None, 1e4)
        own_config, weights = whole.load(Path(folder) / "model")
    model = framework.framework_model(config, weights)
    expected = framework.framework_logits(model, ids)
    assert_close(whole.gemma(ids, weights, own_config), expected, "framework")
    sizes = data.draw(splits(T))
    assert_close(logits_in_pieces(whole, ids[0], weights, own_config, sizes), expected[0], "framework")


@pytest.mark.framework
@settings(max_examples=5)
@given(config=configs("gemma2"), T=st.integers(2, 12), seed=seeds)
def test_the_gradients_are_those_of_the_framework(whole, framework, config, T, seed):
    weights, ids, record = random_weights(config, seed), random_ids(config, seed, 2, T + 1), {}
    own_config = config_to_json(config)
    logits = whole.gemma(ids[:, :-1], weights, own_config, tape=lambda name, value: record.setdefault(name, value))
    _, dlogits = whole.cross_entropy(logits, ids[:, 1:])
    found = whole.gemma_backward(dlogits, ids[:, :-1], weights, own_config, record)
    for name, expected in framework.framework_gradients(config, weights, ids).items():
        assert_close(found[name], expected, "gradient", name)


@pytest.mark.framework
@pytest.mark.parametrize("name", ["shakespeare-1m", "shakespeare-1m-scratch", "shakespeare-4m"])
def test_the_bundled_models_are_those_of_the_framework(whole, framework, name):
    model = load_model(name)
    config, weights = whole.load(BUNDLED[name])
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], 90)
    expected = framework.framework_logits(framework.framework_model(model.config, weights), ids[None])[0]
    assert_close(whole.gemma(ids, weights, config), expected, "framework")
    assert_close(logits_in_pieces(whole, ids, weights, config, [50, 30, *[1] * 10]), expected, "framework")
