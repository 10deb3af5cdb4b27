"""Multi-modal causal attention: a softmax for each modality."""

from __future__ import annotations

import dataclasses

import jax

from positionbias.arrays import Mapped
from positionbias.operators.base import ScoreOperator, SiteFunction, over_heads
from positionbias.operators.softmax import masked_softmax
from positionbias.positions.base import Parameters
from positionbias.spec import member, require
from positionbias.tokens import Tokens


@member("operators", "multimodal_softmax")
@dataclasses.dataclass(frozen=True)
class MultimodalSoftmax(ScoreOperator):
    """A softmax over tokens of role `image` and one over the others, added (MMCA, DeepSpeed-VisualChat).

    Yao et al. 2023 (arXiv 2309.14327): a token of role `image` sees itself alone; any other, of what the mask lets it
    see, the image by one softmax and the text by another, so that text keeps half of the weight however many image
    tokens there are. No mask says that: which keys share a sum is not who may see whom. Where one of the two has
    nothing to see it adds nothing (the paper's code then has ties of the smallest number).
    """

    known_as = ("mmca",)

    image: int
    scaled: bool = True

    reads_tokens = frozenset({"role"})
    roles = ("image",)

    def __post_init__(self) -> None:
        require(self.image >= 0, "image", self.image, "a role, a whole number from 0")

    def told_weights(
        self,
        scores: jax.Array,
        allowed: Mapped,
        q: jax.Array,
        tokens_q: Tokens,
        tokens_k: Tokens,
        params: Parameters,
        site: SiteFunction,
    ) -> jax.Array:
        of_image = over_heads(tokens_k.columns().role == self.image)
        seen = allowed & over_heads(self._may_see(tokens_q, tokens_k))
        return masked_softmax(scores, seen & of_image) + masked_softmax(scores, seen & ~of_image)

    def visible(self, tokens_q: Tokens, tokens_k: Tokens, allowed: Mapped) -> Mapped:
        return allowed & self._may_see(tokens_q, tokens_k)

    def _may_see(self, tokens_q: Tokens, tokens_k: Tokens) -> Mapped:
        rows, columns = tokens_q.rows(), tokens_k.columns()
        return (rows.role != self.image) | (rows.index == columns.index)
