"""GPT-2 and RoBERTa, the base models of the LoRA paper (Hu et al. 2021), with the parameter names of the Hugging Face files.
GPT-2 (Radford et al. 2019): decoder, LayerNorm before each sublayer, tanh GELU, output head tied to the token embedding.
RoBERTa (Liu et al. 2019): encoder, LayerNorm after each sublayer, erf GELU, classification head on <s>; and its elder sibling
BERT (Devlin et al. 2019), where only what begins with Bert differs.

Tokens meet in attention alone. So a block takes x and `attend`, the one object that knows how the tokens of a batch lie:
`Padded` here is the plain one, others are in speed/packed.py (no padding), generation/cache.py (beams) and methods/prefix.py
(trained tokens in front). Left out: losses (training/tasks.py) and generation.
Shapes: B batch, T tokens, ... is (B, T) or (N,), tokens end to end; C hidden size, H heads, D = C / H, S keys, M wanted tokens,
V vocabulary, L labels.
"""
import math
import re
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from files.model_config import BertFields, GPT2Fields, RobertaFields
from files.pretrained import find_folder, read_base, read_config
from speed.dropout import Dropout
from speed.linear import linear


class Target(NamedTuple):
    """A matrix that LoRA can adapt."""
    path: str                           # of its linear layer inside a block
    shape: tuple[int, int]              # (d_out, d_in) of that layer
    rows: slice = slice(None)           # of the layer's output that are the target's own


class GPT2Config(GPT2Fields):
    # where the blocks are and, in each, its attention and what is added to x; whether tokens see the past alone
    family, blocks, attention, sublayers, causal = "gpt2", "transformer.h", "attn", ("attn", "mlp"), True
    hidden_size, longest_input = property(lambda self: self.n_embd), property(lambda self: self.n_positions)
    num_layers, num_heads = property(lambda self: self.n_layer), property(lambda self: self.n_head)

    @cached_property
    def targets(self) -> dict[str, Target]:
        """q, k and v are thirds of the output of one fused layer; qkv is one update for all of it."""
        d, inner = self.n_embd, self.n_inner or 4 * self.n_embd
        thirds = {"q": slice(0, d), "k": slice(d, 2 * d), "v": slice(2 * d, 3 * d)}
        return {name: Target("attn.c_attn", (3 * d, d), rows) for name, rows in thirds.items()} | {
            "o": Target("attn.c_proj", (d, d)), "fc": Target("mlp.c_fc", (inner, d)), "proj": Target("mlp.c_proj", (d, inner)),
            "qkv": Target("attn.c_attn", (3 * d, d))}


class RobertaConfig(RobertaFields):
    family, blocks, attention, causal = "roberta", "roberta.encoder.layer", "attention.self", False
    sublayers = ("attention.output.dropout", "output.dropout")
    first_position = property(lambda self: self.pad_token_id + 1)
    longest_input = property(lambda self: self.max_position_embeddings - self.first_position)
    num_layers, num_heads = property(lambda self: self.num_hidden_layers), property(lambda self: self.num_attention_heads)

    @cached_property
    def targets(self) -> dict[str, Target]:
        d, inner = self.hidden_size, self.intermediate_size
        names = {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"}
        return {target: Target(f"attention.{name}", (d, d)) for target, name in names.items()} | {
            "fc": Target("intermediate.dense", (inner, d)), "proj": Target("output.dense", (d, inner))}


class BertConfig(BertFields, RobertaConfig):
    family, blocks, first_position = "bert", "bert.encoder.layer", 0


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, p: float) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V (Vaswani et al. 2017, equation 1), (B, H, T, D) over (B, H, S, D), with dropout p on the
    probabilities. mask: True where a query may look, or None; causal: without a mask, at the past alone."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])      # (B, H, T, S)
    if causal and mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return F.dropout(scores.softmax(dim=-1), p) @ value


class Padded:
    """The plain `attend`: rows of tokens (B, T), padded on the right. Every such object has `positions`, of the tokens in their
    sequences, `longest`, the tokens of the longest one, and `attention`, in whose place methods/prefix.py puts its own."""

    def __init__(self, input_ids: Tensor, attention_mask: Tensor | None = None, causal: bool = False):
        """attention_mask: (B, T), 1 at tokens, 0 at padding; None: all are tokens. Raises ValueError for a 0 before a 1."""
        if attention_mask is not None and (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
            raise ValueError("attention_mask has a 0 before a 1: expected padding on the right only")
        self.longest, self.causal, self.attention = input_ids.shape[1], causal, attention
        self.positions = torch.arange(self.longest, device=input_ids.device)[None]               # (1, T)
        unseen = causal or attention_mask is None                            # causal: no token sees what is behind it
        self.mask = None if unseen else attention_mask.bool()[:, None, None]                     # (B, 1, 1, T)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, p: float = 0.0) -> Tensor:
        """(B, T, H, D) each -> what every query gets, (B, T, H, D). p: dropout on the probabilities."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))                     # -> (B, H, T, D)
        return self.attention(query, key, value, self.mask, self.causal, p).transpose(1, 2)


def check_length(attend, config: GPT2Config | RobertaConfig) -> None:
    if attend.longest > config.longest_input:
        raise ValueError(f"{attend.longest} tokens, but the model takes {config.longest_input}: shorten the input")


# ---------------------------------------------------------------- GPT-2

class Conv1D(nn.Module):
    """A linear layer whose weight is stored as (in, out), transposed to nn.Linear's: GPT-2's files have it so."""
    stored_transposed = True

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(n_in, n_out)), nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


class GPT2Attention(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head, self.p = config.n_head, config.attn_pdrop
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)               # q, k and v side by side
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.resid_pdrop)

    def qkv(self, x: Tensor) -> list[Tensor]:
        return [part.unflatten(-1, (self.n_head, -1)) for part in self.c_attn(x).chunk(3, dim=-1)]   # 3 x (..., H, D)

    def forward(self, x: Tensor, attend) -> Tensor:
        context = attend(*self.qkv(x), self.p if self.training else 0.0)     # (..., H, D)
        return self.resid_dropout(self.c_proj(context.flatten(-2)))          # (..., H, D) -> (..., C)


class GPT2Block(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        n_inner = config.n_inner or 4 * config.n_embd
        self.mlp = nn.Sequential(OrderedDict(c_fc=Conv1D(config.n_embd, n_inner), gelu=nn.GELU("tanh"),
                                             c_proj=Conv1D(n_inner, config.n_embd), dropout=Dropout(config.resid_pdrop)))

    def forward(self, x: Tensor, attend, wanted: Tensor | slice = slice(None)) -> Tensor:
        x = (x + self.attn(self.ln_1(x), attend))[wanted]                    # the tokens meet
        return x + self.mlp(self.ln_2(x))                                    # each alone


class GPT2(nn.Module):
    """Decoder-only language model with a tied output head. What its attributes mean to the loader: files/pretrained.py."""
    config_class, causal, prefix, tied, head, of_task, renamed = GPT2Config, True, "transformer.", "lm_head", None, None, {}
    ignored = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias|lm_head\.weight")   # in files, nothing to compute with
    required = {"activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
                "reorder_and_upcast_attn": False, "add_cross_attention": False, "tie_word_embeddings": True}
    method, fingerprints, known_as, fresh = None, None, (), None    # set by what adapts it (lora.py, methods/) and loads it

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(config.vocab_size, config.n_embd), "wpe": nn.Embedding(config.n_positions, config.n_embd),
            "drop": Dropout(config.embd_pdrop), "h": nn.ModuleList(GPT2Block(config) for _ in range(config.n_layer)),
            "ln_f": nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)})

    def hidden_states(self, input_ids: Tensor, attend, wanted: Tensor | slice = slice(None)) -> Tensor:
        """After the last LayerNorm: input_ids (...,) -> (..., C), or (M, C) of the wanted tokens, which spares the last MLP the
        others. Raises ValueError for more tokens than the model has positions."""
        check_length(attend, self.config)
        x = self.transformer.drop(self.transformer.wte(input_ids) + self.transformer.wpe(attend.positions))  # (..., C)
        for block in self.transformer.h[:-1]:
            x = block(x, attend)
        return self.transformer.ln_f(self.transformer.h[-1](x, attend, wanted))

    def logits(self, hidden_states: Tensor) -> Tensor:
        return linear(hidden_states, self.transformer.wte.weight)            # (..., C) -> (..., V)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the next token; those at padding mean nothing."""
        return self.logits(self.hidden_states(input_ids, Padded(input_ids, attention_mask, causal=True)))


# ---------------------------------------------------------------- RoBERTa, and BERT

class RobertaEmbeddings(nn.Module):
    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.config, C, unused = config, config.hidden_size, config.first_position - 1 if config.first_position else None
        self.word_embeddings = nn.Embedding(config.vocab_size, C, config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, C, unused)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, C)
        self.LayerNorm, self.dropout = nn.LayerNorm(C, eps=config.layer_norm_eps), Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions + self.config.first_position)   # (..., C)
        return self.dropout(self.LayerNorm(x + self.token_types(input_ids, positions)))

    def token_types(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.token_type_embeddings.weight[0]                          # (C,): every token is of type 0


class BertEmbeddings(RobertaEmbeddings):
    def token_types(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """(..., C): what is behind the first [SEP] of a sequence, the second text of a pair, is of type 1."""
        ends = F.pad((input_ids == self.config.sep_token_id).cumsum(-1), (1, 0))[..., :-1]       # before each token of its row
        start = torch.arange(input_ids.shape[-1], device=input_ids.device) - positions           # of the token's own sequence
        types = (ends > ends.gather(-1, start.expand_as(ends))).long()
        return self.token_type_embeddings(types.clamp(max=self.config.type_vocab_size - 1))


class RobertaSelfAttention(nn.Module):
    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.n_head, self.p = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))

    def qkv(self, x: Tensor) -> list[Tensor]:
        return [part(x).unflatten(-1, (self.n_head, -1)) for part in (self.query, self.key, self.value)]    # 3 x (..., H, D)

    def forward(self, x: Tensor, attend) -> Tensor:
        return attend(*self.qkv(x), self.p if self.training else 0.0).flatten(-2)        # (..., H, D) -> (..., C)


class RobertaOutput(nn.Module):
    """The end of both sublayers: project, add what came in, normalise."""

    def __init__(self, n_in: int, config: RobertaConfig):
        super().__init__()
        self.dense = nn.Linear(n_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dropout(self.dense(x)))


class RobertaLayer(nn.Module):
    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.attention = nn.ModuleDict({"self": RobertaSelfAttention(config),
                                        "output": RobertaOutput(config.hidden_size, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = RobertaOutput(config.intermediate_size, config)

    def forward(self, x: Tensor, attend, wanted: Tensor | slice = slice(None)) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, attend), residual=x)[wanted]
        return self.output(F.gelu(self.intermediate.dense(x)), residual=x)


class BertHead(nn.Module):
    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)       # BERT's pretrained pooler
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, first: Tensor) -> Tensor:
        """Hidden states of the first tokens, (B, C) -> (B, L); L = 1 is regression (STS-B). The head stays fp32."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(first.to(self.dense.weight.dtype)))))


class RobertaHead(BertHead):
    def forward(self, first: Tensor) -> Tensor:
        return super().forward(self.dropout(first.to(self.dense.weight.dtype)))          # one dropout more


class RobertaClassifier(nn.Module):
    """RoBERTa with a classification head."""
    config_class, causal, prefix, tied, renamed = RobertaConfig, False, "roberta.", "lm_head.decoder", {}
    embeddings_class, head_class, head, of_task = RobertaEmbeddings, RobertaHead, "classifier.", "classifier."
    ignored = re.compile(r"(roberta\.)?(embeddings\.position_ids|pooler\.dense\.(weight|bias))|lm_head\..*")
    required = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False, "classifier_dropout": None}
    method, fingerprints, known_as, fresh = None, None, (), None             # as in GPT-2

    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.config = config
        layers = nn.ModuleList(RobertaLayer(config) for _ in range(config.num_hidden_layers))
        self.add_module(config.family, nn.ModuleDict({"embeddings": self.embeddings_class(config),
                                                      "encoder": nn.ModuleDict({"layer": layers})}))
        self.classifier = self.head_class(config)

    def hidden_states(self, input_ids: Tensor, attend, wanted: Tensor | slice = slice(None)) -> Tensor:
        """input_ids (...,) -> (..., C), or (M, C) of the wanted tokens alone. Raises ValueError like GPT-2's."""
        check_length(attend, self.config)
        *layers, last = self.get_submodule(self.config.blocks)
        x = self.get_submodule(self.config.family).embeddings(input_ids, attend.positions)
        for layer in layers:
            x = layer(x, attend)
        return last(x, attend, wanted)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, L), in the order of the task's labels, read off the first token, <s> or [CLS], of every row."""
        return self.classifier(self.hidden_states(input_ids, Padded(input_ids, attention_mask))[:, 0])


class BertClassifier(RobertaClassifier):
    """BERT with a classification head, which has the names of RoBERTa's; `renamed`: a layer's in BERT's files -> here."""
    config_class, prefix, tied = BertConfig, "bert.", "bert.cls.predictions.decoder"
    embeddings_class, head_class, of_task = BertEmbeddings, BertHead, "classifier.out_proj."
    renamed = {"bert.pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"}
    ignored = re.compile(r"bert\.(embeddings\.position_ids|cls\..*)")


FAMILIES = {model.config_class.family: model for model in (GPT2, RobertaClassifier, BertClassifier)}     # by model_type


def load_pretrained(name_or_directory: str | Path, num_labels: int | None = None, dropout: float | None = None,
                    seed: int = 0, classes: tuple[str, ...] | None = None) -> GPT2 | RobertaClassifier:
    """A pretrained model from a Hugging Face directory (or the name of one found locally), fp32, in eval mode.
    num_labels, or classes, their names in the order wanted: of RoBERTa's head, default config.json's; one that the file lacks
    or that does not fit starts fresh from `seed`. dropout: in place of every one of config.json. stderr gets what was loaded.
    Raises FileNotFoundError where nothing is found, ValueError for files that do not fit."""
    directory = find_folder(name_or_directory)
    kind, config = read_config(directory, FAMILIES, len(classes or ()) or num_labels, dropout)
    with torch.device("meta"):                                               # no memory until the file's tensors are there
        model = FAMILIES[kind](config)
    model.load_state_dict(read_base(directory, model, seed, classes or num_labels), strict=True, assign=True)
    return model.eval()
