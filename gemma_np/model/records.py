"""The table of every intermediate that passes the tape: name, shape, meaning.

The output of a projection is named after its weight: `q` for `q_proj`, `down` for `down_proj`.
`tests/model/test_records.py` compares the table with the code.
"""

from typing import NamedTuple

from gemma_np.config import GemmaConfig


class RecordInfo(NamedTuple):
    """One row. `layers.*` stands for every layer; `needs` names the config property that turns the record on."""

    name: str
    letters: str
    meaning: str
    needs: str = ""


RECORDS = (
    RecordInfo("embedding", "T D", "rows of the embedding matrix, times sqrt(D)"),
    RecordInfo("layers.*.input_layernorm", "T D", "residual stream, normalized: the input of attention"),
    RecordInfo("layers.*.self_attn.q", "H T h", "queries of each head"),
    RecordInfo("layers.*.self_attn.k", "K T h", "keys of the new tokens"),
    RecordInfo("layers.*.self_attn.v", "K T h", "values of the new tokens"),
    RecordInfo("layers.*.self_attn.q_norm", "H T h", "queries after RMSNorm", "has_qk_norm"),
    RecordInfo("layers.*.self_attn.k_norm", "K T h", "keys after RMSNorm", "has_qk_norm"),
    RecordInfo("layers.*.self_attn.q_rope", "H T h", "queries, rotated by their positions"),
    RecordInfo("layers.*.self_attn.k_rope", "K T h", "keys, rotated by their positions"),
    RecordInfo("layers.*.self_attn.scores", "H T S", "q . k / sqrt(query_pre_attn_scalar), before cap and mask"),
    RecordInfo("layers.*.self_attn.scores_capped", "H T S", "scores after the soft cap", "attn_logit_softcapping"),
    RecordInfo("layers.*.self_attn.probs", "H T S", "softmax over the visible keys; zero elsewhere"),
    RecordInfo(
        "layers.*.self_attn.context",
        "T H*h",
        "context vectors: values weighted by the probabilities, heads side by side",
    ),
    RecordInfo("layers.*.self_attn.o", "T D", "output of attention (o_proj)"),
    RecordInfo("layers.*.post_attention_layernorm", "T D", "output of attention, normalized", "has_post_norms"),
    RecordInfo("layers.*.resid_mid", "T D", "residual stream after attention"),
    RecordInfo(
        "layers.*.pre_feedforward_layernorm", "T D", "residual stream, normalized: the input of the feed-forward"
    ),
    RecordInfo("layers.*.mlp.gate", "T F", "gate before GELU"),
    RecordInfo("layers.*.mlp.up", "T F", "values that the gate scales"),
    RecordInfo("layers.*.mlp.hidden", "T F", "gelu(gate) * up"),
    RecordInfo("layers.*.mlp.down", "T D", "output of the feed-forward (down_proj)"),
    RecordInfo(
        "layers.*.post_feedforward_layernorm", "T D", "output of the feed-forward, normalized", "has_post_norms"
    ),
    RecordInfo("layers.*.resid_post", "T D", "residual stream after the layer"),
    RecordInfo("norm", "T D", "residual stream after the final norm"),
    RecordInfo("logits", "T V", "scores of every possible next token"),
    RecordInfo("logits_capped", "T V", "logits after the soft cap", "final_logit_softcapping"),
)


def record_shapes(config: GemmaConfig, T: int, S: int | None = None) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every record of one pass, in the order of execution, without batch axes.

    T new tokens attend to S keys (default T, as without a cache; with one, S may differ between layers).
    """
    H, h = config.num_attention_heads, config.head_dim
    size = {"T": T, "S": T if S is None else S, "D": config.hidden_size, "F": config.intermediate_size}
    size |= {"H": H, "K": config.num_key_value_heads, "h": h, "H*h": H * h, "V": config.vocab_size}
    shapes = {}
    for name, row in _in_order(config.num_hidden_layers):
        if not row.needs or getattr(config, row.needs):
            shapes[name] = tuple(size[letter] for letter in row.letters.split())
    return shapes


def _in_order(layers: int) -> list[tuple[str, RecordInfo]]:
    """Return each row with its full name; the rows of a layer are repeated for every layer."""
    in_layer = [row for row in RECORDS if "*" in row.name]
    before, after = RECORDS[: RECORDS.index(in_layer[0])], RECORDS[RECORDS.index(in_layer[-1]) + 1 :]
    repeated = [(row.name.replace("*", str(layer)), row) for layer in range(layers) for row in in_layer]
    return [(row.name, row) for row in before] + repeated + [(row.name, row) for row in after]
