"""How far a change moves the training, in one number that orders changes of tier `different training` among each other.

The order: states in 8 bits, numbers in 16 bits; the base in 8 or 4 bits; a lower rank; fewer sequences a step; shorter
sequences; adapters instead of every parameter. What comes in steps of two counts once a halving, so that one drastic step
weighs more than several mild changes. It orders; a number by itself means nothing, and nothing is predicted about a loss.

Sources of the order: Dettmers et al., arXiv 2110.02861 (8-bit states train as 32-bit ones do); Dettmers et al., arXiv
2305.14314 (4-bit bases with adapters match 16-bit ones; the rank matters little once every linear layer has one); Biderman et
al., arXiv 2405.09673 (LoRA learns less than training every parameter). A text that is cut is lost to every one of them.
"""

from __future__ import annotations

from math import ceil, log2

# Of a change that leaves the training as it is.
NONE = 0
EIGHT_BIT_STATES = 1
SIXTEEN_BITS = 1
WITHOUT_DROPOUT = 1
NESTED_QUANTIZATION = 1
SIXTEEN_BIT_WEIGHTS = 2
EIGHT_BIT_BASE = 2
FOUR_BIT_BASE = 3
ANOTHER_OPTIMIZER = 3
LOWER_RANK = 4
FEWER_SEQUENCES = 4
SHORTER_SEQUENCES = 5
ADAPTERS_INSTEAD = 8


def halvings(before: int, after: int) -> int:
    """How many times `before` is halved down to `after`, at least once; a step that is not quite one counts whole."""
    return max(ceil(log2(before / after)), 1)
