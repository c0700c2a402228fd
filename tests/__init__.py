"""The tests of gemma_np, in folders that mirror the package; this file keeps an installed `tests` from hiding them."""
