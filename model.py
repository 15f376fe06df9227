"""GPT-2 and RoBERTa, written out, with the parameter names of the Hugging Face files.

The two base models of the LoRA paper (Hu et al. 2021, sections 5.2 and 5.4). GPT-2 (Radford et al. 2019): decoder,
LayerNorm before each sublayer, tanh GELU, output head tied to the token embedding. RoBERTa (Liu et al. 2019): encoder,
LayerNorm after each sublayer, erf GELU, positions counted from padding_idx + 1, classification head on <s>.

Because module names equal the names in the files, loading is one strict `load_state_dict` after the short table
`IGNORED` below.

Left out: training losses (tasks.py, fused.py), generation (beam_search.py), left padding, and the options of newer checkpoints.
Shapes: B batch, T tokens, C hidden size, H heads, D = C / H, V vocabulary, S cached positions, L labels.
"""
import math
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from files.published import find_model
from files.text import read_json
from files.weights import FLOATS, check_finite, read_weights
from fused import Dropout, Packing, attention, gelu_tanh, linear, merge_heads, per_group, rows_of, split_heads, take
from kv_cache import KVCache


@dataclass(frozen=True)
class GPT2Config:
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
class RobertaConfig:
    vocab_size: int = 50265
    max_position_embeddings: int = 514          # two more than the longest input: positions start at pad_token_id + 1
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

    @property
    def longest_input(self) -> int:
        """In tokens."""
        return self.max_position_embeddings - self.pad_token_id - 1


# ---------------------------------------------------------------- GPT-2

class Conv1D(nn.Module):
    """A linear layer whose weight is stored as (in, out), transposed to nn.Linear's: GPT-2's files have it so."""
    stored_transposed = True

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


def embedding(count: int, width: int, padding_idx: int | None = None) -> nn.Embedding:
    """An nn.Embedding that is not filled: its own random start would, on the meta device, import all of torch's compiler."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False, padding_idx=padding_idx)


class GPT2Attention(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head, self.dropout = config.n_head, config.attn_pdrop
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)               # q, k and v side by side
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.resid_pdrop)
        self.prefix = None                                                   # prefix tuning puts its own here (baselines.py)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int, packing: Packing | None,
                rows: Tensor | None) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:     # (B, T, C) each
            query, key, value, seen = *(split_heads(part, self.n_head) for part in (query, key, value)), mask
            if cache is not None:
                key, value = cache.append(layer, key, value)                 # (B, H, S, D)
            if self.prefix is not None:
                key, value, seen = self.prefix(self, key, value, mask)
            return merge_heads(attention(query, key, value, seen, True, self.dropout if self.training else 0.0))
        context = per_group(attend, packing, *self.c_attn(x).chunk(3, dim=-1))
        return self.resid_dropout(self.c_proj(take(context, rows)))


class GPT2MLP(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        n_inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Conv1D(config.n_embd, n_inner)
        self.c_proj = Conv1D(n_inner, config.n_embd)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(gelu_tanh(self.c_fc(x))))


class GPT2Block(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = GPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int, packing: Packing | None,
                rows: Tensor | None) -> Tensor:
        x = take(x, rows) + self.attn(self.ln_1(x), mask, cache, layer, packing, rows)
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """Decoder-only language model with a tied output head."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict({
            "wte": embedding(config.vocab_size, config.n_embd),
            "wpe": embedding(config.n_positions, config.n_embd),
            "drop": Dropout(config.embd_pdrop),
            "h": nn.ModuleList(GPT2Block(config) for _ in range(config.n_layer)),
            "ln_f": nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon),
        })

    def hidden_states(self, input_ids: Tensor, position_ids: Tensor | None = None, mask: Tensor | None = None,
                      cache: KVCache | None = None, packing: Packing | None = None) -> Tensor:
        """Hidden states after the last LayerNorm, (B, T) -> (B, T, C), or (N,) -> (N, C) with a packing.

        mask: (B or 1, 1, T, S), True where a query may attend; None is causal over the T tokens, for an empty cache.
        cache: its S positions end with these T tokens. A row's tokens need not follow one another: the K beams of a
        prompt are K tokens of one row, with equal `position_ids` and a mask that shows each its own past (beam_search.py).
        Raises ValueError for positions that the model does not have.
        """
        past = 0 if cache is None else cache.length
        if past and mask is None:
            raise ValueError(f"{past} cached positions but no mask: pass the (B, 1, T, S) mask of what each token sees")
        if packing is not None:
            position_ids = packing.positions(self.config.n_positions, input_ids.device)
        elif position_ids is None:
            if past + input_ids.shape[1] > self.config.n_positions:
                raise ValueError(f"{past + input_ids.shape[1]} tokens, but the model has {self.config.n_positions} "
                                 "positions: shorten the input")
            position_ids = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)
        x = self.transformer.wte(input_ids) + self.transformer.wpe(position_ids)         # (B, T) -> (B, T, C)
        x = self.transformer.drop(x)
        for layer, block in enumerate(self.transformer.h):
            x = block(x, mask, cache, layer, packing, rows_of(packing, layer == self.config.n_layer - 1))
        if cache is not None:
            cache.length += input_ids.shape[1]
        return self.transformer.ln_f(x)

    def logits(self, hidden_states: Tensor) -> Tensor:
        return linear(hidden_states, self.transformer.wte.weight)            # (..., C) -> (..., V)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the next token. Padding must be on the right: no real token can see it there, so the
        mask is only checked; logits at padding mean nothing."""
        if attention_mask is not None and (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
            raise ValueError("attention_mask has a 0 before a 1: GPT-2 here takes padding on the right only")
        return self.logits(self.hidden_states(input_ids))


# ---------------------------------------------------------------- RoBERTa

class RobertaEmbeddings(nn.Module):
    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.padding_idx, self.max_length = config.pad_token_id, config.longest_input
        self.word_embeddings = embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.position_embeddings = embedding(config.max_position_embeddings, config.hidden_size, config.pad_token_id)
        self.token_type_embeddings = embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, packing: Packing | None) -> Tensor:
        if packing is not None:
            position_ids = packing.positions(self.max_length, input_ids.device) + self.padding_idx + 1
        elif input_ids.shape[1] > self.max_length:
            raise ValueError(f"{input_ids.shape[1]} tokens, but the model takes {self.max_length}: shorten the input")
        else:
            real = (input_ids != self.padding_idx).long()
            position_ids = real.cumsum(dim=1) * real + self.padding_idx      # 2, 3, 4, ... and 1 at padding
        x = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)     # (B, T) -> (B, T, C)
        return self.dropout(self.LayerNorm(x + self.token_type_embeddings.weight[0]))    # every token is of type 0


class RobertaSelfAttention(nn.Module):
    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.n_head, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.prefix = None                                                   # as in GPT-2

    def forward(self, x: Tensor, mask: Tensor | None, packing: Packing | None) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value, seen = *(split_heads(part, self.n_head) for part in (query, key, value)), mask
            if self.prefix is not None:
                key, value, seen = self.prefix(self, key, value, mask)
            return merge_heads(attention(query, key, value, seen, False, self.dropout if self.training else 0.0))
        return per_group(attend, packing, self.query(x), self.key(x), self.value(x))


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

    def forward(self, x: Tensor, mask: Tensor | None, packing: Packing | None, rows: Tensor | None) -> Tensor:
        x = self.attention["output"](take(self.attention["self"](x, mask, packing), rows), residual=take(x, rows))
        return self.output(F.gelu(self.intermediate.dense(x)), residual=x)


class ClassificationHead(nn.Module):
    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.out_proj = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = self.dropout(hidden_states[:, 0].to(self.dense.weight.dtype))    # (B, T, C) -> (B, C), the token <s>
        return self.out_proj(self.dropout(torch.tanh(self.dense(x))))        # (B, L); L = 1 is regression (STS-B)


class RobertaClassifier(nn.Module):
    """RoBERTa with a classification head."""

    def __init__(self, config: RobertaConfig):
        super().__init__()
        self.config = config
        self.roberta = nn.ModuleDict({
            "embeddings": RobertaEmbeddings(config),
            "encoder": nn.ModuleDict({"layer": nn.ModuleList(RobertaLayer(config)
                                                             for _ in range(config.num_hidden_layers))}),
        })
        self.classifier = ClassificationHead(config)

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None,
                      packing: Packing | None = None) -> Tensor:
        """(B, T) -> (B, T, C), or (N,) -> (N, C) with a packing. attention_mask: 1 at tokens, 0 at padding; None says that
        every position is a token."""
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]   # (B, 1, 1, T)
        x = self.roberta.embeddings(input_ids, packing)
        for number, layer in enumerate(self.roberta.encoder.layer, 1):
            x = layer(x, mask, packing, rows_of(packing, number == self.config.num_hidden_layers))
        return x

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, packing: Packing | None = None) -> Tensor:
        """Logits (B, L), in the order of the task's labels. A packing has to want the first token of every sequence."""
        hidden_states = self.hidden_states(input_ids, attention_mask, packing)
        return self.classifier(hidden_states if packing is None else hidden_states[:, None])


def init_weights(model: nn.Module, seed: int) -> None:
    """Fresh weights: N(0, initializer_range), biases 0, LayerNorm 1 and 0; GPT-2's residual projections are smaller by
    sqrt(2 * layers) (Radford et al. 2019, section 2.3)."""
    generator = torch.Generator().manual_seed(seed)
    std = model.config.initializer_range
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
                residual = isinstance(module, Conv1D) and name.endswith("c_proj")
                module.weight.normal_(0.0, std / math.sqrt(2 * model.config.n_layer) if residual else std,
                                      generator=generator)
                if getattr(module, "padding_idx", None) is not None:
                    module.weight[module.padding_idx].zero_()
            elif isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()


# ---------------------------------------------------------------- pretrained models

IGNORED = {                                                                  # in files, but nothing this code computes with
    "gpt2": re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias|lm_head\.weight"),
    "roberta": re.compile(r"(roberta\.)?(embeddings\.position_ids|pooler\.dense\.(weight|bias))|lm_head\..*"),
}
PREFIX = {"gpt2": "transformer.", "roberta": "roberta."}
REQUIRED = {                                                                 # settings that would change the computation
    "gpt2": {"activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
             "reorder_and_upcast_attn": False, "add_cross_attention": False, "tie_word_embeddings": True},
    "roberta": {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False,
                "classifier_dropout": None},
}


def read_config(directory: Path, num_labels: int | None, dropout: float | None) -> GPT2Config | RobertaConfig:
    """What config.json says, with num_labels and dropout in place of its own where they are given. Raises ValueError for
    what is no GPT-2 or RoBERTa, or computes otherwise than these."""
    content = read_json(directory / "config.json")
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in PREFIX:
        raise ValueError(f"{directory / 'config.json'}: model_type is {kind!r}, expected one of {', '.join(PREFIX)}")
    for key, value in REQUIRED[kind].items():
        if content.get(key, value) != value:
            raise ValueError(f"{directory / 'config.json'}: {key} is {content[key]!r}, this model computes {value!r} only")
    if kind == "roberta":
        names = content.get("id2label")
        content["num_labels"] = num_labels or (len(names) if isinstance(names, dict) else 0) or content.get("num_labels", 2)
    if dropout is not None:
        content.update(embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout,
                       hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    config_class = GPT2Config if kind == "gpt2" else RobertaConfig
    config = config_class(**{f.name: content[f.name] for f in fields(config_class) if f.name in content})
    check_config(config, directory / "config.json")
    return config


LIMITS = {"n_layer": 1000, "num_hidden_layers": 1000, "num_labels": 100_000}  # before anything is built from a file's word


def check_config(config: GPT2Config | RobertaConfig, source: Path) -> None:
    """Raises ValueError for a setting that no model can have, before any memory is taken for it."""
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        if name.endswith(("_pdrop", "_prob", "_epsilon", "_eps", "_range")):
            fits, expected = type(value) in (int, float) and 0 <= value < 1, "a number from 0 to below 1"
        elif value is None and name == "n_inner":
            continue
        else:
            least, most = 0 if name == "pad_token_id" else 1, LIMITS.get(name, 10_000_000)
            fits, expected = type(value) is int and least <= value <= most, f"a whole number from {least} to {most:,}"
        if not fits:
            raise ValueError(f"{source}: {name} is {str(value)[:60]!r}, expected {expected}")
    width, heads = ((config.n_embd, config.n_head) if isinstance(config, GPT2Config) else
                    (config.hidden_size, config.num_attention_heads))
    if width % heads:
        raise ValueError(f"{source}: {heads} heads cannot share {width} numbers evenly")
    if isinstance(config, RobertaConfig) and config.pad_token_id >= min(config.vocab_size, config.max_position_embeddings - 1):
        raise ValueError(f"{source}: pad_token_id is {config.pad_token_id}, expected a token and a position before the last")


def check_names(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Refuse weights that do not fit the model exactly, naming the first that is missing, unexpected or misshapen. A head
    may be missing as a whole."""
    wanted = model.state_dict()
    if not any(name.startswith("classifier.") for name in tensors):
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("classifier.")}
    missing, unexpected = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unexpected:
        found = [f"{len(names)} {word} (first: '{names[0]}')" for word, names in
                 (("tensors missing", missing), ("unexpected", unexpected)) if names]
        raise ValueError(f"{source}: {' and '.join(found)}; expected the {len(wanted)} tensors of the model that "
                         "config.json describes: use the weights and the config of one model")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{source}: tensor '{name}' has shape {list(tensor.shape)}, config.json asks for "
                             f"{list(wanted[name].shape)}: use the weights and the config of one model")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{source}: tensor '{name}' is {tensor.dtype}, expected fp32, fp16 or bf16 weights")


def load_pretrained(name_or_directory: str | Path, num_labels: int | None = None, dropout: float | None = None,
                    seed: int = 0) -> GPT2 | RobertaClassifier:
    """A pretrained model from a Hugging Face directory (or the name of one found locally), fp32, in eval mode.

    num_labels: labels of RoBERTa's head, default config.json's. A head in the file is loaded; without one it starts
    fresh from `seed`, and the report says so. dropout: in place of every dropout probability of config.json (0.0 is
    the authors' GPT-2, which has none). One line on stderr says what was loaded.
    Raises FileNotFoundError where nothing is found, ValueError for files that do not fit.
    """
    directory = find_model(name_or_directory)
    if directory is None:
        raise FileNotFoundError(f"no model '{name_or_directory}': neither a folder with config.json nor a model in the "
                                f"cache; fetch it with `python data.py {name_or_directory}` or give its folder "
                                "(`make demo` needs no download)")
    config = read_config(directory, num_labels, dropout)
    kind, build = ("gpt2", GPT2) if isinstance(config, GPT2Config) else ("roberta", RobertaClassifier)
    with torch.device("meta"):                                               # no memory until the file's tensors are there
        model = build(config)
    stored, file_name = read_weights(directory)
    names = {name: name if name.startswith((PREFIX[kind], "classifier.")) else PREFIX[kind] + name
             for name in stored if not IGNORED[kind].fullmatch(name)}
    if len(set(names.values())) < len(names):
        raise ValueError(f"{directory / file_name}: holds tensors both with and without the prefix '{PREFIX[kind]}'")
    tensors = {names[name]: stored[name] for name in names}
    token_embedding = tensors.get("transformer.wte.weight")
    if kind == "gpt2" and "lm_head.weight" in stored and (token_embedding is None or not torch.equal(
            stored["lm_head.weight"], token_embedding)):
        raise ValueError(f"{directory / file_name}: lm_head.weight differs from the token embedding; only tied heads load")
    fresh_head = kind == "roberta" and not any(name.startswith("classifier.") for name in tensors)
    check_names(model, tensors, directory / file_name)
    check_finite(tensors, directory / file_name)
    if fresh_head:
        tensors.update(fresh_classifier(config, seed))
    stored_as = "/".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True, assign=True)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"loaded {kind} from {directory / file_name}: {len(names)} tensors ({stored_as}), "
          f"{len(stored) - len(names)} ignored, {count:,} parameters"
          + (f"; no classifier in the file: fresh head for {config.num_labels} labels, seed {seed}" if fresh_head else ""),
          file=sys.stderr)
    return model.eval()


def fresh_classifier(config: RobertaConfig, seed: int) -> dict[str, Tensor]:
    """An untrained head: weights N(0, initializer_range), biases 0."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"dense": (config.hidden_size, config.hidden_size), "out_proj": (config.num_labels, config.hidden_size)}
    tensors = {}
    for layer, shape in shapes.items():
        tensors[f"classifier.{layer}.weight"] = torch.empty(shape).normal_(0.0, config.initializer_range,
                                                                           generator=generator)
        tensors[f"classifier.{layer}.bias"] = torch.zeros(shape[0])
    return tensors
