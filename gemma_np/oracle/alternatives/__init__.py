"""Wrong ways to compute each record: what an implementation may do instead, operation by operation.

To add one, write a function that yields it, in the file of its operation:

    @alternatives("layers.*.mlp.hidden")
    def only_the_gate(operation: Operation) -> Iterator[Alternative]:
        '''Yield the product without the other factor.'''
        yield Alternative("gelu(gate) is not multiplied by up", lambda op: gelu(op["mlp.gate"]))

It is a wrong way to compute a record from earlier ones, so that it can be tried on the inputs in a dump, and planted in
the reference by a tape. An alternative with a number in it is a `Family`; the number is found by a search.
"""

from gemma_np.oracle.alternatives import (
    any_record,
    attention,
    embedding,
    feed_forward,
    norms,
    probs,
    projections,
    residual,
    rope,
)
from gemma_np.oracle.alternatives.alternative import (
    ANY,
    Alternative,
    Family,
    after_first_pass,
    alternatives,
    candidates,
    candidates_of_kind,
    likely_members,
)

__all__ = ["ANY", "Alternative", "Family", "after_first_pass", "alternatives", "candidates", "candidates_of_kind"]
__all__ += ["any_record", "attention", "embedding", "feed_forward", "likely_members", "norms", "probs", "projections"]
__all__ += ["residual", "rope"]
