"""What turns logits into scores between 0 and 1."""

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the last axis; the largest logit is subtracted first so that none overflows."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: NDArray[np.float32] = powers / powers.sum(axis=-1, keepdims=True)
    return scores


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logistic function of each logit, through tanh, which does not overflow."""
    scores: NDArray[np.float32] = 0.5 * (1 + np.tanh(0.5 * logits))
    return scores
