"""config.json's fields, as far as the models of model.py compute with them, with the values that a file may leave out.

The names are the file's, the defaults those of the family in transformers: that is what a file without a field means. Left out:
what a model says of itself beside them, such as where its q and v are (model.py), and how a file is read (pretrained.py).
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class GPT2Fields:
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None          # None: 4 * n_embd
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.02


@dataclass(frozen=True)
class RobertaFields:
    vocab_size: int = 50265
    max_position_embeddings: int = 514  # two more than the longest input: positions start at pad_token_id + 1
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    type_vocab_size: int = 1
    pad_token_id: int = 1
    layer_norm_eps: float = 1e-5
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    num_labels: int = 2


@dataclass(frozen=True)
class BertFields(RobertaFields):
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    sep_token_id: int = 102             # the first one in an input ends its first text; Google's vocabularies have it here
    layer_norm_eps: float = 1e-12
