"""The diagrams of the tutorials, one function each. Every arrow has the shape of the array that it carries.

Letters as in the glossary: B texts, T tokens, S keys, D hidden size, H query heads, K key-value heads, h head
dimension, F feed-forward size, V vocabulary.

The README shows one of them, which is written in tutorials/ by

    python -c "from support import diagrams; open('figures/architecture.svg', 'w').write(diagrams.architecture().svg)"
"""

from collections.abc import Sequence
from math import cos, radians, sin

from support.drawing import Drawing

WIDTH = 700


def architecture() -> Drawing:
    """Draw the whole model: its parts, one block, and attention, each with the file that computes it."""
    picture = Drawing(
        "The architecture of Gemma 2",
        "Three columns: the model from token ids to the next token; one block; and attention. Each box names the file "
        "that computes it, each arrow the shape that it carries.",
        WIDTH,
        640,
    )
    for x, title, file in (
        (128, "the model", "model/transformer.py"),
        (344, "one block", "model/block.py"),
        (578, "attention", "model/attention.py"),
    ):
        picture.text(x, 24, title, size=15, bold=True)
        picture.text(x, 42, f"`{file}`")

    picture.line((216, 220), (248, 58), dashed=True)
    picture.line((216, 290), (248, 616), dashed=True)
    picture.line((418, 164), (466, 58), dashed=True)
    picture.line((418, 204), (466, 616), dashed=True)
    picture.frame(248, 52, 192, 570)
    picture.frame(466, 52, 224, 570)

    model = (
        (60, 44, "neutral", "token ids", "`text/tokenizer.py`", "[T]"),
        (140, 44, "embedding", "look up, times √D", "`model/embedding.py`", "[T, D]"),
        (220, 70, "attention", "block, L times", "`model/block.py`", "[T, D]"),
        (326, 44, "norm", "RMSNorm", "`model/rms_norm.py`", "[T, D]"),
        (406, 44, "embedding", "tied head: x · Eᵀ", "`model/embedding.py`", "[T, V]"),
        (486, 44, "cap", "soft cap 30", "`model/soft_cap.py`", "[T, V]"),
        (566, 44, "neutral", "sample the next token", "`text/sampling.py`", ""),
    )
    for y, height, role, name, file, shape in model:
        picture.box(40, y, 176, height, role, name, file)
        if shape:
            picture.arrow((128, y + height), (128, y + height + 36), shape=shape)
    picture.arrow((40, 588), (18, 588), (18, 82), (40, 82))
    picture.text(128, 630, "`again: text/generation.py`")

    picture.arrow((354, 60), (354, 96), shape="[T, D]")
    halves = (
        (96, "norm", "RMSNorm", "`rms_norm.py`"),
        (164, "attention", "attention", "`attention.py`"),
        (232, "norm", "RMSNorm", "`rms_norm.py`"),
        (352, "norm", "RMSNorm", "`rms_norm.py`"),
        (420, "feed-forward", "GeGLU", "`feed_forward.py`"),
        (488, "norm", "RMSNorm", "`rms_norm.py`"),
    )
    for y, role, name, file in halves:
        picture.box(290, y, 128, 40, role, name, file)
        end = y + 68 if y not in (232, 488) else y + 56
        picture.arrow((354, y + 40), (354, end), shape="[T, D]" if end - y > 56 else "")
    for y, start in ((300, 72), (556, 328)):
        picture.arrow((354, start), (268, start), (268, y), (342, y))
        picture.circle(354, y, 12, "page", "+")
    picture.arrow((354, 312), (354, 352))
    picture.arrow((354, 568), (354, 612), shape="[T, D]")

    parts = (
        ("attention", "project to q, k, v", "`weights/linear.py`", "q [H, T, h]"),
        ("attention", "rotate q and k", "`rope.py`", "k [K, T, h]"),
        ("neutral", "KV cache; local: a ring", "`kv_cache.py`", "k [K, S, h]"),
        ("attention", "q · k / √scale, by group", "`grouped_matmul`", "[H, T, S]"),
        ("cap", "soft cap 50", "`soft_cap.py`", "[H, T, S]"),
        ("norm", "mask: causal; local: window", "`attention_mask.py`", "[H, T, S]"),
        ("norm", "softmax", "`attention_mask.py`", "[H, T, S]"),
        ("attention", "weighted sum of v, project", "`attention.py`", ""),
    )
    for number, (role, name, file, shape) in enumerate(parts):
        y = 64 + 70 * number
        picture.box(478, y, 200, 42, role, name, file)
        if shape:
            picture.arrow((578, y + 42), (578, y + 70), shape=shape)
    return picture


def block() -> Drawing:
    """Draw the block: the residual stream, and two halves that add to it, each between two norms."""
    picture = Drawing(
        "A block and its four norms",
        "The residual stream runs from x down to resid_post. Attention, between norms 1 and 2, reads from it and adds "
        "to it; then feed-forward, between norms 3 and 4. Everything outside the halves is [T, D].",
        WIDTH,
        344,
    )
    picture.line((104, 16), (104, 124), kind="stream", wide=3)
    picture.line((104, 148), (104, 264), kind="stream", wide=3)
    picture.arrow((104, 288), (104, 332), kind="stream", wide=3)
    for y, name in ((28, "x"), (140, "resid_mid"), (280, "resid_post")):
        picture.text(82, y, f"`{name}`", anchor="end")
        picture.text(82, y + 16, "`[T, D]`", anchor="end")
    halves = (
        (62, "1", "`input`", "attention", "`self_attn`", "inside: [H, T, h]", "2", "`post_attention`"),
        (202, "3", "`pre_feedforward`", "feed-forward", "`mlp`", "inside: [T, F]", "4", "`post_feedforward`"),
    )
    for y, first, before, half, name, inside, second, after in halves:
        picture.arrow((104, y), (160, y), shape="[T, D]")
        picture.box(160, y - 32, 128, 64, "norm", f"norm {first}", before, "`_layernorm`")
        picture.arrow((288, y), (344, y), shape="[T, D]")
        picture.box(344, y - 32, 128, 64, half, half, name, inside)
        picture.arrow((472, y), (528, y), shape="[T, D]")
        picture.box(528, y - 32, 128, 64, "norm", f"norm {second}", after, "`_layernorm`")
        picture.arrow((656, y), (680, y), (680, y + 74), (117, y + 74), shape="[T, D]", at=(400, y + 68))
        picture.circle(104, y + 74, 12, "page", "+")
    return picture


def block_backward() -> Drawing:
    """Draw the gradients' way through the block, in the places of `block` and in the other direction."""
    picture = Drawing(
        "The gradients' way back through the block",
        "The gradient dy comes from below. Where the forward pass added, it goes both ways unchanged: up the stream, "
        "and through a half backwards. Where the half had read from the stream, the two are added.",
        WIDTH,
        344,
    )
    picture.arrow((104, 332), (104, 216), kind="gradient", wide=2)
    picture.arrow((104, 190), (104, 76), kind="gradient", wide=2)
    picture.arrow((104, 50), (104, 14), kind="gradient", wide=2)
    for y, name in ((28, "dx"), (164, "dmid"), (306, "dy")):
        picture.text(82, y, f"`{name}`", anchor="end")
        picture.text(82, y + 16, "`[T, D]`", anchor="end")
    halves = (
        (62, "1", "`z: x`", "attention", "keeps 4 dW", "2", "`z: self_attn.o`", "dz = dmid [T, D]"),
        (202, "3", "`z: resid_mid`", "feed-forward", "keeps 3 dW", "4", "`z: mlp.down`", "dz = dy [T, D]"),
    )
    for y, first, before, half, kept, second, after, copied in halves:
        way = ((104, y + 74), (680, y + 74), (680, y), (656, y))
        picture.arrow(*way, shape=copied, at=(400, y + 68), kind="gradient")
        picture.box(528, y - 32, 128, 64, "norm", f"norm {second} backwards", after, "keeps dw [D]")
        picture.arrow((528, y), (472, y), shape="[T, D]", kind="gradient")
        picture.box(344, y - 32, 128, 64, half, half, "backwards", kept)
        picture.arrow((344, y), (288, y), shape="[T, D]", kind="gradient")
        picture.box(160, y - 32, 128, 64, "norm", f"norm {first} backwards", before, "keeps dw [D]")
        picture.arrow((160, y), (117, y), shape="[T, D]", at=(136, y - 6), kind="gradient")
        picture.circle(104, y, 12, "page", "+")
    return picture


def gqa() -> Drawing:
    """Draw grouped-query attention with H = 4 query heads and K = 2 key-value heads."""
    picture = Drawing(
        "Grouped-query attention: H = 4 query heads, K = 2 key-value heads",
        "Each query head keeps its own column from top to bottom. The keys and values of a key-value head span the "
        "columns of the G = 2 query heads of its group: query head i reads key-value head i // G.",
        WIDTH,
        560,
    )
    lanes = [236 + 54 + 108 * head for head in range(4)]
    groups = ("attention", "feed-forward")
    picture.box(14, 16, 90, 34, "neutral", "`x [T, D]`")
    picture.line((44, 50), (44, 390))
    for y, name, shape in ((90, "q", "[H, T, h]"), (190, "k", "[K, S, h]"), (390, "v", "[K, S, h]")):
        picture.arrow((44, y), (70, y))
        picture.box(70, y - 18, 78, 36, "neutral", f"`{name}_proj`")
        picture.arrow((148, y), (236, y), shape=shape)
        if name != "v":
            picture.text(192, y + 18, "`rope`")

    picture.cells(236, 70, 108, 40, [groups[0]] * 2 + [groups[1]] * 2, [f"`q[{head}]`" for head in range(4)])
    for y, name in ((170, "k"), (370, "v")):
        picture.cells(236, y, 216, 40, groups, [f"{name}[0], for heads 0 and 1", f"{name}[1], for heads 2 and 3"])
    for head, x in enumerate(lanes):
        picture.arrow((x, 110), (x, 170), shape="[T, h]")
        picture.arrow((x, 210), (x, 268), shape="[T, S]")
        picture.box(x - 44, 268, 88, 44, groups[head // 2], "cap, mask,", "softmax")
        picture.arrow((x, 312), (x, 370), shape="[T, S]")
        picture.arrow((x, 410), (x, 470), shape="[T, h]")
    picture.box(236, 470, 432, 38, "neutral", "merge_heads: the heads side by side")
    picture.arrow((236, 489), (148, 489), shape="[T, H*h]")
    picture.box(70, 471, 78, 36, "neutral", "`o_proj`")
    picture.arrow((109, 507), (109, 548), shape="[T, D]")
    return picture


def reach() -> Drawing:
    """Draw what the last of eight tokens can have seen, through three layers with a window of 3."""
    picture = Drawing(
        "What the last token has seen after three layers",
        "Left: three local layers with a window of 3 reach 2 tokens further each, 7 of 8 in all. Right: the same, but "
        "the second layer is global, and the last token has seen all 8.",
        WIDTH,
        336,
    )
    rows = [78 + 68 * row for row in range(4)]
    for row, y in enumerate(rows):
        picture.text(12, y + 4, "`[T, D]`" if row else "`x [T, D]`", anchor="start")
    for left, title, windows in ((128, "all layers local", (3, 3, 3)), (446, "layer 1 global", (3, None, 3))):
        picture.text(left + 115, 30, title, size=15, bold=True)
        place = [left + 33 * token for token in range(8)]
        seen = _seen(windows, last=7)
        for row, y in enumerate(rows):
            for token, x in enumerate(place):
                picture.circle(x, y, 11, "attention" if token in seen[row] else "neutral")
                if row == 0:
                    picture.text(x, y + 4, str(token), size=11)
        for layer, window in enumerate(windows):
            above, below = rows[layer] + 11, rows[layer + 1] - 11
            for token in sorted(seen[layer + 1]):
                for key in _in_sight(token, window):
                    picture.line((place[key], above), (place[token], below), kind="stream")
            says = "local" if window else "global"
            picture.text(left - 24, above + 27, f"layer {layer}: {says}" if left == 128 else says, anchor="end")
        picture.text(left + 115, 320, f"token 7 has seen {len(seen[0])} of 8")
    return picture


def _in_sight(token: int, window: int | None) -> range:
    """Return the tokens that a token sees in one layer."""
    return range(max(0, token + 1 - window) if window else 0, token + 1)


def _seen(windows: Sequence[int | None], last: int) -> list[set[int]]:
    """Return, before the first layer and after each, the tokens whose vectors reach the last token's final one."""
    seen = [{last}]
    for window in reversed(windows):
        seen.insert(0, {key for token in seen[0] for key in _in_sight(token, window)})
    return seen


def ring() -> Drawing:
    """Draw a ring of three slots as it wraps, and what two tokens at once attend to."""
    picture = Drawing(
        "A ring of three slots as it wraps",
        "Position p goes to slot p % 3: token 3 replaces 0, token 4 replaces 1. Tokens 5 and 6 together attend to the "
        "old slots in the order of their positions, 2 3 4, followed by the new keys, 5 6. Then they replace 2 and 3.",
        WIDTH,
        404,
    )
    states = (
        ("tokens 0, 1, 2", (0, 1, 2), (), ""),
        ("token 3", (3, 1, 2), (0,), "3 % 3 = 0"),
        ("token 4", (3, 4, 2), (1,), "4 % 3 = 1"),
        ("tokens 5 and 6", (6, 4, 5), (2, 0), "5 % 3 = 2, 6 % 3 = 0"),
    )
    y, outer, inner = 112, 48, 22
    for number, (title, held, new, slot) in enumerate(states):
        x = 94 + 170 * number
        picture.text(x, 34, title, bold=True)
        for index, position in enumerate(held):
            picture.shape(_sector(x, y, inner, outer, index), "attention" if index in new else "norm")
            middle = radians(120 * index - 30)
            picture.text(x + 35 * cos(middle), y + 35 * sin(middle) + 5, str(position))
        if number:
            picture.text(x, y + 74, slot, size=12)
            arriving = "[K, 1, h]" if len(new) == 1 else "[K, 2, h]"
            picture.arrow((x - 120, y), (x - 52, y), shape=arriving)
    picture.text(144, 74, "slot 0", size=12, anchor="start")
    picture.text(94, 178, "slot 1", size=12)
    picture.text(44, 74, "slot 2", size=12, anchor="end")

    picture.text(WIDTH / 2, 228, "What tokens 5 and 6 attend to, before they are stored", bold=True)
    left, width = 236, 56
    picture.text(left - 14, 268, "`keys [K, S, h]`", anchor="end")
    picture.cells(left, 248, width, 30, ["norm"] * 3 + ["attention"] * 2, ["2", "3", "4", "5", "6"])
    picture.text(left + 1.5 * width, 296, "the slots, in order", size=12)
    picture.text(left + 4 * width, 296, "the new keys", size=12)
    picture.text(left - 14, 346, "`mask [T, S]`", anchor="end")
    for row, (token, seen) in enumerate(((5, (3, 4, 5)), (6, (4, 5, 6)))):
        top = 312 + 34 * row
        roles = ["feed-forward" if key in seen else "page" for key in range(2, 7)]
        picture.cells(left, top, width, 28, roles, ["1" if key in seen else "0" for key in range(2, 7)])
        picture.text(left + 5 * width + 14, top + 18, f"token {token} sees {', '.join(map(str, seen))}", anchor="start")
    return picture


def _sector(x: float, y: float, inner: float, outer: float, index: int) -> str:
    """Return the path of one third of a ring; third 0 begins at the top."""
    first, last = radians(120 * index - 90), radians(120 * index + 30)
    corners = [(radius, angle) for radius, angle in ((inner, first), (outer, first), (outer, last), (inner, last))]
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = ((x + r * cos(a), y + r * sin(a)) for r, a in corners)
    there, back = f"A{outer} {outer} 0 0 1 {cx:.1f} {cy:.1f}", f"A{inner} {inner} 0 0 0 {ax:.1f} {ay:.1f}"
    return f"M{ax:.1f} {ay:.1f}L{bx:.1f} {by:.1f}{there}L{dx:.1f} {dy:.1f}{back}Z"


def tied_gradients() -> Drawing:
    """Draw the two gradients of the embedding matrix, from the head and from the lookup."""
    picture = Drawing(
        "The two gradients of the tied matrix",
        "From the head, dlogits.T @ norm: every row gets a gradient. From the lookup, dx times the square root of D is "
        "added to the rows of the ids: token 1 occurs twice and gets two of them. Both are added.",
        WIDTH,
        414,
    )
    head, lookup = "`dlogits.T @ norm`", "`np.add.at(…, ids, dx * √D)`"
    sides = (
        (175, ("dlogits", "[T, V]"), ("norm", "[T, D]"), "the head: undone first", head, range(5)),
        (525, ("dx", "[T, D]"), ("ids: 1 4 1", "[T]"), "the lookup: undone last", lookup, (1, 4)),
    )
    for x, first, second, title, code, rows in sides:
        for place, (name, shape) in ((x - 60, first), (x + 60, second)):
            picture.box(place - 50, 16, 100, 34, "neutral", f"`{name}`")
            picture.arrow((place, 50), (place, 92), shape=shape, kind="gradient" if name[0] == "d" else "line")
        picture.box(x - 115, 92, 230, 46, "embedding", title, code)
        picture.arrow((x, 138), (x, 176), shape="[V, D]", kind="gradient")
        for row in range(5):
            picture.cells(x - 60, 176 + 22 * row, 30, 22, ["cap" if row in rows else "page"] * 4, [""] * 4)
        picture.arrow((x, 286), (x, 322), (350 + (13 if x > 350 else -13), 322), kind="gradient")
        picture.text((x + 350) / 2, 315, "`[V, D]`")
    picture.text(246, 228, "every row:", anchor="start")
    picture.text(246, 246, "each token had", anchor="start")
    picture.text(246, 264, "a probability", anchor="start")
    picture.text(596, 214, "token 1: twice", anchor="start")
    picture.text(596, 280, "token 4: once", anchor="start")
    picture.circle(350, 322, 12, "page", "+")
    picture.arrow((350, 334), (350, 368), shape="[V, D]", kind="gradient")
    picture.box(190, 368, 320, 34, "embedding", '`gradients["model.embed_tokens.weight"]`')
    return picture


def distillation() -> Drawing:
    """Draw teacher and student: the same text, two distributions, one loss, and a gradient for the student alone."""
    picture = Drawing(
        "Teacher and student",
        "Both read the same ids. The loss compares their distributions over all V tokens at each position. Its "
        "gradient P_S - P_T goes back to the student; the teacher does not change.",
        WIDTH,
        356,
    )
    picture.box(14, 142, 68, 36, "neutral", "`ids`")
    for y, name, says, probs, shares in (
        (82, "teacher", "does not change", "P_T", (0.12, 0.44, 0.24, 0.14, 0.06)),
        (238, "student", "learns", "P_S", (0.32, 0.2, 0.18, 0.18, 0.12)),
    ):
        picture.arrow((48, 142 if y < 160 else 178), (48, y), (146, y), shape="[B, T]", at=(98, y - 6))
        picture.box(146, y - 32, 118, 64, "attention" if name == "teacher" else "feed-forward", name, says)
        picture.arrow((264, y), (354, y), shape="[B, T, V]")
        picture.text(309, y + 18, "softmax", size=12)
        picture.box(354, y - 50, 116, 100, "page")
        picture.text(412, y - 33, f"`{probs}`")
        for token, share in enumerate(shares):
            role = "attention" if name == "teacher" else "feed-forward"
            picture.shape(f"M{368 + 18 * token} {y + 40}v{-130 * share:.0f}h16v{130 * share:.0f}z", role)
        picture.arrow((470, y), (608, y), (608, 132 if y < 160 else 188), shape="[B, T, V]")
    picture.box(534, 132, 148, 56, "cap", "loss [B, T]", "\N{MINUS SIGN}Σ P_T log P_S")
    picture.arrow((660, 188), (660, 322), (205, 322), (205, 270), kind="gradient")
    picture.text(432, 315, "`dlogits = P_S - P_T  [B, T, V]`")
    return picture


def quantized_row() -> Drawing:
    """Draw a row of eight weights in int4, with groups of four."""
    weights = ((0.10, -0.35, 0.21, 0.07), (1.40, 0.20, -0.60, 0.40))
    scales = [max(map(abs, group)) / 7 for group in weights]
    integers = [[round(weight / scale) for weight in group] for group, scale in zip(weights, scales, strict=True)]
    picture = Drawing(
        "A row in int4: groups of integers with a scale each",
        "Eight weights in two groups of four. The largest of a group, divided by 7, is its scale; every weight is "
        "rounded to a multiple of it. Two integers, with 8 added, share a byte.",
        WIDTH,
        404,
    )
    roles = ["attention"] * 4 + ["feed-forward"] * 4
    left, width, middle = 118, 70, 398
    for group in (0, 1):
        picture.text(left + 140 + 280 * group, 28, f"group {group}", bold=True)

    def row(y: float, name: str, shape: str, texts: list[str], each: float = width) -> None:
        picture.text(left - 12, y + 12, f"`{name}`", anchor="end")
        picture.text(left - 12, y + 28, f"`{shape}`", anchor="end")
        picture.cells(left, y, each, 32, roles[:: len(roles) // len(texts)], [_minus(text) for text in texts])

    def step(y: float, says: str) -> None:
        picture.arrow((middle, y), (middle, y + 36))
        picture.text(middle + 10, y + 22, says, anchor="start")

    row(40, "W", "[out, in]", [f"{weight:.2f}" for group in weights for weight in group])
    step(74, "the largest of the group becomes 7")
    sums = [f"s = {7 * scale:.2f} / 7 = {scale:.2f}" for scale in scales]
    row(112, "scales", "[out, groups]", sums, each=4 * width)
    step(146, "q = round(W / s)")
    row(184, "q", "[out, in]", [str(number) for group in integers for number in group])
    step(218, "what the model computes with: s * q")
    rounded = [f"{scale * q:.2f}" for group, scale in zip(integers, scales, strict=True) for q in group]
    row(256, "s * q", "[out, in]", rounded)

    stored = [number + 8 for group in integers for number in group]
    picture.text(left - 12, 348, "`packed`", anchor="end")
    picture.text(left - 12, 364, "`[out, in/2]`", anchor="end")
    pairs = [f"{low} and {high}" for low, high in zip(stored[:4], stored[4:], strict=True)]
    picture.cells(left, 336, 2 * width, 32, ["neutral"] * 4, pairs)
    picture.text(middle, 320, "what is stored: the scales, and q + 8, two to a byte", bold=True)
    picture.text(middle, 390, "byte i has q[i] + 8 in its lower four bits, q[i + in/2] + 8 in its upper ones", size=12)
    return picture


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def q4_k_block() -> Drawing:
    """Draw the 144 bytes of a Q4_K block, and what each of its eight groups takes from them."""
    picture = Drawing(
        "A Q4_K block: 256 weights in 144 bytes",
        "Two 16-bit numbers d and m for the whole block, a scale a and a minimum b of 6 bits for each of 8 groups, and "
        "32 numbers q of 4 bits for each group. A weight is d * a * q - m * b.",
        WIDTH,
        356,
    )
    left, width = 70, 77
    groups = range(8)
    tinted = ["norm", "neutral"] * 4
    for group in groups:
        picture.text(left + width * (group + 0.5), 26, f"group {group}", size=12)
    picture.text(left - 10, 56, "`[8]`", anchor="end")
    picture.cells(left, 36, width, 32, tinted, [f"`a[{group}] b[{group}]`" for group in groups])
    picture.arrow((232, 130), (232, 70))
    picture.text(242, 104, "16 numbers of 6 bits, 0 to 63", anchor="start")

    parts = ((58, "attention", "d"), (58, "cap", "m"), (116, "norm", "a, b"), (384, "feed-forward", "q"))
    x: float = left
    for (wide, role, name), bytes_ in zip(parts, (2, 2, 12, 128), strict=True):
        picture.box(x, 130, wide, 34, role, f"`{name}`")
        picture.text(x + wide / 2, 180, f"{bytes_} bytes", size=12)
        x += wide
    picture.arrow((474, 190), (474, 230))
    picture.text(484, 214, "256 numbers of 4 bits, 0 to 15", anchor="start")

    picture.text(left - 10, 252, "`[8, 32]`", anchor="end")
    picture.cells(left, 232, width, 32, tinted, [f"`q[{group}]`" for group in groups])
    picture.box(238, 288, 280, 48, "page", "the 32 weights of group j", "`d * a[j] * q[j] - m * b[j]`")
    return picture
