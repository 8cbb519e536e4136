"""ELECTRA (2003.10555): BERT, pretrained to tell tokens that were replaced."""

from typing import Literal

from tljax.models.layers import BASE, LARGE
from tljax.models.text.bert import Bert


class Electra(Bert):
    """A BERT whose classifier has GELU where BERT's has tanh. The defaults are ELECTRA-small's."""

    width: int = 256
    heads: int = 4
    pool: Literal["cls", "cls_gelu", "mean", "max"] = "cls"
    embedding_width: int | None = 128

    @property
    def pools(self) -> dict[str, str]:
        return super().pools | {"pooler": "cls_gelu"}


NETWORKS: dict[str, Electra] = {
    "electra_small": Electra(),
    "electra_base": Electra(**BASE, embedding_width=None),
    "electra_large": Electra(**LARGE, embedding_width=None),
}
