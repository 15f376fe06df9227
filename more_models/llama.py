"""Llama (Touvron et al. 2023), the decoder of SmolLM2 and many others, with the parameter names of the Hugging Face files.
Decoder, RMSNorm before each sublayer, rotary positions, key-value heads that groups of heads share, SwiGLU, no biases; the
output head is a matrix of its own or the token embedding.

A family beside the paper's two: model.py's load_pretrained finds it by its file's name, config.json's model_type. As there, a
block takes x and `attend`, and says where its matrices are. Left out: scaled rotary positions (rope_scaling), biases.
Shapes: ... is (B, T) or (N,), tokens end to end; C hidden size, H heads, D head size, V vocabulary, M wanted tokens.
"""
import re
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import FAMILIES, Padded, Target, check_length
from speed.linear import linear


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int = 32000
    max_position_embeddings: int = 2048
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32               # each serves as many heads as there are times fewer of them
    head_dim: int = 128
    rope_theta: int = 10_000                    # the slowest of the rotations takes about 2 pi times as many tokens
    rms_norm_eps: float = 1e-6
    attention_probs_dropout_prob: float = 0.0   # attention_dropout in the files
    tie_word_embeddings: bool = False

    family, blocks, attention, sublayers, causal = "llama", "model.layers", "self_attn", ("self_attn", "mlp"), True
    num_layers, num_heads = property(lambda self: self.num_hidden_layers), property(lambda self: self.num_attention_heads)
    longest_input = property(lambda self: self.max_position_embeddings)

    @cached_property
    def targets(self) -> dict[str, Target]:
        d, inner = self.hidden_size, self.intermediate_size
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        shapes = {"self_attn": {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)},
                  "mlp": {"gate": (inner, d), "up": (inner, d), "down": (d, inner)}}
        return {name: Target(f"{part}.{name}_proj", shape) for part in shapes for name, shape in shapes[part].items()}

    @property
    def problems(self) -> list[str]:
        """What no Llama can have, beyond what is wrong with one setting alone."""
        H, shared, D = self.num_attention_heads, self.num_key_value_heads, self.head_dim
        return [f"{shared} key-value heads cannot serve {H} heads evenly"] * bool(H % shared) + [
            f"head_dim is {D}, expected an even number: rotary positions turn pairs"] * (D % 2)


# ---------------------------------------------------------------- rotary positions (Su et al. 2021)

def turns(positions: Tensor, config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles by which tokens at these positions are turned: (...,) -> (..., 1, D / 2) each. Pair i of a
    head's numbers turns by theta^(-2 i / D) a position, so q k^T depends on the distance of two tokens."""
    pairs = torch.arange(0, config.head_dim, 2, device=positions.device).float() / config.head_dim
    angles = positions[..., None, None].float() * (1.0 / config.rope_theta ** pairs)
    return angles.cos(), angles.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D / 2) of every head's numbers, (..., H, D), as the Hugging Face files have them."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


# ---------------------------------------------------------------- the model

class Linear(nn.Linear):
    """x W^T, fast in decoding, too."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class LlamaAttention(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        C, D, n_shared = config.hidden_size, config.head_dim, config.num_key_value_heads
        self.head_dim, self.p, self.group = D, config.attention_probs_dropout_prob, config.num_heads // n_shared
        self.q_proj, self.o_proj = Linear(C, config.num_heads * D), Linear(config.num_heads * D, C)
        self.k_proj, self.v_proj = Linear(C, n_shared * D), Linear(C, n_shared * D)

    def qkv(self, x: Tensor) -> list[Tensor]:
        """3 x (..., H, D), not turned, as at position 0; a key-value head stands once for each head that it serves."""
        query, *shared = (part(x).unflatten(-1, (-1, self.head_dim)) for part in (self.q_proj, self.k_proj, self.v_proj))
        return [query, *(part[..., None, :].expand(*part.shape[:-1], self.group, -1).flatten(-3, -2) for part in shared)]

    def forward(self, x: Tensor, attend) -> Tensor:
        query, key, value = self.qkv(x)
        context = attend(turn(query, *attend.turns), turn(key, *attend.turns), value, self.p if self.training else 0.0)
        return self.o_proj(context.flatten(-2))                              # (..., H, D) -> (..., C)


class LlamaMLP(nn.Module):
    """SwiGLU (Shazeer 2020): W_down (silu(W_gate x) * W_up x)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, x: Tensor, attend, wanted: Tensor | slice = slice(None)) -> Tensor:
        x = (x + self.self_attn(self.input_layernorm(x), attend))[wanted]    # the tokens meet
        return x + self.mlp(self.post_attention_layernorm(x))                # each alone


class Llama(nn.Module):
    """Decoder-only language model; its output head is the token embedding if tie_word_embeddings says so."""
    config_class, causal, prefix, tied, head, of_task, renamed = LlamaConfig, True, "model.", "lm_head", None, None, {}
    architecture = "LlamaForCausalLM"                                        # transformers' name
    ignored = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|lm_head\.weight")
    required = {"hidden_act": "silu", "rope_scaling": None, "rope_parameters": None, "attention_bias": False, "mlp_bias": False,
                "pretraining_tp": 1, "rope_interleaved": False}
    method, fingerprints, known_as = None, None, ()                          # as in GPT-2

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
            "layers": nn.ModuleList(LlamaLayer(config) for _ in range(config.num_hidden_layers)),
            "norm": nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)})
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)
            self.tied, self.ignored = "", re.compile(self.ignored.pattern.partition("|")[0])

    @staticmethod
    def plain_settings(content: dict) -> dict:
        """config.json's content with one name and form for each setting, as LlamaConfig has it: what transformers 4 and 5
        write differently, and what they leave out."""
        usual = {field.name: field.default for field in fields(LlamaConfig)}
        content = {"attention_probs_dropout_prob": content.get("attention_dropout", 0.0)} | content
        for key in ("rope_scaling", "rope_parameters"):                      # of transformers 4 and 5
            rope = content.get(key)
            if isinstance(rope, dict) and rope.keys() <= {"rope_theta", "rope_type", "type"} and all(
                    rope.get(name) in (None, "default") for name in ("rope_type", "type")):
                content |= {key: None} | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})
        theta = content.get("rope_theta", usual["rope_theta"])
        hidden, heads = (content.get(name, usual[name]) for name in ("hidden_size", "num_attention_heads"))
        derived = {"num_key_value_heads": heads, "head_dim": hidden // heads if type(hidden) is type(heads) is int and heads
                   else None}
        return content | {"rope_theta": int(theta) if isinstance(theta, float) and theta.is_integer() else theta} | {
            name: value for name, value in derived.items() if content.get(name) is None}

    def hidden_states(self, input_ids: Tensor, attend, wanted: Tensor | slice = slice(None)) -> Tensor:
        """After the last RMSNorm: input_ids (...,) -> (..., C), or (M, C) of the wanted tokens alone. Raises ValueError like
        GPT-2's."""
        check_length(attend, self.config)
        attend.turns = turns(attend.positions, self.config)                  # every layer's are the same
        x = self.model.embed_tokens(input_ids)                               # (..., C)
        for layer in self.model.layers[:-1]:
            x = layer(x, attend)
        return self.model.norm(self.model.layers[-1](x, attend, wanted))

    def logits(self, hidden_states: Tensor) -> Tensor:
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return linear(hidden_states, head.weight)                            # (..., C) -> (..., V)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the next token; those at padding mean nothing."""
        return self.logits(self.hidden_states(input_ids, Padded(input_ids, attention_mask, causal=True)))


FAMILIES["llama"] = Llama                                                    # by config.json's model_type
