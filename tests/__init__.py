"""The tests of gemma_np; the folders mirror the package. A file so that no installed `tests` can hide this folder."""
