"""Solutions of tutorial 1."""


def merge(text: str, ids: dict[str, int]) -> list[int]:
    pieces = list(text)
    while True:
        candidates = [
            (ids[pieces[n] + pieces[n + 1]], n) for n in range(len(pieces) - 1) if pieces[n] + pieces[n + 1] in ids
        ]
        if not candidates:
            return [ids[piece] for piece in pieces]
        _, n = min(candidates)
        pieces[n : n + 2] = [pieces[n] + pieces[n + 1]]


def to_text(pieces: list[str]) -> str:
    found = b""
    for piece in pieces:
        if piece.startswith("<0x"):
            found += bytes([int(piece[3:5], 16)])
        elif piece not in ("<bos>", "<eos>"):
            found += piece.replace("▁", " ").encode()
    return found.decode()
