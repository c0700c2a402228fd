"""Damaged files."""


def flip_last_bit(path):
    """Flip the last bit of a file; return what the file was before."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    return whole
